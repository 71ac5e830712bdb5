"""The energy distance between a model's answers and people's: 0 only if both have the same distribution.

A lower temperature brings a model's answers nearer to people's on average and reduces their spread; noise increases it.
Measures of nearness reward the first, measures of diversity the second, and the energy distance neither: its minimum is
at people's own spread (Szekely and Rizzo 2013; as a scoring rule Gneiting and Raftery 2007).

The distance of two answers is the Euclidean one of their unit vectors, ``d(x, y) = |e(x) - e(y)| = sqrt(2 - 2 cos)``.
With ``1 - cos``, half its square, the energy distance would compare mean vectors only and ignore spread.
"""

from __future__ import annotations

import numpy as np

from .._arrays import Floats


def distances(a: Floats, b: Floats) -> Floats:
    """``[n, m]`` Euclidean distances of unit vectors ``[n, d]`` and ``[m, d]``; in [0, 2]."""
    return np.asarray(np.sqrt(np.clip(2 - 2 * (a @ b.T), 0, 4)))


def energy_distance(answers: Floats, references: Floats, weights: Floats) -> float:
    """Energy distance of the distributions that ``n`` answers and ``M`` references are drawn from, for one prompt.

    ``2 sum_ij p_j d(x_i, y_j) / n - mean_{i != i'} d(x_i, x_i') - sum_{j != j'} p_j p_j' d(y_j, y_j') / (1 - p.p)``

    No text is compared with itself, so the estimate is unbiased: 0 on average if both distributions are equal, and then
    sometimes slightly negative. Lower is better. NaN for fewer than two answers, or fewer than two references of
    positive weight.

    Args:
        answers: ``[n, d]`` unit vectors of the model's answers, drawn independently.
        references: ``[M, d]`` unit vectors of what people wrote.
        weights: ``[M]`` numbers >= 0 that sum to one: weights of the references, such as `similarity.vote_weights`.

    Raises:
        ValueError: weights that are none.
    """
    p = _weights(weights, len(references))
    n = len(answers)
    if n < 2 or (p > 0).sum() < 2:
        return float("nan")
    between = float((distances(answers, references) @ p).mean())
    within = distances(answers, answers)
    theirs = distances(references, references)
    np.fill_diagonal(within, 0)
    np.fill_diagonal(theirs, 0)
    return 2 * between - float(within.sum()) / (n * (n - 1)) - float(p @ theirs @ p) / float(1 - p @ p)


def energy_reward(answers: Floats, references: Floats, weights: Floats) -> Floats:
    """A reward for each of a model's own candidates: far from the others, near to people.

    ``u_i = mean_{i' != i} d(x_i, x_i') - sum_j p_j d(x_i, y_j)``, in [-2, 2]. For candidates that the policy drew
    itself, the policy gradient with these rewards is, on average, -1/2 times the gradient of `energy_distance`.

    Args:
        answers, references, weights: as in `energy_distance`.

    Returns:
        ``[n]`` float64; NaN for fewer than two answers, or without references.

    Raises:
        ValueError: weights that are none.
    """
    p = _weights(weights, len(references))
    n = len(answers)
    if n < 2 or p.size == 0:
        return np.full(n, np.nan)
    within = distances(answers, answers)
    np.fill_diagonal(within, 0)
    return np.asarray(within.sum(1) / (n - 1) - distances(answers, references) @ p)


def _weights(weights: Floats, count: int) -> Floats:
    p = np.asarray(weights, dtype=np.float64)
    if p.shape != (count,) or not (p >= 0).all() or (count and abs(p.sum() - 1) > 1e-9):
        raise ValueError(f"weights: expected {count} numbers >= 0 that sum to one, got {weights!r:.80}")
    return p
