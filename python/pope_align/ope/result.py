"""`Estimate`: a value with its uncertainty, diagnostics and verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .._arrays import Floats
from .._json import jsonable
from ..stats.intervals import Confidence, JointRegion, Quantity, quantities
from ..stats.ratios import RatioEstimate
from .balance import balance_findings
from .diagnostics import Diagnostics, cluster_ess
from .facts import LogFacts
from .log import LoggedSlates
from .log_support import Support, fresh_support
from .rules import Verdict, is_index
from .verdict import (
    Finding,
    find,
    finite_findings,
    judge,
    log_findings,
    range_findings,
    shrinkage_findings,
    support_findings,
)


@dataclass(frozen=True)
class Estimate:
    """The value of one policy by one estimator, ``V = V_CU + diversity_weight * V_Div``, with its diagnostics."""

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
    diagnostics: Diagnostics | None  # None for the direct method, which has no weights
    support: Support | None  # None without fresh responses scored under the logging policy
    findings: tuple[Finding, ...]
    verdict: Verdict
    reasons: tuple[str, ...]
    unit: str  # the meaning of a difference of 1 in V_CU
    ratios: RatioEstimate = field(repr=False, compare=False)  # columns V, V_CU, V_Div
    log_fingerprint: str = field(default="", repr=False)  # of utilities, slates and propensities
    clusters_fingerprint: str = field(default="", repr=False)
    chosen: Mapping[str, float] = field(default_factory=dict)  # chosen from the data: shrinkage parameter, bias bound

    @property
    def is_index(self) -> bool:
        """Whether the weights show only a direction; such an estimate has its own table and is not ranked."""
        return any(is_index(each.rule) for each in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Everything except the sums, for JSON."""
        left_out = ("ratios", "diagnostics", "findings")
        plain = {name: value for name, value in self.__dict__.items() if name not in left_out}
        diagnostics = None if self.diagnostics is None else self.diagnostics.to_dict()
        findings = [asdict(each) for each in self.findings]
        content: dict[str, Any] = jsonable({**plain, "findings": findings, "diagnostics": diagnostics})
        return content

    def __str__(self) -> str:
        value = f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        why = f" ({'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.policy}, {self.estimator}: V {value}, {self.verdict}{why}"


def finish(
    log: LogFacts,
    policy: str,
    estimator: str,
    parts: RatioEstimate,  # columns V_CU, V_Div
    *,
    diversity_weight: float,
    diagnostics: Diagnostics | None,
    findings: Iterable[Finding],
    options: Mapping[str, Any],
    labels: Iterable[str],
    confidence: Confidence,
    whole_slates: bool = False,  # weights are of slates, not of responses
    utility_range: tuple[float, float] | None = None,  # of V_CU
    row_ranges: Floats | None = None,  # [2, 2] of one slate's contribution to V_CU and V_Div
    chosen: Mapping[str, float] | None = None,
    unshrunk: RatioEstimate | None = None,  # the parts without shrinkage, if there was any
    seen: Support | None = None,  # support under weights that are not of whole responses
    reach: float | None = None,  # largest effect of a response outside the support, if not the range of the utilities
) -> Estimate:
    """Assemble value, parts, intervals and verdict; every estimator calls this last."""
    if row_ranges is not None:
        both = row_ranges[0] + (diversity_weight * row_ranges[1] if diversity_weight > 0 else 0.0)
        row_ranges = np.stack([both, *row_ranges])
    with np.errstate(all="ignore"):  # values that are not finite are refused below
        ratios = parts.combine(np.array([[1.0, 1.0, 0.0], [diversity_weight, 0.0, 1.0]]))
        value, utility, diversity = quantities(ratios, confidence, row_ranges)
        joint = JointRegion.of(parts, confidence.level)
        moved = None if unshrunk is None else _shrinkage_bias(parts, unshrunk, diversity_weight)
    whole = log if isinstance(log, LoggedSlates) else None
    seen = seen or (None if whole is None else fresh_support(whole, policy))
    seen = seen.reaching(reach) if seen is not None and reach is not None else seen
    every = [
        *log_findings(log, whole_slates=whole_slates),
        *([] if whole is None else _cluster_findings(whole, diagnostics)),
        *finite_findings("the estimate", value.value, value.standard_error),
        *([] if utility_range is None else range_findings(utility.low, utility.high, utility_range)),
        *([] if moved is None else shrinkage_findings(*moved, value.standard_error)),
        *support_findings(log, policy, seen),
        *([] if diagnostics is None or whole is None else balance_findings(whole, policy, diagnostics.sequence_ess)),
        *findings,
    ]
    verdict, reasons = judge(every)
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
        support=seen,
        findings=tuple(every),
        verdict=verdict,
        reasons=reasons,
        unit=log.scale.unit,
        ratios=ratios,
        log_fingerprint=log.fingerprint,
        clusters_fingerprint=log.clusters_fingerprint,
        chosen={**(chosen or {}), **({} if moved is None else {"shrinkage_bias": moved[0]})},
    )


def _cluster_findings(log: LoggedSlates, diagnostics: Diagnostics | None) -> Iterable[Finding]:
    """Without weights, the size of a cluster is its number of slates."""
    if diagnostics is None:
        ess = cluster_ess(log, np.ones(log.num_slates))
        yield from find("cluster_ess", f"the log has {ess:.1f} effective independent queries", ess)


def _shrinkage_bias(parts: RatioEstimate, unshrunk: RatioEstimate, diversity_weight: float) -> tuple[float, float]:
    """How much shrinkage changes the value, and the paired standard error of this."""
    difference = parts.minus(unshrunk).combine(np.array([[1.0], [diversity_weight]]))
    return float(difference.values()[0]), float(np.sqrt(difference.covariance()[0, 0]))
