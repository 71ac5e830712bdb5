"""`evaluate_policies`: every policy by every estimator on one log, compared in pairs, as one `Evaluation`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from pope_core.objective import DiversityForm, Normalization, UtilityForm, Weighting

from ..data.feedback import UtilityTransform
from ..data.schema import Slate, SlateLog, read_slates
from ..stats.intervals import Confidence
from ._checks import Floats
from .estimators import METHODS, estimate
from .figure import evaluation_figure
from .log import LoggedSlates, PolicyScores
from .pope import pope_value
from .predictions import Predictions
from .result import Comparison, Estimate, compare
from .reward_model import Embed, fit_predictions
from .scoring import Model, Report, Scoring, score_policy
from .sets import set_value
from .thresholds import FEW_CLUSTERS
from .verdict import VERDICTS, Verdict

#: What is computed unless estimators are named.
DEFAULT_ESTIMATORS = ("pope", "slate_snips")

#: Added for true importance weights, which need no normalisation to be unbiased.
WITH_TOTALS = ("ips", "clipped_ips")

#: Added where a policy has fresh samples or predictions.
WITH_PREDICTIONS = ("dm", "dr", "sndr")


@dataclass(frozen=True)
class Evaluation:
    """Estimates of every policy, and paired comparisons with the baseline by the first estimator."""

    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    baseline: str
    log: LoggedSlates = field(repr=False)

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(each.policy for each in self.estimates))

    @property
    def estimators(self) -> list[str]:
        return list(dict.fromkeys(each.estimator for each in self.estimates))

    def of(self, policy: str, estimator: str | None = None) -> Estimate:
        """The estimate of one policy; by the first estimator unless another is named."""
        for each in self.estimates:
            if each.policy == policy and each.estimator == (estimator or self.estimators[0]):
                return each
        raise KeyError(f"no estimate of {policy!r} by {estimator or self.estimators[0]!r}")

    def ranking(self, estimator: str | None = None) -> list[Estimate]:
        """Policies by value, best first; the refused ones come last, whatever their value."""
        name = estimator or self.estimators[0]
        chosen = [each for each in self.estimates if each.estimator == name]
        return sorted(chosen, key=lambda each: (each.verdict == "refuse", -_or(each.value, -math.inf)))

    def meets(self, required: Verdict) -> bool:
        """Whether the first estimator's verdict on every policy is at least ``required``."""
        worst = max(VERDICTS.index(self.of(policy).verdict) for policy in self.policies)
        return worst <= VERDICTS.index(required)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON (numbers that are not finite become None)."""
        log = {
            "responses": self.log.num_responses,
            "slates": self.log.num_slates,
            "clusters": self.log.num_clusters,
            "logging_policy": {"how": self.log.how, **(self.log.logging.provenance or {})},
        }
        policies = {name: dict(scores.provenance or {}) for name, scores in self.log.policies.items()}
        content = {
            "log": log,
            "policies": policies,
            "baseline": self.baseline,
            "ranking": [each.policy for each in self.ranking() if each.verdict != "refuse"],
            "estimates": [each.to_dict() for each in self.estimates],
            "comparisons": [each.to_dict() for each in self.comparisons],
        }
        return cast(dict[str, Any], _finite(content))

    def write_json(self, path: str | os.PathLike[str]) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def write_figure(self, path: str | os.PathLike[str]) -> None:
        """Values with intervals; the weights, their tail, and what slates cost them. PNG, SVG or PDF by the ending."""
        evaluation_figure(self.estimates, self.log).savefig(path, dpi=150)


def evaluate_policies(
    log: str | os.PathLike[str] | SlateLog | Sequence[Slate] | LoggedSlates,
    policies: Mapping[str, Model | Sequence[Sequence[float]] | PolicyScores] | None = None,
    *,
    baseline: str | None = None,
    estimators: Sequence[str] | None = None,
    diversity_weight: float = 0.1,
    weighting: Weighting = "response",
    normalization: Normalization = "batch",
    clip: float | None = None,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    length_normalize: bool = True,
    lam: float | None = None,
    utility_transform: UtilityTransform = "minmax",
    cluster: Callable[[Slate], str] | None = None,
    samples: Mapping[str, Sequence[Sequence[str]]] | None = None,
    embed: Embed | None = None,
    predictions: Mapping[str, Predictions] | None = None,
    set_rewards: Mapping[str, Callable[[Slate], float] | npt.ArrayLike] | None = None,
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
    scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
    report: Report | None = None,
) -> Evaluation:
    """What every policy is worth, from logged slates; the answer to "may this model ship?".

    Propensities are the log's own ``logging_logprobs``; log-probabilities of the policies that are not given are
    computed, with a cache if ``scoring`` names one.

    Args:
        log: a scored slate file or its slates (see `pope_align.score_slates`), or `LoggedSlates` with its policies.
        policies: by name: a hub name, folder or GGUF file; a model with its tokenizer; totals, slate by slate.
        baseline: the policy the others are compared with; None: the first.
        estimators: "pope" and keys of `METHODS`; None: "pope" and "slate_snips", "ips" and "clipped_ips" when weights
            are not length-normalised, and "dm", "dr" and "sndr" for policies with samples or predictions. The first one
            decides ranking, comparisons and `Evaluation.meets`.
        diversity_weight, weighting, normalization, clip, utility_form, diversity_form, length_normalize: as in
            `pope_value`; the other estimators take those of them that they have.
        lam: shrinkage parameter of those that have one; None: SLOPE.
        utility_transform, cluster: as in `LoggedSlates.from_slates`.
        samples: for policies that have any, fresh responses per slate; they bring reward-model estimates.
        embed: sentences to vectors for the reward model; None: all-MiniLM-L6-v2.
        predictions: your own, in place of a fitted reward model.
        set_rewards: rewards of whole slates by name, as in `set_value`.
        confidence: how intervals are made.
        scoring: length, dtype, batches and cache of the scoring.
        report: called with a policy's name and the responses scored so far and in all.

    Raises:
        ValueError: whatever does not fit, with its place.
    """
    samples = samples or {}
    logged, fresh = _logged(log, policies, samples, utility_transform, cluster, scoring, report)
    names = list(logged.policies)
    baseline = baseline or names[0]
    logged.scores(baseline)  # is there
    models = dict(predictions or {})
    for name in samples:
        if name not in models:
            diversity = _sample_diversity(samples[name], fresh.get(name), diversity_form, length_normalize)
            models[name] = fit_predictions(logged, samples[name], embed, target_diversity=diversity)
    own = partial(
        pope_value,
        logged,
        diversity_weight=diversity_weight,
        weighting=weighting,
        normalization=normalization,
        clip=clip,
        utility_form=utility_form,
        diversity_form=diversity_form,
        length_normalize=length_normalize,
        confidence=confidence,
    )
    others = partial(
        estimate,
        logged,
        diversity_weight=diversity_weight,
        diversity_form=diversity_form,
        length_normalize=length_normalize,
        confidence=confidence,
    )

    def value(name: str, method: str) -> Estimate:
        if method == "pope":
            return own(name)
        spec = METHODS.get(method)  # None: `estimate` says which there are
        model = models.get(name) if spec and spec.predictions else None
        return others(name, method, predictions=model, lam=lam if spec and spec.shrink else None)

    wanted = list(estimators or _defaults(logged, length_normalize, lam))
    with_model = [] if estimators else list(WITH_PREDICTIONS)
    estimates = [value(name, each) for name in names for each in wanted + (with_model if name in models else [])]
    estimates += [
        set_value(logged, name, reward, name=title, length_normalize=length_normalize, confidence=confidence)
        for name in names
        for title, reward in (set_rewards or {}).items()
    ]
    first = {each.policy: each for each in estimates if each.estimator == wanted[0]}
    comparisons = tuple(compare(first[name], first[baseline]) for name in names if name != baseline)
    return Evaluation(tuple(estimates), comparisons, baseline, logged)


def _logged(
    log: str | os.PathLike[str] | SlateLog | Sequence[Slate] | LoggedSlates,
    policies: Mapping[str, Model | Sequence[Sequence[float]] | PolicyScores] | None,
    samples: Mapping[str, Sequence[Sequence[str]]],
    utility_transform: UtilityTransform,
    cluster: Callable[[Slate], str] | None,
    scoring: Scoring,
    report: Report | None,
) -> tuple[LoggedSlates, dict[str, PolicyScores]]:
    """The log with every policy scored, and the scores of fresh samples of those that are models."""
    if isinstance(log, LoggedSlates):
        if policies is not None:
            raise ValueError("policies: LoggedSlates already holds its policies; pass None")
        return log, {}
    if not policies:
        raise ValueError("policies: expected at least one policy, got none")
    if unknown := sorted(set(samples) - set(policies)):
        raise ValueError(f"samples: expected names among {', '.join(policies)}, got {', '.join(unknown)}")
    slates = read_slates(log) if isinstance(log, (str, os.PathLike)) else log
    models = [name for name, policy in policies.items() if isinstance(policy, (str, os.PathLike, tuple))]

    def whole(scored: Mapping[str, Any]) -> LoggedSlates:
        return LoggedSlates.from_slates(slates, scored, utility_transform=utility_transform, cluster=cluster)

    placeholder = [slate.logging_logprobs for slate in slates]
    whole({name: placeholder if name in models else policy for name, policy in policies.items()})  # before the work
    scored: dict[str, Any] = dict(policies)
    fresh: dict[str, PolicyScores] = {}
    for name in models:
        scored[name], sampled = score_policy(
            slates, name, cast(Model, policies[name]), samples=samples.get(name), scoring=scoring, report=report
        )
        if sampled is not None:
            fresh[name] = sampled
    return whole(scored), fresh


def _sample_diversity(
    samples: Sequence[Sequence[str]], scores: PolicyScores | None, form: DiversityForm, length_normalize: bool
) -> Floats | None:
    """``[S]`` mean diversity reward of each slate's fresh responses; None without their log-probabilities."""
    if scores is None or scores.tokens is None:
        return None
    target = scores.logprobs / scores.tokens if length_normalize else scores.logprobs
    diversity = -target if form == "neg_log_prob" else -np.exp(target) * target
    owner = np.repeat(np.arange(len(samples)), [len(texts) for texts in samples])
    return np.asarray(np.bincount(owner, diversity) / np.bincount(owner))


def _defaults(log: LoggedSlates, length_normalize: bool, lam: float | None) -> tuple[str, ...]:
    if length_normalize:
        return DEFAULT_ESTIMATORS
    tuned = lam is not None or log.num_clusters >= FEW_CLUSTERS  # SLOPE needs so many
    return DEFAULT_ESTIMATORS + (WITH_TOTALS if tuned else WITH_TOTALS[:1])


def _or(value: float, instead: float) -> float:
    return instead if math.isnan(value) else value


def _finite(content: Any) -> Any:
    """The same with None for numbers that JSON cannot say."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, (float, np.floating)):
        return float(content) if math.isfinite(content) else None
    return content
