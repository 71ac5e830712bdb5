"""The estimate for long responses: true values held, and a verdict that is lost with what it rests on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import World
from pope_align.ope import LoggedSlates
from pope_align.ope.comparison import compare
from pope_align.ope.features import Features
from pope_align.ope.long_responses import LongEstimate, model_first_estimate
from pope_align.ope.placebo import placebo

from pope_core.objective import Objective

pytest.importorskip("scipy")
WORLD = World(0.6, wording=4.0, tokens=64)  # weights of whole responses: an effective sample of one or two
CU_ONLY = replace(Objective.evaluation(), diversity_weight=0.0)


def with_base(log: LoggedSlates) -> LoggedSlates:
    """The log with its own policy beside the target."""
    return replace(log, policies={**log.policies, "base": log.logging})


def both(seed: int = 0, slates: int = 200) -> tuple[LoggedSlates, Features, LongEstimate, LongEstimate]:
    log, features, _ = WORLD.draw(seed, slates=slates)
    log = with_base(log)
    target = model_first_estimate(log, "target", [features], objective=CU_ONLY)
    return log, features, target, model_first_estimate(log, "base", [], objective=CU_ONLY)


def test_the_value_and_the_gain_of_long_responses() -> None:
    log, _, target, base = both()
    assert base.estimate.utility.value == pytest.approx(log.utility.mean())
    assert target.estimate.utility.low < WORLD.truth < target.estimate.utility.high
    assert target.estimate.verdict == "reliable", target.estimate.reasons
    gain = placebo(log, target.shares - base.shares)
    found = compare(target.estimate, base.estimate, placebo=gain)
    assert found.utility.low < WORLD.truth - WORLD.base < found.utility.high
    assert found.utility.low > 0
    assert gain.p_value < 0.01
    assert target.shares @ log.utility == pytest.approx(target.estimate.utility.value)


@pytest.mark.slow
def test_reliable_intervals_hold_the_truth() -> None:
    covered = []
    for seed in range(60):
        _, _, target, base = both(seed, slates=120)
        found = compare(target.estimate, base.estimate).utility
        if target.estimate.verdict == "reliable":
            covered.append(found.low <= WORLD.truth - WORLD.base <= found.high)
    assert len(covered) > 30
    assert np.mean(covered) >= 0.87


def test_a_model_that_does_not_see_the_reward_is_refused() -> None:
    log, features, _ = WORLD.draw(1, slates=200)
    random = np.random.default_rng(0)
    noise = replace(features, logged=random.random((800, 4)), target=random.random((800, 4)))
    found = model_first_estimate(log, "target", [noise], objective=CU_ONLY).estimate
    assert found.verdict in ("caution", "refuse")
    assert any("explains" in reason for reason in found.reasons)


def test_a_policy_that_says_what_the_log_never_said_is_not_reliable() -> None:
    """Fresh responses far outside what was logged: the model would have to guess."""
    log, features, _ = WORLD.draw(2, slates=200)
    away = features.target + 8 * np.r_[WORLD.direction / np.linalg.norm(WORLD.direction), np.zeros(3)]
    found = model_first_estimate(log, "target", [replace(features, target=away)], objective=CU_ONLY).estimate
    assert found.support is not None
    assert found.support.share > 0.5
    assert found.verdict == "refuse"


def test_ratings_that_the_features_hold_are_a_leak() -> None:
    log, features, _ = WORLD.draw(3, slates=100)
    leak = replace(
        features,
        logged=np.column_stack([features.logged, log.utility]),
        target=np.column_stack([features.target, np.full(400, 0.9)]),
    )
    found = model_first_estimate(log, "target", [leak], objective=CU_ONLY).estimate
    assert found.verdict != "reliable"


def test_diversity_needs_the_policys_own_responses() -> None:
    log, features, _ = WORLD.draw(4, slates=20)
    with pytest.raises(ValueError, match=r"scored fresh responses in log\.fresh for diversity_weight 0\.1"):
        model_first_estimate(log, "target", [features], objective=replace(CU_ONLY, diversity_weight=0.1))
