"""Importance weights in log space: per response, per slate or geometric, and shrinkage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from pope_core.objective import Weighting, missing_value

from .._arrays import Floats
from .log import LoggedSlates

ShrinkKind = Literal["clip", "switch", "dros", "subgaussian"]


def log_weights(log: LoggedSlates, policy: str, weighting: Weighting, *, length_normalize: bool) -> Floats:
    """Raw log-weights: ``[R]`` for "response", ``[S]`` for "slate" (log W) and "geometric" (log W / k).

    Source: docs/method.md, "Policies, responses, slates" and "Estimators".
    """
    target, logging = log.logprobs(policy, length_normalize=length_normalize)
    each = target - logging
    if weighting == "response":
        return each
    if weighting == "slate":
        return log.slate_sums(each)
    if weighting == "geometric":
        return log.slate_sums(each) / log.sizes
    raise missing_value("weighting", weighting)


@dataclass(frozen=True)
class Shrink:
    """Shrinkage of weights: less variance for some bias.

    =============  ======================  ==================================================================
    ``clip``       ``min(w, lam)``         Ionides (2008)
    ``switch``     ``w * 1[w <= lam]``     Wang, Agarwal and Dudik (2017)
    ``dros``       ``lam w / (w^2 + lam)`` Su et al. (2020); lam = 0 gives 0, lam -> inf gives w
    ``subgaussian``  ``w / (1 - lam + lam w)``  Metelli, Russo and Restelli (2021); lam in [0, 1]
    =============  ======================  ==================================================================
    """

    kind: ShrinkKind
    lam: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(ShrinkKind):
            raise ValueError(f"kind: expected one of {', '.join(get_args(ShrinkKind))}, got {self.kind!r}")
        top = 1.0 if self.kind == "subgaussian" else math.inf
        positive = self.lam > 0 if self.kind in ("clip", "switch") else self.lam >= 0
        if not (math.isfinite(self.lam) and positive and self.lam <= top):
            expected = {"clip": "> 0", "switch": "> 0", "dros": ">= 0", "subgaussian": "in [0, 1]"}[self.kind]
            raise ValueError(f"lam: expected a finite number {expected} for {self.kind!r}, got {self.lam!r}")

    def log(self, log_w: Floats) -> Floats:
        """The logarithm of the shrunken weight; -inf if it is 0. Nothing overflows."""
        if self.kind == "clip":
            return np.minimum(log_w, math.log(self.lam))
        if self.kind == "switch":
            return np.where(log_w <= math.log(self.lam), log_w, -np.inf)
        if self.lam == 0:
            return np.full_like(log_w, -np.inf) if self.kind == "dros" else log_w
        if self.kind == "dros":  # lam w / (w^2 + lam) = w / (1 + w^2 / lam)
            return log_w - np.logaddexp(0.0, 2 * log_w - math.log(self.lam))
        rest = math.log1p(-self.lam) if self.lam < 1 else -np.inf
        return log_w - np.logaddexp(rest, math.log(self.lam) + log_w)

    @property
    def max_weight(self) -> float:
        """The upper bound of shrunken weights."""
        if self.kind == "dros":
            return math.sqrt(self.lam) / 2
        if self.kind == "subgaussian":
            return 1 / self.lam if self.lam > 0 else math.inf
        return self.lam

    def touched(self, log_w: Floats) -> float:
        """Share of weights above the limit; NaN for the smooth kinds, which change all."""
        if self.kind not in ("clip", "switch"):
            return math.nan
        return float((log_w > math.log(self.lam)).mean())
