"""Chooses how much to shrink: SLOPE (Lepski's principle) over a list of parameters, and a bound on the bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .._arrays import Floats
from ..stats.ratios import Ratios
from .weights import Shrink, ShrinkKind

#: Quantiles of the raw weights that give the candidate parameters; the last hardly shrinks.
_LADDER = (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)


def ladder(kind: ShrinkKind, log_w: Floats) -> list[Shrink]:
    """Candidate parameters from weak to strong shrinkage, at quantiles ``c`` of the raw weights: ``c``, ``c^2``, or ``1
    / c``.
    """
    limits = np.unique(np.exp(np.clip(np.quantile(log_w, _LADDER), -300, 300)))[::-1]
    if kind == "dros":
        return [Shrink(kind, float(min(limit**2, 1e300))) for limit in limits]
    if kind == "subgaussian":
        return [Shrink(kind, float(value)) for value in np.unique(np.minimum(1.0, 1 / limits))]
    return [Shrink(kind, float(limit)) for limit in limits]


def slope(values: Sequence[float], widths: Sequence[float], gaps: Floats | None = None) -> int:
    """The index that SLOPE chooses: the narrowest interval that is consistent with every wider one.

    In order of decreasing width ``i`` is accepted while ``|values_i - values_j| <= gaps_ij`` for every ``j`` before it,
    i.e. while the added bias is within the noise.

    Args:
        values, widths: estimate and half-width of its interval for every candidate.
        gaps: ``[n, n]`` how far two candidates may differ. None: ``widths_i + (sqrt 6 - 1) widths_j``, which assumes
            independent noise; estimates of one log share most of their noise.

    Source: Su, Srinath and Krishnamurthy (2020); the constant is that of Tucker and Lee (2021), SLOPE++.
    """
    order = np.argsort(-np.asarray(widths), kind="stable")
    accepted: list[int] = []
    for i in order:
        limits = [widths[i] + (math.sqrt(6) - 1) * widths[j] if gaps is None else gaps[i, j] for j in accepted]
        if any(abs(values[i] - values[j]) > limit for j, limit in zip(accepted, limits, strict=True)):
            break
        accepted.append(int(i))
    return accepted[-1]


def slope_of(candidates: Sequence[Ratios]) -> int:
    """`slope` for estimates of one log, with one column each: they may differ by one paired standard error.

    A shared error cancels in the paired difference, which reveals a bias that overlapping intervals would hide.
    """
    values = [float(each.values()[0]) for each in candidates]
    widths = [float(np.sqrt(each.covariance()[0, 0])) for each in candidates]
    gaps = np.zeros((len(candidates), len(candidates)))
    for i, mine in enumerate(candidates):
        for j, theirs in enumerate(candidates[:i]):
            gaps[i, j] = gaps[j, i] = math.sqrt(float(mine.minus(theirs).covariance()[0, 0]))
    return slope(values, widths, gaps)


def bias_bound(log_w: Floats, shrink: Shrink, residual: Floats, delta: float = 0.05) -> float:
    """Upper bound, with probability ``1 - delta``, on the bias caused by shrinking, for residuals in [-1, 1].

    ``|mean((w - w~) e)| + sqrt(2 mean(w^2) ln(2/delta) / n) + 2 max(w) ln(2/delta) / (3 n)``, with ``e = r - q_hat``.

    Args:
        log_w: ``[R]`` raw.
        residual: ``[R]`` rewards minus predictions (predictions are 0 for plain weighting).

    Source: Su et al. (2020), section 5.
    """
    w, shrunk, count = np.exp(log_w), np.exp(shrink.log(log_w)), log_w.size
    removed = float(((w - shrunk) @ residual) / count)
    return bias_bound_of(removed, float(np.square(w).mean()), float(w.max()), count, delta)


def bias_bound_of(removed: float, mean_square: float, largest: float, count: int, delta: float = 0.05) -> float:
    """`bias_bound` from ``mean((w - w~) e)``, ``mean(w^2)`` and ``max(w)``."""
    logarithm = math.log(2 / delta)
    spread = math.sqrt(2 * mean_square * logarithm / count)
    return abs(removed) + spread + 2 * largest * logarithm / (3 * count)
