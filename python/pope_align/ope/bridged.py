"""Weights between those that features explain and those of whole responses, as far as the log allows.

Weights of features, such as `classifier_weights`, are even and miss what the features do not hold. Weights of whole
responses miss nothing, and for long responses one of them has everything. In between lies a path::

    log w(power) = log w_features + power * (log w_whole - log w_features),        power from 0 to 1

The weights taken are those of the largest power that leaves enough responses in effect. With short responses, or a
policy close to the log's, that is 1: the estimate is unbiased whatever the features are. With long ones it approaches
the weights of the features. What the remaining distance may hide is estimated in `model_first`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from .diagnostics import effective_sample_size
from .rules import RULES
from .tempered import largest_power

#: The effective sample size to keep is at least that of the rule for weights; for larger logs it grows with this power
#: of the number of responses, so that variance and bias both vanish.
_GROWTH = 2 / 3


@dataclass(frozen=True, eq=False)
class BridgedWeights:
    """The weights taken.

    Attributes:
        log_weights: ``[R]`` nats, up to a constant.
        power: 0 for the features' weights, 1 for those of whole responses.
        ess: effective sample size.
    """

    log_weights: Floats
    power: float
    ess: float


def enough(responses: int) -> float:
    """The effective sample size that bridged weights of this many responses keep, at most a third of them."""
    return min(max(RULES["ess"].caution or 0.0, responses**_GROWTH), responses / 3)


def bridged_weights(of_features: Floats, of_responses: Floats | None) -> BridgedWeights:
    """The weights of the largest power with an effective sample size of at least `enough`.

    Args:
        of_features: ``[R]`` log-weights, e.g. of `classifier_weights`; if they are too uneven themselves, they are
            tempered first.
        of_responses: ``[R]`` log-ratio of policy and logging policy, totals in nats, finite; None: not known.

    Raises:
        ValueError: other shapes, or numbers that are not finite.
    """
    ends = [of_features] if of_responses is None else [of_features, of_responses]
    if any(end.shape != of_features.shape or not np.isfinite(end).all() for end in ends):
        raise ValueError("of_features, of_responses: expected finite numbers, one for each response")
    least = enough(of_features.size)
    start = of_features * largest_power(np.zeros_like(of_features), of_features, least)
    if of_responses is None:
        return BridgedWeights(start, 0.0, effective_sample_size(start))
    power = largest_power(start, of_responses - start, least)
    taken = start + power * (of_responses - start)
    return BridgedWeights(taken, power, effective_sample_size(taken))
