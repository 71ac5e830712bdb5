"""Converts feedback to utility: scores, votes, rankings, pairs and opinion groups become numbers in [0, 1].

Pure functions on NumPy arrays, float64. `to_utility` maps the scores of one slate; the others turn other kinds of
feedback into scores or utilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from .._extras import require
from .transforms import Aggregation as Aggregation
from .transforms import UtilityTransform as UtilityTransform

Utility = npt.NDArray[np.float64]

#: Regularisation of Plackett-Luce worths in `to_utility`, where there is only one ranking; without it the first would
#: be infinitely better than the second.
ONE_RANKING_PENALTY = 0.1


def to_utility(scores: Sequence[float] | Utility, transform: UtilityTransform) -> Utility:
    """The utilities of one slate's responses by a named transform.

    =================  ===================================================================================
    ``minmax``         ``(s - min s) / (max s - min s)``
    ``log1p_minmax``   the same on ``sign(s) log(1 + |s|)``, for heavy-tailed votes; negative votes are fine
    ``rank``           ``(r - 1) / (k - 1)``, ``r`` the ascending rank from 1, ties sharing their average
    ``softmax``        ``exp(s) / sum exp(s)``: sums to 1
    ``plackett_luce``  ``minmax`` of the `plackett_luce` log-worths of the ranking that the scores make
    ``none``           the scores themselves, which must lie in [0, 1]
    =================  ===================================================================================

    When all scores are equal (or ``k = 1``) all but ``softmax`` (``1 / k`` each) and ``none`` give 0.5 for every
    response: the feedback does not distinguish responses, and 0.5 is the only value that is unchanged when the scores
    are negated (``u -> 1 - u``). `is_constant` detects such slates, so that they can be counted.

    Args:
        scores: ``[k]`` finite numbers, larger is better.
        transform: one of the six names.

    Returns:
        ``[k]`` float64 in [0, 1], never NaN.

    Raises:
        ValueError: an unknown transform; no scores; a score that is not finite, or outside [0, 1] with ``"none"``.
    """
    if transform not in get_args(UtilityTransform):
        raise ValueError(f"transform: expected one of {', '.join(get_args(UtilityTransform))}, got {transform!r}")
    values = _finite_vector("scores", scores)
    if transform == "none":
        _check_each("scores", values, (values >= 0) & (values <= 1), "a number in [0, 1] with transform='none'")
        return values.copy()
    if transform == "rank":
        return _rank(values)
    if transform == "softmax":
        with np.errstate(over="ignore"):
            exponentials = np.exp(values - values.max())  # at worst exp(-inf) = 0
        return exponentials / exponentials.sum()
    if transform == "plackett_luce":
        if is_constant(values):
            return np.full(values.size, 0.5)
        values = plackett_luce([_buckets(values)], values.size, penalty=ONE_RANKING_PENALTY)
    if transform == "log1p_minmax":
        values = np.sign(values) * np.log1p(np.abs(values))
    return _minmax(values)


def is_constant(scores: Sequence[float] | Utility) -> bool:
    """Whether all scores of a slate are equal."""
    values = _finite_vector("scores", scores)
    return bool(values.min() == values.max())


#: A minmax utility below this counts as small.
SMALL_UTILITY = 0.05


def heavy_tail_hint(small: int, responses: int) -> list[str]:
    """A hint if most minmax utilities are small, i.e. a few responses have nearly all votes."""
    if responses == 0 or small <= responses / 2:
        return []
    return [
        f"{small / responses:.0%} of the utilities are below {SMALL_UTILITY} with minmax: the scores have a heavy "
        "tail, and the transform log1p_minmax distinguishes the other responses"
    ]


def shrunk_rate(
    up: npt.ArrayLike, total: npt.ArrayLike, *, prior_up: float = 1.0, prior_total: float = 2.0
) -> npt.NDArray[np.float64]:
    """Share of votes that are up, shrunk towards a prior: ``(up + prior_up) / (total + prior_total)``, in (0, 1).

    The posterior mean of a rate under ``Beta(prior_up, prior_total - prior_up)``; the default is the uniform prior. So
    1 of 1 (0.67) is not better than 95 of 100 (0.94), and no votes at all give the prior's mean.

    Args:
        up, total: counts, ``0 <= up <= total``; scalars or arrays of one shape.
        prior_up, prior_total: the prior's pseudo-counts; `beta_prior` fits them to a log.

    Raises:
        ValueError: invalid counts or pseudo-counts.
    """
    if not 0 < prior_up < prior_total:
        raise ValueError(f"prior_up: expected 0 < prior_up < prior_total, got {prior_up!r} and {prior_total!r}")
    ups, totals = _votes(up, total)
    return (ups + prior_up) / (totals + prior_total)


def beta_prior(up: npt.ArrayLike, total: npt.ArrayLike) -> tuple[float, float]:
    """The maximum-likelihood ``prior_up`` and ``prior_total`` of `shrunk_rate` for a log's votes (beta-binomial).

    Maximum likelihood by ``scipy.optimize.minimize`` on the log-likelihood of ``scipy.stats.betabinom``.

    Args:
        up, total: ``[n]`` counts of many responses; responses without votes are left out.

    Raises:
        ValueError: invalid counts; fewer than two responses with votes.
    """
    optimize = require("scipy.optimize", extra="train", purpose="to fit a prior")
    stats = require("scipy.stats", extra="train", purpose="to fit a prior")
    ups, totals = _votes(up, total)
    voted = totals > 0
    if voted.sum() < 2:
        raise ValueError(f"total: expected at least two responses with votes, got {int(voted.sum())}")
    ups, totals = ups[voted], totals[voted]

    def loss(log_shape: Utility) -> float:
        return -float(stats.betabinom.logpmf(ups, totals, *np.exp(log_shape)).sum())

    fit = optimize.minimize(loss, np.zeros(2), bounds=[(-10, 10)] * 2)
    first, second = np.exp(fit.x)
    return float(first), float(first + second)


def age_corrected(scores: npt.ArrayLike, age: npt.ArrayLike, *, scale: float) -> npt.NDArray[np.float64]:
    """Votes as expected after a long time: ``s / max(1 - exp(-age / scale), 0.05)``, with the sign of ``s``.

    The rate of votes falls by the factor ``e`` in ``scale``, so ``1 - exp(-age / scale)`` of them have arrived at
    ``age``. The floor keeps early votes of a new response from counting more than twentyfold.

    Args:
        scores: ``[k]`` votes.
        age: ``[k]`` time since each response appeared, in the unit of ``scale``, ``>= 0``.
        scale: > 0.

    Raises:
        ValueError: ages below 0, lengths that differ, a scale that is not positive.
    """
    values, ages = _finite_vector("scores", scores), _finite_vector("age", age)
    if ages.shape != values.shape:
        raise ValueError(f"age: expected {values.size} numbers, one per score, got {ages.size}")
    if not 0 < scale < np.inf:
        raise ValueError(f"scale: expected a number > 0, got {scale!r}")
    _check_each("age", ages, ages >= 0, "a number >= 0")
    return values / np.maximum(-np.expm1(-ages / scale), 0.05)


Ranking = Sequence[int | Sequence[int]]


def plackett_luce(rankings: Sequence[Ranking], items: int, *, penalty: float = 0.0) -> Utility:
    """Plackett-Luce log-worths of items from full, partial and tied rankings, by maximum (penalised) likelihood.

    Maximises ``sum log P(ranking) - penalty * sum theta^2`` with ``scipy.optimize.minimize``. A ranking is drawn from
    the best down: item ``i`` gets the next place with probability ``exp(theta_i) / sum_j exp(theta_j)`` over the items
    that are not placed yet. A ranking says nothing about items that it does not name. Tied items ``D`` share a place by
    Efron's formula (the denominators are those of an average order): ``prod_i exp(theta_i)`` over ``prod_{l=0}^{|D|-1}
    (A - (l/|D|) B)``, with ``A`` the sum of the worths not placed yet and ``B`` that of ``D``.

    Args:
        rankings: item numbers from best to worst; a nested list is a tie: ``[2, [0, 3], 1]``.
        items: the number of items, ``0 ... items - 1``.
        penalty: >= 0, as ``alpha`` of ``choix.opt_rankings``. The default is plain maximum likelihood, which is
            infinite if some items are never placed behind the others; then the penalty must be positive.

    Returns:
        ``[items]`` log-worths with mean 0; with a penalty, an item that is in no ranking has 0.

    Raises:
        ValueError: no rankings, item numbers out of range or repeated; a likelihood without a maximum.
    """
    optimize = require("scipy.optimize", extra="train", purpose="to fit Plackett-Luce worths")
    if not penalty >= 0:
        raise ValueError(f"penalty: expected a number >= 0, got {penalty!r}")
    buckets = [_checked_ranking(number, ranking, items) for number, ranking in enumerate(rankings)]
    if not buckets:
        raise ValueError("rankings: expected at least one ranking, got none")
    if penalty == 0:
        _check_connected(buckets, items)
    fit = optimize.minimize(
        _plackett_luce_loss,
        np.zeros(items),
        args=(*_denominators(buckets, items), penalty),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-9},
    )
    return np.asarray(fit.x - fit.x.mean(), dtype=np.float64)


def bradley_terry(pairs: Sequence[tuple[int, int]], items: int, *, penalty: float = 0.0) -> Utility:
    """Bradley-Terry log-worths of items from pairs ``(winner, loser)``: `plackett_luce` of rankings of two.

    ``P(i beats j) = 1 / (1 + exp(theta_j - theta_i))``.
    """
    return plackett_luce([list(pair) for pair in pairs], items, penalty=penalty)


def group_utility(
    group_scores: npt.ArrayLike, aggregation: Aggregation, weights: npt.ArrayLike | None = None
) -> Utility:
    """One utility per response from those of ``G`` groups of raters.

    ===============  ==============================================================================
    ``utilitarian``  ``sum_g w_g u_g``: what people get on average
    ``maximin``      ``min_g u_g``: what the worst-off group gets
    ``nash``         ``prod_g u_g^(w_g)``: the geometric mean; zero where any group gets nothing
    ===============  ==============================================================================

    Always maximin <= nash <= utilitarian.

    Args:
        group_scores: ``[G, k]`` numbers in [0, 1].
        aggregation: one of the three names.
        weights: ``[G]`` numbers >= 0, such as group sizes, scaled to sum to 1; None for equal ones. ``maximin`` ignores
            groups of weight 0.

    Returns:
        ``[k]`` float64 in [0, 1].

    Raises:
        ValueError: an unknown name, shapes that do not fit, numbers out of range.
    """
    if aggregation not in get_args(Aggregation):
        raise ValueError(f"aggregation: expected one of {', '.join(get_args(Aggregation))}, got {aggregation!r}")
    scores = np.asarray(group_scores, dtype=np.float64)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"group_scores: expected [groups, responses], got shape {list(scores.shape)}")
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("group_scores: expected numbers in [0, 1], got others (or NaN)")
    shares = np.full(len(scores), 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != scores.shape[:1] or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(f"weights: expected {len(scores)} numbers >= 0 that are not all 0, got {weights!r}")
    scores, shares = scores[shares > 0], shares[shares > 0] / shares.sum()
    if aggregation == "maximin":
        return np.asarray(scores.min(0))
    if aggregation == "utilitarian":
        return np.asarray(np.clip(shares @ scores, 0.0, 1.0))
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(np.minimum(shares @ np.log(scores), 0.0)))


def _minmax(values: Utility) -> Utility:
    low, high = values.min(), values.max()
    if low == high:
        return np.full(values.size, 0.5)
    scale = max(abs(low), abs(high))  # so that high - low cannot overflow
    return np.asarray((values / scale - low / scale) / (high / scale - low / scale))


def _rank(values: Utility) -> Utility:
    if values.size == 1:
        return np.full(1, 0.5)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    average = count.cumsum() - (count + 1) / 2  # mean of the ranks 0 ... k-1 that a group of ties covers
    return np.asarray(average[group] / (values.size - 1))


def _buckets(values: Utility) -> list[list[int]]:
    """The ranking given by scores: best first, ties grouped."""
    return [np.flatnonzero(values == level).tolist() for level in np.unique(values)[::-1]]


def _checked_ranking(number: int, ranking: Ranking, items: int) -> list[npt.NDArray[np.int64]]:
    buckets = [np.atleast_1d(np.asarray(place, dtype=np.int64)) for place in ranking]
    named = np.concatenate(buckets) if buckets else np.zeros(0, dtype=np.int64)
    if named.size == 0 or any(bucket.size == 0 for bucket in buckets):
        raise ValueError(f"rankings[{number}]: expected at least one item at every place, got {ranking!r}")
    if named.min() < 0 or named.max() >= items or np.unique(named).size < named.size:
        raise ValueError(f"rankings[{number}]: expected distinct items in 0 ... {items - 1}, got {ranking!r}")
    return buckets


def _check_connected(rankings: list[list[npt.NDArray[np.int64]]], items: int) -> None:
    """The likelihood has a maximum iff no set of items is never beaten by the rest (Hunter 2004, assumption 1)."""
    graph = require("scipy.sparse.csgraph", extra="train", purpose="to fit Plackett-Luce worths")
    beats = np.zeros((items, items))
    for buckets in rankings:
        for place, tied in enumerate(buckets):
            beats[np.ix_(tied, np.concatenate(buckets[place:]))] = 1  # tied items beat each other
    count, _ = graph.connected_components(beats, connection="strong")
    if count > 1:
        raise ValueError(
            "penalty: expected a positive number for rankings in which some items are never placed behind the others, "
            "whose worths have no finite maximum of the likelihood; got 0"
        )


def _denominators(
    rankings: list[list[npt.NDArray[np.int64]]], items: int
) -> tuple[Utility, npt.NDArray[np.int64], Utility]:
    """The likelihood's denominators: ``[n, items]`` how much of each worth is in one, how often each occurs, and
    ``[items]`` how often each item is placed.
    """
    rows, placed = [], np.zeros(items)
    for buckets in rankings:
        remaining = np.zeros(items)
        remaining[np.concatenate(buckets)] = 1
        for tied in buckets:
            for step in range(tied.size):
                row = remaining.copy()
                row[tied] -= step / tied.size
                rows.append(row)
            remaining[tied] = 0
            placed[tied] += 1
    distinct, counts = np.unique(np.array(rows), axis=0, return_counts=True)
    return distinct, counts, placed


def _plackett_luce_loss(
    theta: Utility, denominators: Utility, counts: npt.NDArray[np.int64], placed: Utility, penalty: float
) -> tuple[float, Utility]:
    """Minus the penalised log-likelihood, and its gradient."""
    worth = np.exp(theta - theta.max())
    sums = denominators @ worth
    loss = counts @ np.log(sums) - placed @ (theta - theta.max()) + penalty * (theta @ theta)
    return float(loss), worth * (denominators.T @ (counts / sums)) - placed + 2 * penalty * theta


def _finite_vector(name: str, values: npt.ArrayLike) -> Utility:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected a non-empty list of numbers, got shape {list(vector.shape)}")
    _check_each(name, vector, np.isfinite(vector), "a finite number")
    return vector


def _votes(up: npt.ArrayLike, total: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    ups, totals = np.asarray(up, dtype=np.float64), np.asarray(total, dtype=np.float64)
    if ups.shape != totals.shape:
        raise ValueError(f"total: expected the shape of up, {list(ups.shape)}, got {list(totals.shape)}")
    if not ((ups >= 0) & (ups <= totals) & (totals < np.inf)).all():
        raise ValueError("up: expected counts with 0 <= up <= total, got others")
    return ups, totals


def _check_each(name: str, values: Utility, fine: npt.NDArray[np.bool_], expected: str) -> None:
    if not fine.all():
        at = int(np.argmin(fine))
        raise ValueError(f"{name}[{at}]: expected {expected}, got {values[at]}")
