"""Ratings of a log as one table: which response, by which annotator, of which group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from .schema import Slate

#: The code of a rating by a person of no known group.
NO_GROUP = -1


@dataclass(frozen=True, eq=False)
class RatingTable:
    """``N`` ratings of the ``R`` responses of a log.

    Attributes:
        response: ``[N]`` the response, counted through the whole log.
        annotator: ``[N]`` index into ``annotators``; None if the log has means of groups only (``group_scores``), which
            do not say how many people they are of.
        group: ``[N]`` index into ``groups``, or `NO_GROUP`.
        score: ``[N]``.
    """

    response: Integers
    annotator: Integers | None
    group: Integers
    score: Floats
    annotators: tuple[str, ...]
    groups: tuple[str, ...]

    def __len__(self) -> int:
        return self.score.size

    def of_group(self, name: str) -> Integers:
        """The numbers of a group's ratings."""
        return np.flatnonzero(self.group == self.groups.index(name))


def rating_table(slates: Sequence[Slate]) -> RatingTable:
    """The ratings of all slates; the means of groups (``group_scores``) if no slate has ratings by annotator.

    Raises:
        ValueError: the log has neither.
    """
    by_annotator = any(slate.ratings is not None for slate in slates)
    if not by_annotator and not any(slate.group_scores is not None for slate in slates):
        raise ValueError(
            "slates: expected ratings by annotator (`pope convert --keep-users`) or group_scores, got neither"
        )
    rows: list[tuple[int, str | None, str | None, float]] = []
    first = 0
    for slate in slates:
        if by_annotator:
            for at, ratings in enumerate(slate.ratings or [], start=first):
                rows += [(at, each["annotator"], each.get("group"), each["score"]) for each in ratings]
        else:
            for at, means in enumerate(slate.group_scores or [], start=first):
                rows += [(at, None, group, score) for group, score in means.items()]
        first += len(slate.completions)
    response, people, groups, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    names = tuple(sorted({name for name in people if name is not None}))
    kinds = tuple(sorted({name for name in groups if name is not None}))
    code, kind = {name: at for at, name in enumerate(names)}, {name: at for at, name in enumerate(kinds)}
    return RatingTable(
        np.array(response, dtype=np.int64),
        np.array([code[str(name)] for name in people], dtype=np.int64) if by_annotator else None,
        np.array([NO_GROUP if name is None else kind[name] for name in groups], dtype=np.int64),
        np.array(scores, dtype=np.float64),
        names,
        kinds,
    )


def group_feedback(slate: Slate, group: str) -> list[float | None]:
    """``[k]`` a group's mean rating of each response, or its ``group_scores``; None where it has none."""
    if slate.ratings is None:
        return [scores.get(group) for scores in slate.group_scores or [{}] * len(slate.completions)]
    return [_mean([each["score"] for each in given if each.get("group") == group]) for given in slate.ratings]


def _mean(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


#: From a slate to ``[k]`` the scores that people or groups of people gave each response.
Voices = Callable[[Slate], list[list[float]]]


def annotator_scores(slate: Slate) -> list[list[float]]:
    """``[k]`` the ratings of each response by its annotators."""
    return [[each["score"] for each in given] for given in slate.ratings or [[]] * len(slate.completions)]


def group_scores(slate: Slate) -> list[list[float]]:
    """``[k]`` the feedback on each response by groups: ``group_scores``, or without it the means of their ratings."""
    if slate.group_scores is not None or slate.ratings is None:
        return [list(scores.values()) for scores in slate.group_scores or [{}] * len(slate.completions)]
    names = sorted({each["group"] for given in slate.ratings for each in given if "group" in each})
    columns = [group_feedback(slate, name) for name in names]
    return [[column[at] for column in columns if column[at] is not None] for at in range(len(slate.completions))]  # type: ignore[misc]
