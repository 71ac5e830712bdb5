"""`Estimate`: a value, how sure it is, and whether to believe it; `Comparison` of two on the same log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..stats.intervals import Confidence, JointRegion, Quantity, quantities
from ..stats.ratios import Ratios
from ._checks import Floats
from .diagnostics import Diagnostics
from .log import LoggedSlates
from .verdict import Verdict, finite_findings, judge, log_findings, range_findings, shrinkage_findings


@dataclass(frozen=True)
class Estimate:
    """The value of one policy by one estimator, ``V = V_CU + diversity_weight * V_Div``, and what it rests on."""

    policy: str
    estimator: str
    value: float
    standard_error: float  # delta method, clustered
    low: float  # of the interval
    high: float
    utility: Quantity  # V_CU
    diversity: Quantity  # V_Div
    joint: JointRegion  # of (V_CU, V_Div)
    confidence: Confidence
    num_responses: int
    num_slates: int
    num_clusters: int
    options: Mapping[str, Any]
    labels: tuple[str, ...]
    diagnostics: Diagnostics | None  # None for the direct method, which weighs nothing
    verdict: Verdict
    reasons: tuple[str, ...]
    ratios: Ratios = field(repr=False, compare=False)  # columns V, V_CU, V_Div
    chosen: Mapping[str, float] = field(default_factory=dict)  # by the data: a shrinkage parameter and its bias bound

    def to_dict(self) -> dict[str, Any]:
        """Everything but the sums, ready for JSON."""
        plain = {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("ratios", "diagnostics", "confidence", "joint", "utility", "diversity")
        }
        parts = {name: asdict(getattr(self, name)) for name in ("utility", "diversity", "joint", "confidence")}
        diagnostics = None if self.diagnostics is None else self.diagnostics.to_dict()
        return {
            **plain,
            "options": dict(self.options),
            "chosen": dict(self.chosen),
            **parts,
            "diagnostics": diagnostics,
        }

    def __str__(self) -> str:
        value = f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.policy}, {self.estimator}: V {value}, {self.verdict}{why}"


@dataclass(frozen=True)
class Comparison:
    """``value(policy) - value(baseline)`` on the same log, from paired clusters."""

    policy: str
    baseline: str
    estimator: str
    difference: Quantity
    utility: Quantity
    diversity: Quantity
    probability: float  # that the policy's value is larger, under the Bayesian bootstrap of the clusters
    verdict: Verdict
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(estimate: Estimate, baseline: Estimate) -> Comparison:
    """The paired difference of two estimates from one log; common noise of the queries cancels.

    Intervals are made as the estimate's own; the probability is the share of Bayesian bootstrap draws above 0 (half of
    those at 0). The verdict is the worse of the two.

    Raises:
        ValueError: the estimates have other clusters, or were made with other estimators, options or confidence.
    """
    if estimate.estimator != baseline.estimator or dict(estimate.options) != dict(baseline.options):
        raise ValueError(
            "baseline: expected the same estimator and options as the estimate "
            f"({estimate.estimator}, {dict(estimate.options)}), got {baseline.estimator}, {dict(baseline.options)}"
        )
    difference = estimate.ratios.minus(baseline.ratios)
    confidence = estimate.confidence
    if confidence.method in ("hoeffding", "bernstein"):
        confidence = Confidence("t", confidence.level, confidence.draws, confidence.seed)
    value, utility, diversity = quantities(difference, confidence)
    draws = difference.draws("bayesian", confidence.draws, confidence.seed)[:, 0]
    findings = [(each.verdict, f"{each.policy}: {reason}") for each in (estimate, baseline) for reason in each.reasons]
    verdict, reasons = judge(findings)
    return Comparison(
        policy=estimate.policy,
        baseline=baseline.policy,
        estimator=estimate.estimator,
        difference=value,
        utility=utility,
        diversity=diversity,
        probability=float((draws > 0).mean() + (draws == 0).mean() / 2),
        verdict=verdict,
        reasons=tuple(dict.fromkeys(reasons)),
    )


def finish(
    log: LoggedSlates,
    policy: str,
    estimator: str,
    parts: Ratios,  # columns V_CU, V_Div
    *,
    diversity_weight: float,
    diagnostics: Diagnostics | None,
    findings: Iterable[tuple[Verdict, str]],
    options: Mapping[str, Any],
    labels: Iterable[str],
    confidence: Confidence,
    utility_range: tuple[float, float] | None = None,  # that V_CU cannot leave
    row_ranges: Floats | None = None,  # [2, 2] of one slate's contribution to V_CU and V_Div
    chosen: Mapping[str, float] | None = None,
    unshrunk: Ratios | None = None,  # the parts without clipping or shrinking, where there was any
) -> Estimate:
    """Put value, parts, intervals and verdict together; every estimator ends here."""
    if row_ranges is not None:
        both = row_ranges[0] + (diversity_weight * row_ranges[1] if diversity_weight > 0 else 0.0)
        row_ranges = np.stack([both, *row_ranges])
    with np.errstate(all="ignore"):  # what is not finite is refused below, with the reason
        ratios = parts.combine(np.array([[1.0, 1.0, 0.0], [diversity_weight, 0.0, 1.0]]))
        value, utility, diversity = quantities(ratios, confidence, row_ranges)
        joint = JointRegion.of(parts, confidence.level)
        moved = None if unshrunk is None else _shrinkage_bias(parts, unshrunk, diversity_weight)
    shrunk = [] if moved is None else shrinkage_findings(*moved, value.standard_error)
    finite = finite_findings("the estimate", value.value, value.standard_error)
    outside = [] if utility_range is None else range_findings(utility.low, utility.high, utility_range)
    verdict, reasons = judge([*log_findings(log), *finite, *outside, *shrunk, *findings])
    return Estimate(
        policy=policy,
        estimator=estimator,
        value=value.value,
        standard_error=value.standard_error,
        low=value.low,
        high=value.high,
        utility=utility,
        diversity=diversity,
        joint=joint,
        confidence=confidence,
        num_responses=log.num_responses,
        num_slates=log.num_slates,
        num_clusters=log.num_clusters,
        options=dict(options),
        labels=tuple(labels),
        diagnostics=diagnostics,
        verdict=verdict,
        reasons=reasons,
        ratios=ratios,
        chosen={**(chosen or {}), **({} if moved is None else {"shrinkage_bias": moved[0]})},
    )


def _shrinkage_bias(parts: Ratios, unshrunk: Ratios, diversity_weight: float) -> tuple[float, float]:
    """By how much shrinking moves the value, and the standard error of that (paired)."""
    difference = parts.minus(unshrunk).combine(np.array([[1.0], [diversity_weight]]))
    return float(difference.values()[0]), float(np.sqrt(difference.covariance()[0, 0]))
