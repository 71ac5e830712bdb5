"""`evaluate_policies`: evaluates all policies by all estimators on one log and compares them in pairs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from pope_core.objective import Objective

from .._arrays import Floats
from ..data.schema import Slate, SlateLog, read_slates
from ..stats.intervals import Confidence
from .asked import WITH_PREDICTIONS, check_by_raters, check_estimators, check_log, check_names, reads_samples, wanted
from .comparison import Comparison, compare
from .direction import directions
from .estimators import METHODS, estimate
from .evaluation import Evaluation
from .log import LoggedSlates, PolicyScores
from .long_responses import NAME as MODEL_FIRST
from .long_responses import LongEstimate, model_first_estimate
from .placebo import Placebo, gain_shares, placebo
from .pope import fresh_diversity, is_weighted_mean, pope_value
from .predictions import Predictions
from .raters import check_raters, values_by_raters
from .response_features import response_features
from .result import Estimate
from .reward_model import Embed, fit_predictions
from .rules import FEW_CLUSTERS
from .scoring import Finished, FreshTexts, Model, OnScored, Samples, Scoring, check_samples, score_policies
from .sets import rewards_of, set_value
from .utility import EvaluationTransform
from .weights import log_weights

if TYPE_CHECKING:
    from ..propensity.scores import ModelScores


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
    by_raters: bool = False,
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
        estimators: "pope", "model_first" and keys of `METHODS`. None: "model_first" if every policy but the logging
            policy has samples and the log has enough prompts (docs/choosing-an-estimator.md says why it is first);
            "pope"; "ips" if weights are of whole responses; "dm", "dr" and "sndr" for policies with samples or
            predictions. The first estimator is used for ranking, comparisons and `Evaluation.meets`.
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
        by_raters: also give the value to every group of raters (`values_by_raters`), for slates with ratings. It has
            one estimator, objective and kind of interval; others are refused.
        confidence: how intervals are made.
        scoring: length, dtype, batches and cache for scoring.
        report: called with a policy's name and the numbers of responses scored so far and in total.

    Raises:
        ValueError: an invalid argument, with its place; raised before scoring where possible.
    """
    samples, given = dict(samples or {}), dict(predictions or {})
    names = list(log.policies if isinstance(log, LoggedSlates) else policies or {})
    check_names(names, samples, given, baseline)
    every = wanted(estimators, objective)
    check_estimators(every, lam, names, samples, given)
    fresh = FreshTexts(samples, samples_finished or {}).with_tokens()
    samples = dict(fresh.texts)
    unscored, models = _unscored(log, policies, fresh, utility_transform, score_range, cluster)
    to_fit = {name: texts for name, texts in samples.items() if name not in given} if reads_samples(estimators) else {}
    check_log(unscored, every, lam, given, objective, cross_fits=bool(to_fit))
    if by_raters:
        check_by_raters(estimators, objective, confidence)
        check_raters(unscored)
    rewards = {title: rewards_of(unscored, reward) for title, reward in (set_rewards or {}).items()}
    embed = _once(embed) if samples and reads_samples(estimators) else _no_embedding
    logged = _scored(unscored, models, names, fresh, logging_policy, scoring, report)
    baseline = baseline or names[0]
    known = {**_fitted(logged, to_fit, embed, objective), **given}
    long: dict[str, LongEstimate] = {}

    def value(name: str, method: str) -> Estimate:
        if method == "pope":
            return pope_value(logged, name, objective=objective, confidence=confidence)
        if method == MODEL_FIRST:
            if name not in samples and not logged.is_logging_policy(name):
                raise ValueError(f"estimators: {method!r} needs samples of every policy, got none for {name}")
            read = response_features(logged, samples[name], embed) if name in samples else []
            long[name] = model_first_estimate(logged, name, read, objective=objective, confidence=confidence)
            return long[name].estimate
        spec = METHODS[method]
        return estimate(
            logged,
            name,
            method,
            predictions=known.get(name) if spec.predictions else None,
            lam=lam if spec.shrink else None,
            objective=objective,
            confidence=confidence,
        )

    read = set() if estimators else _readable(logged, names, samples, objective)
    leads = read == set(names)  # then it decides; see docs/choosing-an-estimator.md
    estimates = []
    for name in names:
        more = () if estimators or name not in known else WITH_PREDICTIONS
        model_first = (MODEL_FIRST,) if name in read else ()
        order = [*model_first, *every, *more] if leads else [*every, *more, *model_first]
        estimates += [value(name, each) for each in order]
    compared = [MODEL_FIRST if leads else every[0], *(f"set:{title}" for title in rewards)]
    estimates += [
        set_value(logged, name, reward, name=title, objective=objective, confidence=confidence)
        for name in names
        for title, reward in rewards.items()
    ]
    return Evaluation(
        estimates=tuple(estimates),
        comparisons=_compared(logged, estimates, long, compared, baseline, objective),
        indices=tuple(
            each for name in names if name != baseline for each in directions(logged, name, baseline, confidence)
        ),
        baseline=baseline,
        objective=objective,
        log=logged,
        raters=tuple(
            values_by_raters(logged, name, baseline=baseline, score_range=score_range, level=confidence.level)
            for name in (names if by_raters else [])
        ),
    )


def _unscored(
    log: str | os.PathLike[str] | SlateLog | Sequence[Slate] | LoggedSlates,
    policies: Mapping[str, Any] | None,
    fresh: FreshTexts,
    utility_transform: EvaluationTransform,
    score_range: tuple[float, float] | None,
    cluster: Callable[[Slate], str] | None,
) -> tuple[LoggedSlates, dict[str, Model]]:
    """The log, checked, with the policies whose totals are given; and the models that are still to be scored."""
    if isinstance(log, LoggedSlates):
        if policies is not None:
            raise ValueError("policies: LoggedSlates already holds its policies; pass None")
        return log, {}
    assert policies is not None  # `check_names` has seen one
    slates = read_slates(log) if isinstance(log, (str, os.PathLike)) else log
    check_samples(slates, fresh)
    models = {
        name: cast("Model", each) for name, each in policies.items() if isinstance(each, (str, os.PathLike, tuple))
    }
    scored = {name: policy for name, policy in policies.items() if name not in models}
    unscored = LoggedSlates.from_slates(
        slates, scored, utility_transform=utility_transform, score_range=score_range, cluster=cluster
    )
    return unscored, models


def _scored(
    log: LoggedSlates,
    models: Mapping[str, Model],
    names: Sequence[str],
    fresh: FreshTexts,
    logging_policy: Model | None,
    scoring: Scoring,
    report: OnScored | None,
) -> LoggedSlates:
    """The log with its policies in the order of ``names``, the models among them scored, and their fresh samples."""
    if not models:
        return log
    assert log.slates is not None
    scored = score_policies(
        log.slates, models, fresh=fresh.of(models), logging_policy=logging_policy, scoring=scoring, report=report
    )
    every: dict[str, Any] = {**log.policies, **scored.logged}
    return replace(
        log.with_policies({name: every[name] for name in names}),
        fresh=scored.fresh_scores(fresh.texts),
        rescored_gap=scored.rescored_gap,
    )


def _readable(
    log: LoggedSlates, names: Sequence[str], samples: Mapping[str, Samples], objective: Objective
) -> set[str]:
    """The policies that "model_first" can estimate: those with samples, and the logging policy beside them."""
    if not samples or log.num_clusters < FEW_CLUSTERS or objective.length_normalize:
        return set()
    with_text = {name for name in names if name in samples or log.is_logging_policy(name)}
    return with_text if objective.diversity_weight == 0 else with_text & set(log.fresh)


def _fitted(
    log: LoggedSlates,
    samples: Mapping[str, Samples],
    embed: Embed,
    objective: Objective,
) -> dict[str, Predictions]:
    """A reward model for every policy with samples."""
    return {
        name: fit_predictions(log, texts, embed, target_diversity=fresh_diversity(log, name, objective))
        for name, texts in samples.items()
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
    objective: Objective,
) -> tuple[Comparison, ...]:
    """Every policy against the baseline, by the estimators that are compared."""
    by = {(each.estimator, each.policy): each for each in estimates}
    return tuple(
        compare(mine, by[estimator, baseline], placebo=_placebo(log, mine, by[estimator, baseline], long, objective))
        for estimator in estimators
        for (method, policy), mine in by.items()
        if method == estimator and policy != baseline
    )


def _placebo(
    log: LoggedSlates,
    estimate: Estimate,
    baseline: Estimate,
    long: Mapping[str, LongEstimate],
    objective: Objective,
) -> Placebo | None:
    """The gain in V_CU beside those of permuted utilities, where it is linear in them."""
    if log.sizes.max() == 1:
        return None
    if estimate.estimator == MODEL_FIRST:
        return _of_shares(log, long[estimate.policy].shares - long[baseline.policy].shares)
    spec = METHODS.get(estimate.estimator)
    if not (is_weighted_mean(objective) if estimate.estimator == "pope" else spec is not None and spec.weighted_mean):
        return None
    whole = objective.length_normalize
    mine, theirs = (log_weights(log, each.policy, "response", length_normalize=whole) for each in (estimate, baseline))
    if not (np.isfinite(mine.max()) and np.isfinite(theirs.max())):
        return None
    return _of_shares(log, gain_shares(log, mine, theirs))


def _of_shares(log: LoggedSlates, shares: Floats) -> Placebo:
    gained = float(shares @ log.utility) >= 0
    return placebo(log, shares if gained else -shares)  # a loss is tested as a gain of the baseline
