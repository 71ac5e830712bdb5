"""Indices of direction: how a policy moves within the log, for responses too long to estimate a value.

The spread of sequence weights grows with length until one response has all the weight. Log-weights divided by the
number of tokens, or multiplied by a power that keeps enough effective samples, are well behaved, but they are not
importance weights: they show only a part of a true difference, which shrinks with length (20% at 5 tokens, 0.3% at 300
for length-normalised ones), in narrow intervals around the wrong number. So they have a table of their own, with the
effective sample size of whole sequences, a placebo and the within-slate rank correlation. They are not used to rank
policies, give no probability that one is better, and never meet a requirement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .._arrays import Floats
from .._json import jsonable
from ..stats.intervals import Confidence, Quantity, quantities
from ..stats.ratios import Ratios
from .diagnostics import effective_sample_size
from .facts import LogFacts
from .log import LoggedSlates
from .placebo import Placebo, gain_shares, placebo, rank_correlation
from .pope import weighted_ratios
from .rules import RULES, Verdict
from .tempered import tempered
from .verdict import PEOPLE, Finding, find, judge, log_findings


@dataclass(frozen=True)
class DirectionIndex:
    """How the utility changes when weights move from a baseline towards a policy; not a difference of values.

    Attributes:
        weights: "length-normalised", or "tempered" and the power.
        gain: of the weighted mean utility over the baseline's.
        ess: effective sample size of the weights in use.
        sequence_ess: of the true ratios of whole sequences.
        placebo: the gain compared with utilities permuted within slates; None if slates have one response.
        rank_correlation: mean Spearman correlation, within slates, of the policy's log-probability per token (total
            where tokens are not known) and the utility; None where slates have one response.
        verdict: "index", or "refuse".
    """

    policy: str
    baseline: str
    weights: str
    gain: Quantity
    ess: float
    sequence_ess: float
    num_responses: int
    placebo: Placebo | None
    rank_correlation: Quantity | None
    verdict: Verdict
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = jsonable(self)
        return content


def directions(
    log: LoggedSlates,
    policy: str,
    baseline: str,
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> list[DirectionIndex]:
    """The indices of one policy against another: length-normalised where tokens are known, and tempered.

    Source: docs/evaluation.md, "Estimators".
    """
    totals = [np.subtract(*log.logprobs(name, length_normalize=False)) for name in (policy, baseline)]
    if not all(np.isfinite(each).any() for each in totals):  # every weight is 0, of whatever kind
        return []
    indices = []
    if log.tokens(policy) is not None and log.tokens(baseline) is not None:
        normalised = [np.subtract(*log.logprobs(name, length_normalize=True)) for name in (policy, baseline)]
        indices.append(_index(log, policy, baseline, "length-normalised", normalised, totals[0], confidence))
    leaning, other = (tempered(each) for each in totals)
    power = min(leaning.power, other.power)  # one power for both, so that policies are compared and not powers
    if power < 1:  # else the weights are those of the values
        both = [np.where(np.isfinite(each), power * each, -np.inf) for each in totals]
        indices.append(_index(log, policy, baseline, f"tempered, power {power:.3g}", both, totals[0], confidence))
    return indices


def _index(
    log: LoggedSlates,
    policy: str,
    baseline: str,
    weights: str,
    log_weights: list[Floats],  # of policy and baseline, [R] each
    raw: Floats,
    confidence: Confidence,
) -> DirectionIndex:
    mine, theirs = (_mean_utility(log, each) for each in log_weights)
    return direction_index(
        log,
        policy,
        baseline,
        weights,
        quantities(mine.minus(theirs), confidence)[0],
        _placebo(log, *log_weights),
        ess=effective_sample_size(log_weights[0]),
        sequence_ess=effective_sample_size(raw),
        ranks=_ranks(log, policy, confidence),
    )


def direction_index(
    log: LogFacts,
    policy: str,
    baseline: str,
    weights: str,
    gain: Quantity,
    tested: Placebo | None,
    *,
    ess: float,
    sequence_ess: float,
    ranks: Quantity | None,
) -> DirectionIndex:
    """The index of what was computed from the rows, with its verdict."""
    findings = [
        Finding("length_normalized", "index", f"{weights} weights show a direction, not a value"),
        *log_findings(log),
        *find("ess", f"effective sample size {ess:.1f} of {log.num_responses} responses", ess),
        *_placebo_findings(tested),
        *(find("relative_utility", PEOPLE) if log.written_by == "people" else ()),
    ]
    verdict, reasons = judge(findings)
    return DirectionIndex(
        policy=policy,
        baseline=baseline,
        weights=weights,
        gain=gain,
        ess=ess,
        sequence_ess=sequence_ess,
        num_responses=log.num_responses,
        placebo=tested,
        rank_correlation=ranks,
        verdict=verdict,
        reasons=reasons,
    )


def _mean_utility(log: LoggedSlates, log_weights: Floats) -> Ratios:
    return weighted_ratios(log, log_weights, log.utility[:, None], "batch")


def _placebo(log: LoggedSlates, policy: Floats, baseline: Floats) -> Placebo | None:
    if log.sizes.max() == 1:
        return None
    return placebo(log, gain_shares(log, policy, baseline))


def _placebo_findings(tested: Placebo | None) -> list[Finding]:
    if tested is None:
        return []
    p_value = tested.p_value
    verdict = RULES["placebo"].grade(p_value)
    reason = f"no larger than its placebo: utilities permuted within slates reach this gain with p = {p_value:.2g}"
    return [Finding("placebo", verdict, reason)] if verdict else []


def _ranks(log: LoggedSlates, policy: str, confidence: Confidence) -> Quantity | None:
    try:
        return rank_correlation(log, rank_scores(log, policy), confidence)
    except ValueError:  # no slate with two different utilities and log-probabilities
        return None


def rank_scores(log: LoggedSlates, policy: str) -> Floats:
    """``[R]`` by which the policy ranks responses; those that it cannot write come last."""
    scores = log.logprobs(policy, length_normalize=log.tokens(policy) is not None)[0]
    lowest = scores[np.isfinite(scores)].min() - 1 if np.isfinite(scores).any() else 0.0
    return np.asarray(np.where(np.isfinite(scores), scores, lowest))
