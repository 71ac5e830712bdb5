"""Estimators for responses too long for weights of whole sequences: they weigh what responses say, not their tokens.

``model_first``: a reward model, cross-fitted on the log and averaged over fresh responses of the policy, corrected by
residuals under the weights of a classifier that tells the policy's responses from the log's. ``classifier`` and
``kernel``: those weights, or the weights of near sentences, alone. All need fresh responses and text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from pope_core.objective import Objective

from ..data.schema import Slate
from ..generation.generations import completion_text, prompt_text
from ..stats.intervals import Confidence
from ..stats.ratios import Ratios
from ._checks import Floats
from .classifier_weights import classifier_weights
from .crossfit import CrossFit, best_fit
from .diagnostics import effective_sample_size
from .features import Features, given_prompt, surface
from .kernel_weights import kernel_weights
from .log import LoggedSlates
from .model_first import model_first, residual_check, weighted_mean
from .pope import fresh_diversity, labels, with_fresh_diversity
from .result import Estimate, finish
from .reward_model import Embed
from .scoring import Samples, owners
from .tempered import tempered
from .verdict import Finding, contradiction_findings, find, propensity_findings

#: By name, what each is.
MARGINAL: Mapping[str, str] = {
    "model_first": "reward model on fresh responses, corrected under classifier weights",
    "classifier": "weights of a classifier of the policy's responses against the log's, self-normalised",
    "kernel": "weights of near sentences, self-normalised",
}


@dataclass(frozen=True, eq=False)
class ResponseFeatures:
    """What the estimators here read of the logged and of one policy's fresh responses.

    Attributes:
        vectors: sentence embeddings.
        described: feature sets for the classifier (the first) and for the reward model, which takes the best of them.
    """

    vectors: Features
    described: tuple[Features, ...]


def response_features(log: LoggedSlates, samples: Samples, embed: Embed) -> ResponseFeatures:
    """Embeddings given the prompt, properties of the words, and both together.

    Args:
        log: made by `LoggedSlates.from_slates`, so that it has text.
        samples: for each slate, fresh responses of the policy.
        embed: sentences to vectors.

    Raises:
        ValueError: a log without text.
    """
    if log.slates is None:
        raise ValueError("log: these estimators read text, and this log was made from arrays; use from_slates")
    slates: tuple[Slate, ...] = log.slates
    logged = [completion_text(completion) for slate in slates for completion in slate.completions]
    fresh, owner = [text for texts in samples for text in texts], owners(samples)
    prompts = _unit(embed([prompt_text(slate.prompt) for slate in slates]))
    at = np.repeat(np.arange(log.num_slates), log.sizes)
    said, new = _unit(embed(logged)), _unit(embed(fresh))
    embedded = Features("embedding", given_prompt(said, prompts[at]), given_prompt(new, prompts[owner]), owner)
    words = Features("surface", surface(logged), surface(fresh), owner)
    return ResponseFeatures(Features("vectors", said, new, owner), (embedded, words, embedded.beside(words)))


def _unit(vectors: object) -> Floats:
    array = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.where(norms > 0, norms, 1.0))


def marginal_value(
    log: LoggedSlates,
    policy: str,
    method: str,
    features: ResponseFeatures,
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Estimate:
    """The utility of a policy by one of `MARGINAL`; diversity is that of ``log.fresh``, 0 where there is none.

    Args:
        policy: one of ``log.policies``, whose fresh responses ``features`` describe.
        method: a key of `MARGINAL`.
        features: of `response_features`.
        objective: its diversity_weight and diversity_form.
        confidence: how intervals are made.

    Raises:
        ValueError: an unknown method, features that do not fit, fewer clusters than five folds need.

    Source: method.md section 5; Dudik et al. (2011); Kiyohara, Saito and Joachims (2025).
    """
    if method not in MARGINAL:
        raise ValueError(f"method: expected one of {', '.join(MARGINAL)}, got {method!r}")
    utility, chosen, findings = _MAKERS[method](log, policy, features)
    parts = utility.combine(np.array([[1.0, 0.0]]))  # columns V_CU and, so far 0, V_Div
    diversity = fresh_diversity(log, policy, objective)
    return finish(
        log,
        policy,
        method,
        parts if diversity is None else with_fresh_diversity(log, parts, diversity),
        diversity_weight=objective.diversity_weight if diversity is not None else 0.0,
        diagnostics=None,
        findings=[*propensity_findings(log, policy, length_normalize=False), *findings],
        options={"diversity_weight": objective.diversity_weight, "diversity_form": objective.diversity_form},
        labels=[*labels(log, biased=False, shrink=None, self_normalized=method != "model_first"), "model-based"],
        confidence=confidence,
        utility_range=log.utility_range,
        chosen=chosen,
    )


_Made = tuple[Ratios, dict[str, float], list[Finding]]


def _model_first(log: LoggedSlates, policy: str, features: ResponseFeatures) -> _Made:
    fit = best_fit(log, features.described)
    weights = classifier_weights(log, features.described[0])
    found = model_first(log, fit, weights.log_weights)
    chosen = {"r2": fit.r2, "direct": found.direct, "correction": found.correction}
    findings = [*_sight_findings(log, policy, fit), *_weight_findings(log, weights.log_weights)]
    return found.ratios, chosen, findings


def _classifier(log: LoggedSlates, policy: str, features: ResponseFeatures) -> _Made:
    weights = classifier_weights(log, features.described[0])
    ess = effective_sample_size(weights.log_weights)
    findings = [*_unseen_findings(), *_weight_findings(log, weights.log_weights)]
    return weighted_mean(log, weights.log_weights), {"gain": weights.gain, "ess": ess}, findings


def _kernel(log: LoggedSlates, policy: str, features: ResponseFeatures) -> _Made:
    weights = kernel_weights(log, features.vectors)
    chosen = {"bandwidth": weights.bandwidth, "bias_bound": weights.bias_bound}
    findings = [*_unseen_findings(), *_weight_findings(log, weights.log_weights)]
    return weighted_mean(log, weights.log_weights), chosen, findings


_MAKERS: Mapping[str, Callable[[LoggedSlates, str, ResponseFeatures], _Made]] = {
    "model_first": _model_first,
    "classifier": _classifier,
    "kernel": _kernel,
}


def _sight_findings(log: LoggedSlates, policy: str, fit: CrossFit) -> Iterator[Finding]:
    """Whether the model sees the reward: out of fold, to scale, and where the policy goes."""
    yield from _unseen_findings()
    seen = f"the reward model explains {fit.r2:.0%} of the utilities' variance out of fold"
    yield from find("model_blind", seen, fit.r2)
    if fit.calibration_error > 0:
        away = abs(fit.calibration - 1) / fit.calibration_error
        slope = f"utilities change by {fit.calibration:.2f} where the reward model predicts 1"
        yield from find("model_scale", slope, away)
    raw = np.subtract(*log.logprobs(policy, length_normalize=False))
    if np.isfinite(raw).any():
        check = residual_check(log, fit, tempered(raw).log_weights)
        what = "logged utilities under tempered weights contradict the reward model"
        yield from contradiction_findings(check.contradiction, check.standard_error, what)


def _unseen_findings() -> Iterator[Finding]:
    yield from find(
        "model_support",
        "whether the log holds sentences like the policy's own is not checked, and the estimate rests on it",
    )


def _weight_findings(log: LoggedSlates, log_weights: Floats) -> Iterator[Finding]:
    ess = effective_sample_size(log_weights)
    yield from find("ess", f"effective sample size {ess:.1f} of {log.num_responses} responses", ess)
    share = float(np.exp(log_weights.max() - np.logaddexp.reduce(log_weights)))
    yield from find("max_share", f"one weight has {share:.1%} of the total", share)
