"""Cross-fitted ridge regression of utility on features, and the coefficient of each rating in its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from .features import Features
from .log import LoggedSlates

#: Candidate ridge penalties, in units of the mean variance of a feature times the number of rows.
_PENALTIES = np.geomspace(1e-4, 1e2, 13)

#: The default number of folds.
FOLDS = 5


def deal(clusters: Integers, folds: int, seed: int, *, what: str = "clusters") -> Integers:
    """``[S]`` fold of each slate; slates of a cluster share theirs.

    Args:
        what: the name of the clusters, in errors.

    Raises:
        ValueError: fewer than two folds, or more than there are clusters.
    """
    names, codes = np.unique(clusters, return_inverse=True)
    if not 2 <= folds <= names.size:
        raise ValueError(f"folds: expected between 2 and the {names.size} {what} of the log, got {folds}")
    return np.asarray(np.random.default_rng(seed).permutation(names.size) % folds, dtype=np.int64)[codes]


@dataclass(frozen=True, eq=False)
class Ridge:
    """A standardised ridge with an intercept; its predictions are linear in the utilities that it was fitted on."""

    mean: Floats  # [d]
    scale: Floats  # [d]
    centre: float  # mean utility
    coefficients: Floats  # [d], of standardised features
    vectors: Floats  # [d, d] of the features' Gram matrix
    shrunken: Floats  # [d] 1 / (eigenvalue + penalty)

    @classmethod
    def fit(cls, features: Floats, utility: Floats) -> Ridge:
        """Fit with the penalty of least leave-one-out error."""
        mean, scale = features.mean(0), features.std(0)
        scale[scale < 1e-12] = 1.0
        x, centre = (features - mean) / scale, float(utility.mean())
        eigenvalues, vectors = np.linalg.eigh(x.T @ x)
        eigenvalues = np.maximum(eigenvalues, 0.0)
        projected = x @ vectors  # [n, d]
        response, squared = projected.T @ (utility - centre), np.square(projected)
        errors = []
        for penalty in _PENALTIES * len(x):
            shrunken = 1 / (eigenvalues + penalty)
            residual = utility - centre - projected @ (shrunken * response)
            errors.append(float(np.square(residual / np.maximum(1 - squared @ shrunken - 1 / len(x), 1e-12)).mean()))
        shrunken = 1 / (eigenvalues + _PENALTIES[int(np.argmin(errors))] * len(x))
        return cls(mean, scale, centre, vectors @ (shrunken * response), vectors, shrunken)

    def __call__(self, features: Floats) -> Floats:
        return np.asarray((features - self.mean) / self.scale @ self.coefficients + self.centre)

    def shares(self, weights: Floats, features: Floats, fitted_on: Floats) -> Floats:
        """``[n]``: coefficient of each utility in ``sum_j weights_j prediction(features_j)``."""
        total = float(weights.sum())
        direction = (weights @ features - total * self.mean) / self.scale  # [d]
        direction = self.vectors @ (self.shrunken * (self.vectors.T @ direction)) / self.scale
        return np.asarray((fitted_on - self.mean) @ direction + total / len(fitted_on))


@dataclass(frozen=True, eq=False)
class CrossFit:
    """Predictions of every response by a model that was not fitted to its cluster.

    Attributes:
        features: the model's input.
        fold: ``[S]``.
        models: one for each fold, fitted on the others.
        logged: ``[R]`` predicted utility of logged responses.
        target: ``[N]`` of fresh ones.
        r2: share of the variance of the logged utilities that ``logged`` explains (noise of single ratings included);
            at 0 or below nothing was learned.
        calibration: slope of utility on prediction; 1 if predicted differences have the right scale.
        calibration_error: its standard error, by cluster.
    """

    features: Features
    fold: Integers
    models: tuple[Ridge, ...]
    logged: Floats
    target: Floats
    r2: float
    calibration: float
    calibration_error: float

    def shares(self, log: LoggedSlates, target_weights: Floats, logged_weights: Floats) -> Floats:
        """``[R]`` coefficient of each utility in a linear function of the models' predictions.

        The function ``sum_j target_weights_j target_j - sum_i logged_weights_i logged_i`` equals ``shares @
        log.utility`` for the chosen penalties.
        """
        fold_of_response = np.repeat(self.fold, log.sizes)
        fold_of_fresh = self.fold[self.features.owner]
        shares = np.zeros(log.num_responses)
        for index, model in enumerate(self.models):
            mine, fresh = fold_of_response == index, fold_of_fresh == index
            rows = np.concatenate([self.features.target[fresh], self.features.logged[mine]])
            weights = np.concatenate([target_weights[fresh], -logged_weights[mine]])
            shares[~mine] += model.shares(weights, rows, self.features.logged[~mine])
        return shares


def cross_fit(log: LoggedSlates, features: Features, *, folds: int = FOLDS, seed: int = 0) -> CrossFit:
    """Fit a ridge of utility on ``features`` for each fold of clusters, and predict that fold with it.

    Features are cut at the log's ends (`Features.within_log`): a ridge extrapolates.

    Args:
        folds: at least 2, at most the number of clusters.
        seed: of the folds; equal seeds give equal folds for every policy and feature set.

    Raises:
        ValueError: features that do not match the log, or too few clusters.
    """
    features.check(log)
    features = features.within_log()
    fold = deal(log.clusters, folds, seed)
    fold_of_response, fold_of_fresh = np.repeat(fold, log.sizes), fold[features.owner]
    logged, target = np.empty(log.num_responses), np.empty(len(features.target))
    models = []
    for index in range(folds):
        mine = fold_of_response == index
        model = Ridge.fit(features.logged[~mine], log.utility[~mine])
        logged[mine] = model(features.logged[mine])
        target[fold_of_fresh == index] = model(features.target[fold_of_fresh == index])
        models.append(model)
    slope, error = _slope(log, logged)
    return CrossFit(features, fold, tuple(models), logged, target, _r2(log.utility, logged), slope, error)


def best_fit(log: LoggedSlates, candidates: Sequence[Features], *, folds: int = FOLDS, seed: int = 0) -> CrossFit:
    """The cross-fit with the feature set that explains most variance of the utilities out of fold.

    All candidates describe the same logged and fresh responses.

    Raises:
        ValueError: no candidates, or one that does not match the log.
    """
    if not candidates:
        raise ValueError("candidates: expected at least one feature set, got none")
    fits = [cross_fit(log, features, folds=folds, seed=seed) for features in candidates]
    return max(fits, key=lambda fit: fit.r2 if np.isfinite(fit.r2) else -np.inf)


def _r2(utility: Floats, predicted: Floats) -> float:
    spread = float(np.square(utility - utility.mean()).sum())
    return 1 - float(np.square(utility - predicted).sum()) / spread if spread > 0 else float("nan")


def _slope(log: LoggedSlates, predicted: Floats) -> tuple[float, float]:
    """Slope of utility on prediction by least squares, and its clustered standard error."""
    x, y = predicted - predicted.mean(), log.utility - log.utility.mean()
    square = float(x @ x)
    if square == 0:
        return float("nan"), float("nan")
    slope = float(x @ y) / square
    by_cluster = log.cluster_sums(log.slate_sums(x * (y - slope * x)))
    return slope, float(np.sqrt(np.square(by_cluster).sum())) / square
