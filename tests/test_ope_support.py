"""Support: fresh responses that outweigh the log stand for what the log never met."""

from __future__ import annotations

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope import FreshScores, LoggedSlates, Predictions, estimate, pope_value
from pope_align.ope.balance import balance
from pope_align.ope.log_support import fresh_support, support


def test_shares_and_bounds_by_hand() -> None:
    log = LoggedSlates.from_arrays(
        [0.0, 2.0, 1.0], [-3.0, -4.0, -5.0], {"target": [-2.0, -4.0, -6.0]}, [0, 2, 3], utility_range=(-1.0, 4.0)
    )
    fresh, owner = np.array([0.5, 1.5, np.inf, -2.0, 0.9]), np.array([0, 0, 1, 1, 1])  # the log's largest is 1
    result = support(log, "target", fresh, owner)
    assert result.largest == 1.0
    assert result.share == pytest.approx((1 / 2 + 1 / 3) / 2)  # slates count alike
    assert result.bias_bound == pytest.approx(5 * result.share)
    assert result.limit > result.share
    assert result.bias_limit == pytest.approx(5 * result.limit)


def test_a_rare_good_kind_of_response_is_seen() -> None:
    """The target says something in 4% of its responses that the log says once in 10,000: .04 of range is unknown."""
    random = np.random.default_rng(0)
    slates, size = 300, 4
    rare = random.random(slates * size) < 1e-4
    ratio = np.where(rare, np.log(400.0), np.log(0.96))
    log = LoggedSlates.from_arrays(
        rare.astype(float), np.full(rare.size, -50.0), {"target": -50.0 + ratio}, np.arange(0, rare.size + 1, size)
    )
    assert not rare.any()
    said = random.random(slates * 8) < 0.04
    fresh = np.where(said, np.log(400.0), np.log(0.96))
    result = support(log, "target", fresh, np.repeat(np.arange(slates), 8))
    assert result.share == pytest.approx(0.04, abs=0.012)
    assert result.share <= result.limit < 0.06
    log_that_met_it = LoggedSlates.from_arrays(
        np.ones(rare.size), np.full(rare.size, -50.0), {"target": np.where(np.arange(rare.size) == 7, -44.0, -50.0)}
    )
    assert support(log_that_met_it, "target", np.zeros(rare.size), np.arange(rare.size)).share == 0.0


def test_healthy_worlds_have_almost_nothing_beyond_the_log() -> None:
    assert fresh_support(SimilarWorld(wording=0.4).draw(0, slates=500)[0], "target").share < 0.01
    long, _ = SimilarWorld(wording=4.0).draw(0, slates=500)  # almost everything
    assert fresh_support(long, "target").share > 0.3


def test_no_response_beyond_leaves_a_limit_above_nothing() -> None:
    log, features = SimilarWorld(wording=0.1).draw(1, slates=50)
    result = support(log, "target", np.full(features.owner.size, -1.0), features.owner)
    assert result.share == 0.0
    assert 0.03 < result.limit < 0.08  # nothing in 50 clusters
    assert result.bias_limit == result.limit


def test_errors() -> None:
    log = LoggedSlates.from_arrays([0.0, 1.0], [-1.0, -1.0], {"target": [-1.0, -1.0]})
    with pytest.raises(ValueError, match=r"fresh_log_weights\[1\]: expected a number, got NaN"):
        support(log, "target", np.array([0.0, np.nan]), np.array([0, 1]))
    with pytest.raises(ValueError, match="owner: slate 1: expected at least one fresh response"):
        support(log, "target", np.array([0.0, 1.0]), np.array([0, 0]))


# --- balance --------------------------------------------------------------------------------------------------------


def sampled(temperature: float, seed: int) -> LoggedSlates:
    """A log sampled at a temperature, with propensities of temperature 1, and fresh responses at temperature 1 of the
    same policy, whose weights are all 1.
    """
    random = np.random.default_rng(seed)
    logits = random.normal(size=20)
    at_one = logits - np.logaddexp.reduce(logits)
    cold = logits / temperature - np.logaddexp.reduce(logits / temperature)
    logged, fresh = random.choice(20, 800, p=np.exp(cold)), random.choice(20, 800, p=np.exp(at_one))
    owner = np.repeat(np.arange(200), 4)
    return LoggedSlates.from_arrays(
        random.random(800),
        at_one[logged],
        {"same": at_one[logged]},
        np.arange(0, 801, 4),
        how="recorded",
        fresh={"same": FreshScores(owner, at_one[fresh], at_one[fresh])},
    )


def test_a_wrongly_recorded_temperature_shows_in_the_policy_s_fresh_responses() -> None:
    """The mean weight is 1 and support is whole, so nothing else can tell."""
    for seed in range(20):
        wrong = estimate(sampled(0.7, seed), "same", "snips")
        assert wrong.diagnostics.mean_weight == 1.0
        assert wrong.support.share == 0.0
        assert wrong.verdict in ("caution", "refuse"), seed
        assert "propensities of another temperature" in wrong.reasons[0]
    right = [abs(each.z) for seed in range(200) for each in balance(sampled(1.0, seed), "same")[:1]]
    assert np.mean(np.array(right) > 1.96) < 0.10
    assert np.mean(np.array(right) > 3) < 0.02


def test_a_response_beyond_the_log_counts_as_the_estimator_counts_it() -> None:
    log = LoggedSlates.from_arrays(
        [0.2, 0.4, 0.4, 0.2],
        [-3.0] * 4,
        {"target": [-3.0] * 4},
        fresh={"target": FreshScores(np.arange(4), np.full(4, -2.0), np.array([-2.0, -2.0, -2.0, -9.0]))},
    )
    model = Predictions(np.array([0.1, 0.5, 0.5, 0.1]), np.full(4, 0.3))
    assert estimate(log, "target", "snips").support.bias_bound == pytest.approx(0.25 * 0.7)  # the value is .3
    assert estimate(log, "target", "ips").support.bias_bound == pytest.approx(0.25 * 1.0)  # counted as 0
    assert estimate(log, "target", "dr", predictions=model).support.bias_bound == pytest.approx(0.25 * 1.0)  # any
    assert pope_value(log, "target").support.bias_bound == pytest.approx(0.25 * 0.7)
