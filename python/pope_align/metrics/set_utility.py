"""The utility of a set of answers, if every person takes the best one for them, and how much each answer adds.

What an answer adds depends on the others of its slate, so it is a training signal, not a reward of a response.
"""

from __future__ import annotations

import numpy as np

from .._arrays import Floats


def set_utility(values: Floats, weights: Floats | None = None) -> float:
    """``F(Y) = sum_g w_g max_i u_g(y_i)``: the mean utility of people who each take the best answer for them.

    With ratings by person or group, ``values[i, g] = u_g(y_i)``. Without ratings, each reference stands for a person:
    ``values[i, j] = max(cos(y_i, y_j), 0)`` weighted by votes (facility location). 0 for an empty set.

    Args:
        values: ``[k, G]`` numbers >= 0, a row per answer.
        weights: ``[G]`` numbers >= 0 that sum to one; None for equal ones.

    Raises:
        ValueError: shapes that do not fit, numbers below zero.
    """
    v, w = _checked(values, weights)
    return float(v.max(0, initial=0) @ w)


def marginal_contributions(values: Floats, weights: Floats | None = None) -> Floats:
    """How much each answer adds to the others: ``u_i = F(Y) - F(Y without y_i)``, ``[k]`` numbers >= 0.

    An answer that is nobody's best, or equal to another one, adds nothing. The sum is at most ``F(Y)``.

    Args:
        values, weights: as in `set_utility`.
    """
    v, w = _checked(values, weights)
    k = len(v)
    if k == 0 or v.shape[1] == 0:
        return np.zeros(k)
    best = v.argmax(0)  # of each person
    second = np.sort(np.vstack([np.zeros(v.shape[1]), v]), axis=0)[-2]
    gains = w * (v.max(0) - second)
    return np.bincount(best, gains, minlength=k).astype(np.float64)


def _checked(values: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    v = np.asarray(values, dtype=np.float64)
    if v.ndim != 2 or not (v >= 0).all() or not np.isfinite(v).all():
        raise ValueError(f"values: expected [answers, people] of finite numbers >= 0, got {v.tolist()!r:.80}")
    people = v.shape[1]
    w = np.full(people, 1 / max(people, 1)) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != (people,) or not (w >= 0).all() or (people and abs(w.sum() - 1) > 1e-9):
        raise ValueError(f"weights: expected {people} numbers >= 0 that sum to one, got {weights!r:.80}")
    return v, w
