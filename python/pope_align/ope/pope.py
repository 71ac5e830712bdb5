"""POPE's own estimators of the value of a policy, Eqs. (3)-(10): the numbers of `pope_core.slate_objective`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pope_core.objective import DiversityForm, Normalization, Objective, missing_value

from .._arrays import Floats
from ..stats.intervals import Confidence
from ..stats.ratios import RatioEstimate, Ratios
from .diagnostics import Diagnostics, diagnose
from .facts import LogFacts
from .log import LoggedSlates
from .log_support import reach_of_mean
from .result import Estimate, finish
from .verdict import Finding, find, propensity_findings, weight_findings
from .weights import Shrink, log_weights


def pope_value(
    log: LoggedSlates,
    policy: str,
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The POPE value of a policy, its parts V_CU and V_Div, their intervals and a verdict.

    Equivalent, with the default objective and ``l, l_0`` total log-probabilities::

        w = exp(l - l_0)
        V = slate_mean(w * u).sum() / slate_mean(w).sum()

    Length-normalised weights, tempered weights and weights normalised within a slate are not importance weights: the
    result is then an index of direction (its best verdict is "index"), not the value of the policy.

    Args:
        policy: one of ``log.policies``.
        objective: what is estimated; the same for all policies of an evaluation.
        confidence: how intervals are made.

    Raises:
        ValueError: the objective is length-normalised and the log has no token counts.

    Source: docs/method.md; POPE (arXiv 2509.19333), Eqs. (3)-(10).
    """
    shrink = None if objective.clip is None else Shrink("clip", objective.clip)
    rewards = reward_parts(log, policy, objective)
    whole = objective.length_normalize
    log_w = log_weights(log, policy, objective.weighting, length_normalize=whole)
    unshrunk = None
    with np.errstate(over="ignore", invalid="ignore"):
        parts = weighted_ratios(log, log_w if shrink is None else shrink.log(log_w), rewards, objective.normalization)
        if shrink is not None:
            unshrunk = weighted_ratios(log, log_w, rewards, objective.normalization)
    fresh = fresh_diversity(log, policy, objective)
    bounded = objective.clip is not None and not objective.self_normalized and not objective.rewards_likelihood
    return pope_estimate(
        log,
        policy,
        parts if fresh is None else with_fresh_diversity(log, parts, fresh),
        diagnose(log, policy, weighting=objective.weighting, length_normalize=whole, shrink=shrink),
        objective=objective,
        confidence=confidence,
        fresh=fresh is not None,
        unshrunk=unshrunk,
        row_ranges=contribution_ranges(
            log, objective.clip, objective.diversity_weight, confidence, fresh=fresh is not None
        )
        if bounded and objective.clip is not None
        else None,
    )


def pope_estimate(
    log: LogFacts,
    policy: str,
    parts: RatioEstimate,  # columns V_CU, V_Div
    diagnostics: Diagnostics,
    *,
    objective: Objective,
    confidence: Confidence,
    fresh: bool = False,  # whether the diversity is that of fresh responses
    unshrunk: RatioEstimate | None = None,  # the parts without the clip, if there is one
    row_ranges: Floats | None = None,
) -> Estimate:
    """`pope_value` of what was computed from the rows."""
    shrink = None if objective.clip is None else Shrink("clip", objective.clip)
    whole, tempered = objective.length_normalize, is_tempered(log, objective)
    return finish(
        log,
        policy,
        "pope",
        parts,
        diversity_weight=objective.diversity_weight,
        diagnostics=diagnostics,
        findings=[
            *propensity_findings(log, policy, length_normalize=whole, tempered=tempered),
            *weight_findings(
                diagnostics,
                self_normalized=objective.self_normalized,
                clipped=objective.clip is not None,
                length_normalize=whole,
                support_checked=policy in log.fresh,
            ),
            *diversity_findings(objective, self_normalized=objective.self_normalized, fresh=fresh),
        ],
        whole_slates=objective.weighs_slates and log.num_responses > log.num_slates,
        options=objective.to_dict(),
        labels=labels(log, biased=whole or tempered, shrink=shrink, self_normalized=objective.self_normalized),
        unshrunk=unshrunk,
        confidence=confidence,
        utility_range=None if objective.rewards_likelihood else log.utility_range,
        row_ranges=row_ranges,
        reach=reach_of_mean(log, parts) if is_weighted_mean(objective) else None,
    )


def is_weighted_mean(objective: Objective) -> bool:
    """Whether V_CU is the mean of the utilities by the raw weights of responses, linear in them."""
    plain = not objective.weighs_slates and objective.clip is None
    return plain and objective.couples_slates and not objective.rewards_likelihood


def is_tempered(log: LogFacts, objective: Objective) -> bool:
    """Whether the weights are not importance weights although they use totals."""
    geometric = objective.weighting == "geometric" and log.num_responses > log.num_slates
    return objective.normalized_within_slates or geometric


def reward_parts(log: LoggedSlates, policy: str, objective: Objective) -> Floats:
    """``[R, 2]``: ``cu`` and ``dv`` of every response. Source: docs/method.md, Eqs. (3)-(4).

    A response that the policy cannot write has weight 0, and both its parts are 0.
    """
    target, _ = log.logprobs(policy, length_normalize=objective.length_normalize)
    possible = np.isfinite(target)
    safe = np.where(possible, target, 0.0)
    cu = log.utility * safe if objective.rewards_likelihood else log.utility
    return np.stack([cu, _diversity(safe, objective.diversity_form)], axis=1)


def fresh_diversity(log: LoggedSlates, policy: str, objective: Objective) -> Floats | None:
    """``[S]`` mean diversity reward of the policy's own fresh responses; None without any."""
    fresh = log.fresh.get(policy)
    if fresh is None:
        return None
    target = fresh.target
    if objective.length_normalize:
        if fresh.tokens is None:
            return None
        target = target / fresh.tokens
    each = _diversity(target, objective.diversity_form)
    counts = np.bincount(fresh.owner, minlength=log.num_slates)
    return np.asarray(np.bincount(fresh.owner, weights=each, minlength=log.num_slates) / counts)


def with_fresh_diversity(log: LoggedSlates, parts: Ratios, fresh: Floats) -> Ratios:
    """The same utility, and the diversity of fresh responses ``[S]`` in place of the weighted one."""
    utility = Ratios(parts.numerators * np.array([1.0, 0.0]), parts.denominators)
    rows = np.stack([np.zeros_like(fresh), fresh], axis=1)
    diversity = Ratios(log.cluster_sums(rows)[None], log.cluster_sums(np.ones(log.num_slates))[None])
    return utility.plus(diversity)


def diversity_findings(objective: Objective, *, self_normalized: bool, fresh: bool) -> Iterator[Finding]:
    """Self-normalised weights depend on ratios only, so -log p grows without bound as a policy moves away from the
    log.
    """
    if self_normalized and objective.unbounded_diversity and not fresh:
        yield from find(
            "diversity_from_log",
            "diversity from the log rewards a policy for leaving it; give fresh responses, or the bounded 'entropy'",
        )


def _diversity(logprobs: Floats, form: DiversityForm) -> Floats:
    if form == "neg_log_prob":
        return -logprobs
    if form == "entropy":
        return -np.exp(logprobs) * logprobs
    raise missing_value("diversity_form", form)


def weighted_ratios(
    log: LoggedSlates,
    log_omega: Floats,  # [R], or [S] for weights that a slate shares
    rewards: Floats,  # [R, P]
    normalization: Normalization,
) -> Ratios:
    """The weighted means of rewards as sums over clusters. Source: docs/method.md, Eqs. (6)-(10)."""
    sizes = log.sizes.astype(np.float64)
    if log_omega.size != log.num_responses:
        log_omega = log.per_response(log_omega)
    top = np.zeros(log.num_slates)  # scaling weights against underflow does not change quotients
    if normalization == "slate":
        top = np.maximum.reduceat(log_omega, log.slate_offsets[:-1])
    elif normalization == "batch":
        top[:] = log_omega.max()
    elif normalization != "none":
        raise missing_value("normalization", normalization)
    omega = np.exp(log_omega - log.per_response(np.where(np.isfinite(top), top, 0.0)))
    numerators = log.slate_sums(omega[:, None] * rewards) / sizes[:, None]  # [S, P]
    masses = log.slate_sums(omega) / sizes  # [S]
    if normalization == "slate":
        with np.errstate(invalid="ignore"):
            numerators /= masses[:, None]
    denominators = masses if normalization == "batch" else np.ones_like(masses)
    return Ratios(log.cluster_sums(numerators)[None], log.cluster_sums(denominators)[None])


def labels(log: LogFacts, *, biased: bool, shrink: Shrink | None, self_normalized: bool) -> Iterator[str]:
    """The caveats to show with the number."""
    if biased:
        yield "biased, variance-reduced"
    if log.scale.relative:
        yield "relative utilities"
    if shrink is not None:
        yield f"{shrink.kind} {shrink.lam:g}: biased towards the unweighted part"
    if self_normalized:
        yield "self-normalised"
    if log.how != "recorded":
        yield f"logging policy {log.how.replace('_', '-')}"


@dataclass(frozen=True)
class _Range:
    low: float
    high: float

    def times(self, least: float, most: float) -> _Range:
        corners = [a * b for a in (self.low, self.high) for b in (least, most)]
        return _Range(min(corners), max(corners))


def contribution_ranges(
    log: LoggedSlates, max_weight: float, diversity_weight: float, confidence: Confidence, *, fresh: bool
) -> Floats | None:
    """``[2, 2]``: least and greatest contribution of one slate to V_CU and V_Div, for intervals that need them.

    Args:
        fresh: whether the diversity is that of fresh responses, which have no weights.

    Raises:
        ValueError: diversity has a weight and its range was not declared.
    """
    if confidence.method not in ("hoeffding", "bernstein"):
        return None
    if confidence.diversity_range is None and diversity_weight > 0:
        raise ValueError(
            f"diversity_range: {confidence.method!r} needs the declared range of the diversity reward when "
            f"diversity_weight is {diversity_weight:g}, got none"
        )
    cu = _Range(*log.utility_range).times(0.0, max_weight)
    dv = _Range(-math.inf, math.inf)
    if confidence.diversity_range is not None:
        dv = _Range(*confidence.diversity_range)
        dv = dv if fresh else dv.times(0.0, max_weight)
    return np.array([[cu.low, cu.high], [dv.low, dv.high]])
