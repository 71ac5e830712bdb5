"""POPE's own estimators of the value of a policy, Eqs. (3)-(10): the numbers of `pope_core.slate_objective`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_core.objective import DiversityForm, Normalization, Objective, UtilityForm, Weighting

from ..stats.intervals import Confidence
from ..stats.ratios import Ratios
from ._checks import Floats
from .diagnostics import diagnose
from .log import LoggedSlates
from .result import Estimate, finish
from .verdict import propensity_findings, weight_findings
from .weights import Shrink, log_weights


def pope_value(
    log: LoggedSlates,
    policy: str,
    *,
    diversity_weight: float = 0.1,
    weighting: Weighting = "response",
    normalization: Normalization = "batch",
    clip: float | None = None,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    length_normalize: bool = True,
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The POPE value of a policy, its parts V_CU and V_Div, their intervals and a verdict.

    Equivalent, with the defaults and ``l, l_0`` mean log-probabilities per token::

        w = exp(l - l_0)
        V = slate_mean(w * (u - 0.1 * l)).sum() / slate_mean(w).sum()

    Args:
        policy: one of ``log.policies``.
        diversity_weight, weighting, normalization, clip, utility_form, diversity_form: as in
            `pope_core.slate_objective`, with self-normalisation over the log ("batch") as the default.
        length_normalize: weights and rewards from means per token: less variance, and a bias of unknown size, so the
            verdict is "caution" at best. False: the true sequence probabilities.
        confidence: how intervals are made.

    Raises:
        ValueError: an option that does not fit; tokens that are needed and missing.

    Source: method.md sections 1-3; POPE (arXiv 2509.19333), Eqs. (3)-(10).
    """
    objective = Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form)
    shrink = None if clip is None else Shrink("clip", clip)
    rewards = reward_parts(
        log, policy, utility_form=utility_form, diversity_form=diversity_form, length_normalize=length_normalize
    )
    log_w = log_weights(log, policy, weighting, length_normalize=length_normalize)
    unshrunk = None
    with np.errstate(over="ignore", invalid="ignore"):
        parts = weighted_ratios(log, log_w if shrink is None else shrink.log(log_w), rewards, normalization)
        if shrink is not None:
            unshrunk = weighted_ratios(log, log_w, rewards, normalization)
    diagnostics = diagnose(log, policy, weighting=weighting, length_normalize=length_normalize, shrink=shrink)
    self_normalized = normalization != "none"
    tempered = normalization == "slate" or (weighting == "geometric" and log.num_responses > log.num_slates)
    return finish(
        log,
        policy,
        "pope",
        parts,
        diversity_weight=diversity_weight,
        diagnostics=diagnostics,
        findings=[
            *propensity_findings(log, policy, length_normalize, tempered),
            *weight_findings(diagnostics, self_normalized=self_normalized, clipped=clip is not None),
        ],
        options=_options(objective, length_normalize),
        labels=labels(log, biased=length_normalize or tempered, shrink=shrink, self_normalized=self_normalized),
        unshrunk=unshrunk,
        confidence=confidence,
        utility_range=log.utility_range if utility_form == "feedback" else None,
        row_ranges=contribution_ranges(log, clip, diversity_weight, confidence)
        if clip is not None and normalization == "none" and utility_form == "feedback"
        else None,
    )


def reward_parts(
    log: LoggedSlates,
    policy: str,
    *,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    length_normalize: bool,
) -> Floats:
    """``[R, 2]``: ``cu`` and ``dv`` of every response. Source: method.md, Eqs. (3)-(4)."""
    target, _ = log.logprobs(policy, length_normalize=length_normalize)
    cu = log.utility if utility_form == "feedback" else log.utility * target
    dv = -target if diversity_form == "neg_log_prob" else -np.exp(target) * target
    return np.stack([cu, dv], axis=1)


def weighted_ratios(
    log: LoggedSlates,
    log_omega: Floats,  # [R], or [S] for weights that a slate shares
    rewards: Floats,  # [R, P]
    normalization: Normalization,
) -> Ratios:
    """The weighted means of rewards as sums over clusters. Source: method.md, Eqs. (6)-(10)."""
    sizes = log.sizes.astype(np.float64)
    if log_omega.size != log.num_responses:
        log_omega = log.per_response(log_omega)
    top = np.zeros(log.num_slates)  # a quotient stays the same when the weights are scaled before they can underflow
    if normalization == "slate":
        top = np.maximum.reduceat(log_omega, log.slate_offsets[:-1])
    elif normalization == "batch":
        top[:] = log_omega.max()
    omega = np.exp(log_omega - log.per_response(np.where(np.isfinite(top), top, 0.0)))
    numerators = log.slate_sums(omega[:, None] * rewards) / sizes[:, None]  # [S, P]
    masses = log.slate_sums(omega) / sizes  # [S]
    if normalization == "slate":
        with np.errstate(invalid="ignore"):
            numerators /= masses[:, None]
    denominators = masses if normalization == "batch" else np.ones_like(masses)
    return Ratios(log.cluster_sums(numerators)[None], log.cluster_sums(denominators)[None])


def labels(log: LoggedSlates, *, biased: bool, shrink: Shrink | None, self_normalized: bool) -> Iterator[str]:
    """What must stand beside the number wherever it is shown."""
    if biased:
        yield "biased, variance-reduced"
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
    log: LoggedSlates, max_weight: float, diversity_weight: float, confidence: Confidence
) -> Floats | None:
    """``[2, 2]``: least and greatest contribution of one slate to V_CU and V_Div, for intervals that need them.

    Raises:
        ValueError: the diversity counts and its range was not declared.
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
        dv = _Range(*confidence.diversity_range).times(0.0, max_weight)
    return np.array([[cu.low, cu.high], [dv.low, dv.high]])


def _options(objective: Objective, length_normalize: bool) -> dict[str, Any]:
    return {
        "diversity_weight": objective.diversity_weight,
        "weighting": objective.weighting,
        "normalization": objective.normalization,
        "clip": objective.clip,
        "utility_form": objective.utility_form,
        "diversity_form": objective.diversity_form,
        "length_normalize": length_normalize,
    }
