"""The estimators and checks that the studies of long responses compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pope_core.objective import Objective

from .._arrays import Floats
from ..ope import Comparison, LoggedSlates, compare, estimate
from ..ope.classifier_weights import ClassifierWeights, classifier_weights
from ..ope.crossfit import CrossFit, best_fit
from ..ope.diagnostics import effective_sample_size
from ..ope.features import Features
from ..ope.kernel_weights import KernelWeights, kernel_weights
from ..ope.long_responses import NAME as MODEL_FIRST
from ..ope.long_responses import estimate_of_fit, model_first_estimate
from ..ope.model_first import model_first, residual_check, weighted_mean
from ..ope.placebo import placebo
from ..ope.tempered import tempered
from ..stats.ratios import Ratios


@dataclass(frozen=True, eq=False)
class Learned:
    """What is learned from responses and ratings, without log-probabilities."""

    fit: CrossFit
    classifier: ClassifierWeights
    kernel: KernelWeights  # bandwidth for ratings
    kernel_of_residuals: KernelWeights


@dataclass(frozen=True, eq=False)
class Estimates:
    """Results for one policy on one log: values, the log's own mean, and checks by name."""

    values: Mapping[str, Ratios]
    base: Ratios
    checks: Mapping[str, Any]


def learn(
    log: LoggedSlates,
    candidates: Sequence[Features],
    unit: Features,
    logging_vectors: tuple[Floats, npt.NDArray[np.int64]],
) -> Learned:
    """Reward model, classifier and kernels.

    Args:
        candidates: feature sets of the reward model; the classifier uses the chosen one.
        unit: embeddings for the kernel.
        logging_vectors: embeddings of fresh responses of the logging policy, and their slates, for the kernel.
    """
    fit = best_fit(log, candidates)
    return Learned(
        fit,
        classifier_weights(log, fit.features),
        kernel_weights(log, unit, logging_vectors=logging_vectors),
        kernel_weights(log, unit, logging_vectors=logging_vectors, predicted=fit.logged),
    )


def estimate_all(log: LoggedSlates, policy: str, learned: Learned) -> Estimates:
    """Every estimator of the value of ``policy``."""
    raw = _difference(log, policy, length_normalize=False)
    per_token = _difference(log, policy, length_normalize=True)
    clipped, lean = np.minimum(raw, np.log(10.0)), tempered(raw).log_weights
    values = {
        "snips": weighted_mean(log, raw),
        "clipped snips": weighted_mean(log, clipped),
        "length-normalised snips": weighted_mean(log, per_token),
        "tempered snips": weighted_mean(log, lean),
    }
    fit, classifier, kernel = learned.fit, learned.classifier, learned.kernel
    direct, robust = model_first(log, fit), model_first(log, fit, classifier.log_weights)
    values |= {
        "model first": direct.ratios,
        "model first, clipped dr": model_first(log, fit, clipped).ratios,
        "model first, tempered dr": model_first(log, fit, lean).ratios,
        "classifier snips": weighted_mean(log, classifier.log_weights),
        "model first, classifier dr": robust.ratios,
        "kernel snips": weighted_mean(log, kernel.log_weights),
        "model first, kernel dr": model_first(log, fit, learned.kernel_of_residuals.log_weights).ratios,
    }
    base = weighted_mean(log, np.zeros_like(raw))
    gain = robust.shares - 1 / log.per_response(log.sizes.astype(np.float64)) / log.num_slates
    checks = {
        "sequence_ess_share": effective_sample_size(raw) / raw.size,
        "features": fit.features.name,
        "r2": fit.r2,
        "calibration": fit.calibration,
        "residual_z": residual_check(log, fit, lean).z,
        "classifier_gain": classifier.gain,
        "kernel_bandwidth": kernel.bandwidth,
        "kernel_bias_bound": kernel.bias_bound,
        "placebo_p": placebo(log, gain, draws=199).p_value,
        "disagreement_z": _z(robust.ratios.minus(direct.ratios)),
    }
    return Estimates(values, base, checks)


def shipped(log: LoggedSlates, policy: str, base: str, learned: Learned) -> dict[str, Comparison]:
    """The differences that `pope evaluate` would show, with their verdicts.

    Args:
        log: with fresh responses of the policy, and the logging policy itself under the name ``base``.
    """
    mine, theirs = estimate_of_fit(log, policy, learned.fit, learned.classifier), model_first_estimate(log, base, [])
    found = {MODEL_FIRST: compare(mine.estimate, theirs.estimate)}
    for name in ("ips", "snips"):
        found[name] = compare(estimate(log, policy, name), estimate(log, base, name))
    index = replace(Objective.evaluation(), length_normalize=True)
    of_index = [estimate(log, each, "snips", objective=index) for each in (policy, base)]
    return {**found, "index of direction": compare(*of_index)}


def _difference(log: LoggedSlates, policy: str, *, length_normalize: bool) -> Floats:
    target, logging = log.logprobs(policy, length_normalize=length_normalize)
    return np.asarray(target - logging)


def _z(difference: Ratios) -> float:
    error = float(np.sqrt(difference.covariance()[0, 0]))
    return float(difference.values()[0]) / error if error > 0 else float("nan")
