"""Bounds on a value if every propensity may be wrong by a factor, for fitted logging policies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from .log import LoggedSlates
from .model_first import per_slate_weights
from .weights import log_weights


@dataclass(frozen=True)
class SensitivityBounds:
    """The smallest and largest V_CU over all weights within a factor ``gamma``.

    Attributes:
        gamma: each weight may be wrong by a factor between ``1 / gamma`` and ``gamma``.
        low, high: of the self-normalised V_CU, without sampling error.
    """

    gamma: float
    low: float
    high: float


def sensitivity_bounds(log: LoggedSlates, policy: str, gamma: float) -> SensitivityBounds:
    """The range of ``sum a_i w_i u_i / sum a_i w_i`` over all ``a_i`` in ``[1 / gamma, gamma]``.

    At the extremes all responses above a threshold of utility have one factor and the others the other, so sorting
    finds them exactly.

    Args:
        policy: one of ``log.policies``.
        gamma: at least 1; the factor by which a propensity may be wrong, up to a common factor.

    Raises:
        ValueError: a gamma below 1.

    Source: Tan (2006), the marginal sensitivity model; Zhao, Small and Bhattacharya (2019).
    """
    if not 1 <= gamma < np.inf:
        raise ValueError(f"gamma: expected a finite number >= 1, got {gamma!r}")
    weights = per_slate_weights(log, log_weights(log, policy, "response", length_normalize=False))
    order = np.argsort(log.utility, kind="stable")
    w, u = weights[order], log.utility[order]
    return SensitivityBounds(gamma, -_highest(w[::-1], -u[::-1], gamma), _highest(w, u, gamma))


def _highest(w: Floats, u: Floats, gamma: float) -> float:
    """``u`` ascending: the first j get ``1 / gamma``, the others ``gamma``; the best j."""
    mass, gain = np.concatenate([[0.0], np.cumsum(w)]), np.concatenate([[0.0], np.cumsum(w * u)])
    numerators = gain / gamma + (gain[-1] - gain) * gamma
    denominators = mass / gamma + (mass[-1] - mass) * gamma
    return float((numerators / denominators).max())
