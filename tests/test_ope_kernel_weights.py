"""Kernel weights: equal to their definition, between importance sampling and the mean, bound by what they miss."""

from __future__ import annotations

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope import LoggedSlates
from pope_align.ope.crossfit import cross_fit
from pope_align.ope.features import Features
from pope_align.ope.kernel_weights import kernel_weights, lipschitz_limit
from pope_align.ope.model_first import model_first, weighted_mean
from pope_align.ope.paired_choice import least_error
from pope_align.stats.intervals import Confidence, quantities
from pope_align.stats.ratios import Ratios

WORLD = SimilarWorld()


def ragged() -> tuple[LoggedSlates, Features]:
    random = np.random.default_rng(0)
    sizes, fresh = np.array([1, 3, 2, 3]), np.array([2, 1, 4, 1])
    log = LoggedSlates.from_arrays(
        random.random(9), np.full(9, -5.0), {"target": np.full(9, -5.0)}, np.concatenate([[0], np.cumsum(sizes)])
    )
    owner = random.permutation(np.repeat(np.arange(4), fresh))
    return log, Features("e", random.normal(size=(9, 5)), random.normal(size=(8, 5)), owner)


@pytest.mark.parametrize("given", [False, True])
def test_weights_are_their_definition(given: bool) -> None:
    log, features = ragged()
    random = np.random.default_rng(1)
    others = (random.normal(size=(8, 5)), np.repeat(np.arange(4), 2)) if given else None
    result = kernel_weights(log, features, logging_vectors=others, bandwidth=0.3).log_weights
    slate = np.repeat(np.arange(4), log.sizes)
    against, owner = others if others is not None else (features.logged, slate)

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / 0.3))

    for i, mine in enumerate(features.logged):
        up = np.mean([kernel(mine, e) for e in features.target[features.owner == slate[i]]])
        down = np.mean([kernel(mine, e) for e in against[owner == slate[i]]])
        assert result[i] == pytest.approx(np.log(up / down))


def test_a_narrow_kernel_counts_equal_responses_and_a_wide_one_nothing() -> None:
    """Fresh responses that repeat logged ones: at bandwidth 0 the weight is the ratio of frequencies."""
    e = np.eye(3)
    log = LoggedSlates.from_arrays([1.0, 0, 0, 1, 0, 0], np.full(6, -1.0), {"target": np.full(6, -1.0)}, [0, 3, 6])
    vectors = np.concatenate([e[[0, 0, 1]], e[[0, 1, 2]]])
    target = Features("e", vectors, np.concatenate([e[[0, 1]], e[[2, 2]]]), np.array([0, 0, 1, 1]))
    narrow = np.exp(kernel_weights(log, target, bandwidth=1e-3).log_weights)
    np.testing.assert_allclose(narrow, [0.75, 0.75, 1.5, 0, 0, 3.0], atol=1e-6)
    wide = np.exp(kernel_weights(log, target, bandwidth=1e6).log_weights)
    np.testing.assert_allclose(wide, 1.0, atol=1e-5)


def test_the_narrowest_kernel_does_not_underflow() -> None:
    log, features = WORLD.draw(0, slates=20)
    assert np.isfinite(kernel_weights(log, features, bandwidth=1e-6).log_weights).all()


@pytest.mark.slow
def test_doubly_robust_intervals_hold_the_truth_and_the_bias_bound_the_bias() -> None:
    """Of 100 logs, with eight fresh responses of either policy: what kernels miss alone, the model knows."""
    covered, alone, bounds = [], [], []
    for seed in range(100):
        log, features = WORLD.draw(seed, fresh=8)
        theirs = SimilarWorld(shift=0.0).unit(
            SimilarWorld(shift=0.0).draw(seed, fresh=8)[1]
        )  # the same log, fresh ones of its policy
        unit, fit = WORLD.unit(features), cross_fit(log, features)
        np.testing.assert_array_equal(unit.logged, theirs.logged)
        fresh = (theirs.target, theirs.owner)
        result = kernel_weights(log, unit, logging_vectors=fresh, predicted=fit.logged)
        q = quantities(model_first(log, fit, result.log_weights).ratios, Confidence())[0]
        covered.append(q.low <= WORLD.truth <= q.high)
        plain = kernel_weights(log, unit, logging_vectors=fresh)
        alone.append(float(weighted_mean(log, plain.log_weights).values()[0]))
        bounds.append(plain.bias_bound)
    assert np.mean(covered) >= 0.88
    assert WORLD.base < np.mean(alone) < WORLD.truth  # a part is recovered
    assert abs(np.mean(alone) - WORLD.truth) < np.mean(bounds)


def test_the_lipschitz_limit_holds_a_known_slope_in_spite_of_noise() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(8000, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    reward = 0.5 + 0.3 * vectors[:, 0]  # the change with a unit of distance, root mean square over directions: 0.15
    thumbs = (random.random(8000) < reward).astype(float)
    log = LoggedSlates.from_arrays(thumbs, np.full(8000, -1.0), {"t": np.full(8000, -1.0)}, np.arange(0, 8001, 4))
    assert 0.15 <= lipschitz_limit(log, vectors, thumbs) < 0.3


def test_noise_that_candidates_share_hides_no_bias() -> None:
    """Intervals of width 0.4 that overlap almost whole, and a difference that is certain to a hair."""
    random = np.random.default_rng(0)
    common = random.normal(0, 1, 100)
    ones = np.ones((1, 100))
    right = Ratios((common + random.normal(0, 0.05, 100))[None, :, None], ones)
    wrong = Ratios((common + 0.15)[None, :, None], ones)
    calm = Ratios((common + 0.002)[None, :, None], ones)
    assert least_error([right, wrong]) == 0
    assert least_error([Ratios((common + random.normal(0, 3, 100))[None, :, None], ones), calm]) == 1
    with pytest.raises(ValueError, match="at least one finite estimate"):
        least_error([Ratios(np.full((1, 100, 1), np.nan), ones)])


def test_errors() -> None:
    log, features = ragged()
    with pytest.raises(ValueError, match=r"bandwidth: expected a number in \(0, inf\), got 0"):
        kernel_weights(log, features, bandwidth=0)
    zeros = Features("e", features.logged * 0, features.target, features.owner)
    with pytest.raises(ValueError, match="logged: row 0: expected a vector that is not zero"):
        kernel_weights(log, zeros)
