"""The worlds of the calibration study are what they say: tables that sum to one, logs with the frequencies of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pope_align.experiments.ope_long_worlds import LONG_DEVELOPMENT, LONG_HELD_OUT, MEANING, PROMPT
from pope_align.experiments.ope_worlds import DEVELOPMENT, HELD_OUT, TableWorld

KINDS = {**{f"development, {name}": kind for name, kind in DEVELOPMENT.items()}, **HELD_OUT}
LONG = {**{f"development, {name}": kind for name, kind in LONG_DEVELOPMENT.items()}, **LONG_HELD_OUT}


@pytest.mark.parametrize("name", KINDS)
def test_tables_sum_to_one_and_logs_repeat(name: str) -> None:
    world = KINDS[name](np.random.default_rng(3))
    for log_pi in (*world.policies.values(), world.recorded):
        np.testing.assert_allclose(np.exp(log_pi).sum(1), 1.0, rtol=1e-9)
    one, two = (world.sample(np.random.default_rng(5))[0] for _ in range(2))
    assert one.fingerprint == two.fingerprint
    assert (one.num_slates, one.num_responses) == (world.slates, world.slates * world.size)


def test_a_log_has_the_policy_s_frequencies_and_the_truth_is_the_mean_of_endless_samples() -> None:
    small = DEVELOPMENT["tilted"](np.random.default_rng(0))
    world = TableWorld(small.policies, small.reward, small.model, small.recorded, 4000, 4)
    log, predictions = world.sample(np.random.default_rng(1))
    assert log.utility.mean() == pytest.approx(world.value("logging"), abs=0.02)
    weights = np.exp(np.subtract(*log.logprobs("first", length_normalize=False)))
    assert (weights * log.utility).mean() == pytest.approx(world.value("first"), abs=0.03)
    believed = float((np.exp(world.policies["first"]) * world.model).sum(1).mean())
    assert predictions["first"].target.mean() == pytest.approx(believed, abs=0.01)
    fresh = np.exp(log.fresh["first"].logging - log.fresh["first"].target)
    assert fresh.mean() == pytest.approx(1.0, abs=0.05)  # E_pi[p0 / pi] = 1


def test_what_a_log_never_shows_is_counted_exactly() -> None:
    world = DEVELOPMENT["rare and good"](np.random.default_rng(2))
    log, _ = world.sample(np.random.default_rng(0))
    assert world.support_share("logging", log) == 0
    assert 0.02 < world.support_share("first", log) < 0.06


@pytest.mark.parametrize("name", LONG)
def test_long_worlds_have_the_values_and_weights_they_say(name: str) -> None:
    """In an endless log the mean weight is 1, and the mean of fresh responses' true ratings is the value."""
    small = LONG[name](np.random.default_rng(1))
    world = replace(small, slates=20_000, size=2, wording=0.3)
    log, features = world.sample(np.random.default_rng(2))
    value, base = world.truth(np.random.default_rng(3))
    assert log.utility.mean() == pytest.approx(base, abs=0.01)
    weights = np.exp(np.subtract(*log.logprobs("target", length_normalize=False)))
    if np.linalg.norm(world.shift) < 1:
        assert weights.mean() == pytest.approx(1.0, abs=0.05)
        assert (weights * log.utility).mean() == pytest.approx(value, abs=0.03)
    if world.hidden == 0:
        meaning, x = features.target[:, :MEANING], features.target[:, MEANING : MEANING + PROMPT]
        assert world.liked(meaning, x).mean() == pytest.approx(value, abs=0.01)
