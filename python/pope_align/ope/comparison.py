"""`Comparison`: the paired difference of two policies on one log, with a verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .._json import jsonable
from ..stats.intervals import Confidence, Quantity, quantities
from .placebo import Placebo
from .result import Estimate
from .rules import Verdict
from .verdict import PEOPLE, Finding, find, finite_findings, judge


@dataclass(frozen=True)
class Comparison:
    """``value(policy) - value(baseline)`` on the same log, from paired clusters."""

    policy: str
    baseline: str
    estimator: str
    difference: Quantity
    utility: Quantity
    diversity: Quantity
    probability: float | None  # that the policy is better (Bayesian bootstrap); None for an index
    placebo: Placebo | None
    findings: tuple[Finding, ...]
    verdict: Verdict
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = jsonable(self)
        return content


def compare(estimate: Estimate, baseline: Estimate, *, placebo: Placebo | None = None) -> Comparison:
    """The paired difference of two estimates from one log; variation between queries cancels.

    Intervals are computed as for the estimates. The verdict is the worst of both estimates' and the difference's own:
    responses outside the log's support can change a difference by much of its standard error, which is far smaller than
    that of either value.

    Args:
        placebo: of the gain in V_CU; a gain that permuted utilities also reach is refused.

    Raises:
        ValueError: the estimates differ in log, clusters, estimator, options or confidence settings; the message says
            in which.
    """
    for what, mine, theirs in (
        ("estimator", estimate.estimator, baseline.estimator),
        ("options", dict(estimate.options), dict(baseline.options)),
        ("confidence", estimate.confidence, baseline.confidence),
        ("log", estimate.log_fingerprint, baseline.log_fingerprint),
        ("clusters", estimate.clusters_fingerprint, baseline.clusters_fingerprint),
    ):
        if mine != theirs:
            raise ValueError(f"baseline: expected the same {what} as the estimate's ({mine}), got {theirs}")
    difference = estimate.ratios.minus(baseline.ratios)
    confidence = estimate.confidence
    if confidence.method in ("hoeffding", "bernstein"):
        confidence = Confidence("t", confidence.level, confidence.draws, confidence.seed)
    value, utility, diversity = quantities(difference, confidence)
    findings = [
        *_inherited(estimate, baseline),
        *_support_findings(estimate, baseline, utility),
        *finite_findings("the difference", value.value, value.standard_error),
        *_placebo_findings(placebo, utility),
    ]
    verdict, reasons = judge(findings)
    index = estimate.is_index or baseline.is_index
    return Comparison(
        policy=estimate.policy,
        baseline=baseline.policy,
        estimator=estimate.estimator,
        difference=value,
        utility=utility,
        diversity=diversity,
        probability=None if index else difference.probability_positive(confidence.draws, confidence.seed),
        placebo=placebo,
        findings=tuple(findings),
        verdict=verdict,
        reasons=reasons,
    )


def _inherited(*estimates: Estimate) -> Iterator[Finding]:
    """The findings of both estimates; those that concern only values become cautions."""
    for each in estimates:
        for finding in each.findings:
            if finding.value_only:
                yield Finding(finding.rule, "caution", PEOPLE)
            else:
                yield Finding(finding.rule, finding.verdict, f"{each.policy}: {finding.reason}")


def _support_findings(estimate: Estimate, baseline: Estimate, utility: Quantity) -> Iterator[Finding]:
    bound = sum(each.support.bias_bound for each in (estimate, baseline) if each.support is not None)
    if bound > 0 and utility.standard_error > 0:
        times = bound / utility.standard_error
        yield from find(
            "support_bias",
            f"responses outside the log's support can move the difference by {bound:.2g}, {times:.1f} standard errors",
            times,
        )


def _placebo_findings(placebo: Placebo | None, utility: Quantity) -> Iterator[Finding]:
    """Only a claimed gain is tested: an interval of V_CU that contains 0 claims none."""
    claimed = utility.low > 0 or utility.high < 0
    if placebo is not None and claimed and math.isfinite(placebo.p_value):
        yield from find(
            "placebo",
            f"utilities permuted within slates give as large a difference with p = {placebo.p_value:.2g}",
            placebo.p_value,
        )
