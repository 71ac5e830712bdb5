"""Metrics from the policy's probabilities of the references: Plackett-Luce likelihood, distributional alignment."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .._arrays import Floats
from .similarity import finite_numbers

#: The grid of the integral in `_log_first`, y = log t: exp(y - e^y) is below 1e-19 of its peak outside, and the
#: trapezoid rule with this step is exact to rounding for such a function.
_GRID = np.arange(-45.0, 8.0, 0.05)


def plackett_luce_loglik(
    scores: Sequence[float] | Floats,  # [M]
    feedback: Sequence[float] | Floats,  # [M]
) -> float:
    """The log-likelihood, in nats, of people's ranking under Plackett-Luce with the model's scores.

    ``sum_i [s_(i) - logsumexp_{m >= i} s_(m)]`` over the ranking by ``feedback``, best first. If feedback ties, the
    probability is averaged over all orders of the tied references (exactly, also for many); if all tie, the result is
    ``-log M!`` for any scores. At most 0; higher is better; 0 for one reference; NaN for none.

    The average over a tie's orders is P(its members all come before the rest) / t!, and that probability is
    ``int exp(-x) prod_i (1 - exp(-a_i x)) dx`` with ``a_i = exp(s_i) / sum_rest exp(s)``: a race of exponentials.

    Args:
        scores: of the model, e.g. ``l_theta(y_j | q)``.
        feedback: larger is better.

    Raises:
        ValueError: a number that is not finite, lengths that differ.
    """
    s, f = finite_numbers(scores, "scores"), finite_numbers(feedback, "feedback")
    if s.size != f.size:
        raise ValueError(f"feedback: expected {s.size} numbers, one per score, got {f.size}")
    if s.size == 0:
        return float("nan")
    total = 0.0
    levels = np.unique(f)[::-1]
    for level in levels[:-1]:
        tied, rest = s[f == level], s[f < level]
        total += _log_first(tied - _logsumexp(rest)) - math.lgamma(tied.size + 1)
    return total - math.lgamma(np.count_nonzero(f == levels[-1]) + 1)


def choice_probability(loglik: float, feedback: Sequence[float] | Floats) -> float:
    """``exp(loglik / (M - 1))``: the geometric-mean probability of one choice of the ranking, comparable across M.

    In [0, 1], higher is better. NaN for fewer than two references, or if all tie.
    """
    f = finite_numbers(feedback, "feedback")
    return math.exp(loglik / (f.size - 1)) if np.unique(f).size > 1 else float("nan")


def distributional_alignment(scores: Sequence[float] | Floats, temperature: float = 0.5) -> float:
    """Distributional alignment, Eqs. (23)-(24): how evenly the model spreads over the references.

    The normalised entropy ``-sum_j p_j ln p_j / ln M`` of ``p = softmax(scores / temperature)``. In [0, 1]; 1: uniform,
    0: all on one. Higher is better, as in the paper; votes are not used. NaN for fewer than two
    references.

    Args:
        scores: ``[M]``, of the references: ``l_theta(y_j | q)``, the default of the evaluation (only these can give the
            paper's 0.53-0.58), or their similarity to the answers.

    Raises:
        ValueError: ``temperature <= 0``; a score that is not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number > 0, got {temperature}")
    s = finite_numbers(scores, "scores") / temperature
    if s.size < 2:
        return float("nan")
    log_p = s - _logsumexp(s)
    entropy = -float(np.exp(log_p) @ log_p)
    return min(entropy / math.log(s.size), 1.0)


def _log_first(log_a: Floats) -> float:
    """log P(all of the tied come before any of the rest), ``log_a`` their rates against the rest's together."""
    if log_a.size == 1:
        return float(-np.logaddexp(0.0, -log_a[0]))
    log_ax = log_a[:, None] + _GRID  # [t, grid] log(a_i x) with x = exp(y)
    # log(1 - exp(-a x)), which is log(a x) where that is tiny
    log_terms = np.where(log_ax < -37, log_ax, np.log(-np.expm1(-np.exp(np.clip(log_ax, -37, 700)))))
    integrand = _GRID - np.exp(_GRID) + log_terms.sum(0)
    return float(_logsumexp(integrand) + math.log(_GRID[1] - _GRID[0]))


def _logsumexp(values: Floats) -> float:
    peak = values.max()
    return float(peak + np.log(np.exp(values - peak).sum()))
