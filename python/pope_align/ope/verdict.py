"""Findings about a log and its weights, and the verdict that follows: reliable, caution, index or refuse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pope_core.objective import weighs_slates

from .diagnostics import Diagnostics
from .facts import LogFacts
from .log_support import Support
from .provenance import provenance_differences
from .rules import RULES, TAIL_STARTS, VERDICTS, Verdict

#: The reason shown with every result from a log that people wrote.
PEOPLE = (
    "people wrote this log: there is no logging policy, and a value is that of people's own answers, reweighted; "
    "only the direction of paired differences is meaningful"
)


@dataclass(frozen=True)
class Finding:
    """What one rule says about one estimate."""

    rule: str
    verdict: Verdict
    reason: str

    @property
    def value_only(self) -> bool:
        """Whether it does not apply to paired differences."""
        return RULES[self.rule].value_only


def find(rule: str, reason: str, number: float = 0.0) -> Iterator[Finding]:
    """The finding of a rule, if the number triggers it."""
    verdict = RULES[rule].grade(number)
    if verdict is not None:
        yield Finding(rule, verdict, reason)


def judge(findings: Iterable[Finding]) -> tuple[Verdict, tuple[str, ...]]:
    """The worst finding decides; the reasons are listed worst first."""
    ordered = sorted(findings, key=lambda finding: -VERDICTS.index(finding.verdict))
    reasons = dict.fromkeys(finding.reason for finding in ordered)
    return (ordered[0].verdict if ordered else "reliable"), tuple(reasons)


def log_findings(log: LogFacts, *, whole_slates: bool = False) -> Iterator[Finding]:
    """Findings that follow from the log alone.

    Args:
        whole_slates: the estimator has weights of whole slates (a product or sum of weights).
    """
    clusters = log.num_clusters
    few = RULES["clusters"].grade(clusters) == "refuse"
    least = f"; at least {RULES['clusters'].refuse:g} are needed" if few else ""
    yield from find("clusters", f"{'' if few else 'only '}{clusters} independent queries{least}", clusters)
    same = _constant(log)
    if same is not None:
        yield from find("constant_utility", same)
    if log.scale.relative:
        unit = f"utilities are {log.scale.unit}"
        if whole_slates:
            yield from find("relative_slate", f"{unit}: their sum over a slate does not depend on its responses")
        yield from find("relative_utility", f"{unit}: they compare a response with the others of its slate")


def _constant(log: LogFacts) -> str | None:
    same = log.utilities_equal()
    if same is not None:
        return f"every response has the utility {same:g}: nothing tells policies apart"
    if not log.scale.relative or not log.equal_within_slates():
        return None
    return "within every slate all utilities are equal: nothing tells policies apart"


def propensity_findings(
    log: LogFacts, policy: str, *, length_normalize: bool, tempered: bool = False
) -> Iterator[Finding]:
    """Findings about propensities; weights that are not importance weights have a bias that no diagnostic shows."""
    yield from provenance_findings(log, policy)
    origins = {
        "proxy": ("proxy", "the logging policy is a proxy: this is not an off-policy estimate"),
        "behaviour_cloned": (
            "cloned",
            "the logging policy was fitted to the log: the estimate is only as good as the fit",
        ),
        "unknown": ("unknown", "the log does not say how its propensities were obtained"),
    }
    if log.how in origins:
        yield from find(*origins[log.how])
    if log.rescored_gap is not None:
        gap = f"recorded and rescored log-probabilities differ by {log.rescored_gap:.3g} nats per token"
        yield from find("rescored", f"{gap}: another temperature, template or model wrote the log", log.rescored_gap)
    if log.in_sample:
        share = f"{log.in_sample} of {log.num_responses} responses"
        yield from find("in_sample", f"{share} were scored by a policy that was fitted to them", log.in_sample)
    if log.written_by == "people" and log.how != "recorded":
        yield from find("people", PEOPLE)
    if length_normalize:
        yield from find("length_normalized", "length-normalised weights show a direction, not a value")
    if tempered:
        yield from find("tempered", "weights tempered or normalised within a slate show a direction, not a value")


def provenance_findings(log: LogFacts, policy: str) -> Iterator[Finding]:
    """Differences between the policy's scores and every logging policy's."""
    target = log.provenance(policy)
    for source in log.sources:
        among = f" ({source.slates} of {log.num_slates} slates)" if len(log.sources) > 1 else ""
        for difference in provenance_differences(source.provenance, target):
            yield from find("provenance", difference + among)


def weight_findings(
    d: Diagnostics, *, self_normalized: bool, clipped: bool, length_normalize: bool, support_checked: bool
) -> Iterator[Finding]:
    """Findings about the raw weights."""
    from pope_core.types import MAX_LOG_WEIGHT  # with torch, which checks of arguments do without

    what = "slates" if weighs_slates(d.weighting) else "responses"
    if d.log_weight_max > MAX_LOG_WEIGHT and not (self_normalized or clipped):
        yield from find(
            "overflow",
            f"log-weight {d.log_weight_max:.1f} at {d.log_weight_max_place}: above {MAX_LOG_WEIGHT:.0f} nats, so the "
            "propensities cannot be those of this log, or a clip is missing",
        )
    size = f"effective sample size {d.ess:.1f} of {d.num_weights} {what}"
    enough = RULES["ess"].grade(d.ess) is None
    yield from find("ess", size, d.ess)
    if not enough:
        yield from find("ess_fraction", size, d.ess_fraction)
    yield from find(
        "cluster_ess", f"the weights rest on {d.cluster_ess:.1f} effective independent queries", d.cluster_ess
    )
    share = f"one weight has {d.max_share:.1%} of the total ({d.log_weight_max_place})"
    yield from find("max_share", share, d.max_share)
    yield from _tail_findings(d, enough and RULES["max_share"].grade(d.max_share) is None)
    times = f"{abs(d.mean_weight_z):.1f}" if abs(d.mean_weight_z) <= 100 else "more than 100"
    mean = f"mean weight {d.mean_weight:.3g}, {times} standard errors from 1"
    why = ": wrong propensities, or responses outside the log's support"
    far = RULES["mean_weight"].grade(abs(d.mean_weight_z)) == "refuse"
    yield from find("mean_weight", mean + (why if far else ""), abs(d.mean_weight_z))
    if not support_checked:
        coverage = f"{d.target_coverage:.0%} of the logged responses are typical of the policy"
        yield from find("target_coverage", coverage, d.target_coverage)
    yield from find("clip_fraction", f"{d.clip_fraction:.0%} of the weights were clipped", d.clip_fraction)
    if length_normalize:
        follows = f"log-weights follow length (correlation {d.length_correlation:.2f})"
        yield from find("length_correlation", follows, abs(d.length_correlation))


def _tail_findings(d: Diagnostics, healthy: bool) -> Iterator[Finding]:
    """The tail index is checked only where it can matter, and never refuses what ESS and largest share allow."""
    tail = f"Pareto k {d.pareto_k:.2f}"
    if RULES["few_weights"].grade(d.num_weights):
        yield from find("few_weights", f"{d.num_weights} weights: too few to judge their tail", d.num_weights)
    elif d.max_share * d.num_weights > TAIL_STARTS and math.isfinite(d.pareto_k):
        above = f"{tail}, above {d.pareto_k_threshold:.2f}: the error is larger than its standard error"
        yield from find("pareto_k", above, d.pareto_k - d.pareto_k_threshold)
        if not healthy:
            yield from find("pareto_k_infinite", f"{tail}: the mean of such weights need not exist", d.pareto_k)


def support_findings(log: LogFacts, policy: str, found: Support | None) -> Iterator[Finding]:
    """Whether the policy stays within the log's support, which logged weights cannot show."""
    if found is None:
        if not log.is_logging_policy(policy):
            yield from find(
                "support_unchecked",
                "support not checked: no fresh responses of the policy were scored under the logging policy",
            )
        return
    yield from find(
        "support",
        f"{found.share:.1%} of the policy's fresh responses outweigh every logged one: they are outside its support",
        found.share,
    )


def shrinkage_findings(bias: float, bias_error: float, standard_error: float) -> Iterator[Finding]:
    """Shrinkage reduces variance and adds a bias that the interval does not cover; raw weights show how large it is."""
    moved = f"clipping or shrinking moves the estimate by {bias:+.3g} (standard error {bias_error:.3g})"
    if not math.isfinite(bias) or not math.isfinite(bias_error):
        yield Finding("shrinkage", "caution", "clipping or shrinking moves the estimate by an unknown amount")
        return
    scale = standard_error or math.nan
    far = (abs(bias) - 2 * bias_error) / scale
    if RULES["shrinkage_far"].grade(far):
        reason = f"{moved}, far more than its own standard error {standard_error:.3g}"
        yield from find("shrinkage_far", reason, far)
    else:
        yield from find("shrinkage", f"{moved}, which its interval does not cover", (abs(bias) + bias_error) / scale)


def contradiction_findings(gap: float, error: float, what: str) -> Iterator[Finding]:
    """Two estimates of one quantity that differ by more than their paired noise."""
    if math.isfinite(error) and error > 0:
        yield from find("model_contradicted", f"{what} by {gap:+.3g} (+-{error:.2g})", abs(gap) / error)


def finite_findings(name: str, *numbers: float) -> Iterator[Finding]:
    if not all(math.isfinite(number) for number in numbers):
        yield from find("not_finite", f"{name} is not finite: weights overflow, or all of them underflow to 0")


def range_findings(low: float, high: float, declared: tuple[float, float]) -> Iterator[Finding]:
    """A mean utility cannot be outside the range of utilities; with unnormalised weights an estimate can."""
    least, most = declared
    if low > most or high < least:
        yield from find(
            "outside_range",
            f"the interval of V_CU, {low:.3g} to {high:.3g}, is outside their range {least:g} to {most:g}",
        )
