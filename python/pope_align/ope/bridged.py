"""Weights between those that features explain and those of whole responses, as far as the log allows.

Weights of features, such as `classifier_weights`, are even and miss what the features do not hold. Weights of whole
responses miss nothing, and for long responses one of them has everything. In between lies a path::

    log w(power) = log w_features + power * (log w_whole - log w_features),        power from 0 to 1

The weights taken are those of a power up to which enough responses stay in effect, and none has a large share of the
total (in a log of fewer than 60 responses, where equal weights are large already, up to three times an equal one). With
short responses, or a policy close to the log's, it is 1: the estimate is unbiased whatever the features are. With long
ones it approaches the weights of the features. What the remaining distance may hide is estimated in `model_first`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from .diagnostics import effective_sample_size
from .rules import RULES
from .tempered import largest_power, largest_share

#: The effective sample size to keep is at least that of the rule for weights; for larger logs it grows with this power
#: of the number of responses, so that variance and bias both vanish.
_GROWTH = 2 / 3


@dataclass(frozen=True, eq=False)
class BridgedWeights:
    """The weights taken.

    Attributes:
        log_weights: ``[R]`` nats, up to a constant, without the log's own weights.
        power: 0 for the features' weights, 1 for those of whole responses.
        ess: effective sample size.
    """

    log_weights: Floats
    power: float
    ess: float


def enough(responses: float) -> float:
    """The effective sample size that bridged weights of this many responses keep, at most a third of them."""
    return min(max(RULES["ess"].caution or 0.0, responses**_GROWTH), responses / 3)


def at_most(share: float) -> float:
    """The share of the total that one bridged weight has at most: that of the rule for weights, less rounding.

    Args:
        share: of the largest weight in the log's mean; in a small log that can have more, three times as much is left.
    """
    return max((RULES["max_share"].caution or 0.0) * (1 - 1e-9), min(3 * share, 1.0))


def bridged_weights(own: Floats, of_features: Floats, of_responses: Floats | None) -> BridgedWeights:
    """The weights of a power with an effective sample size of `enough` and no weight above `at_most`.

    It is 1 if those of whole responses are as even as that, and found by bisection otherwise.

    Responses that the policy cannot write have the weight 0 at every power.

    Args:
        own: ``[R]`` log-weight that a response has in the log's mean, minus the log of its slate's size; effective
            sample sizes are those of all weights together.
        of_features: ``[R]`` log-weights, e.g. of `classifier_weights`; if they are too uneven themselves, they are
            tempered first.
        of_responses: ``[R]`` log-ratio of policy and logging policy, totals in nats; -inf where the policy cannot
            write the response; None: not known.

    Raises:
        ValueError: other shapes, a NaN or +inf, or no response that the policy can write.
    """
    whole = of_features if of_responses is None else of_responses
    written = whole > -np.inf
    usable = own.shape == of_features.shape == whole.shape and np.isfinite(of_features).all()
    if not (usable and np.isfinite(whole[written]).all() and written.any()):
        raise ValueError(
            "own, of_features, of_responses: expected finite numbers, one for each response (of_responses may be -inf, "
            "but not everywhere)"
        )
    least = enough(effective_sample_size(own[written]))
    mine, features, ratio = own[written], of_features[written], whole[written]
    most = at_most(largest_share(mine))
    start = features * largest_power(mine, features, least, most)
    power = 0.0 if of_responses is None else largest_power(mine + start, ratio - start, least, most)
    taken = np.full(own.shape, -np.inf)
    taken[written] = start + power * (ratio - start)
    return BridgedWeights(taken, power, effective_sample_size(own + taken))
