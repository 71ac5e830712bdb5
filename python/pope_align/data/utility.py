"""Feedback to utility: the scores of one slate become numbers in [0, 1], comparable across slates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

UtilityTransform = Literal["minmax", "log1p_minmax", "rank", "none"]

Utility = npt.NDArray[np.float64]


def to_utility(scores: Sequence[float] | Utility, transform: UtilityTransform) -> Utility:
    """The utilities of one slate's responses by a named transform.

    =================  ===================================================================================
    ``minmax``         ``(s - min s) / (max s - min s)``
    ``log1p_minmax``   the same on ``sign(s) log(1 + |s|)``, for heavy-tailed votes; negative votes are fine
    ``rank``           ``(r - 1) / (k - 1)``, ``r`` the ascending rank from 1, ties sharing their average
    ``none``           the scores themselves, which must lie in [0, 1]
    =================  ===================================================================================

    When all scores are equal (or ``k = 1``) the first three give 0.5 for every response: the feedback tells nothing
    apart, 0/0 is not a utility, and 0.5 is the one value that stays when good and bad trade places (``u -> 1 - u``).

    Args:
        scores: ``[k]`` finite numbers, larger is better.
        transform: one of the four names.

    Returns:
        ``[k]`` float64 in [0, 1], never NaN.

    Raises:
        ValueError: an unknown transform; no scores; a score that is not finite, or outside [0, 1] with ``"none"``.
    """
    if transform not in get_args(UtilityTransform):
        raise ValueError(f"transform: expected one of {', '.join(get_args(UtilityTransform))}, got {transform!r}")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"scores: expected a non-empty list of numbers, got shape {list(values.shape)}")
    _check_each(values, np.isfinite(values), "a finite number")
    if transform == "none":
        _check_each(values, (values >= 0) & (values <= 1), "a number in [0, 1] with transform='none'")
        return values.copy()
    if transform == "rank":
        return _rank(values)
    if transform == "log1p_minmax":
        values = np.sign(values) * np.log1p(np.abs(values))
    return _minmax(values)


def _minmax(values: Utility) -> Utility:
    low, high = values.min(), values.max()
    if low == high:
        return np.full(values.size, 0.5)
    scale = max(abs(low), abs(high))  # so that high - low cannot overflow
    return (values / scale - low / scale) / (high / scale - low / scale)


def _rank(values: Utility) -> Utility:
    if values.size == 1:
        return np.full(1, 0.5)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    average = count.cumsum() - (count + 1) / 2  # mean of the ranks 0 ... k-1 that a group of ties covers
    return average[group] / (values.size - 1)


def _check_each(values: Utility, fine: npt.NDArray[np.bool_], expected: str) -> None:
    if not fine.all():
        at = int(np.argmin(fine))
        raise ValueError(f"scores[{at}]: expected {expected}, got {values[at]}")
