"""Maps scores to utilities for evaluation, by one map for the whole log.

With a transform within the slate (minmax, rank) a response's utility depends on the others of its slate. That works for
training, but it is not a reward: in slates of one it is constant, and its sum over a slate does not depend on the
responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .._arrays import Floats
from ..data.feedback import UtilityTransform, to_utility
from ..data.schema import Slate

#: A linear map for the whole log, the same of log(1 + |score|), or a transform within each slate.
EvaluationTransform = Literal["calibrated", "log1p_calibrated"] | UtilityTransform

#: All names of transforms.
TRANSFORMS: tuple[str, ...] = ("calibrated", "log1p_calibrated", *get_args(UtilityTransform))


@dataclass(frozen=True)
class UtilityScale:
    """How scores became utilities, and therefore the unit of V.

    Attributes:
        transform: one of `TRANSFORMS`.
        relative: whether utilities only compare the responses of one slate.
        unit: the meaning of a difference of 1 in V, in words.
        low, high: smallest and largest possible utility.
    """

    transform: str = "given"
    relative: bool = False
    unit: str = "utility as given"
    low: float = 0.0
    high: float = 1.0

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest utility."""
        return self.low, self.high


def utilities(
    slates: Sequence[Slate],
    transform: EvaluationTransform = "calibrated",
    score_range: tuple[float, float] | None = None,
) -> tuple[Floats, UtilityScale]:
    """``[R]`` utilities in [0, 1] of all responses, and the scale that they are on.

    Equivalent, for "calibrated": ``(scores - low) / (high - low)``.

    Args:
        transform: "calibrated": one linear map for the whole log; "log1p_calibrated": the same of
            ``sign(s) log(1 + |s|)``, for heavy-tailed votes; or a transform within the slate
            (`pope_align.data.to_utility`), whose utilities are relative.
        score_range: declared least and greatest score of the calibrated maps. None: 0 and 1 if every score is in this
            range, else the smallest and largest score of the log.

    Raises:
        ValueError: an unknown transform; a range with a transform that has none; a score outside the range, with its
            place; all scores are equal and no range is given.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"utility_transform: expected one of {', '.join(TRANSFORMS)}, got {transform!r}")
    if transform == "calibrated" or transform == "log1p_calibrated":
        return _calibrated(slates, transform == "log1p_calibrated", score_range)
    if score_range is not None:
        raise ValueError(f"score_range: expected none with utility_transform={transform!r}, got {score_range!r}")
    values = np.concatenate([to_utility(slate.scores, transform) for slate in slates])
    if transform == "none":
        return values, UtilityScale("none", unit="1 of the score, which lies in [0, 1]")
    return values, UtilityScale(transform, relative=True, unit=f"relative: {transform} within each slate")


def _calibrated(
    slates: Sequence[Slate], logarithmic: bool, score_range: tuple[float, float] | None
) -> tuple[Floats, UtilityScale]:
    scores = np.concatenate([np.asarray(slate.scores, dtype=np.float64) for slate in slates])
    if score_range is None and not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers")
    bounds = calibration(score_range, float(scores.min()), float(scores.max()), logarithmic=logarithmic)
    _inside(slates, bounds.least, bounds.most)
    return bounds.utilities(scores), bounds.scale


@dataclass(frozen=True)
class Calibration:
    """One map from scores to utilities in [0, 1] for a whole log.

    Attributes:
        least, most: scores of utility 0 and 1.
        logarithmic: whether it is linear in ``sign(s) log(1 + |s|)``, or in the score.
        scale: the unit that it gives.
    """

    least: float
    most: float
    logarithmic: bool
    scale: UtilityScale

    def utilities(self, scores: Floats) -> Floats:
        """``[R]`` of scores within the range."""
        if not self.logarithmic:
            return (scores - self.least) / (self.most - self.least)
        bottom, top = _log1p(np.array([self.least, self.most]))
        return (_log1p(scores) - bottom) / (top - bottom)


def calibration(
    declared: tuple[float, float] | None, least: float, most: float, *, logarithmic: bool = False
) -> Calibration:
    """The map for a declared range of scores, or for a log with these least and greatest scores.

    Raises:
        ValueError: an invalid range, or all scores are equal and no range is declared.
    """
    low, high = declared if declared is not None else _range_of(least, most)
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"score_range: expected two finite numbers, low < high, got {(low, high)!r}")
    known = declared is not None
    origin = "declared" if known else ("as given" if (low, high) == (0.0, 1.0) else "least and greatest of this log")
    unit = f"{high - low:g} of the score ({low:g} to {high:g}, {origin})"
    if logarithmic:
        unit = f"the way from {low:g} to {high:g} of the score on a scale of log(1 + |score|) ({origin})"
    name = "log1p_calibrated" if logarithmic else "calibrated"
    return Calibration(low, high, logarithmic, UtilityScale(name, unit=unit))


def _range_of(low: float, high: float) -> tuple[float, float]:
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    if low == high:
        raise ValueError(
            f"score_range: expected the least and greatest score that there can be, since every score here is {low:g} "
            "and the log cannot tell"
        )
    return low, high


def _inside(slates: Sequence[Slate], low: float, high: float) -> None:
    for number, slate in enumerate(slates):
        for index, score in enumerate(slate.scores):
            if not low <= score <= high:
                raise ValueError(
                    f"slate {number}: scores[{index}]: expected a number in the score_range [{low:g}, {high:g}], "
                    f"got {score:g}"
                )


def _log1p(values: Floats) -> Floats:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))
