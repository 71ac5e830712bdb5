"""The estimators of the off-policy literature, by name: weighting, direct, doubly robust, slate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_core.objective import Objective, Weighting

from .._arrays import Floats
from ..stats.intervals import Confidence
from ..stats.ratios import RatioEstimate, Ratios
from .diagnostics import Diagnostics, diagnose
from .facts import LogFacts
from .log import LoggedSlates
from .log_support import reach, reach_of_mean
from .pope import contribution_ranges, diversity_findings, fresh_diversity, labels, reward_parts, with_fresh_diversity
from .predictions import Predictions
from .result import Estimate, finish
from .rules import FEW_CLUSTERS, LEAK
from .slope import bias_bound, ladder, slope_of
from .verdict import Finding, contradiction_findings, find, propensity_findings, weight_findings
from .weights import Shrink, ShrinkKind, log_weights


@dataclass(frozen=True)
class EstimatorSpec:
    """The definition of an estimator of this family.

    With weights ``w``, shrunken to ``w~``, and predictions ``q`` (0 if the method uses none)::

        V = slate_mean(q_pi) + slate_mean(w~ (r - q)) [/ slate_mean(w~)  if self_normalize]
    """

    summary: str
    weighs: Weighting | None = "response"  # None: the direct method, which has no weights
    shrink: ShrinkKind | None = None
    self_normalize: bool = False
    predictions: bool = False
    pseudo_inverse: bool = False  # G = 1 - k + sum_i w_i in place of the product of the weights

    @property
    def weighted_mean(self) -> bool:
        """Whether V_CU is the mean of the utilities by the raw weights of responses, linear in them."""
        return self == EstimatorSpec(self.summary, self_normalize=True)

    @property
    def plain_mean(self) -> bool:
        """Whether a slate adds a reward times weights of at least 0, whatever the others are: bounded by the largest.

        The contribution of a slate to a ratio has no bound of its own, and ``G`` may be negative.
        """
        return not self.self_normalize and not self.pseudo_inverse


METHODS: Mapping[str, EstimatorSpec] = {
    "ips": EstimatorSpec("inverse propensity scores"),
    "clipped_ips": EstimatorSpec("IPS with weights limited to lam", shrink="clip"),
    "subgaussian_ips": EstimatorSpec("IPS with w / (1 - lam + lam w)", shrink="subgaussian"),
    "snips": EstimatorSpec("self-normalised IPS", self_normalize=True),
    "dm": EstimatorSpec("direct method: the reward model on fresh responses", weighs=None, predictions=True),
    "dr": EstimatorSpec("doubly robust", predictions=True),
    "sndr": EstimatorSpec("doubly robust, its correction self-normalised", predictions=True, self_normalize=True),
    "clipped_dr": EstimatorSpec("doubly robust with weights limited to lam", shrink="clip", predictions=True),
    "switch_dr": EstimatorSpec("doubly robust where w <= lam, direct elsewhere", shrink="switch", predictions=True),
    "dros": EstimatorSpec("doubly robust with optimistic shrinkage", shrink="dros", predictions=True),
    "subgaussian_dr": EstimatorSpec("doubly robust with w / (1 - lam + lam w)", shrink="subgaussian", predictions=True),
    "slate_ips": EstimatorSpec("IPS with the product of a slate's weights", weighs="slate"),
    "slate_snips": EstimatorSpec("its self-normalised form", weighs="slate", self_normalize=True),
    "pseudo_inverse": EstimatorSpec("slate weight 1 - k + sum of its weights", pseudo_inverse=True),
}


def estimate(
    log: LoggedSlates,
    policy: str,
    method: str,
    *,
    predictions: Predictions | None = None,
    lam: float | None = None,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The value of a policy by one of ``METHODS``; all slates have equal weight, shared by their responses.

    Args:
        policy: one of ``log.policies``.
        method: a key of ``METHODS``.
        predictions: of a reward model, for "dm", "dr", "sndr" and the other doubly robust ones. They predict utility.
            Diversity needs no model: it is ``predictions.target_diversity``, else that of ``log.fresh``, else estimated
            with the weights.
        lam: the shrinkage parameter of `Shrink`; None: chosen from the data, which needs 50 independent queries.
        objective: its diversity_weight, diversity_form and length_normalize are used; the method determines the
            weighting.
        confidence: how intervals are made.

    Raises:
        ValueError: an unknown method; missing or invalid predictions; a ``lam`` that is unused or out of range.

    Source: docs/evaluation.md, "Estimators"; Dudik et al. (2011), Swaminathan and Joachims (2015), Swaminathan et al.
    (2017).
    """
    spec = _spec(method, predictions, lam)
    if predictions is not None:
        predictions.check(log)
    whole, alpha = objective.length_normalize, objective.diversity_weight
    if spec.weighs is None:
        assert predictions is not None
        return _direct(log, policy, predictions, objective, confidence)
    log_w = log_weights(log, policy, spec.weighs, length_normalize=whole)
    known = _known(log, policy, objective, predictions)
    shrink: Shrink | None = None
    chosen: dict[str, float] = {}
    if spec.shrink is not None:
        shrink, chosen = _shrinkage(log, spec, lam, log_w, known, alpha)
    diagnostics = diagnose(log, policy, weighting=spec.weighs, length_normalize=whole, shrink=shrink)
    with np.errstate(over="ignore", invalid="ignore"):
        unshrunk = None if shrink is None else _value(log, log_w, known, spec, predictions)
        parts = _value(log, log_w if shrink is None else shrink.log(log_w), known, spec, predictions)
    row_ranges = None
    if shrink is not None and spec.plain_mean and predictions is None:
        row_ranges = contribution_ranges(log, shrink.max_weight, alpha, confidence, fresh=known.fresh_diversity)
    return weighted_estimate(
        log,
        policy,
        method,
        parts,
        diagnostics,
        objective=objective,
        confidence=confidence,
        lam=lam,
        shrink=shrink,
        fresh=known.fresh_diversity,
        findings=() if predictions is None else _model_findings(log, log_w, known, parts),
        predictions=predictions,
        unshrunk=unshrunk,
        row_ranges=row_ranges,
        chosen=chosen,
    )


def weighted_estimate(
    log: LogFacts,
    policy: str,
    method: str,
    parts: RatioEstimate,  # columns V_CU, V_Div
    diagnostics: Diagnostics,
    *,
    objective: Objective,
    confidence: Confidence,
    lam: float | None = None,  # as it was asked for
    shrink: Shrink | None = None,  # as it was applied
    fresh: bool = False,  # whether the diversity is that of fresh responses
    findings: Iterable[Finding] = (),  # about the reward model
    predictions: Predictions | None = None,
    unshrunk: RatioEstimate | None = None,
    row_ranges: Floats | None = None,
    chosen: Mapping[str, float] | None = None,
) -> Estimate:
    """`estimate` of what was computed from the rows, by a method with weights."""
    spec, whole = METHODS[method], objective.length_normalize
    return finish(
        log,
        policy,
        method,
        parts,
        diversity_weight=objective.diversity_weight,
        diagnostics=diagnostics,
        findings=[
            *propensity_findings(log, policy, length_normalize=whole),
            *weight_findings(
                diagnostics,
                self_normalized=spec.self_normalize,
                clipped=shrink is not None,
                length_normalize=whole,
                support_checked=policy in log.fresh,
            ),
            *diversity_findings(objective, self_normalized=spec.self_normalize or whole, fresh=fresh),
            *findings,
        ],
        whole_slates=(spec.weighs == "slate" or spec.pseudo_inverse) and log.num_responses > log.num_slates,
        options={
            **_options(objective),
            **({"lam": lam if lam is not None else "chosen by the data"} if spec.shrink else {}),
            **({"reward_model": predictions.source} if predictions else {}),
        },
        labels=labels(log, biased=whole, shrink=shrink, self_normalized=spec.self_normalize),
        confidence=confidence,
        utility_range=log.utility_range,
        row_ranges=row_ranges,
        chosen={**(chosen or {}), **(predictions.quality if predictions else {})},
        unshrunk=unshrunk,
        reach=_reach(log, spec, predictions, parts),
    )


def _reach(log: LogFacts, spec: EstimatorSpec, predictions: Predictions | None, parts: RatioEstimate) -> float | None:
    """What a response outside the log's support can change: unnormalised weights count it as 0, self-normalised ones as
    the value of the others. A doubly robust estimate counts it as predicted, which may be any utility: predictions are
    worst for responses that the log does not have.
    """
    if spec.weighs == "slate" or spec.pseudo_inverse:
        return None
    if predictions is not None:
        return reach(log, *log.utility_range)
    return reach_of_mean(log, parts) if spec.self_normalize else reach(log, 0.0, 0.0)


def _options(objective: Objective) -> dict[str, Any]:
    """The options of the objective that these methods use."""
    taken = ("diversity_weight", "diversity_form", "length_normalize")
    return {name: value for name, value in objective.to_dict().items() if name in taken}


def _spec(method: str, predictions: Predictions | None, lam: float | None) -> EstimatorSpec:
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    spec = METHODS[method]
    if spec.predictions and predictions is None:
        raise ValueError(f"predictions: expected those of a reward model for {method!r}, got none")
    if lam is not None and spec.shrink is None:
        raise ValueError(f"lam: {method!r} has no shrinkage parameter, got {lam!r}")
    return spec


@dataclass(frozen=True, eq=False)
class _Known:
    """What the weights have to correct, and what is known without them."""

    rewards: Floats  # [R, 2] utility and diversity
    residual: Floats  # [R, 2] reward less prediction
    target: Floats  # [S, 2] known means over the policy's own responses
    fresh_diversity: bool  # whether the second column of ``target`` is known


def _known(log: LoggedSlates, policy: str, objective: Objective, predictions: Predictions | None) -> _Known:
    rewards = reward_parts(log, policy, objective)
    target, residual = np.zeros((log.num_slates, 2)), rewards.copy()
    diversity = fresh_diversity(log, policy, objective)
    if predictions is not None:
        residual[:, 0] -= predictions.logged
        target[:, 0] = predictions.target
        diversity = predictions.target_diversity if predictions.target_diversity is not None else diversity
    if diversity is not None:  # known exactly: nothing to correct
        residual[:, 1] = 0.0
        target[:, 1] = diversity
    return _Known(rewards, residual, target, diversity is not None)


def _value(
    log: LoggedSlates, log_shrunk: Floats, known: _Known, spec: EstimatorSpec, predictions: Predictions | None
) -> Ratios:
    """Columns V_CU and V_Div: the known part plus the weighted correction."""
    correction = correction_of(log, log_shrunk, known.residual, spec)
    if predictions is not None:
        return _mean(log, known.target).plus(correction)
    return with_fresh_diversity(log, correction, known.target[:, 1]) if known.fresh_diversity else correction


def _mean(log: LoggedSlates, rows: Floats) -> Ratios:
    """The mean over slates of ``[S, P]``."""
    return Ratios(log.cluster_sums(rows)[None], log.cluster_sums(np.ones(log.num_slates))[None])


def correction_of(log: LoggedSlates, log_shrunk: Floats, residual: Floats, spec: EstimatorSpec) -> Ratios:
    """``slate_mean(w~ e)``, divided by ``slate_mean(w~)`` when self-normalised."""
    sizes = log.sizes.astype(np.float64)
    shift = float(log_shrunk.max()) if spec.self_normalize else 0.0
    weights = np.exp(log_shrunk - (shift if math.isfinite(shift) else 0.0))  # [R], or [S] for the slate product
    if spec.pseudo_inverse:
        weights = 1 - sizes + log.slate_sums(weights)  # [S]; may be negative
    if spec.pseudo_inverse or spec.weighs == "slate":
        numerators = weights[:, None] * log.slate_sums(residual) / sizes[:, None]
        masses = weights
    else:
        numerators = log.slate_sums(weights[:, None] * residual) / sizes[:, None]
        masses = log.slate_sums(weights) / sizes
    denominators = masses if spec.self_normalize else np.ones_like(masses)
    return Ratios(log.cluster_sums(numerators)[None], log.cluster_sums(denominators)[None])


def check_slope(log: LoggedSlates) -> None:
    """Raises: ValueError: the log is too small to choose ``lam`` from it."""
    if log.num_clusters < FEW_CLUSTERS:
        raise ValueError(
            f"lam: expected a number, got None; SLOPE compares estimates and needs {FEW_CLUSTERS} independent "
            f"queries, this log has {log.num_clusters}"
        )


def _shrinkage(
    log: LoggedSlates,
    spec: EstimatorSpec,
    lam: float | None,
    log_w: Floats,
    known: _Known,
    diversity_weight: float,
) -> tuple[Shrink, dict[str, float]]:
    """The given parameter, or SLOPE's choice for this kind of estimate, and a bound on its bias.

    The bound on the bias of V_CU is for means over responses; other estimators have none.
    """
    assert spec.shrink is not None
    with np.errstate(over="ignore", invalid="ignore"):
        if lam is not None:
            shrink = Shrink(spec.shrink, lam)
        else:
            check_slope(log)
            candidates = ladder(spec.shrink, log_w)
            total = known.residual @ np.array([[1.0], [diversity_weight]])  # [R, 1]
            each = [correction_of(log, candidate.log(log_w), total, spec) for candidate in candidates]
            shrink = candidates[slope_of(each)]
        chosen = {"lam": shrink.lam}
        if spec.plain_mean and spec.weighs == "response":
            chosen["utility_bias_bound"] = bias_bound(log_w, shrink, known.residual[:, 0])
        return shrink, chosen


def _model_findings(log: LoggedSlates, log_w: Floats, known: _Known, parts: Ratios) -> Iterator[Finding]:
    """A doubly robust estimate must agree with SNIPS, and a model without errors has seen the ratings."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if log_w.size == log.num_responses:
            plain = correction_of(log, log_w, known.rewards, METHODS["snips"])
            utility = np.array([[1.0], [0.0]])
            gap = parts.combine(utility).minus(plain.combine(utility))
            yield from contradiction_findings(
                float(gap.values()[0]),
                float(np.sqrt(gap.covariance()[0, 0])),
                "the doubly robust estimate and SNIPS differ",
            )
    yield from leak_findings(log, known.residual[:, 0])


def leak_findings(log: LoggedSlates, residual: Floats) -> Iterator[Finding]:
    """Predictions that equal the logged ratings."""
    if residual.std() <= LEAK * log.utility.std() and log.utility.std() > 0:
        yield from find(
            "model_leaks", "the reward model repeats the logged utilities: it has seen them, or they have no noise"
        )


def _sight_findings(predictions: Predictions) -> Iterator[Finding]:
    """Whether the model predicts the reward at all, if its quality is known."""
    r2 = predictions.quality.get("r2", math.nan)
    yield from find("model_blind", f"the reward model explains {r2:.0%} of the utilities' variance out of fold", r2)


def _direct(
    log: LoggedSlates, policy: str, predictions: Predictions, objective: Objective, confidence: Confidence
) -> Estimate:
    """The reward model's mean on the policy's own responses; outside the log it is only as good as the model."""
    known = _known(log, policy, objective, predictions)
    alpha = objective.diversity_weight
    log_w = log_weights(log, policy, "response", length_normalize=objective.length_normalize)
    with np.errstate(over="ignore", invalid="ignore"):
        correction = correction_of(log, log_w, known.residual, METHODS["dr"])
        error = float(np.sqrt(correction.covariance()[0, 0]))
        weighted = correction_of(log, log_w, known.residual * np.array([0.0, 1.0]), METHODS["snips"])
    return finish(
        log,
        policy,
        "dm",
        _mean(log, known.target) if known.fresh_diversity else _mean(log, known.target).plus(weighted),
        diversity_weight=alpha,
        diagnostics=None,
        findings=[
            *find("model_only", "rests on the reward model alone: its interval does not cover the model's bias"),
            *contradiction_findings(
                float(correction.values()[0]), error, "the logged responses contradict the reward model"
            ),
            *leak_findings(log, known.residual[:, 0]),
            *diversity_findings(objective, self_normalized=True, fresh=known.fresh_diversity),
            *_sight_findings(predictions),
        ],
        options={**_options(objective), "reward_model": predictions.source},
        labels=("model-based",),
        utility_range=log.utility_range,
        confidence=confidence,
        chosen=predictions.quality,
    )
