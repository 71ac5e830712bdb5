"""Weights between those of features and those of whole responses: the ends, the path, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pope_align.ope.bridged import BridgedWeights, at_most, bridged_weights, enough
from pope_align.ope.diagnostics import effective_sample_size


def weights(seed: int, spread: float, count: int = 600) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, spread, count)


def bridged(of_features: np.ndarray, of_responses: np.ndarray | None) -> BridgedWeights:
    """Of slates of one size."""
    return bridged_weights(np.zeros_like(of_features), of_features, of_responses)


def test_even_weights_of_whole_responses_are_taken_as_they_are() -> None:
    found = bridged(weights(0, 0.1), weights(1, 0.5))
    assert found.power == 1
    np.testing.assert_allclose(found.log_weights, weights(1, 0.5))


def test_useless_weights_of_whole_responses_leave_nearly_those_of_the_features() -> None:
    found = bridged(weights(0, 0.3), weights(1, 40.0))
    assert 0 < found.power < 0.05
    assert np.corrcoef(found.log_weights, weights(1, 40.0))[0, 1] > 0.5  # what is left of them
    assert found.ess == pytest.approx(100, rel=1e-6)


@given(st.integers(0, 1000), st.floats(0.0, 30.0), st.floats(0.0, 30.0), st.integers(3, 2000))
def test_enough_responses_stay_in_effect(seed: int, features: float, whole: float, count: int) -> None:
    of_features = weights(seed, features, count)
    found = bridged(of_features, weights(seed + 1, whole, count))
    assert found.ess == pytest.approx(effective_sample_size(found.log_weights))
    assert found.ess >= enough(count) * (1 - 1e-9)
    assert bridged(of_features, None).power == 0


def test_what_is_kept_grows_with_the_log_but_slower() -> None:
    assert [round(enough(n)) for n in (60, 300, 1000, 10**6)] == [20, 100, 100, 10**4]


def test_one_large_weight_is_tempered_though_enough_responses_stay_in_effect() -> None:
    """One of 600 weights is 40 times the others': 6% of the total, at an effective sample size of 181."""
    ratio = np.where(np.arange(600) == 7, np.log(40.0), 0.0)
    assert effective_sample_size(ratio) > enough(600) + 50
    found = bridged(np.zeros(600), ratio)
    assert 0.9 < found.power < 1
    shares = np.exp(found.log_weights) / np.exp(found.log_weights).sum()
    assert shares.max() == pytest.approx(0.05)
    assert shares.max() < 0.05
    assert at_most(1 / 10) == pytest.approx(0.3)  # of ten equal weights, each has a tenth


def test_responses_that_the_policy_cannot_write_have_no_weight() -> None:
    ratio = np.where(np.arange(600) % 3 == 0, -np.inf, weights(1, 0.5))
    found = bridged(weights(0, 0.3), ratio)
    assert found.power == 1
    assert (found.log_weights == -np.inf).sum() == 200


def test_sizes_of_slates_count() -> None:
    """A slate of 200 and ten of one: eleven slates of equal weight, not 210 responses."""
    own = -np.log(np.r_[np.full(200, 200.0), np.ones(10)])
    found = bridged_weights(own, np.zeros(210), np.zeros(210))
    assert found.power == 1
    assert found.ess == pytest.approx(121 / 10.005)


def test_other_shapes_and_infinities_are_refused() -> None:
    for ratio in (np.zeros(5), np.full(4, -np.inf), np.full(4, np.nan), np.array([0.0, np.inf, 0.0, 0.0])):
        with pytest.raises(ValueError, match="expected finite numbers, one for each response"):
            bridged(np.zeros(4), ratio)
