"""What users ask of an evaluation, each against a known truth: subgroups, wrong propensities, pessimistic ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from objectives import covered
from pope_align.ope import LoggedSlates, estimate, evaluate_policies, sensitivity_bounds, subgroup_values
from pope_align.ope.subgroups import take_slates

P0, P1 = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
REWARD = {"en": np.array([0.2, 0.5, 0.9]), "de": np.array([0.6, 0.5, 0.1]), "fr": np.array([0.3, 0.6, 0.7])}
TRUE = {name: float(P1 @ reward) for name, reward in REWARD.items()}


def grouped(seed: int, slates: int = 450, wrong: np.ndarray | None = None) -> tuple[LoggedSlates, list[str]]:
    """Slates of two in three languages; the propensities of the log may be wrong by a factor."""
    random = np.random.default_rng(seed)
    groups = [list(REWARD)[at % 3] for at in range(slates)]
    drawn = random.choice(3, (slates, 2), p=P0)
    liked = np.array([[random.random() < REWARD[group][a] for a in row] for group, row in zip(groups, drawn)])
    recorded = P0 if wrong is None else P0 * wrong
    flat = drawn.reshape(-1)
    log = LoggedSlates.from_arrays(
        liked.reshape(-1),
        np.log(recorded[flat]),
        {"new": np.log(P1[flat])},
        np.arange(0, 2 * slates + 1, 2),
        how="recorded",
    )
    return covered(log), groups


def test_intervals_of_all_subgroups_hold_together() -> None:
    together = 0
    for seed in range(200):
        found = subgroup_values(*grouped(seed)[:1], "new", grouped(seed)[1])
        together += all(found.groups[name].low <= truth <= found.groups[name].high for name, truth in TRUE.items())
        if seed == 0:
            assert found.worst == "de"
            assert found.groups["de"].verdict == "reliable"
    assert together / 200 >= 0.92  # .95 promised, less two standard errors
    log, groups = grouped(0)
    groups[0] = "la"
    assert subgroup_values(log, "new", groups).too_small == ("la",)
    with pytest.raises(ValueError, match="groups: expected one for each of the 450 slates, got 3"):
        subgroup_values(log, "new", ["en"] * 3)


def test_some_slates_of_a_log_are_a_log() -> None:
    log, groups = grouped(1)
    mine = np.flatnonzero(np.array(groups) == "de")
    part = take_slates(log, mine)
    rows = np.concatenate([[2 * at, 2 * at + 1] for at in mine])
    np.testing.assert_array_equal(part.utility, log.utility[rows])
    np.testing.assert_array_equal(part.policies["new"].logprobs, log.policies["new"].logprobs[rows])
    assert part.num_slates == part.num_clusters == mine.size
    assert part.fresh["new"].owner.tolist() == list(range(mine.size))


def test_the_box_of_weights_holds_the_truth_that_wrong_propensities_miss() -> None:
    """Propensities wrong by up to 1.5 either way: the value misses the truth, the bounds hold it and are exact."""
    wrong = np.array([1.5, 1.0, 1 / 1.5])
    log, _ = grouped(3, 3000, wrong)
    truth = float(np.mean(list(TRUE.values())))
    value = estimate(log, "new", "snips")
    assert not value.low <= truth <= value.high
    bounds = sensitivity_bounds(log, "new", 1.5)
    assert bounds.low <= truth <= bounds.high
    narrow = sensitivity_bounds(log, "new", 1.0)
    assert narrow.low == pytest.approx(value.value)
    assert narrow.high == pytest.approx(value.value)
    few = LoggedSlates.from_arrays([0.1, 0.9, 0.4, 0.6], [-1.0, -2.0, -1.5, -1.0], {"new": [-1.2, -1.0, -1.9, -1.1]})
    w = np.exp(few.policies["new"].logprobs - few.logging.logprobs)
    means = [float((w * a) @ few.utility / (w @ a)) for a in map(np.array, itertools.product([0.5, 2.0], repeat=4))]
    found = sensitivity_bounds(few, "new", 2.0)
    assert (found.low, found.high) == (pytest.approx(min(means)), pytest.approx(max(means)))
    with pytest.raises(ValueError, match="gamma: expected a finite number >= 1"):
        sensitivity_bounds(few, "new", 0.5)


def test_a_pessimistic_rank_puts_what_is_not_known_against_a_policy() -> None:
    """True values .510 and .500; the log knows the first far less well."""
    random = np.random.default_rng(0)
    wide = random.normal(0, 1.0, 2000)
    utility = np.clip(0.5 + 0.01 * wide + 0.2 * random.normal(size=2000), 0, 1)
    log = LoggedSlates.from_arrays(
        utility,
        np.full(2000, -9.0),
        {"sure": np.full(2000, -9.0), "bold": -9 + wide - 0.5},
        how="recorded",
    )
    evaluation = evaluate_policies(log)
    assert [each.policy for each in evaluation.ranking()] == ["bold", "sure"]
    assert [each.policy for each in evaluation.ranking(by="lower_bound")] == ["sure", "bold"]
