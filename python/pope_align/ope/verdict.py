"""Reliable, caution or refuse: what the diagnostics allow to be said about an estimate, with the reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

from pope_core.types import MAX_LOG_WEIGHT

from . import thresholds as limit
from .diagnostics import Diagnostics
from .log import LoggedSlates
from .provenance import provenance_differences

Verdict = Literal["reliable", "caution", "refuse"]

#: From best to worst.
VERDICTS: tuple[Verdict, ...] = ("reliable", "caution", "refuse")

_Finding = tuple[Verdict, str]


def judge(findings: list[_Finding]) -> tuple[Verdict, tuple[str, ...]]:
    """The worst finding decides; the reasons are listed worst first."""
    ordered = sorted(findings, key=lambda finding: -VERDICTS.index(finding[0]))
    return (ordered[0][0] if ordered else "reliable"), tuple(reason for _, reason in ordered)


def log_findings(log: LoggedSlates) -> Iterator[_Finding]:
    """What the log alone rules out."""
    clusters = log.num_clusters
    if clusters < limit.MIN_CLUSTERS:
        yield "refuse", f"{clusters} independent queries; at least {limit.MIN_CLUSTERS} are needed"
    elif clusters < limit.FEW_CLUSTERS:
        yield "caution", f"only {clusters} independent queries"


def propensity_findings(
    log: LoggedSlates, policy: str, length_normalize: bool, tempered: bool = False
) -> Iterator[_Finding]:
    """What the propensities allow: weights that are no importance weights leave a bias no diagnostic sees."""
    for difference in provenance_differences(log.logging.provenance, log.scores(policy).provenance):
        yield "caution", difference
    if log.how == "proxy":
        yield "caution", "the logging policy is a proxy: this is no off-policy estimate"
    elif log.how == "behaviour_cloned":
        yield "caution", "the logging policy was fitted to the log: the estimate is only as good as the fit"
    elif log.how == "unknown":
        yield "caution", "the log does not say how its propensities were obtained"
    if length_normalize:
        yield "caution", "length-normalised weights are biased by an unknown amount"
    if tempered:
        yield "caution", "weights tempered or normalised within a slate are biased by an unknown amount"


def weight_findings(diagnostics: Diagnostics, *, self_normalized: bool, clipped: bool) -> Iterator[_Finding]:
    """What the raw weights rule out."""
    d = diagnostics
    what = "responses" if d.weighting == "response" else "slates"
    if d.log_weight_max > MAX_LOG_WEIGHT and not (self_normalized or clipped):
        yield (
            "refuse",
            f"log-weight {d.log_weight_max:.1f} at {d.log_weight_max_place}: above {MAX_LOG_WEIGHT:.0f} nats, so the "
            "propensities cannot be those of this log, or a clip is missing",
        )
    size = f"effective sample size {d.ess:.1f} of {d.num_weights} {what}"
    if d.ess < limit.MIN_ESS or d.ess_fraction < limit.MIN_ESS_FRACTION:
        yield "refuse", size
    elif d.ess < limit.FEW_ESS or d.ess_fraction < limit.LOW_ESS_FRACTION:
        yield "caution", size
    share = f"one weight has {d.max_share:.1%} of the total ({d.log_weight_max_place})"
    if d.max_share > limit.MAX_SHARE:
        yield "refuse", share
    elif d.max_share > limit.HIGH_SHARE:
        yield "caution", share
    tail = f"Pareto k {d.pareto_k:.2f}"
    if d.pareto_k >= limit.MAX_PARETO_K:
        yield "refuse", f"{tail}: the mean of such weights need not exist"
    elif d.pareto_k >= d.pareto_k_threshold:
        yield "caution", f"{tail}, above {d.pareto_k_threshold:.2f}: the error is larger than its standard error"
    mean = f"mean weight {d.mean_weight:.3g}, {abs(d.mean_weight_z):.1f} standard errors from 1"
    if abs(d.mean_weight_z) > limit.MAX_MEAN_WEIGHT_Z:
        yield "refuse", f"{mean}: wrong propensities, or responses the log never shows"
    elif abs(d.mean_weight_z) > limit.HIGH_MEAN_WEIGHT_Z:
        yield "caution", mean
    coverage = f"{d.target_coverage:.0%} of the logged responses are typical of the policy"
    if d.target_coverage < limit.MIN_TARGET_COVERAGE:
        yield "refuse", coverage
    elif d.target_coverage < limit.LOW_TARGET_COVERAGE:
        yield "caution", coverage
    if d.clip_fraction > limit.HIGH_CLIP_FRACTION:
        yield "caution", f"{d.clip_fraction:.0%} of the weights were cut"
    if abs(d.length_correlation) > limit.HIGH_LENGTH_CORRELATION:
        yield "caution", f"log-weights follow length (correlation {d.length_correlation:.2f})"


def shrinkage_findings(bias: float, bias_error: float, standard_error: float) -> Iterator[_Finding]:
    """Shrinking trades a bias that the interval does not cover for variance; the raw weights tell how large it is."""
    moved = f"clipping or shrinking moves the estimate by {bias:+.3g} (standard error {bias_error:.3g})"
    if not math.isfinite(bias) or not math.isfinite(bias_error):
        yield "caution", "clipping or shrinking moves the estimate by an unknown amount"
    elif abs(bias) - 2 * bias_error > limit.MAX_SHRINKAGE_BIAS * standard_error:
        yield "refuse", f"{moved}, far more than its own standard error {standard_error:.3g}"
    elif abs(bias) + bias_error > limit.HIGH_SHRINKAGE_BIAS * standard_error:
        yield "caution", f"{moved}, which its interval does not cover"


def model_findings(correction: float, error: float) -> Iterator[_Finding]:
    """The direct method shows no bias of its own; the correction that a doubly robust estimate would make does."""
    yield "caution", "rests on the reward model alone: its interval does not cover the model's bias"
    if math.isfinite(error) and abs(correction) > limit.MAX_MODEL_BIAS_Z * error:
        yield "refuse", f"the logged responses contradict the reward model by {correction:+.3g} (+-{error:.2g})"


def finite_findings(name: str, *numbers: float) -> Iterator[_Finding]:
    if not all(math.isfinite(number) for number in numbers):
        yield "refuse", f"{name} is not finite: weights overflow, or all of them underflow to 0"


def range_findings(low: float, high: float, declared: tuple[float, float]) -> Iterator[_Finding]:
    """A mean utility cannot leave the range of the utilities; unnormalised weights can take an estimate there."""
    least, most = declared
    if low > most or high < least:
        yield (
            "refuse",
            f"the interval of V_CU, {low:.3g} to {high:.3g}, is outside their range {least:g} to {most:g}",
        )
