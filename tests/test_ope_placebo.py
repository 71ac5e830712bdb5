"""Placebo gains: exact by enumeration, uniform where there is nothing, small where a policy learned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pope_align.ope import LoggedSlates
from pope_align.ope.placebo import gain_shares, placebo, rank_correlation


def make_log(utility: np.ndarray, sizes: list[int]) -> LoggedSlates:
    count = len(utility)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return LoggedSlates.from_arrays(utility, np.full(count, -3.0), {"target": np.full(count, -3.0)}, offsets)


def test_the_p_value_is_that_of_all_permutations() -> None:
    random = np.random.default_rng(0)
    sizes = [3, 2, 3]
    log, shares = make_log(random.random(8), sizes), random.normal(size=8)
    parts = np.split(log.utility, [3, 5])
    every = [np.concatenate(rows) for rows in itertools.product(*(itertools.permutations(part) for part in parts))]
    gains = np.array([shares @ utility for utility in every])
    exact = float((gains >= shares @ log.utility - 1e-12).mean())
    result = placebo(log, shares, draws=20_000)
    assert result.p_value == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20_000) + 1e-4)
    assert result.mean == pytest.approx(gains.mean(), abs=0.03)


def test_a_policy_that_learned_nothing_passes_one_time_in_twenty() -> None:
    random = np.random.default_rng(1)
    passed = 0
    for seed in range(300):
        log = make_log((random.random(160) < 0.5).astype(float), [4] * 40)
        shares = gain_shares(log, random.normal(0, 1.0, 160))
        passed += placebo(log, shares, draws=199, seed=seed).p_value < 0.05
    assert 3 <= passed <= 29  # 15 expected; 4 standard deviations


def test_a_drift_that_depends_on_no_rating_gains_and_fails() -> None:
    """Slates that a policy favours may be liked more; inside a slate it knows nothing."""
    random = np.random.default_rng(2)
    level = np.repeat(random.random(200), 4)
    log = make_log((random.random(800) < level).astype(float), [4] * 200)
    shares = gain_shares(log, 2 * level + random.normal(0, 0.3, 800))
    result = placebo(log, shares)
    assert result.gain > 0.05
    assert result.p_value > 0.05


def test_a_policy_that_learned_is_told_from_the_placebo() -> None:
    random = np.random.default_rng(3)
    quality = random.normal(size=800)
    log = make_log((random.random(800) < 1 / (1 + np.exp(-quality))).astype(float), [4] * 200)
    result = placebo(log, gain_shares(log, quality))
    assert result.p_value == pytest.approx(1 / 1001)
    assert result.low < result.mean < result.high < result.gain


def test_ratings_that_tie_make_no_false_discovery() -> None:
    log = make_log(np.full(8, 0.3), [4, 4])
    assert placebo(log, np.random.default_rng(0).normal(size=8)).p_value == 1.0


def test_rank_correlation_is_the_mean_of_spearmans() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(4)
    sizes = [2, 5, 3, 5, 1, 4]
    utility, scores = random.integers(0, 4, 20) / 4, random.integers(0, 6, 20).astype(float)
    utility[7:10] = 0.5  # a slate that says nothing
    expected = []
    for u, s in zip(np.split(utility, np.cumsum(sizes)[:-1]), np.split(scores, np.cumsum(sizes)[:-1]), strict=True):
        if np.ptp(u) > 0 and np.ptp(s) > 0:
            expected.append(stats.spearmanr(u, s).statistic)
    result = rank_correlation(make_log(utility, sizes), scores)
    assert result.value == pytest.approx(np.mean(expected))


def test_rank_correlation_covers_zero_for_shuffled_ratings() -> None:
    random = np.random.default_rng(5)
    log = make_log((random.random(1200) < 0.5).astype(float), [4] * 300)
    result = rank_correlation(log, random.normal(size=1200))
    assert result.low < 0 < result.high


def test_errors() -> None:
    log = make_log(np.array([0.0, 1.0]), [1, 1])
    with pytest.raises(ValueError, match="nothing to permute"):
        placebo(log, np.zeros(2))
    log = make_log(np.array([0.0, 1.0, 0.5, 0.5]), [2, 2])
    with pytest.raises(ValueError, match=r"shares: expected \[4\], got \[3\]"):
        placebo(log, np.zeros(3))
    with pytest.raises(ValueError, match="two different utilities and scores, got none"):
        rank_correlation(log, np.array([1.0, 1.0, 0.0, 1.0]))
