"""Empirical-likelihood intervals: they follow the skewness of the data, which matters if clusters are few."""

from __future__ import annotations

import math

import numpy as np

from .._arrays import Floats
from .._extras import require
from .ratios import Ratios

#: Logarithm of the parameter at which all weight is on one value, in float64.
_ALL_ON_ONE = -690.0

#: At most as many linearisations of the value; a ratio needs about ten.
_STEPS = 100


def empirical_likelihood_interval(ratios: Ratios, level: float) -> tuple[Floats, Floats]:
    """All values that reweighted clusters can have, unless the weights would have to be too uneven.

    With weights ``p_c`` of the clusters, ``sum p_c = 1``, the interval holds ``V(p)`` for every ``p`` with ``-2 sum
    log(C p_c)`` of at most the square of the t quantile of C - 1 degrees. It is not symmetric: it reaches further to
    the side of the longer tail; that of a self-normalised estimate never leaves the range of the utilities.

    Returns:
        ``[P]`` lower and upper ends; NaN where the value is, and for a single cluster, which shows no spread.

    Source: Owen, "Empirical Likelihood" (2001); Karampatziakis, Langford and Mineiro, "Empirical likelihood for
    contextual bandits" (2020).
    """
    if ratios.num_clusters < 2:
        nothing = np.full(ratios.numerators.shape[2], math.nan)
        return nothing, nothing
    special = require("scipy.special", extra="train", purpose="for empirical-likelihood intervals")
    limit = float(special.stdtrit(ratios.num_clusters - 1, (1 + level) / 2)) ** 2
    columns = [(ratios.numerators[:, :, at], ratios.denominators) for at in range(ratios.numerators.shape[2])]
    low, high = np.array([[_end(*column, limit, side) for column in columns] for side in (-1, 1)])
    return low, high


def _end(numerators: Floats, denominators: Floats, limit: float, side: int) -> float:
    """The greatest (``side`` 1) or least (-1) value.

    The value is linearised at the weights and the weights are chosen for that line, again and again until the value
    stays.
    """
    weights = np.full(denominators.shape[1], 1 / denominators.shape[1])
    value = _value(numerators, denominators, weights)
    if not math.isfinite(value):
        return math.nan
    for _ in range(_STEPS):
        totals = denominators @ weights
        each = (numerators @ weights / totals)[:, None]
        chosen = _heaviest(side * ((numerators - each * denominators) / totals[:, None]).sum(0), limit)
        further = _value(numerators, denominators, chosen)
        while side * further < side * value - 1e-12 * abs(value):  # weights between allowed ones are allowed
            chosen = (chosen + weights) / 2
            further = _value(numerators, denominators, chosen)
        weights, moved, value = chosen, abs(further - value), further
        if moved <= 1e-10 * max(abs(value), 1e-300):
            break
    return value


def _value(numerators: Floats, denominators: Floats, weights: Floats) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return float((numerators @ weights / (denominators @ weights)).sum())


def _heaviest(values: Floats, limit: float) -> Floats:
    """The allowed weights with the greatest weighted mean of ``values``.

    They are ``p_c = 1 / (C m (u_c + a))`` with ``u_c = max z - z_c`` and ``m = mean(1 / (u + a))``: one parameter
    ``a > 0``, from all weight on the greatest value (0) to equal weights (infinity).
    """
    optimize = require("scipy.optimize", extra="train", purpose="for empirical-likelihood intervals")
    count, scale = values.size, float(np.ptp(values))
    if scale == 0:
        return np.full(count, 1 / count)
    below = (values.max() - values) / scale

    def excess(logarithm: float) -> float:
        shifted = below + math.exp(logarithm)
        return 2 * float(np.log((1 / shifted).mean() * shifted).sum()) - limit

    if excess(_ALL_ON_ONE) < 0:  # so few clusters that even all weight on one is allowed
        return np.asarray((below == 0) / (below == 0).sum())
    end = math.log(count) + 10  # there the weights are equal up to 1e-4 / C
    inverse = 1 / (below + math.exp(optimize.brentq(excess, _ALL_ON_ONE, end, xtol=1e-12)))
    return np.asarray(inverse / inverse.sum())
