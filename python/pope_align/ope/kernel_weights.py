"""Kernel weights: the density of a policy's fresh responses around a logged one, relative to the log's own.

With unit embeddings e(.) of responses to one prompt and the Gaussian kernel ``K(a, b) = exp(-|a - b|^2 / (2 tau))``,
which is ``exp(-(1 - cos) / tau)``::

    w(y) = [mean_j K(e(y), e(y'_j))] / [mean_j K(e(y), e(y0_j))]      y'_j ~ the policy, y0_j ~ the logging policy

A response that the policy would never write word for word has weight if the policy says the same in other words. No
log-probabilities are needed. Bandwidth 0 gives importance sampling, infinite bandwidth the log's own mean.

Pass ``kernel_weights(...).log_weights`` to `model_first.weighted_mean` (alone) or `model_first.model_first` (doubly
robust); show ``bias_bound`` with the estimate and with differences.

Source: Kiyohara, Saito and Joachims (2025), arXiv:2504.02646.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from ..stats.ratios import Ratios
from .features import Features, check_owner
from .log import LoggedSlates
from .model_first import per_slate_weights, weighted_mean
from .paired_choice import least_error

#: Candidate bandwidths, in units of the median cosine distance of two responses to one prompt.
_LADDER = np.geomspace(1 / 8, 4, 9)


@dataclass(frozen=True, eq=False)
class KernelWeights:
    """Weights at one bandwidth, and their reach.

    Attributes:
        log_weights: ``[R]`` nats, finite.
        bandwidth: ``tau``, a cosine distance.
        reach: mean Euclidean distance of a weighted logged response from the fresh ones that it represents.
        lipschitz: upper limit (95%) of the root mean square change of utility with a unit of that distance.
    """

    log_weights: Floats
    bandwidth: float
    reach: float
    lipschitz: float

    @property
    def bias_bound(self) -> float:
        """``lipschitz * reach``: how much the utility of a logged response may differ from that of the fresh one it
        represents.
        """
        return self.lipschitz * self.reach


@dataclass(frozen=True, eq=False)
class Distances:
    """Cosine distances of each logged response, padded with inf."""

    to_target: Floats  # [R, most fresh responses of a slate]
    to_logging: Floats  # [R, most responses of the logging policy of a slate]


def kernel_weights(
    log: LoggedSlates,
    vectors: Features,
    *,
    logging_vectors: tuple[Floats, Integers] | None = None,
    predicted: Floats | None = None,
    bandwidth: float | None = None,
) -> KernelWeights:
    """Kernel weights of every logged response.

    Args:
        vectors: embeddings of the responses; normalised here.
        logging_vectors: ``[M, d]`` and ``[M]`` slates, of fresh responses of the logging policy (recommended). None:
            the responses of the slate, including the weighted one (without a neighbour its weight would be x / 0),
            which shrinks all weights towards 1.
        predicted: ``[R]`` utilities by a cross-fitted reward model, for the bandwidth of the doubly robust form.
        bandwidth: None: the one of least estimated squared error (`paired_choice`).

    Raises:
        ValueError: features that do not match the log, a zero vector, a bandwidth that is not positive.
    """
    vectors.check(log)
    if bandwidth is not None and not 0 < bandwidth < np.inf:
        raise ValueError(f"bandwidth: expected a number in (0, inf), got {bandwidth!r}")
    distances = distances_of(log, vectors, logging_vectors)
    residual = log.utility if predicted is None else log.utility - predicted
    if bandwidth is None:
        middle = float(np.median(distances.to_logging[_apart(distances.to_logging)]))
        ladder = max(middle, 1e-6) * _LADDER
        candidates = [_mean_of(log, residual, weights_at(distances, float(tau))) for tau in ladder]
        bandwidth = float(ladder[least_error(candidates)])
    log_weights = weights_at(distances, bandwidth)
    return KernelWeights(
        log_weights,
        bandwidth,
        _reach(log, distances, bandwidth, log_weights),
        lipschitz_limit(log, _unit(vectors.logged, "logged"), residual),
    )


def distances_of(
    log: LoggedSlates, vectors: Features, logging_vectors: tuple[Floats, Integers] | None = None
) -> Distances:
    """Cosine distances from each logged response to the fresh responses of its slate; ``[R, .]`` padded with inf."""
    logged, target = _unit(vectors.logged, "logged"), _unit(vectors.target, "target")
    rows_of_slate = np.repeat(np.arange(log.num_slates), log.sizes)
    if logging_vectors is None:
        logging, owner = logged, rows_of_slate
    else:
        logging, owner = _unit(logging_vectors[0], "logging_vectors"), np.asarray(logging_vectors[1])
        check_owner(log, owner, len(logging))
    return Distances(_to(log, logged, target, vectors.owner), _to(log, logged, logging, owner))


def weights_at(distances: Distances, bandwidth: float) -> Floats:
    """``[R]`` log-weights, without underflow for any bandwidth."""
    return _log_mean_kernel(distances.to_target, bandwidth) - _log_mean_kernel(distances.to_logging, bandwidth)


def lipschitz_limit(log: LoggedSlates, unit_vectors: Floats, utility: Floats) -> float:
    """Upper 95% limit of the root mean square Lipschitz constant of utility in the embedding, from pairs of a slate.

    ``E (r_i - r_j)^2 = 2 sigma^2 + L^2 |e_i - e_j|^2``: the slope of a regression over pairs, whose intercept is the
    noise of single ratings. NaN if no slate has two responses.
    """
    square, change, slate = [], [], []
    for rows, index in _groups(log):
        i, j = np.triu_indices(rows.shape[1], 1)
        if i.size:
            square.append(np.square(unit_vectors[rows[:, i]] - unit_vectors[rows[:, j]]).sum(2).ravel())
            change.append(np.square(utility[rows[:, i]] - utility[rows[:, j]]).ravel())
            slate.append(np.repeat(index, i.size))
    if not square:
        return float("nan")
    x, y = np.concatenate(square), np.concatenate(change)
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    if spread == 0:
        return float("nan")
    slope = float(x @ y) / spread
    terms = x * (y - slope * x)
    per_slate = np.bincount(np.concatenate(slate), weights=terms, minlength=log.num_slates).astype(np.float64)
    error = float(np.sqrt(np.square(log.cluster_sums(per_slate)).sum())) / spread
    return float(np.sqrt(max(0.0, slope + 1.645 * error)))


def _mean_of(log: LoggedSlates, values: Floats, log_weights: Floats) -> Ratios:
    weights = per_slate_weights(log, log_weights)
    numerators = log.cluster_sums(log.slate_sums(weights * values))
    return Ratios(numerators[None, :, None], weighted_mean(log, log_weights).denominators)


def _log_mean_kernel(distances: Floats, bandwidth: float) -> Floats:
    closest = distances.min(1)
    kernel = np.exp(-(distances - closest[:, None]) / bandwidth)
    return np.asarray(np.log(kernel.sum(1) / np.isfinite(distances).sum(1)) - closest / bandwidth)


def _reach(log: LoggedSlates, distances: Distances, bandwidth: float, log_weights: Floats) -> float:
    there = np.isfinite(distances.to_target)
    kernel = np.exp(-(distances.to_target - distances.to_target.min(1)[:, None]) / bandwidth)
    apart = np.sqrt(2 * np.where(there, distances.to_target, 0.0))
    each = (kernel * apart).sum(1) / kernel.sum(1)
    weights = per_slate_weights(log, log_weights)
    return float(weights @ each / weights.sum())


def _unit(vectors: Floats, name: str) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError(f"{name}: row {int(np.argmin(norms))}: expected a vector that is not zero, got zeros")
    return np.asarray(vectors / norms)


def _apart(distances: Floats) -> np.ndarray:
    """Pairs that are two responses, not one with itself."""
    return np.isfinite(distances) & (distances > 1e-9)


def _groups(log: LoggedSlates) -> Iterator[tuple[Integers, Integers]]:
    """Slates of equal size together: rows ``[G, k]`` and slates ``[G]``."""
    for size in np.unique(log.sizes):
        slates = np.flatnonzero(log.sizes == size)
        yield log.slate_offsets[slates][:, None] + np.arange(size), slates


def _to(log: LoggedSlates, logged: Floats, others: Floats, owner: Integers) -> Floats:
    """``[R, most]`` cosine distances from logged responses to the others of their slate."""
    counts = np.bincount(owner, minlength=log.num_slates)
    order = np.argsort(owner, kind="stable")
    starts = np.cumsum(counts) - counts
    result = np.full((log.num_responses, int(counts.max())), np.inf)
    for rows, slates in _groups(log):
        for count in np.unique(counts[slates]):
            some = counts[slates] == count
            mine = order[starts[slates[some]][:, None] + np.arange(count)]  # [G, count]
            cosines = np.matmul(logged[rows[some]], others[mine].transpose(0, 2, 1))  # [G, k, count]
            result[rows[some].ravel(), :count] = np.maximum(0.0, 1 - cosines).reshape(-1, count)
    return result
