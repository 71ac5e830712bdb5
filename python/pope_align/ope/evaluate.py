"""`evaluate_policies`: evaluates all policies by all estimators on one log and compares them in pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pope_core.objective import Objective

from .._arrays import Floats
from ..data.schema import Slate, SlateLog, read_slates
from ..stats.intervals import Confidence
from .comparison import Comparison, compare
from .direction import directions
from .estimators import METHODS, estimate
from .evaluation import Evaluation
from .log import LoggedSlates, PolicyScores
from .long_responses import NAME as MODEL_FIRST
from .long_responses import LongEstimate, model_first_estimate
from .placebo import Placebo, gain_shares, placebo
from .pope import fresh_diversity, pope_value
from .predictions import Predictions
from .response_features import response_features
from .result import Estimate
from .reward_model import Embed, fit_predictions
from .rules import FEW_CLUSTERS
from .scoring import Finished, FreshTexts, Model, OnScored, Samples, Scoring, check_samples, score_policies
from .sets import set_value
from .utility import EvaluationTransform
from .verdict import is_logging_policy
from .weights import log_weights

if TYPE_CHECKING:
    from ..propensity.scores import ModelScores

#: The default estimators.
DEFAULT_ESTIMATORS = ("pope",)

#: Added by default for weights of whole responses, which are unbiased without normalisation.
WITH_TOTALS = ("ips",)

#: Added by default for policies with fresh samples or predictions.
WITH_PREDICTIONS = ("dm", "dr", "sndr")


def evaluate_policies(
    log: str | os.PathLike[str] | SlateLog | Sequence[Slate] | LoggedSlates,
    policies: Mapping[str, Model | Sequence[Sequence[float]] | ModelScores | PolicyScores] | None = None,
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    baseline: str | None = None,
    estimators: Sequence[str] | None = None,
    lam: float | None = None,
    utility_transform: EvaluationTransform = "calibrated",
    score_range: tuple[float, float] | None = None,
    cluster: Callable[[Slate], str] | None = None,
    samples: Mapping[str, Samples] | None = None,
    samples_finished: Mapping[str, Finished] | None = None,
    logging_policy: Model | None = None,
    embed: Embed | None = None,
    predictions: Mapping[str, Predictions] | None = None,
    set_rewards: Mapping[str, Callable[[Slate], float] | npt.ArrayLike] | None = None,
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
    scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
    report: OnScored | None = None,
) -> Evaluation:
    """Estimate the value of every policy from logged slates: the answer to "may this model ship?".

    Propensities are the log's own ``logging_logprobs``; missing log-probabilities of policies are computed, with a
    cache if ``scoring`` has one.

    Args:
        log: a scored slate file or its slates (see `pope_align.score_slates`), or `LoggedSlates` with its policies.
        policies: by name: a hub name, folder or GGUF file; a model with its tokenizer; totals, slate by slate;
            `ModelScores`.
        objective: the objective of the evaluation, the same for all policies however they were trained.
        baseline: the policy that the others are compared with; None: the first.
        estimators: "pope" and keys of `METHODS`; None: "pope"; "ips" if weights are of whole responses; "dm", "dr" and
            "sndr" for policies with samples or predictions. The first estimator is used for ranking, comparisons and
            `Evaluation.meets`.
        lam: shrinkage parameter of estimators that have one; None: chosen from the data.
        utility_transform, score_range: scores to utilities, one map for the whole log; see `ope.utility.utilities`.
        cluster: as in `LoggedSlates.from_slates`.
        samples: optional fresh responses per policy and slate, drawn at temperature 1 without truncation. They show
            whether the log covers the policy, and allow estimates with a reward model.
        samples_finished: for policies with samples, whether each response was ended by the policy; a response that was
            cut at a limit has no end-of-turn token to score. A policy that is not named: all of them.
        logging_policy: the model that wrote the log, under which fresh responses are scored. None: the policy with the
            same weights, if any; without either, support is unchecked and every verdict says so.
        embed: sentence embeddings for the reward model; None: all-MiniLM-L6-v2.
        predictions: your own predictions instead of a fitted reward model's.
        set_rewards: rewards of whole slates by name, as in `set_value`.
        confidence: how intervals are made.
        scoring: length, dtype, batches and cache for scoring.
        report: called with a policy's name and the numbers of responses scored so far and in total.

    Raises:
        ValueError: an invalid argument, with its place; raised before scoring where possible.
    """
    samples, given = dict(samples or {}), dict(predictions or {})
    names = list(log.policies if isinstance(log, LoggedSlates) else policies or {})
    _check_names(names, samples, given, baseline, estimators)
    fresh = FreshTexts(samples, samples_finished or {}).with_tokens()
    samples = dict(fresh.texts)
    logged = _logged(log, policies, fresh, utility_transform, score_range, cluster, logging_policy, scoring, report)
    baseline = baseline or names[0]
    embed = _once(embed) if samples else _no_embedding
    models = {**_fitted(logged, samples, given, embed, objective), **given}
    long: dict[str, LongEstimate] = {}

    def value(name: str, method: str) -> Estimate:
        if method == "pope":
            return pope_value(logged, name, objective=objective, confidence=confidence)
        if method == MODEL_FIRST:
            if name not in samples and not is_logging_policy(logged, name):
                raise ValueError(f"estimators: {method!r} needs samples of every policy, got none for {name}")
            read = response_features(logged, samples[name], embed) if name in samples else []
            long[name] = model_first_estimate(logged, name, read, objective=objective, confidence=confidence)
            return long[name].estimate
        spec = METHODS[method]
        return estimate(
            logged,
            name,
            method,
            predictions=models.get(name) if spec.predictions else None,
            lam=lam if spec.shrink else None,
            objective=objective,
            confidence=confidence,
        )

    wanted = list(estimators or DEFAULT_ESTIMATORS + (() if objective.length_normalize else WITH_TOTALS))
    enough = logged.num_clusters >= FEW_CLUSTERS and not objective.length_normalize
    estimates = []
    for name in names:
        added: tuple[str, ...] = () if estimators or name not in models else WITH_PREDICTIONS
        readable = name in samples or (samples and is_logging_policy(logged, name))
        readable = readable and (objective.diversity_weight == 0 or name in logged.fresh)
        added += () if estimators or not readable or not enough else (MODEL_FIRST,)
        estimates += [value(name, each) for each in [*wanted, *added]]
    estimates += [
        set_value(logged, name, reward, name=title, objective=objective, confidence=confidence)
        for name in names
        for title, reward in (set_rewards or {}).items()
    ]
    return Evaluation(
        estimates=tuple(estimates),
        comparisons=_compared(
            logged, estimates, long, [wanted[0], *(f"set:{title}" for title in set_rewards or {})], baseline
        ),
        indices=tuple(
            each for name in names if name != baseline for each in directions(logged, name, baseline, confidence)
        ),
        baseline=baseline,
        objective=objective,
        log=logged,
    )


def _check_names(
    names: list[str],
    samples: Mapping[str, Samples],
    predictions: Mapping[str, Predictions],
    baseline: str | None,
    estimators: Sequence[str] | None,
) -> None:
    """Check all names, before any work."""
    if not names:
        raise ValueError("policies: expected at least one policy, got none")
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline: expected one of {', '.join(names)}, got {baseline!r}")
    for what, of in (("samples", samples), ("predictions", predictions)):
        if unknown := sorted(set(of) - set(names)):
            raise ValueError(f"{what}: expected names among {', '.join(names)}, got {', '.join(unknown)}")
    check_estimators(estimators or (), names, samples, predictions)


def check_estimators(
    estimators: Iterable[str], policies: Sequence[str], samples: Collection[str], predictions: Collection[str] = ()
) -> None:
    """Refuse unknown estimators, and estimators whose samples or predictions are missing for a policy.

    Args:
        samples, predictions: policies that have any.

    Raises:
        ValueError: by name.
    """
    for name in estimators:
        if name != "pope" and name not in METHODS and name != MODEL_FIRST:
            known = ", ".join([*METHODS, MODEL_FIRST])
            raise ValueError(f"estimators: expected pope or one of {known}, got {name!r}")
        lacking = [policy for policy in policies if policy not in samples and policy not in predictions]
        if name in METHODS and METHODS[name].predictions and lacking:
            raise ValueError(
                f"estimators: {name!r} needs samples or predictions of every policy, got none for {', '.join(lacking)}"
            )


def _logged(
    log: str | os.PathLike[str] | SlateLog | Sequence[Slate] | LoggedSlates,
    policies: Mapping[str, Any] | None,
    fresh: FreshTexts,
    utility_transform: EvaluationTransform,
    score_range: tuple[float, float] | None,
    cluster: Callable[[Slate], str] | None,
    logging_policy: Model | None,
    scoring: Scoring,
    report: OnScored | None,
) -> LoggedSlates:
    """The log with every policy scored, and with scores of the fresh samples of models."""
    if isinstance(log, LoggedSlates):
        if policies is not None:
            raise ValueError("policies: LoggedSlates already holds its policies; pass None")
        return log
    assert policies is not None  # `_check_names` has seen one
    slates = read_slates(log) if isinstance(log, (str, os.PathLike)) else log
    check_samples(slates, fresh)
    models = {
        name: cast("Model", each) for name, each in policies.items() if isinstance(each, (str, os.PathLike, tuple))
    }

    def whole(scored: Mapping[str, Any], **fresh: Any) -> LoggedSlates:
        return LoggedSlates.from_slates(
            slates, scored, utility_transform=utility_transform, score_range=score_range, cluster=cluster, **fresh
        )

    placeholder = [slate.logging_logprobs for slate in slates]
    whole({name: placeholder if name in models else policy for name, policy in policies.items()})  # before the work
    if not models:
        return whole(policies)
    scored = score_policies(
        slates,
        models,
        fresh=fresh.of(models),
        logging_policy=logging_policy,
        scoring=scoring,
        report=report,
    )
    fresh_scores = scored.fresh_scores(fresh.texts)
    return whole(
        {name: scored.logged.get(name, policy) for name, policy in policies.items()},
        fresh=fresh_scores,
        rescored_gap=scored.rescored_gap,
    )


def _fitted(
    log: LoggedSlates,
    samples: Mapping[str, Samples],
    given: Mapping[str, Predictions],
    embed: Embed,
    objective: Objective,
) -> dict[str, Predictions]:
    """A reward model for every policy with samples and no predictions."""
    return {
        name: fit_predictions(log, texts, embed, target_diversity=fresh_diversity(log, name, objective))
        for name, texts in samples.items()
        if name not in given
    }


def _once(embed: Embed | None) -> Embed:
    """The same, every text embedded once: all policies answer the same prompts of the same log."""
    if embed is None:
        from ..metrics.embeddings import Embedder

        embed = Embedder()
    inner = embed
    known: dict[str, Floats] = {}

    def embed_once(texts: list[str]) -> npt.ArrayLike:
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(missing, np.asarray(inner(missing), dtype=np.float64), strict=True))
        return np.stack([known[text] for text in texts])

    return embed_once


def _no_embedding(texts: list[str]) -> npt.ArrayLike:
    raise AssertionError("nothing is embedded without samples")


def _compared(
    log: LoggedSlates,
    estimates: Sequence[Estimate],
    long: Mapping[str, LongEstimate],
    estimators: Sequence[str],
    baseline: str,
) -> tuple[Comparison, ...]:
    """Every policy against the baseline, by the estimators that are compared."""
    by = {(each.estimator, each.policy): each for each in estimates}
    return tuple(
        compare(mine, by[estimator, baseline], placebo=_placebo(log, mine, by[estimator, baseline], long))
        for estimator in estimators
        for (method, policy), mine in by.items()
        if method == estimator and policy != baseline
    )


def _placebo(
    log: LoggedSlates, estimate: Estimate, baseline: Estimate, long: Mapping[str, LongEstimate]
) -> Placebo | None:
    """The gain in V_CU beside those of permuted utilities, where it is linear in them."""
    if log.sizes.max() == 1:
        return None
    if estimate.estimator == MODEL_FIRST:
        return _of_shares(log, long[estimate.policy].shares - long[baseline.policy].shares)
    options = estimate.options
    spec = METHODS.get(estimate.estimator)
    weighted = (spec is not None and spec.weighted_mean) or (
        estimate.estimator == "pope"
        and (options["weighting"], options["normalization"], options["clip"]) == ("response", "batch", None)
        and options["utility_form"] == "feedback"
    )
    if not weighted:
        return None
    whole = bool(options["length_normalize"])
    mine, theirs = (log_weights(log, each.policy, "response", length_normalize=whole) for each in (estimate, baseline))
    if not (np.isfinite(mine.max()) and np.isfinite(theirs.max())):
        return None
    return _of_shares(log, gain_shares(log, mine, theirs))


def _of_shares(log: LoggedSlates, shares: Floats) -> Placebo:
    gained = float(shares @ log.utility) >= 0
    return placebo(log, shares if gained else -shares)  # a loss is tested as a gain of the baseline
