"""Model first: a reward model averaged over a policy's fresh responses, corrected by the weighted residuals of the log.

For long responses weights of whole sequences are useless, and a model of the response's text is most informative::

    V = mean_slates(mean_fresh q(y'))  +  sum_i l_i (r_i - q(y_i)),      l_i = (w_i / k_i) / sum_j (w_j / k_j)

with a ridge ``q`` cross-fitted by cluster (`crossfit`) and weights ``w`` of any kind: kernel or classifier weights in
embedding space (`kernel_weights`, `classifier_weights`), tempered or clipped ones. Without weights it is the direct
method.

Weights may miss a part of what decides the reward, and the policy may change just that part. The log's own weights of
whole responses show it, even where they are far too uneven to be used: with ``c_i`` the log-ratio of policy and logging
policy less ``log w_i``, `missed` is::

    sum_i l_i (c_i - mean c) (r_i - q(y_i))

the first order of weighting the residuals by ``w_i exp(c_i)``. Its variance grows with that of ``c``, not with that of
``exp(c)``. It is a check, and not added: on language it is larger than the error that it would remove.

The model's own uncertainty is part of the interval. Predictions of a ridge are linear in the ratings it was fitted on,
so the coefficient ("share") of each rating in V is known exactly, and its influence is the share times (rating minus
prediction). It is added to `Ratios` as a term of value 0, so that intervals, bootstraps and paired differences include
it without refitting. The bias of ridge shrinkage is not in the interval; the correction removes it if the weights are
right. The noise of a classifier's weights is not in it either: it is of second order where the model is right.

``model_first(...).ratios`` has one column, the utility; ``finish`` and ``compare`` need a second one for diversity,
e.g. of zeros. Its verdict depends on `residual_check`, ``fit.r2`` and ``fit.calibration``; `placebo` uses ``shares``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from ..stats.ratios import Ratios
from .crossfit import CrossFit
from .features import fresh_mean
from .log import LoggedSlates


@dataclass(frozen=True, eq=False)
class ModelFirst:
    """A value and its parts.

    Attributes:
        ratios: column: utility. Terms: the direct method, the correction (if weighted), the uncertainty of both.
        direct: the direct method alone.
        correction: what the residuals add; 0 without weights.
        shares: ``[R]`` coefficient of each rating in the value: ``shares @ log.utility == value`` at the chosen
            penalties.
    """

    ratios: Ratios
    direct: float
    correction: float
    shares: Floats

    @property
    def value(self) -> float:
        return self.direct + self.correction


def model_first(log: LoggedSlates, fit: CrossFit, log_weights: Floats | None = None) -> ModelFirst:
    """The value of the policy whose fresh responses are in ``fit``.

    Args:
        fit: of `cross_fit` or `best_fit`.
        log_weights: ``[R]`` for the correction, up to a constant (it is self-normalised); -inf is a weight of 0. None:
            the direct method.

    Raises:
        ValueError: weights of another shape, or none above 0.

    Source: docs/evaluation.md, "Estimators"; Dudik et al. (2011) for the doubly robust form.
    """
    direct = fresh_mean(log, fit.features.owner, fit.target)  # [S]
    ratios = slate_term(log, direct)
    shares = np.zeros(log.num_responses)
    correction = 0.0
    residual = log.utility - fit.logged
    if log_weights is not None:
        weights = per_slate_weights(log, log_weights)  # [R]
        shares = weights / weights.sum()
        correction = float(shares @ residual)
        corrected = term(log, weights * residual, weights)
        ratios = ratios.plus(corrected).plus(_noise(_leverage(corrected)))
    counts = np.bincount(fit.features.owner, minlength=log.num_slates)
    each = 1 / (log.num_slates * counts[fit.features.owner])  # [N]
    through_model = fit.shares(log, each, shares)
    ratios = ratios.plus(_noise(_by_cluster(log, through_model * residual)))
    return ModelFirst(ratios, float(direct.mean()), correction, shares + through_model)


@dataclass(frozen=True)
class Missed:
    """What weights miss of a policy, as far as the log shows it.

    Attributes:
        value: to first order.
        standard_error: of that.
        bent: how far it lies from the residuals under all of the log-ratio.
        bent_error: the standard error of that distance.
    """

    value: float
    standard_error: float
    bent: float
    bent_error: float


def missed(log: LoggedSlates, fit: CrossFit, log_weights: Floats, log_ratio: Floats) -> Missed:
    """What weights miss that the log-ratio of whole responses holds.

    Args:
        log_weights: ``[R]``, as for `model_first`.
        log_ratio: ``[R]`` log-probability of the policy minus that of the logging policy, finite where the weight is
            not 0.
    """
    residual = log.utility - fit.logged
    weights = per_slate_weights(log, log_weights)
    shares = weights / weights.sum()
    written = weights > 0
    left = np.where(written, log_ratio, 0.0) - np.where(written, log_weights, 0.0)
    left = left - shares @ left
    first = term(log, weights * left * (residual - shares @ residual), weights)
    tilted = weights * np.exp(np.where(written, left - left[written].max(), 0.0))
    whole = term(log, tilted * residual, tilted).minus(term(log, weights * residual, weights))
    return Missed(*value_and_error(first), *value_and_error(first.minus(whole)))


def term(log: LoggedSlates, numerators: Floats, denominators: Floats) -> Ratios:
    """One ratio of sums of ``[R]`` values over responses."""
    return Ratios(_by_cluster(log, numerators)[None, :, None], _by_cluster(log, denominators)[None])


def slate_term(log: LoggedSlates, values: Floats) -> Ratios:
    """The mean of ``[S]`` values over slates."""
    return Ratios(log.cluster_sums(values)[None, :, None], log.cluster_sums(np.ones(log.num_slates))[None])


def value_and_error(ratios: Ratios) -> tuple[float, float]:
    """The first column and its standard error."""
    return float(ratios.values()[0]), float(np.sqrt(ratios.covariance()[0, 0]))


def weighted_mean(log: LoggedSlates, log_weights: Floats) -> Ratios:
    """The self-normalised mean of the logged utilities under any weights: one column, one term.

    Args:
        log_weights: ``[R]``, up to a constant. Zeros give the log's own mean, the logging policy's value.
    """
    weights = per_slate_weights(log, log_weights)
    return term(log, weights * log.utility, weights)


@dataclass(frozen=True)
class ResidualCheck:
    """Whether logged ratings contradict a reward model where a policy puts probability.

    Attributes:
        contradiction: weighted mean of rating minus prediction.
        standard_error: of that, by cluster.
    """

    contradiction: float
    standard_error: float

    @property
    def z(self) -> float:
        """The contradiction in standard errors; beyond 3 the model is wrong where it matters."""
        return self.contradiction / self.standard_error if self.standard_error > 0 else float("nan")


def residual_check(log: LoggedSlates, fit: CrossFit, log_weights: Floats) -> ResidualCheck:
    """The residuals under weights that move towards the policy, with their standard error.

    Args:
        log_weights: ``[R]``, e.g. `tempered` ones.
    """
    weights = per_slate_weights(log, log_weights)
    return ResidualCheck(*value_and_error(term(log, weights * (log.utility - fit.logged), weights)))


def per_slate_weights(log: LoggedSlates, log_weights: Floats) -> Floats:
    """``[R]``: ``w_i / k_i`` up to a constant, so that slates have equal weight.

    Raises:
        ValueError: a shape that is not [R], a NaN, or no weight above 0.
    """
    if log_weights.shape != (log.num_responses,):
        raise ValueError(f"log_weights: expected [{log.num_responses}], got {list(log_weights.shape)}")
    top = log_weights.max()
    if not np.isfinite(top):
        raise ValueError(f"log_weights: expected numbers whose largest is finite, got {top}")
    return np.asarray(np.exp(log_weights - top) / log.per_response(log.sizes.astype(np.float64)))


def _by_cluster(log: LoggedSlates, values: Floats) -> Floats:
    """``[R] -> [C]``."""
    return log.cluster_sums(log.slate_sums(values))


def _leverage(ratio: Ratios) -> Floats:
    """``[C]``: how much more than its `influence` the value of one ratio changes if a cluster is left out.

    The influence divided by one minus the cluster's share of the weights is exact. Without it the standard error of a
    mean with uneven weights is too small.
    """
    share = ratio.denominators[0] / ratio.denominators[0].sum()
    # Without a cluster that has everything, nothing is left; its verdict is "refuse" by the effective clusters.
    return np.asarray(ratio.influence()[:, 0] * share / np.maximum(1 - share, 1 / share.size))


def _noise(influence: Floats) -> Ratios:
    """A term of value 0 in which clusters have this influence ``[C]``."""
    centred = influence.size * (influence - influence.mean())
    return Ratios(centred[None, :, None], np.ones_like(influence)[None])
