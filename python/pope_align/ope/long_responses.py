"""The estimator "model_first" for long responses: a reward model, corrected as far as the log allows, and its verdict.

For long responses, weights of whole sequences are useless, and so are their effective sample size and support. The
correction's weights lie between those of a classifier that reads the features and those of whole responses
(`bridged`): for short responses they are the latter. The verdict depends on whether the reward model predicts the
reward (variance explained out of fold, scale), whether the log contradicts it where the policy puts probability
(residuals under tempered weights), whether the log shows what the weights still miss, and whether the policy's
responses are inside the log's support. Weights of whole responses that are used as they are, with support, correct any
model. Otherwise the support of the classifier's features counts, and the model has to predict the reward.
docs/choosing-an-estimator.md says when to use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_core.objective import Objective

from .._arrays import Floats
from ..stats.intervals import Confidence
from ..stats.ratios import Ratios
from .balance import balance_findings
from .bridged import BridgedWeights, bridged_weights
from .classifier_weights import ClassifierWeights, classifier_weights
from .crossfit import FOLDS, CrossFit, best_fit
from .diagnostics import cluster_ess, diagnose, effective_sample_size
from .estimators import leak_findings
from .features import Features
from .log import LoggedSlates
from .log_support import Support, fresh_support, support_of
from .model_first import ModelFirst, missed, model_first, per_slate_weights, residual_check, weighted_mean
from .pope import fresh_diversity
from .result import Estimate, finish
from .rules import RULES
from .tempered import tempered
from .verdict import (
    Finding,
    contradiction_findings,
    find,
    propensity_findings,
    support_findings,
    weight_findings,
)
from .weights import log_weights

#: The reason where nothing but the features vouches for the estimate.
_UNVERIFIED = (
    "only as good as the features: responses are too long for the log to show whether the policy changes what the "
    "features miss"
)
_NOT_RECORDED = "only as good as the features: without recorded propensities the log cannot show what the features miss"
_UNWRITTEN = "only as good as the features: the policy cannot write any of the logged responses"
_BENT = "only as good as the features: what they miss is not small enough to be estimated to first order"

#: Standard errors by which two estimates of what the features miss may differ.
_AGREE = 3

#: Rules for weights of whole responses that ESS and largest share do not cover.
_OF_WHOLE = ("mean_weight", "pareto_k", "pareto_k_infinite", "few_weights")

#: Its name among the estimators.
NAME = "model_first"


@dataclass(frozen=True, eq=False)
class LongEstimate:
    """The estimate, and the shares that `placebo` needs to test a gain.

    Attributes:
        estimate: can be passed to ``compare``.
        shares: ``[R]`` coefficient of each logged utility in V_CU; those of a gain are the difference of two policies'.
    """

    estimate: Estimate
    shares: Floats


def model_first_estimate(
    log: LoggedSlates,
    policy: str,
    candidates: Sequence[Features],
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
    folds: int = FOLDS,
    seed: int = 0,
) -> LongEstimate:
    """The value of a policy by a cross-fitted reward model on its fresh responses, and classifier-weighted residuals.

    The logging policy itself needs no model: its value is the log's mean.

    Args:
        policy: one of ``log.policies``.
        candidates: feature sets of logged responses and of fresh ones of the policy; reward model and classifier use
            the one that explains most of the utilities out of fold. Not used for the logging policy.
        objective: its diversity_weight and diversity_form; if the weight is above 0, diversity comes from
            ``log.fresh``.
        confidence: how intervals are made.
        folds, seed: of the cross-fitting; equal values give equal folds for all policies.

    Raises:
        ValueError: features that do not match the log; no fresh responses in ``log.fresh`` for diversity.
    """
    if log.is_logging_policy(policy):
        rows = _diversity(log, policy, objective)
        flat = np.zeros(log.num_responses)
        estimate = finish(
            log,
            policy,
            NAME,
            _with_diversity(log, weighted_mean(log, flat), rows),
            diversity_weight=objective.diversity_weight,
            diagnostics=None,
            findings=propensity_findings(log, policy, length_normalize=False),
            options=_options(objective, folds, seed),
            labels=("the log's mean",),
            confidence=confidence,
            utility_range=log.utility_range,
        )
        sizes = log.per_response(log.sizes.astype(np.float64))
        return LongEstimate(estimate, 1 / (sizes * log.num_slates))
    fit = best_fit(log, candidates, folds=folds, seed=seed)
    weights = classifier_weights(log, fit.features, folds=folds, seed=seed)
    return estimate_of_fit(
        log, policy, fit, weights, objective=objective, confidence=confidence, folds=folds, seed=seed
    )


def estimate_of_fit(
    log: LoggedSlates,
    policy: str,
    fit: CrossFit,
    weights: ClassifierWeights,
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
    folds: int = FOLDS,
    seed: int = 0,
) -> LongEstimate:
    """`model_first_estimate` with a reward model and a classifier that were fitted before, in these folds."""
    rows = _diversity(log, policy, objective)
    taken, ratio = _bridge(log, policy, weights.log_weights)
    result = model_first(log, fit, taken.log_weights)
    exact = taken.power == 1  # weights of whole responses as they are: their own support and checks count
    uneven = (*_weight_findings(log, taken), *(_whole_findings(log, policy) if exact else ()))
    hidden = tuple(_missed(log, fit, result, taken, ratio))
    whole = fresh_support(log, policy)
    of_features = support_of(log, weights.log_weights, weights.fresh_log_weights, fit.features.owner)
    seen, vouched = _counting(whole, of_features) if exact and whole is not None else (of_features, False)
    estimate = finish(
        log,
        policy,
        NAME,
        _with_diversity(log, result.ratios, rows),
        diversity_weight=objective.diversity_weight,
        diagnostics=None,
        findings=[
            *propensity_findings(log, policy, length_normalize=False),
            *_findings(log, policy, fit, even=vouched and not (uneven or hidden)),
            *uneven,
            *hidden,
            *(() if ratio is None else _unseen(log, policy, whole)),
        ],
        options=_options(objective, folds, seed),
        labels=("model-based", f"reads {fit.features.name}"),
        confidence=confidence,
        utility_range=log.utility_range,
        chosen={
            "r2": fit.r2,
            "calibration": fit.calibration,
            "classifier_gain": weights.gain,
            "penalty": weights.penalty,
            "direct": result.direct,
            "correction": result.correction,
            "power": taken.power,
        },
        seen=seen,
    )
    return LongEstimate(estimate, result.shares)


def _options(objective: Objective, folds: int, seed: int) -> dict[str, Any]:
    """What two estimates must share to be compared."""
    of_diversity = {"diversity_weight": objective.diversity_weight, "diversity_form": objective.diversity_form}
    return {**of_diversity, "folds": folds, "seed": seed}


def _bridge(log: LoggedSlates, policy: str, classifier: Floats) -> tuple[BridgedWeights, Floats | None]:
    """The weights that the log allows, and the log-ratio of whole responses where it can be used."""
    ratio = log_weights(log, policy, "response", length_normalize=False)
    known = ratio if log.how == "recorded" and np.isfinite(ratio).any() else None
    return bridged_weights(-np.log(log.per_response(log.sizes.astype(np.float64))), classifier, known), known


def _weight_findings(log: LoggedSlates, weights: BridgedWeights) -> Iterator[Finding]:
    """Whether the weights of the correction rest on enough responses and queries."""
    size = f"effective sample size {weights.ess:.1f} of the weights between log and policy"
    yield from find("ess", size, weights.ess)
    used = per_slate_weights(log, weights.log_weights)
    largest = float(used.max() / used.sum())
    yield from find("max_share", f"one of them has {largest:.1%} of the total", largest)
    queries = cluster_ess(log, log.slate_sums(used))
    yield from find("cluster_ess", f"they rest on {queries:.1f} effective independent queries", queries)


def _whole_findings(log: LoggedSlates, policy: str) -> Iterator[Finding]:
    """What weights of whole responses show of wrong propensities and of their tail, where they are used as they are."""
    d = diagnose(log, policy, weighting="response", length_normalize=False)
    every = weight_findings(d, self_normalized=True, clipped=False, length_normalize=False, support_checked=True)
    yield from (each for each in every if each.rule in _OF_WHOLE)


def _counting(whole: Support, of_features: Support) -> tuple[Support, bool]:
    """The support that counts where weights of whole responses are used as they are, and whether it vouches for them.

    Their own, where it is enough, and where it is so small that no features can make up for it. In between, that of the
    features, and then the model has to be good.
    """
    grade = RULES["support"].grade(whole.share)
    return (of_features, False) if grade == "caution" else (whole, grade is None)


def _unseen(log: LoggedSlates, policy: str, whole: Support | None) -> Iterator[Finding]:
    """Whether the propensities give the fresh responses what they give the logged ones."""
    if whole is None:
        yield from support_findings(log, policy, None)
        return
    raw = log_weights(log, policy, "response", length_normalize=False)
    yield from balance_findings(log, policy, effective_sample_size(raw))


def _missed(
    log: LoggedSlates, fit: CrossFit, result: ModelFirst, weights: BridgedWeights, ratio: Floats | None
) -> Iterator[Finding]:
    """Whether the log shows that the weights miss nothing. Whole responses' own weights miss nothing; of others, the
    log shows it where what they miss has a small standard error.
    """
    if ratio is None:
        yield from find("model_unverified", _NOT_RECORDED if log.how != "recorded" else _UNWRITTEN, np.inf)
        return
    if weights.power == 1:
        return
    hidden = missed(log, fit, weights.log_weights, ratio)
    error = float(np.sqrt(result.ratios.covariance()[0, 0]))
    times = hidden.standard_error / error if error > 0 else float("nan")
    yield from find("model_unverified", f"{_UNVERIFIED} ({times:.1f} standard errors)", times)
    if abs(hidden.bent) > max(_AGREE * hidden.bent_error, error):
        yield from find("model_unverified", _BENT, np.inf)
    what = "the policy changes what the features do not hold, and ratings change with it"
    yield from contradiction_findings(hidden.value, hidden.standard_error, what)


def _findings(log: LoggedSlates, policy: str, fit: CrossFit, *, even: bool) -> Iterator[Finding]:
    """Whether the model predicts the reward with the right scale and without leakage, and whether the log contradicts
    it.

    Args:
        even: the weights of whole responses are even enough to correct any model, also one that explains little.
    """
    if not even:
        seen = f"the reward model explains {fit.r2:.0%} of the utilities' variance out of fold"
        yield from find("model_blind", seen, fit.r2)
    yield from find(
        "model_scale",
        f"utilities change by {fit.calibration:.2f} (+-{fit.calibration_error:.2f}) where predictions change by 1",
        abs(fit.calibration - 1) / fit.calibration_error if fit.calibration_error > 0 else float("nan"),
    )
    yield from leak_findings(log, log.utility - fit.logged)
    beyond = fit.features.beyond or 0.0
    what = f"{beyond:.1%} of the policy's fresh responses lie beyond all logged ones in a feature"
    yield from find("support", what, beyond)
    raw = log_weights(log, policy, "response", length_normalize=False)
    if not np.isfinite(raw).any():
        return
    check = residual_check(log, fit, tempered(raw).log_weights)
    what = "where the policy puts probability, the logged responses contradict the reward model"
    yield from contradiction_findings(check.contradiction, check.standard_error, what)


def _diversity(log: LoggedSlates, policy: str, objective: Objective) -> Floats:
    """``[S]`` diversity of the policy's own responses, zeros where the objective has none."""
    if objective.diversity_weight == 0:
        return np.zeros(log.num_slates)
    rows = fresh_diversity(log, policy, objective)
    if rows is None:
        raise ValueError(
            f"policy: {policy!r}: expected scored fresh responses in log.fresh for diversity_weight "
            f"{objective.diversity_weight:g}, got none; pass them, or an objective with diversity_weight=0"
        )
    return rows


def _with_diversity(log: LoggedSlates, utility: Ratios, rows: Floats) -> Ratios:
    """Columns V_CU and V_Div."""
    both = Ratios(utility.numerators * np.array([1.0, 0.0]), utility.denominators)
    diversity = np.stack([np.zeros_like(rows), rows], axis=1)
    return both.plus(Ratios(log.cluster_sums(diversity)[None], log.cluster_sums(np.ones(log.num_slates))[None]))
