"""Policies that no estimator can order against the baseline on this log, in words that say why and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .._json import jsonable
from .comparison import Comparison
from .direction import DirectionIndex
from .result import Estimate
from .verdict import Finding

#: What helps against a finding that refuses.
_HELP = {
    "clusters": "log more prompts",
    "cluster_ess": "log more prompts",
    "ess": "give fresh responses of the policy (--samples), for an estimator that reads their text",
    "ess_fraction": "give fresh responses of the policy (--samples), for an estimator that reads their text",
    "max_share": "give fresh responses of the policy (--samples), for an estimator that reads their text",
    "model_blind": "collect more ratings, or ones that depend more on what a response says",
    "model_contradicted": "collect ratings of responses like the policy's",
    "support": "collect ratings of responses like the policy's",
    "mean_weight": "score the log with the temperature, template and length limit that it was sampled with",
    "balance": "score the log with the temperature, template and length limit that it was sampled with",
    "placebo": "log more prompts: differences this small are also found among shuffled ratings",
}

#: What always helps.
_RATE_ITS_OWN = "rate responses of the policy itself"


@dataclass(frozen=True)
class Undecided:
    """A policy that every estimator refuses to order against the baseline.

    Attributes:
        reasons: the worst one of each estimator, by name.
        help: what could change that.
    """

    policy: str
    baseline: str
    reasons: dict[str, str]
    help: tuple[str, ...]

    def __str__(self) -> str:
        why = "; ".join(f"{name}: {reason}" for name, reason in self.reasons.items())
        return (
            f"{self.policy}: refused. On this log no estimator orders it against {self.baseline} better than chance "
            f"({why}). What could help: {'; '.join(self.help)}"
        )

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = jsonable(self)
        return content


def undecided(
    estimates: Sequence[Estimate], comparisons: Sequence[Comparison], indices: Sequence[DirectionIndex], baseline: str
) -> tuple[Undecided, ...]:
    """The policies about which nothing is known: all their values, differences and indices are refused.

    An estimator without a difference of its own counts if both of its values stand and no placebo was as good.
    """
    policies = dict.fromkeys(each.policy for each in estimates if each.policy != baseline)
    return tuple(
        Undecided(policy, baseline, *_why(policy, baseline, estimates, comparisons, indices))
        for policy in policies
        if not _ordered(policy, baseline, estimates, comparisons, indices)
    )


def _ordered(
    policy: str,
    baseline: str,
    estimates: Sequence[Estimate],
    comparisons: Sequence[Comparison],
    indices: Sequence[DirectionIndex],
) -> bool:
    mine = [each for each in comparisons if each.policy == policy]
    if any(each.verdict != "refuse" for each in mine):
        return True
    if any(each.policy == policy and each.verdict != "refuse" for each in indices):
        return True
    if any(finding.rule == "placebo" for each in mine for finding in each.findings):
        return False
    stands = {(each.policy, each.estimator) for each in estimates if each.verdict != "refuse"}
    compared = {each.estimator for each in mine}
    return any((policy, name) in stands and (baseline, name) in stands for name in {n for _, n in stands} - compared)


def _why(
    policy: str,
    baseline: str,
    estimates: Sequence[Estimate],
    comparisons: Sequence[Comparison],
    indices: Sequence[DirectionIndex],
) -> tuple[dict[str, str], tuple[str, ...]]:
    reasons: dict[str, str] = {}
    help_: dict[str, None] = {}
    for name, findings in _refusals(policy, baseline, estimates, comparisons):
        reasons.setdefault(name, findings[0].reason)
        help_ |= dict.fromkeys(_HELP[each.rule] for each in findings if each.rule in _HELP)
    for index in indices:
        if index.policy == policy:
            reasons.setdefault(f"{index.weights} weights", index.reasons[0])
    return reasons, (*help_, _RATE_ITS_OWN)


def _refusals(
    policy: str, baseline: str, estimates: Sequence[Estimate], comparisons: Sequence[Comparison]
) -> Iterator[tuple[str, list[Finding]]]:
    """The refusing findings of each estimator, on the policy, the baseline, or their difference."""
    every: list[Estimate | Comparison] = [each for each in estimates if each.policy == policy]
    every += [each for each in comparisons if each.policy == policy]
    every += [each for each in estimates if each.policy == baseline]
    for each in every:
        found = [finding for finding in each.findings if finding.verdict == "refuse"]
        if found:
            yield each.estimator, found
