"""Coverage of each opinion group's favourite references, and of the worst-served group."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from .similarity import covered, similarity_matrix


def group_weights(group_scores: Sequence[Mapping[str, float]]) -> tuple[list[str], Floats]:
    """The approval of every group for every reference, as a matrix.

    Args:
        group_scores: ``[M]`` one mapping per reference, from group to its feedback. Feedback of zero or below is no
            approval; a reference does not count for a group that did not rate it.

    Returns:
        The names of the ``G`` groups, sorted, and ``[G, M]`` weights.

    Raises:
        ValueError: feedback that is not finite.
    """
    names = sorted({group for scores in group_scores for group in scores})
    weights = np.zeros((len(names), len(group_scores)))
    for column, scores in enumerate(group_scores):
        for row, group in enumerate(names):
            value = scores.get(group, 0.0)
            if not math.isfinite(value):
                raise ValueError(f"group_scores[{column}][{group!r}]: expected a finite number, got {value}")
            weights[row, column] = max(value, 0.0)
    return names, weights


def group_coverage(
    similarity: Floats,  # [n, M]
    weights: Floats,  # [G, M] approval of group g for reference j, >= 0
    threshold: float | None = 0.8,
) -> npt.NDArray[np.float64]:
    """For every group, the covered share of the references that it approves of, weighted by approval.

    ``sum_j a_gj [max_i s_ij >= threshold] / sum_j a_gj``; with ``threshold=None`` the bracket is replaced by ``max_i
    s_ij``, which distinguishes models even if nothing reaches a threshold. In [0, 1] with a threshold, [-1, 1] without;
    higher is better. 0 without answers (NaN without a threshold); NaN for a group that approves of nothing. The
    smallest entry is the worst-served group.

    Returns:
        ``[G]`` float64.

    Raises:
        ValueError: shapes that do not match; a negative weight.
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.ndim != 2:
        raise ValueError(f"weights: expected [G, M], got {list(w.shape)}")
    if (w < 0).any():
        raise ValueError(f"weights: expected numbers >= 0, got {w.min()}")
    s = similarity_matrix(similarity, w.shape[1])
    if threshold is None:
        served = s.max(0) if len(s) else np.full(s.shape[1], np.nan)
    else:
        served = covered(s, threshold).astype(np.float64)
    total = w.sum(1)
    safe = np.where(total > 0, total, np.nan)
    shares: Floats = (w @ served) / safe
    return shares


def worst_group(coverage: Floats) -> float:
    """The coverage of the worst-served group, ignoring NaN; NaN if no group is left."""
    defined = coverage[~np.isnan(coverage)]
    return float(defined.min()) if defined.size else float("nan")
