"""Classifier weights: the true ratio where it is log-linear, out of fold, in intervals that hold the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope.classifier_weights import classifier_weights
from pope_align.ope.crossfit import cross_fit
from pope_align.ope.model_first import model_first, weighted_mean
from pope_align.stats.intervals import Confidence, quantities

pytest.importorskip("scipy")
WORLD = SimilarWorld()


def test_log_odds_are_the_true_log_weights_of_what_is_meant() -> None:
    """The world's ratio is linear in the features, which a logistic regression can learn exactly."""
    log, features = WORLD.draw(0, slates=1500)
    result = classifier_weights(log, features)
    truth = WORLD.marginal(log, features)
    slope, intercept = np.polyfit(truth, result.log_weights, 1)
    assert slope == pytest.approx(1.0, abs=0.15)
    assert intercept == pytest.approx(0.0, abs=0.05)
    assert np.corrcoef(truth, result.log_weights)[0, 1] > 0.97
    assert result.gain > 0.02


def test_a_policy_that_is_the_logging_policy_has_weights_near_one() -> None:
    log, features = SimilarWorld(shift=0.0).draw(1, slates=300)
    result = classifier_weights(log, features)
    assert result.gain < 0.003
    assert np.abs(result.log_weights).max() < 0.35


def test_weights_come_from_classifiers_that_have_not_seen_the_cluster() -> None:
    log, features = WORLD.draw(2, slates=30)
    before = classifier_weights(log, features)
    changed = features.target.copy()
    changed[features.owner == 4] += 0.3
    after = classifier_weights(log, replace(features, target=changed))
    mine = np.repeat(log.clusters, log.sizes) == 4
    assert before.penalty == after.penalty
    np.testing.assert_allclose(before.log_weights[mine], after.log_weights[mine], rtol=1e-6)
    assert not np.allclose(before.log_weights[~mine], after.log_weights[~mine], rtol=1e-3)


@pytest.mark.release
def test_intervals_hold_the_truth_where_weights_of_sequences_cannot() -> None:
    """Of 100 logs of 150 slates, alone and doubly robust."""
    covered: dict[str, list[bool]] = {"alone": [], "robust": []}
    values = []
    for seed in range(100):
        log, features = WORLD.draw(seed)
        weights = classifier_weights(log, features).log_weights
        robust = model_first(log, cross_fit(log, features), weights).ratios
        for name, ratios in (("alone", weighted_mean(log, weights)), ("robust", robust)):
            q = quantities(ratios, Confidence())[0]
            covered[name].append(q.low <= WORLD.truth <= q.high)
        values.append(float(robust.values()[0]))
    assert np.mean(covered["alone"]) >= 0.88
    assert np.mean(covered["robust"]) >= 0.88
    assert (np.mean(values) - WORLD.base) / (WORLD.truth - WORLD.base) == pytest.approx(1.0, abs=0.06)


def test_many_rows_choose_their_penalty_on_a_part_and_weigh_all() -> None:
    log, features = WORLD.draw(3, slates=4000)
    result = classifier_weights(log, features)
    assert result.log_weights.shape == (16_000,)
    assert np.corrcoef(WORLD.marginal(log, features), result.log_weights)[0, 1] > 0.98
