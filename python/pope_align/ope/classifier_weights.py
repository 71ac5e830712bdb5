"""Weights from a classifier that distinguishes a policy's fresh responses from logged ones by their features.

With equal total weight on both sides, the log-odds of "the policy wrote this" are ``log p(phi | policy) / p(phi |
log)``: the importance weight of the features phi. Its variance is that of the features, not of all tokens, and it is
unbiased for rewards that are functions of phi (marginalised importance sampling). It needs no log-probabilities.

A ridge-penalised logistic regression, cross-fitted: a response's weight comes from a classifier that was not fitted to
its cluster. The penalty has the least out-of-fold log-loss on at most `_CHOICE_ROWS` rows.

Pass ``classifier_weights(...).log_weights`` to `model_first.weighted_mean` (alone) or `model_first.model_first` (doubly
robust). ``gain`` says how well the two can be distinguished; at 0 all weights are near 1.

Source: Saito, Ren and Joachims (2023), arXiv:2305.08062, for marginalised weights; Sondhi, Arbour and Dimmery (2020),
arXiv:1911.00071, for their estimation by a classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from .._extras import require
from .crossfit import FOLDS, deal
from .features import Features
from .log import LoggedSlates

#: Candidate penalties in units of the total weight of the rows (2), from hardly any to nearly constant odds.
_PENALTIES = np.geomspace(1e-4, 1, 9)

#: Maximum number of rows used to choose the penalty.
_CHOICE_ROWS = 20_000


@dataclass(frozen=True, eq=False)
class ClassifierWeights:
    """Log-odds of the policy against the log.

    Attributes:
        log_weights: ``[R]`` nats, finite.
        fresh_log_weights: ``[N]`` of the fresh responses, by classifiers that have not seen them; for `support_of`.
        penalty: chosen, of `_PENALTIES`.
        gain: out-of-fold log-likelihood above that of a coin flip, nats per row; 0 if the two cannot be distinguished.
        features: the name of the feature set.
    """

    log_weights: Floats
    fresh_log_weights: Floats
    penalty: float
    gain: float
    features: str


def classifier_weights(
    log: LoggedSlates, features: Features, *, folds: int = FOLDS, seed: int = 0
) -> ClassifierWeights:
    """Cross-fitted classifier weights of every logged response.

    Args:
        features: of logged and fresh responses, e.g. `features.given_prompt` of sentence embeddings; cut at the log's
            ends (`Features.within_log`), so that no single response gets all the weight.
        folds: at least 2, at most the number of clusters.
        seed: of the folds, and of the rows used to choose the penalty.

    Raises:
        ValueError: features that do not fit the log, or too few clusters.
        ImportError: scipy is not installed.
    """
    features.check(log)
    rows = _rows(log, features.within_log(), deal(log.clusters, folds, seed))
    chosen = _choice(rows, log, seed)
    losses = [_out_of_fold(chosen, penalty, folds)[1] for penalty in _PENALTIES]
    penalty = float(_PENALTIES[int(np.argmin(losses))])
    odds, loss = _out_of_fold(rows, penalty, folds)
    logged = log.num_responses
    return ClassifierWeights(odds[:logged], odds[logged:], penalty, float(np.log(2) - loss), features.name)


@dataclass(frozen=True, eq=False)
class _Rows:
    features: Floats  # [n, d] logged, then fresh
    fresh: np.ndarray  # [n] bool
    weight: Floats  # [n] summing to 1 on each side, slates equally weighted
    fold: Integers  # [n]
    slate: Integers  # [n]

    def take(self, keep: np.ndarray) -> _Rows:
        return _Rows(self.features[keep], self.fresh[keep], self.weight[keep], self.fold[keep], self.slate[keep])


def _rows(log: LoggedSlates, features: Features, fold: Integers) -> _Rows:
    slate = np.concatenate([np.repeat(np.arange(log.num_slates), log.sizes), features.owner])
    counts = np.bincount(features.owner, minlength=log.num_slates)
    each = (
        np.concatenate([1 / log.per_response(log.sizes.astype(np.float64)), 1 / counts[features.owner]])
        / log.num_slates
    )
    fresh = np.arange(slate.size) >= log.num_responses
    return _Rows(np.concatenate([features.logged, features.target]), fresh, each, fold[slate], slate)


def _choice(rows: _Rows, log: LoggedSlates, seed: int) -> _Rows:
    """A subset of whole slates, to choose the penalty."""
    share = _CHOICE_ROWS / rows.slate.size
    if share >= 1:
        return rows
    order = np.random.default_rng(seed).permutation(log.num_slates)
    few = np.isin(rows.slate, order[: max(1, int(share * log.num_slates))])
    return rows.take(few)


def _out_of_fold(rows: _Rows, penalty: float, folds: int) -> tuple[Floats, float]:
    """Log-odds ``[n]`` from the other folds' classifiers, and their mean log-loss."""
    odds = np.empty(rows.slate.size)
    for index in range(folds):
        mine = rows.fold == index
        odds[mine] = _fit(rows.take(~mine), penalty)(rows.features[mine])
    signed = np.where(rows.fresh, odds, -odds)
    return odds, float(rows.weight @ np.logaddexp(0.0, -signed) / rows.weight.sum())


class _Logistic:
    """``log-odds = (x - mean) / scale @ slopes + intercept``."""

    def __init__(self, mean: Floats, scale: Floats, slopes: Floats, intercept: float) -> None:
        self.mean, self.scale, self.slopes, self.intercept = mean, scale, slopes, intercept

    def __call__(self, features: Floats) -> Floats:
        return np.asarray((features - self.mean) / self.scale @ self.slopes + self.intercept)


def _fit(rows: _Rows, penalty: float) -> _Logistic:
    """Weighted logistic regression by L-BFGS, in preconditioned coordinates."""
    optimize = require("scipy.optimize", extra="train", purpose="to fit a classifier")
    weight = rows.weight.copy()
    for side in (rows.fresh, ~rows.fresh):
        weight[side] /= weight[side].sum()
    mean = weight @ rows.features / 2
    x = rows.features - mean
    scale = np.sqrt(weight @ np.square(x) / 2)
    scale[scale < 1e-12] = 1.0
    x /= scale
    # The curvature of the loss is at most X' W X / 4 + penalty: preconditioned by it, few steps are enough.
    eigenvalues, vectors = np.linalg.eigh((x * weight[:, None]).T @ x / 4)
    metric = vectors / np.sqrt(np.maximum(eigenvalues, 0.0) + 2 * penalty)
    sign = np.where(rows.fresh, 1.0, -1.0)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slopes = metric @ parameters[:-1]
        margin = sign * (x @ slopes + parameters[-1])
        value = float(weight @ np.logaddexp(0.0, -margin)) + penalty * float(slopes @ slopes)
        pull = -weight * sign * np.exp(-np.logaddexp(0.0, margin))
        return value, np.append(metric.T @ (x.T @ pull + 2 * penalty * slopes), pull.sum())

    start = np.zeros(x.shape[1] + 1)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200, "ftol": 1e-9})
    return _Logistic(mean, scale, metric @ found.x[:-1], float(found.x[-1]))
