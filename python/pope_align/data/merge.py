"""Merges the pieces of one key: the prompt, and every response once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from .checks import Rating, Turn
from .pieces import Piece, Response, spelled
from .schema import text_of


def merge(pieces: Sequence[Piece], repeats: Literal["best", "mean"]) -> tuple[Piece, int]:
    """Merge pieces with the same key; returns the merged piece and how many responses were repeats.

    The first prompt is used. Blank responses are dropped. Of responses with equal text the best-scored one is kept
    ("best"), or their scores are averaged, also within groups ("mean"), as those of several annotators always are.
    """
    first = next((piece for piece in pieces if piece.prompt is not None), pieces[0])
    by_text: dict[str, list[Response]] = {}
    for piece in pieces:
        for response in piece.responses:
            if text_of(response.completion).strip():
                by_text.setdefault(content(response.completion).strip(), []).append(response)
    responses = [_mean(same) if repeats == "mean" or _rated(same) else _best(same) for same in by_text.values()]
    copies = sum(map(len, by_text.values())) - len(responses)
    policy = next((piece.logging_policy for piece in pieces if piece.logging_policy is not None), None)
    group = next((piece.group for piece in pieces if piece.group is not None), None)
    return replace(first, responses=responses, logging_policy=policy, group=group), copies


def content(value: str | list[Turn]) -> str:
    """The content by which prompts or responses are compared."""
    return value if isinstance(value, str) else spelled(value)


def _best(same: list[Response]) -> Response:
    return max(same, key=lambda response: response.score)  # the first of equals


def _mean(same: list[Response]) -> Response:
    ratings: dict[str, list[float]] = {}
    for response in same:
        for group, score in (response.group_scores or {}).items():
            ratings.setdefault(group, []).append(score)
    groups = {group: _average(scores) for group, scores in sorted(ratings.items())}
    score = _average([response.score for response in same])
    return replace(same[0], score=score, group_scores=groups or None, ratings=_by_annotator(same) or None)


def _rated(same: list[Response]) -> bool:
    """Whether what repeats is not the response, but its rating by another annotator."""
    return len({rating["annotator"] for response in same for rating in response.ratings or []}) > 1


def _by_annotator(same: list[Response]) -> list[Rating]:
    """One rating per annotator, in the order of their names; of one who rated the response repeatedly, the mean."""
    by: dict[str, list[Rating]] = {}
    for response in same:
        for rating in response.ratings or []:
            by.setdefault(rating["annotator"], []).append(rating)
    return [{**by[who][0], "score": _average([rating["score"] for rating in by[who]])} for who in sorted(by)]


def _average(scores: Sequence[float]) -> float:
    total = sum(scores)
    return total / len(scores) if math.isfinite(total) else sum(score / len(scores) for score in scores)
