"""The estimators of the off-policy literature, by name: weighting, direct, doubly robust, slate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_core.objective import DiversityForm, Weighting

from ..stats.intervals import Confidence, quantities
from ..stats.ratios import Ratios
from ._checks import Floats
from .diagnostics import diagnose
from .log import LoggedSlates
from .pope import contribution_ranges, labels, reward_parts
from .predictions import Predictions
from .result import Estimate, finish
from .slope import bias_bound, ladder, slope
from .thresholds import FEW_CLUSTERS
from .verdict import model_findings, propensity_findings, weight_findings
from .weights import Shrink, ShrinkKind, log_weights


@dataclass(frozen=True)
class Method:
    """How an estimator of this family is put together.

    With weights ``w``, shrunken to ``w~``, and predictions ``q`` (0 where the method uses none)::

        V = slate_mean(q_pi) + slate_mean(w~ (r - q)) [/ slate_mean(w~)  if self_normalize]
    """

    summary: str
    weighting: Weighting | None = "response"  # None: the direct method, which has no weights
    shrink: ShrinkKind | None = None
    self_normalize: bool = False
    predictions: bool = False
    pseudo_inverse: bool = False  # G = 1 - k + sum_i w_i in place of the product of the weights


METHODS: Mapping[str, Method] = {
    "ips": Method("inverse propensity scores"),
    "clipped_ips": Method("IPS with weights limited to lam", shrink="clip"),
    "subgaussian_ips": Method("IPS with w / (1 - lam + lam w)", shrink="subgaussian"),
    "snips": Method("self-normalised IPS", self_normalize=True),
    "dm": Method("direct method: the reward model on fresh responses", weighting=None, predictions=True),
    "dr": Method("doubly robust", predictions=True),
    "sndr": Method("doubly robust, its correction self-normalised", predictions=True, self_normalize=True),
    "clipped_dr": Method("doubly robust with weights limited to lam", shrink="clip", predictions=True),
    "switch_dr": Method("doubly robust where w <= lam, direct elsewhere", shrink="switch", predictions=True),
    "dros": Method("doubly robust with optimistic shrinkage", shrink="dros", predictions=True),
    "subgaussian_dr": Method("doubly robust with w / (1 - lam + lam w)", shrink="subgaussian", predictions=True),
    "slate_ips": Method("IPS with the product of a slate's weights", weighting="slate"),
    "slate_snips": Method("its self-normalised form", weighting="slate", self_normalize=True),
    "pseudo_inverse": Method("slate weight 1 - k + sum of its weights", pseudo_inverse=True),
}


def estimate(
    log: LoggedSlates,
    policy: str,
    method: str,
    *,
    predictions: Predictions | None = None,
    lam: float | None = None,
    diversity_weight: float = 0.1,
    diversity_form: DiversityForm = "neg_log_prob",
    length_normalize: bool = True,
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The value of a policy by one of ``METHODS``; slates count alike, and responses of a slate share its weight.

    Args:
        policy: one of ``log.policies``.
        method: a key of ``METHODS``.
        predictions: of a reward model, for "dm", "dr", "sndr" and the other doubly robust ones. They predict
            utility. The diversity of the policy's own responses needs no model: it is ``predictions.target_diversity``,
            or estimated by the weights alone where that is None.
        lam: the shrinkage parameter of `Shrink`; None lets SLOPE choose it, which needs 50 independent queries.
        diversity_weight, diversity_form: as in `pope_value`; 0 evaluates the utility alone.
        length_normalize: as in `pope_value`.
        confidence: how intervals are made.

    Raises:
        ValueError: an unknown method; predictions missing or unfitting; a ``lam`` without use or out of range.

    Source: method.md section 5; Dudik et al. (2011), Swaminathan and Joachims (2015), Swaminathan et al. (2017).
    """
    spec = _spec(method, predictions, lam)
    if predictions is not None:
        predictions.check(log)
    rewards = reward_parts(log, policy, diversity_form=diversity_form, length_normalize=length_normalize)
    if spec.weighting is None:
        assert predictions is not None
        return _direct(log, policy, predictions, diversity_weight, diversity_form, length_normalize, confidence)
    log_w = log_weights(log, policy, spec.weighting, length_normalize=length_normalize)
    known = _known(log, rewards, predictions)
    shrink: Shrink | None = None
    chosen: dict[str, float] = {}
    if spec.shrink is not None:
        shrink, chosen = _shrinkage(log, spec.shrink, lam, log_w, known, diversity_weight)
    diagnostics = diagnose(log, policy, weighting=spec.weighting, length_normalize=length_normalize, shrink=shrink)
    with np.errstate(over="ignore", invalid="ignore"):
        unshrunk = None if shrink is None else _correction(log, log_w, known.residual, spec)
        parts = _correction(log, log_w if shrink is None else shrink.log(log_w), known.residual, spec)
        if predictions is not None:
            direct = _mean(log, known.target)
            parts = _sum(direct, parts)
            unshrunk = None if unshrunk is None else _sum(direct, unshrunk)
    return finish(
        log,
        policy,
        method,
        parts,
        diversity_weight=diversity_weight,
        diagnostics=diagnostics,
        findings=[
            *propensity_findings(log, policy, length_normalize),
            *weight_findings(diagnostics, self_normalized=spec.self_normalize, clipped=shrink is not None),
        ],
        options={
            "diversity_weight": diversity_weight,
            "diversity_form": diversity_form,
            "length_normalize": length_normalize,
            **({"lam": lam if lam is not None else "slope"} if spec.shrink else {}),
            **({"reward_model": predictions.source} if predictions else {}),
        },
        labels=labels(log, biased=length_normalize, shrink=shrink, self_normalized=spec.self_normalize),
        confidence=confidence,
        utility_range=log.utility_range,
        row_ranges=None
        if shrink is None or predictions is not None
        else contribution_ranges(log, shrink.max_weight, diversity_weight, confidence),
        chosen=chosen | (predictions.quality if predictions else {}),
        unshrunk=unshrunk,
    )


def _spec(method: str, predictions: Predictions | None, lam: float | None) -> Method:
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
    """What is left for the weights to correct, and what the reward model contributes."""

    residual: Floats  # [R, 2] reward less prediction, for utility and diversity
    target: Floats  # [S, 2]


def _known(log: LoggedSlates, rewards: Floats, predictions: Predictions | None) -> _Known:
    target = np.zeros((log.num_slates, 2))
    residual = rewards.copy()
    if predictions is not None:
        residual[:, 0] -= predictions.logged
        target[:, 0] = predictions.target
        if predictions.target_diversity is not None:  # a response's diversity is known exactly: nothing to correct
            residual[:, 1] = 0.0
            target[:, 1] = predictions.target_diversity
    return _Known(residual, target)


def _mean(log: LoggedSlates, rows: Floats) -> Ratios:
    """The mean over slates of ``[S, P]``."""
    return Ratios(log.cluster_sums(rows)[None], log.cluster_sums(np.ones(log.num_slates))[None])


def _sum(first: Ratios, second: Ratios) -> Ratios:
    return Ratios(
        np.concatenate([first.numerators, second.numerators]), np.concatenate([first.denominators, second.denominators])
    )


def _correction(log: LoggedSlates, log_shrunk: Floats, residual: Floats, spec: Method) -> Ratios:
    """``slate_mean(w~ e)``, divided by ``slate_mean(w~)`` when self-normalised."""
    sizes = log.sizes.astype(np.float64)
    shift = float(log_shrunk.max()) if spec.self_normalize else 0.0
    weights = np.exp(log_shrunk - (shift if math.isfinite(shift) else 0.0))  # [R], or [S] for the slate product
    if spec.pseudo_inverse:
        weights = 1 - sizes + log.slate_sums(weights)  # [S]; may be negative
    if spec.pseudo_inverse or spec.weighting == "slate":
        numerators = weights[:, None] * log.slate_sums(residual) / sizes[:, None]
        masses = weights
    else:
        numerators = log.slate_sums(weights[:, None] * residual) / sizes[:, None]
        masses = log.slate_sums(weights) / sizes
    denominators = masses if spec.self_normalize else np.ones_like(masses)
    return Ratios(log.cluster_sums(numerators)[None], log.cluster_sums(denominators)[None])


def _shrinkage(
    log: LoggedSlates, kind: ShrinkKind, lam: float | None, log_w: Floats, known: _Known, diversity_weight: float
) -> tuple[Shrink, dict[str, float]]:
    """The parameter as given or as SLOPE chooses it, and the bound on the bias it brings to the utility."""
    shrink = None if lam is None else Shrink(kind, lam)
    if shrink is None:
        if log.num_clusters < FEW_CLUSTERS:
            raise ValueError(
                f"lam: expected a number, got None; SLOPE compares intervals and needs {FEW_CLUSTERS} independent "
                f"queries, this log has {log.num_clusters}"
            )
        candidates = ladder(kind, log_w)
        total = known.residual @ np.array([[1.0], [diversity_weight]])  # [R, 1]
        with np.errstate(over="ignore", invalid="ignore"):
            each = [
                quantities(_correction(log, candidate.log(log_w), total, METHODS["ips"]), Confidence(level=0.8))[0]
                for candidate in candidates
            ]
        shrink = candidates[slope([q.value for q in each], [q.high - q.value for q in each])]
    with np.errstate(over="ignore", invalid="ignore"):
        return shrink, {"lam": shrink.lam, "utility_bias_bound": bias_bound(log_w, shrink, known.residual[:, 0])}


def _direct(
    log: LoggedSlates,
    policy: str,
    predictions: Predictions,
    diversity_weight: float,
    diversity_form: DiversityForm,
    length_normalize: bool,
    confidence: Confidence,
) -> Estimate:
    """The reward model's mean on the policy's own responses: as good as the model where the log never went."""
    if predictions.target_diversity is None and diversity_weight > 0:
        raise ValueError(
            "predictions.target_diversity: expected the diversity of the policy's own responses for 'dm' with "
            f"diversity_weight {diversity_weight:g}, got none; pass it, or diversity_weight=0"
        )
    diversity = np.zeros(log.num_slates) if predictions.target_diversity is None else predictions.target_diversity
    rewards = reward_parts(log, policy, diversity_form=diversity_form, length_normalize=length_normalize)
    log_w = log_weights(log, policy, "response", length_normalize=length_normalize)
    with np.errstate(over="ignore", invalid="ignore"):
        correction = _correction(log, log_w, _known(log, rewards, predictions).residual, METHODS["dr"])
        error = float(np.sqrt(correction.covariance()[0, 0]))
    options: dict[str, Any] = {
        "diversity_weight": diversity_weight,
        "diversity_form": diversity_form,
        "length_normalize": length_normalize,
        "reward_model": predictions.source,
    }
    return finish(
        log,
        policy,
        "dm",
        _mean(log, np.stack([predictions.target, diversity], axis=1)),
        diversity_weight=diversity_weight,
        diagnostics=None,
        findings=model_findings(float(correction.values()[0]), error),
        options=options,
        labels=("model-based",),
        utility_range=log.utility_range,
        confidence=confidence,
        chosen=predictions.quality,
    )
