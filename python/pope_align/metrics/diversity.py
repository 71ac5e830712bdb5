"""How different the answers are from one another, by their vectors."""

from __future__ import annotations

import numpy as np

from .._arrays import Floats


def diversity(answers: Floats) -> float:
    """Diversity, Eq. (25): the mean over pairs of answers of ``1 - cos``.

    In [0, 2]; 0: all answers equal; higher is more diverse. NaN for fewer than two answers. Computed from the sum of
    the vectors, so ``n`` answers cost ``n d``.

    Args:
        answers: ``[n, d]`` unit vectors.
    """
    n = len(answers)
    if n < 2:
        return float("nan")
    pairs = float((answers.sum(0) ** 2).sum() - (answers**2).sum()) / (n * (n - 1))
    return min(max(1.0 - pairs, 0.0), 2.0)


def vendi_score(answers: Floats, order: float = 1.0) -> float:
    """Vendi score (Friedman & Dieng 2023): the effective number of different answers.

    The exponential of the Renyi entropy of ``order`` of the eigenvalues of ``answers @ answers.T / n``:
    ``exp(-sum l ln l)`` for order 1, ``(sum l^q)^(1 / (1 - q))``, ``1 / max l`` for infinity. In [1, n]; 1: all answers
    equal, n: all orthogonal. NaN without answers.

    Args:
        answers: ``[n, d]`` unit vectors.
        order: > 0; smaller orders give rare answers more weight.

    Raises:
        ValueError: ``order <= 0``; rows that are not unit vectors.
    """
    if not order > 0:
        raise ValueError(f"order: expected a number > 0, got {order}")
    n, d = answers.shape
    if n == 0:
        return float("nan")
    norms = (answers**2).sum(1)
    if not np.allclose(norms, 1, atol=1e-6):
        at = int(np.abs(norms - 1).argmax())
        raise ValueError(f"answers[{at}]: expected a unit vector, got one of length {norms[at] ** 0.5:.6g}")
    gram = answers @ answers.T if n <= d else answers.T @ answers  # the same eigenvalues but for zeros
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-14]
    if order == 1:
        score = np.exp(-(values * np.log(values)).sum())
    elif np.isinf(order):
        score = 1 / values.max()
    else:
        score = (values**order).sum() ** (1 / (1 - order))
    return float(min(max(score, 1.0), n))
