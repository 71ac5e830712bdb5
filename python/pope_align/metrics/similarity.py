"""Metrics from cosine similarities of answers and people's responses: PL-Score, coverage, helpfulness, relevance.

``similarity[i, j]`` is the cosine of answer ``i`` and reference ``j``, in [-1, 1]: ``answers @ references.T`` for unit
vectors. Equations are those of docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from .._arrays import Floats

VoteWeights = Literal["log1p", "votes", "softmax", "uniform"]


def vote_weights(votes: Sequence[float] | Floats, weights: VoteWeights = "log1p") -> Floats:
    """Weights of the references; they sum to one.

    =============  ========================================================================================
    ``log1p``      ``softmax(sign(v) log(1 + |v|))``: (1 + v) / sum for votes >= 0; the default
    ``votes``      ``max(v, 0) / sum``; uniform when no reference has a positive vote
    ``softmax``    ``softmax(v)``
    ``uniform``    ``1 / M`` for any votes
    =============  ========================================================================================

    Args:
        votes: ``[M]`` finite numbers, larger is better.

    Returns:
        ``[M]`` float64, empty for no votes.

    Raises:
        ValueError: an unknown name; votes that are not a list of finite numbers.
    """
    if weights not in get_args(VoteWeights):
        raise ValueError(f"weights: expected one of {', '.join(get_args(VoteWeights))}, got {weights!r}")
    v = finite_numbers(votes, "votes")
    if v.size == 0:
        return v
    if weights == "uniform":
        return np.full(v.size, 1 / v.size)
    if weights == "votes":
        positive = np.maximum(v, 0)
        peak = positive.max()
        return positive / peak / (positive / peak).sum() if peak > 0 else np.full(v.size, 1 / v.size)
    logits = np.sign(v) * np.log1p(np.abs(v)) if weights == "log1p" else v
    unnormalised = np.exp(logits - logits.max())
    return unnormalised / unnormalised.sum()


def pl_score(
    similarity: Floats,  # [n, M]
    votes: Sequence[float] | Floats,  # [M]
    weights: VoteWeights = "log1p",
) -> float:
    """PL-Score, Eqs. (20)-(21): how near the best answer comes to each reference, weighted by its votes.

    ``sum_j p_j max_i s_ij`` with ``p`` = `vote_weights`. In [-1, 1]; 1: every reference is among the answers; higher is
    better. NaN without answers or references.

    Raises:
        ValueError: shapes that do not match.
    """
    s = similarity_matrix(similarity, len(votes))
    if s.size == 0:
        return float("nan")
    return float(vote_weights(votes, weights) @ s.max(0))


def pluralistic_coverage(similarity: Floats, threshold: float = 0.8, k: int | None = None) -> float:
    """Pluralistic coverage, Eq. (22): the share of references that one of the first ``k`` answers matches.

    ``mean_j [max_{i <= k} s_ij >= threshold]``, similarity ``[n, M]``. In [0, 1], higher is better; never lower with
    another answer. 0 without answers; NaN without references.

    Raises:
        ValueError: ``k < 1``.
    """
    if k is not None and k < 1:
        raise ValueError(f"k: expected an integer >= 1 (None: all answers), got {k}")
    s = similarity_matrix(similarity)[:k]
    if s.shape[1] == 0:
        return float("nan")
    return float(covered(s, threshold).mean())


def covered(similarity: Floats, threshold: float = 0.8) -> npt.NDArray[np.bool_]:
    """Which references an answer matches, ``[M]``. None without answers.

    Cosines up to 1e-9 below the threshold count, to allow for rounding.
    """
    s = similarity_matrix(similarity)
    return np.any(s >= threshold - 1e-9, axis=0)


def helpfulness(
    similarity: Floats,  # [n, M]
    votes: Sequence[float] | Floats,  # [M]
) -> float:
    """Helpfulness, Eq. (26): the mean similarity of answers to what people found helpful, times 100.

    ``100 mean_i sum_j v_j s_ij`` with ``v = minmax(votes) / sum``; uniform when all votes are equal, where minmax is
    0/0. The worst-voted reference has weight 0. In [-100, 100], higher is better. NaN without answers or references.

    Raises:
        ValueError: shapes that do not match.
    """
    s = similarity_matrix(similarity, len(votes))
    if s.size == 0:
        return float("nan")
    return float(100 * (s @ _minmax_weights(finite_numbers(votes, "votes"))).mean())


def relevance(
    answers: Floats,  # [n, d] unit vectors
    prompt: Floats,  # [d] unit vector
) -> float:
    """Relevance: the mean cosine of answers and prompt, times 100. In [-100, 100], higher is better; NaN if empty."""
    return float(100 * (answers @ prompt).mean()) if len(answers) else float("nan")


def _minmax_weights(votes: Floats) -> Floats:
    low, high = votes.min(), votes.max()
    if low == high:
        return np.full(votes.size, 1 / votes.size)
    scale = max(abs(low), abs(high))  # so that high - low cannot overflow
    ratio = (votes / scale - low / scale) / (high / scale - low / scale)
    return ratio / ratio.sum()


def finite_numbers(values: Sequence[float] | Floats, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected a list of numbers, got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        at = int(np.argmin(np.isfinite(array)))
        raise ValueError(f"{name}[{at}]: expected a finite number, got {array[at]}")
    return array


def similarity_matrix(similarity: Floats, references: int | None = None) -> Floats:
    s = np.asarray(similarity, dtype=np.float64)
    if s.ndim != 2 or references not in (None, s.shape[1]):
        expected = "[n, M]" if references is None else f"[n, {references}], one column per vote"
        raise ValueError(f"similarity: expected {expected}, got {list(s.shape)}")
    return s
