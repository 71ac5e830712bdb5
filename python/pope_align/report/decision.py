"""What an evaluation allows to be said of two policies, in one sentence; and what would tell where it allows nothing.

The sentence follows from the table of verdicts and from nothing else: a refused difference is never called a gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["better", "worse", "cannot tell"]

#: A difference of this share of the utility's range is what the advice is made for.
WORTH_SEEING = 0.1

#: Quantiles of the normal distribution: a test at the 5% level, both sides, with 80% power.
_LEVEL, _POWER = 1.96, 0.84

#: More slates than so many times those of the log are no advice.
_MOST_TIMES = 20.0

#: What would tell, by the kind of what is missing.
_MORE_SLATES = "slates"
_RATINGS = "ratings"
_PROPENSITIES = "propensities"
_FEEDBACK = "feedback"
_UTILITIES = "utilities"
_PEOPLE = "people"

#: What is missing where a rule of the verdict refuses.
MISSING: Mapping[str, str] = {
    "clusters": _MORE_SLATES,
    "cluster_ess": _MORE_SLATES,
    "annotators": _PEOPLE,
    "few_weights": _MORE_SLATES,
    "placebo": _MORE_SLATES,
    "constant_utility": _FEEDBACK,
    "relative_utility": _UTILITIES,
    "relative_slate": _UTILITIES,
    "outside_range": _RATINGS,
    "proxy": _PROPENSITIES,
    "cloned": _PROPENSITIES,
    "unknown": _PROPENSITIES,
    "in_sample": _PROPENSITIES,
    "provenance": _PROPENSITIES,
    "rescored": _PROPENSITIES,
    "mean_weight": _PROPENSITIES,
    "balance": _PROPENSITIES,
    "people": _RATINGS,
    "length_normalized": _RATINGS,
    "tempered": _RATINGS,
    "overflow": _RATINGS,
    "ess": _RATINGS,
    "ess_fraction": _RATINGS,
    "max_share": _RATINGS,
    "pareto_k": _RATINGS,
    "pareto_k_infinite": _RATINGS,
    "target_coverage": _RATINGS,
    "length_correlation": _RATINGS,
    "clip_fraction": _RATINGS,
    "support_unchecked": _RATINGS,
    "support": _RATINGS,
    "support_bias": _RATINGS,
    "shrinkage": _RATINGS,
    "shrinkage_far": _RATINGS,
    "model_only": _RATINGS,
    "model_contradicted": _RATINGS,
    "model_leaks": _RATINGS,
    "model_blind": _RATINGS,
    "model_scale": _RATINGS,
    "model_unverified": _RATINGS,
    "judge_transport": _RATINGS,
    "judge_unaudited": _RATINGS,
    "judge_beyond": _RATINGS,
    "diversity_from_log": _RATINGS,
    "not_finite": _RATINGS,
}


#: Cautions that a sentence names before all others: what the propensities are.
_GRAVEST = ("people", "proxy", "cloned", "unknown", "in_sample", "rescored", "provenance")


@dataclass(frozen=True)
class Decision:
    """What may be said of one policy against the baseline."""

    policy: str
    baseline: str
    estimator: str
    outcome: Outcome
    sentence: str
    would_tell: tuple[str, ...]  # empty unless nothing can be told

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decide(evaluation: Mapping[str, Any]) -> list[Decision]:
    """What an evaluation allows to be said of every policy against the baseline.

    Args:
        evaluation: as `Evaluation.to_dict` gives it, or its file read back.
    """
    if not evaluation["comparisons"]:
        return []
    first = evaluation["comparisons"][0]["estimator"]
    return [_decide(evaluation, each) for each in evaluation["comparisons"] if each["estimator"] == first]


def ratings_needed() -> int:
    """Rated answers of each of two policies that show a difference of `WORTH_SEEING` of the range.

    With 80% power at the 5% level, whatever the spread of the ratings: `2 (1.96 + 0.84)^2 s^2 / d^2` with `s` half the
    range, the largest standard deviation that there is. Rounded up to two digits.
    """
    exact = 2 * (_LEVEL + _POWER) ** 2 * 0.5**2 / WORTH_SEEING**2
    return _rounded_up(exact)


def _decide(evaluation: Mapping[str, Any], found: Mapping[str, Any]) -> Decision:
    policy, baseline, utility = found["policy"], found["baseline"], found["utility"]

    def decision(outcome: Outcome, sentence: str, *would_tell: str) -> Decision:
        return Decision(policy, baseline, found["estimator"], outcome, sentence, would_tell)

    numbers = [utility[name] for name in ("value", "low", "high")]
    unit = evaluation["log"]["utility"]["unit"]
    if found["verdict"] not in ("reliable", "caution") or any(number is None for number in numbers):
        refusing = [each for each in found["findings"] if each["verdict"] == found["verdict"]]
        why = _without_name(refusing[0]["reason"], found) if refusing else "the difference is not finite"
        advice = _would_tell(evaluation, found, [each["rule"] for each in refusing])
        return decision(
            "cannot tell", f"This log cannot tell whether {policy} is better than {baseline}: {why}.", *advice
        )
    value, low, high = numbers
    size = f"{value:+.3g} [{low:+.3g}, {high:+.3g}] in V_CU (one unit: {unit})"
    with_care = "" if found["verdict"] == "reliable" else f", {_careful(found)}"
    if low <= 0 <= high:
        sentence = f"This log cannot tell {policy} and {baseline} apart: the difference is {size}{with_care}."
        return decision("cannot tell", sentence, *_to_resolve(evaluation, value, low, high))
    outcome: Outcome = "better" if low > 0 else "worse"
    return decision(outcome, f"{policy} is {outcome} than {baseline}: {size}{with_care}.")


def _careful(found: Mapping[str, Any]) -> str:
    findings = sorted(found["findings"], key=lambda each: each["rule"] not in _GRAVEST)
    reasons = list(dict.fromkeys(_without_name(each["reason"], found) for each in findings))
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return f"to be read with caution: {reasons[0]}{more}"


def _without_name(reason: str, found: Mapping[str, Any]) -> str:
    """A reason without the policy that it was found of: as a rule it holds of both."""
    for name in (found["policy"], found["baseline"]):
        reason = reason.removeprefix(f"{name}: ")
    return reason


def _to_resolve(evaluation: Mapping[str, Any], value: float, low: float, high: float) -> list[str]:
    """How many slates show a difference as large as the estimate, and which difference these slates show: 80% power."""
    slates = evaluation["log"]["slates"]
    visible = (high - low) / 2 * (_LEVEL + _POWER) / _LEVEL
    seen = f"a difference of {visible:.2g} would show on {slates:,} slates like these with 80% power"
    times = (visible / abs(value)) ** 2 if value else math.inf
    if times <= _MOST_TIMES:
        more = _rounded_up(slates * (times - 1))
        return [f"{seen}; one as large as the estimate needs about {more:,} more"]
    return [seen, _ratings(evaluation)]


def _would_tell(evaluation: Mapping[str, Any], found: Mapping[str, Any], rules: Sequence[str]) -> list[str]:
    missing = list(dict.fromkeys(MISSING[rule] for rule in rules)) or [_RATINGS]
    texts = {
        _MORE_SLATES: _slates(evaluation, found),
        _RATINGS: _ratings(evaluation),
        _PROPENSITIES: "log-probabilities recorded when the answers are drawn (`pope generate --logprobs`), or those "
        "of the very model, template and settings that wrote the log (`pope score --how recorded`)",
        _FEEDBACK: "feedback that differs between the responses of a slate",
        _PEOPLE: "ratings by more people of each group",
        _UTILITIES: "utilities on one scale for the whole log (`--utility-transform calibrated`)",
    }
    return [texts[kind] for kind in missing]


def _slates(evaluation: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How many more slates the limits of the verdict ask for; ratings where that is more than `_MOST_TIMES` the log."""
    from ..ope.rules import RULES

    clusters = evaluation["log"]["clusters"]
    needed = RULES["clusters"].refuse or 0
    for estimate in evaluation["estimates"]:
        d = estimate["diagnostics"]
        if estimate["policy"] == found["policy"] and estimate["estimator"] == found["estimator"] and d:
            effective = d["cluster_ess"] or 0
            if effective > 0:
                needed = max(needed, clusters * (RULES["cluster_ess"].refuse or 0) / effective)
    more = max(needed - clusters, clusters)  # a placebo that fails asks for more of the same: twice as much
    if more > _MOST_TIMES * clusters:
        return _ratings(evaluation)
    return f"about {_rounded_up(more):,} more slates of other prompts"


def _ratings(evaluation: Mapping[str, Any]) -> str:
    utility = evaluation["log"]["utility"]
    size = WORTH_SEEING * (utility["high"] - utility["low"])
    return (
        f"ratings of about {ratings_needed():,} fresh answers of each (`pope generate`, `pope label`): enough to see a "
        f"difference of {size:.2g} with 80% power"
    )


def _rounded_up(number: float) -> int:
    """The next integer with two digits and zeros."""
    number = max(math.ceil(number), 1)
    step = 10 ** max(len(str(number)) - 2, 0)
    return int(-(-number // step) * step)


def spoken(metrics: Mapping[str, Any] | None) -> list[str]:
    """How near the answers of every later model are to people's, against the first: a sentence each.

    Args:
        metrics: as `MetricsReport.to_json` gives it; None where no metrics were computed.
    """
    sentences = []
    for each in (metrics or {}).get("comparisons", []):
        energy = each["differences"].get("energy")
        if energy is None or energy["low"] is None:
            continue
        size = f"energy distance {energy['value']:+.3f} [{energy['low']:+.3f}, {energy['high']:+.3f}]"
        if energy["low"] <= 0 <= energy["high"]:
            sentences.append(f"What they say: {each['b']} and {each['a']} are as near to what people wrote ({size}).")
        else:
            side = "nearer to" if energy["high"] < 0 else "farther from"
            sentences.append(f"What they say: {each['b']} is {side} what people wrote than {each['a']} ({size}).")
    return sentences
