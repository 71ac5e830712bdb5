"""Judge scores on people's scale: intervals with known truth, and an audit that sees who pleases the judge only."""

from __future__ import annotations

import numpy as np
import pytest
from pope_align.ope import JudgeCalibration, Judged
from pope_align.ope.judge_calibration import Isotonic

RESPONSES = 2


def world(
    seed: int, *, better: float = 0.5, flattery: float = 0.0, own: int = 0, prompts: int = 300, rated: int = 120
) -> tuple[Judged, Judged]:
    """The base policy, ``rated`` of its prompts with ratings, and a better one, overrated by the judge by ``flattery``.

    Quality q ~ N(prompt, 1) is liked with probability sigmoid(q); the judge sees 3 tanh(q / 2) plus noise.
    """
    random = np.random.default_rng(seed)
    level = random.normal(0, 0.5, prompts)
    clusters = np.repeat(np.arange(prompts), RESPONSES)

    def policy(shift: float, flattering: float, with_ratings: int) -> Judged:
        quality = level[clusters] + shift + random.normal(size=clusters.size)
        scores = 3 * np.tanh(quality / 2) + flattering + random.normal(0, 0.5, clusters.size)
        liked = (random.random(clusters.size) < 1 / (1 + np.exp(-quality))).astype(float)
        return Judged.of(scores, np.where(clusters < with_ratings, liked, np.nan), clusters)

    return policy(0.0, 0.0, rated), policy(better, flattery, own)


def truth(shift: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    return float(weights @ (1 / (1 + np.exp(-(shift + np.sqrt(1.25) * nodes)))) / weights.sum())


def test_95_percent_intervals_cover_values_and_differences() -> None:
    """Of 250 pilots; without the uncertainty of the calibration far fewer would."""
    value, difference, too_short = [], [], []
    for seed in range(250):
        base, new = world(seed)
        calibration = JudgeCalibration.fit(base)
        found = calibration.value(new)
        value.append(found.value.low <= truth(0.5) <= found.value.high)
        too_short.append(abs(found.value.value - truth(0.5)) <= 1.96 * found.from_prompts)
        gain = calibration.difference(new, base).value
        difference.append(gain.low <= truth(0.5) - truth(0.0) <= gain.high)
    assert 0.92 <= np.mean(value) <= 0.985
    assert 0.92 <= np.mean(difference) <= 0.985
    assert np.mean(too_short) < 0.85


def test_a_policy_that_pleases_the_judge_only_is_refused_by_its_own_ratings() -> None:
    refused, passed = [], []
    for seed in range(60):
        base, flatterer = world(seed, better=0.0, flattery=1.5, own=100)
        calibration = JudgeCalibration.fit(base)
        refused.append(calibration.value(flatterer).verdict == "refuse")
        _, honest = world(seed + 1000, own=100)
        passed.append(calibration.value(honest).verdict == "reliable")
    assert np.mean(refused) > 0.9
    assert np.mean(passed) > 0.85


def test_without_ratings_of_its_own_a_policy_gets_a_caution_and_says_why() -> None:
    base, new = world(0)
    found = JudgeCalibration.fit(base).value(new)
    assert found.verdict == "caution"
    assert "responses to 0 prompts: it may please the judge only" in found.reasons[0]
    assert found.audits == (None,)


def test_scores_that_nobody_rated_are_not_extrapolated() -> None:
    base, _ = world(1)
    away = Judged.of(base.scores + 10, clusters=base.clusters)
    found = JudgeCalibration.fit(base).value(away)
    assert found.beyond == 1.0
    assert found.verdict == "refuse"


def test_the_plan_gives_the_half_width_that_was_asked_for() -> None:
    """The numbers of prompts and ratings that pilots ask for give intervals of that size, on new data."""
    plans = [JudgeCalibration.fit(base).plan(new, 0.03) for base, new in (world(seed) for seed in range(20))]
    prompts, ratings = (int(np.median([getattr(plan, of) for plan in plans])) for of in ("prompts", "ratings"))
    assert 100 < ratings < prompts * RESPONSES
    halves = []
    for seed in range(20):
        base, new = world(100 + seed, prompts=prompts, rated=ratings // RESPONSES)
        found = JudgeCalibration.fit(base).value(new).value
        halves.append((found.high - found.low) / 2)
    assert np.mean(halves) == pytest.approx(0.03, rel=0.15)


def test_the_isotonic_fit_is_monotone_and_keeps_the_mean() -> None:
    random = np.random.default_rng(2)
    scores, ratings = random.integers(1, 11, 200).astype(float), random.random(200)
    fitted = Isotonic.fit(scores, ratings)
    assert (np.diff(fitted.ratings) >= 0).all()
    assert fitted(scores).mean() == pytest.approx(ratings.mean())


def test_errors() -> None:
    base, new = world(3)
    with pytest.raises(ValueError, match=r"scores\[1\]: expected a finite number, got nan"):
        Judged.of([1.0, np.nan])
    with pytest.raises(ValueError, match=r"ratings: expected \[2\], got \[1\]"):
        Judged.of([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="at least 20 independent prompts, got 0"):
        JudgeCalibration.fit(new)
    calibration = JudgeCalibration.fit(base)
    with pytest.raises(ValueError, match="judged: expected clusters, the ids of its prompts"):
        calibration.difference(Judged.of(new.scores), base)
    others = Judged.of(new.scores, None, new.clusters + 1)  # as many prompts, paired with others before
    with pytest.raises(ValueError, match=r"baseline: expected the prompts of the policy, and (0|300) is of one of the"):
        calibration.difference(others, base)
    with pytest.raises(ValueError, match=r"half_width: expected a number above 0, got 0"):
        calibration.plan(new, 0)
    with pytest.raises(ValueError, match="at least two prompts, got 0"):
        calibration.audit(new)
