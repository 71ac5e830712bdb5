"""Who rated a log, and how far they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data.raters import RatingTable, group_feedback, rating_table
from .data.schema import Slate
from .stats.agreement import krippendorff_alpha


@dataclass(frozen=True, slots=True)
class Raters:
    """Who rated the log, and how far they disagree.

    Attributes:
        annotators: people; None if the log has only means of groups.
        ratings: by annotators, or means of groups.
        per_response: ratings of a response, on average.
        alpha: Krippendorff's alpha of the annotators on the same responses: 1 if all agree, 0 if as by chance; None
            where no response has two annotators, or all ratings are equal.
        within: standard deviation of the ratings of one response, pooled; None as above.
        groups: of each group: its people, ratings, and mean rating.
        compared: slates in which at least two groups rated every response; ``apart``: those of them in which two groups
            have no best response in common.
    """

    annotators: int | None
    ratings: int
    per_response: float
    alpha: float | None
    within: float | None
    groups: dict[str, tuple[int | None, int, float]]
    compared: int
    apart: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON."""
        names = ("annotators", "ratings", "mean")
        groups = {group: dict(zip(names, values, strict=True)) for group, values in self.groups.items()}
        plain = ("annotators", "ratings", "per_response", "alpha", "within", "compared", "apart")
        return {**{name: getattr(self, name) for name in plain}, "groups": groups}


def raters_of(slates: Sequence[Slate]) -> Raters | None:
    """The raters of a log; None if it has neither ratings by annotator nor by group."""
    if all(slate.ratings is None and slate.group_scores is None for slate in slates):
        return None
    table = rating_table(slates)
    if not len(table):
        return None
    people = table.annotator
    alpha = None if people is None else krippendorff_alpha(table.response, table.score)
    favourites = [each for slate in slates if len(each := _favourites(slate, table.groups)) > 1]
    return Raters(
        annotators=None if people is None else len(table.annotators),
        ratings=len(table),
        per_response=len(table) / np.unique(table.response).size,
        alpha=None if alpha is None or np.isnan(alpha) else alpha,
        within=None if people is None else _spread_within(table),
        groups={
            name: (
                None if people is None else int(np.unique(people[table.of_group(name)]).size),
                int(table.of_group(name).size),
                float(table.score[table.of_group(name)].mean()),
            )
            for name in table.groups
        },
        compared=len(favourites),
        apart=sum(any(not one & other for one in each for other in each) for each in favourites),
    )


def _spread_within(table: RatingTable) -> float | None:
    """The pooled standard deviation of the ratings of one response."""
    counts = np.bincount(table.response)
    means = np.bincount(table.response, table.score) / np.maximum(counts, 1)
    free = int(np.maximum(counts - 1, 0).sum())
    return None if free == 0 else float(np.sqrt(np.square(table.score - means[table.response]).sum() / free))


def _favourites(slate: Slate, groups: Sequence[str]) -> list[set[int]]:
    """The best responses of every group that rated all of them."""
    rated = [group_feedback(slate, group) for group in groups]
    whole = [[score for score in scores if score is not None] for scores in rated]
    complete = [scores for scores in whole if len(scores) == len(slate.completions)]
    return [{at for at, score in enumerate(scores) if score == max(scores)} for scores in complete]
