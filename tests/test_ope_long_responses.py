"""The estimate for long responses: true values held, and a verdict that is lost with what it rests on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import MEANING, SimilarWorld
from pope_align.ope import Estimate, LoggedSlates
from pope_align.ope.classifier_weights import classifier_weights
from pope_align.ope.comparison import compare
from pope_align.ope.crossfit import cross_fit
from pope_align.ope.features import Features
from pope_align.ope.log import FreshScores
from pope_align.ope.long_responses import LongEstimate, model_first_estimate
from pope_align.ope.model_first import model_first
from pope_align.ope.placebo import placebo

from pope_core.objective import Objective

pytest.importorskip("scipy")
WORLD = SimilarWorld(0.6, wording=4.0, tokens=64)  # weights of whole responses: an effective sample of one or two
SHORTER = SimilarWorld(0.6, wording=0.8, tokens=8)
CU_ONLY = replace(Objective.evaluation(), diversity_weight=0.0)


def with_base(log: LoggedSlates) -> LoggedSlates:
    """The log with its own policy beside the target."""
    return replace(log, policies={**log.policies, "base": log.logging})


def both(
    seed: int = 1, slates: int = 200, world: SimilarWorld = WORLD
) -> tuple[LoggedSlates, Features, LongEstimate, LongEstimate]:
    log, features = world.draw(seed, slates=slates)
    log = with_base(log)
    target = model_first_estimate(log, "target", [features], objective=CU_ONLY)
    return log, features, target, model_first_estimate(log, "base", [], objective=CU_ONLY)


def test_the_value_and_the_gain_of_long_responses() -> None:
    log, _, target, base = both(2)
    assert base.estimate.utility.value == pytest.approx(log.utility.mean())
    assert target.estimate.utility.low < WORLD.truth < target.estimate.utility.high
    assert target.estimate.verdict == "caution"  # nothing but the features vouches for it
    assert any(reason.startswith("only as good as the features: respo") for reason in target.estimate.reasons)
    gain = placebo(log, target.shares - base.shares)
    found = compare(target.estimate, base.estimate, placebo=gain)
    assert found.utility.low < WORLD.truth - WORLD.base < found.utility.high
    assert found.utility.low > 0
    assert gain.p_value < 0.01
    assert target.shares @ log.utility == pytest.approx(target.estimate.utility.value)


@pytest.mark.slow
def test_intervals_hold_the_truth() -> None:
    """Of 100 logs each: long responses, where nothing is added, and shorter ones, where what the features miss is."""
    for world, verdicts in ((WORLD, {"caution"}), (SHORTER, {"reliable"})):
        covered, found = [], []
        for seed in range(100):
            _, _, target, base = both(seed, 120, world)
            value, gain = target.estimate.utility, compare(target.estimate, base.estimate).utility
            covered.append((value.low <= world.truth <= value.high, gain.low <= world.truth - world.base <= gain.high))
            found.append(target.estimate.verdict in verdicts)
        assert np.mean(covered, axis=0).min() >= 0.95 - 3 * 0.0218, (world, np.mean(covered, axis=0))
        assert np.mean(found) > 0.6


def hidden(seed: int, world: SimilarWorld) -> tuple[LoggedSlates, Features, float]:
    """Features without the three coordinates of meaning that the policy changes most."""
    log, features = world.draw(seed, slates=300)
    order = np.argsort(np.abs(world.direction))
    kept = np.r_[order[:3], MEANING : features.logged.shape[1]]
    blind = replace(features, logged=features.logged[:, kept], target=features.target[:, kept])
    return with_base(log), blind, world.truth


def test_what_the_features_miss_is_corrected_or_said() -> None:
    """The model explains enough of the ratings, and the policy changes what it does not see: the log's weights know."""
    alone, corrected = [], []
    for seed in range(40):
        log, blind, truth = hidden(seed, SHORTER)
        fit = cross_fit(log, blind)
        before = model_first(log, fit, classifier_weights(log, blind).log_weights)
        alone.append(abs(before.value - truth) / np.sqrt(before.ratios.covariance()[0, 0]))
        found = model_first_estimate(log, "target", [blind], objective=CU_ONLY).estimate
        corrected.append(abs(found.value - truth) / found.standard_error)
    assert np.mean(np.array(alone) < 1.96) < 0.4  # what the estimate was before
    assert np.mean(np.array(corrected) < 1.96) >= 0.85
    for seed in range(10):
        log, blind, _ = hidden(seed, WORLD)
        assert model_first_estimate(log, "target", [blind], objective=CU_ONLY).estimate.verdict != "reliable"


def binary_world(seed: int, *, slates: int = 4000, liked: float = 0.9) -> tuple[LoggedSlates, Features]:
    """One response a prompt. Trait A is seen and trait B is not; the policy prefers both, and a thumb follows from
    both.
    """
    random = np.random.default_rng(seed)
    a, b = random.random((2, slates)) < 0.5
    utility = (random.random(slates) < 0.05 + 0.6 * a + 0.3 * b).astype(np.float64)
    change = np.where(a, np.log(0.6 / 0.5), np.log(0.4 / 0.5)) + np.where(
        b, np.log(liked / 0.5), np.log((1 - liked) / 0.5)
    )
    logging = np.full(slates, -20.0)
    log = LoggedSlates.from_arrays(
        utility,
        logging,
        {"target": logging + change},
        np.arange(slates + 1),
        tokens=np.full(slates, 10),
        how="recorded",
    )
    fresh = (random.random((slates, 4)) < 0.6).astype(np.float64).reshape(-1, 1)
    return log, Features("a", a[:, None].astype(np.float64), fresh, np.repeat(np.arange(slates), 4))


def test_a_trait_that_no_feature_holds_is_in_the_weights_of_short_responses() -> None:
    """The classifier's weights alone miss it, and more data made a wrong value more certain."""
    log, features = binary_world(0)
    found = model_first_estimate(log, "target", [features], objective=CU_ONLY).estimate
    truth = 0.05 + 0.6 * 0.6 + 0.3 * 0.9
    assert found.chosen["power"] == 1
    assert found.low < truth < found.high
    alone = model_first(log, cross_fit(log, features), classifier_weights(log, features).log_weights).value
    assert truth - alone > 0.1


def estimated(utility: np.ndarray, ratio: np.ndarray, features: Features, **options: Any) -> Estimate:
    """Of slates of two with recorded propensities, 80 nats below 1."""
    logging = np.full(utility.size, -80.0)
    offsets = np.arange(0, utility.size + 1, 2)
    policies = {"target": logging + ratio}
    log = LoggedSlates.from_arrays(utility, logging, policies, offsets, how="recorded", **options)
    return model_first_estimate(log, "target", [features], objective=CU_ONLY).estimate


def drawn(logged: np.ndarray | None = None, target: np.ndarray | None = None) -> Features:
    random = np.random.default_rng(3)
    own = random.normal(size=(240, 3)) if logged is None else logged
    return Features("f", own, random.normal(size=(240, 3)) if target is None else target, np.repeat(np.arange(120), 2))


def test_logs_at_the_edge_have_a_number_and_a_reason() -> None:
    random = np.random.default_rng(4)
    thumbs = (random.random(240) < 0.5).astype(np.float64)
    same = estimated(np.ones(240), random.normal(0, 20, 240), drawn())  # was a division by zero
    assert (same.value, same.verdict) == (1.0, "refuse")
    one = np.r_[np.zeros(216), np.full(24, -50.0)]  # one cluster has all the weight; was NaN
    lumped = estimated(thumbs, one, drawn(), clusters=[0] * 108 + list(range(1, 13)))
    assert np.isfinite([lumped.value, lumped.standard_error]).all()
    assert any("rest on 1.0 effective independent queries" in reason for reason in lumped.reasons)
    nothing = estimated(thumbs, np.full(240, -np.inf), drawn())  # ended with an error about log_weights
    assert nothing.verdict == "refuse"
    assert any("cannot write any of the logged responses" in reason for reason in nothing.reasons)
    one_less = np.r_[-np.inf, random.normal(0, 0.3, 239)]  # switched the weights of whole responses off
    assert estimated(thumbs, one_less, drawn()).chosen["power"] == 1


def test_a_feature_that_the_log_does_not_have_is_outside_its_support() -> None:
    """No model sees it, because features are cut at the log's ends; it was reliable."""
    random = np.random.default_rng(5)
    logged, target = random.normal(size=(2, 240, 1))
    liked = (random.random(240) < 1 / (1 + np.exp(-3 * logged[:, 0]))).astype(np.float64)
    flag = drawn(np.column_stack([logged, np.zeros(240)]), np.column_stack([target, np.ones(240)]))
    found = estimated(liked, random.normal(0, 0.3, 240), flag)
    assert found.verdict == "refuse"
    assert any("100.0% of the policy's fresh responses lie beyond" in reason for reason in found.reasons)
    assert drawn().within_log().beyond == 0
    cut = drawn().within_log()
    assert cut.within_log() is cut


def traits(seed: int, scored: bool) -> Estimate:
    """A fifth of the policy's responses have a trait that the log writes once in 10,000, that no feature shows, and
    that is always liked: the value is 0.6, and every logged response has the same weight.
    """
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(150), 4)
    logged, target = random.normal(size=(2, 600, 1))
    liked = (random.random(600) < 1 / (1 + np.exp(-0.8 * logged[:, 0]))).astype(np.float64)
    ratio = np.where(random.random(600) < 0.2, np.log(0.2 / 1e-4), np.log(0.8))
    logging = np.full(600, -80.0)
    fresh = FreshScores(owner, logging + ratio, logging if scored else None)
    log = LoggedSlates.from_arrays(
        liked, logging, {"target": logging + np.log(0.8)}, np.arange(0, 601, 4), how="recorded", fresh={"target": fresh}
    )
    return model_first_estimate(log, "target", [Features("f", logged, target, owner)], objective=CU_ONLY).estimate


@pytest.mark.parametrize("seed", range(3))
def test_weights_of_whole_responses_need_support_of_their_own(seed: int) -> None:
    """It was reliable at 0.5: the weights excused the model, and the features' support excused the weights."""
    found = traits(seed, scored=True)
    assert found.chosen["power"] == 1
    assert found.verdict == "refuse"
    assert any("outweigh every logged one" in reason for reason in found.reasons)
    unseen = traits(seed, scored=False)
    assert unseen.verdict != "reliable"
    assert any("support not checked" in reason for reason in unseen.reasons)


@pytest.mark.parametrize("seed", range(3))
def test_a_temperature_that_is_not_the_recorded_one_is_noticed(seed: int) -> None:
    """Sampled at 0.7 and recorded as 1, with features of noise: values off by 0.06 to 0.15 were reliable."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=20) * 1.5
    recorded, true = (each - np.logaddexp.reduce(each) for each in (logits, logits / 0.7))
    owner = np.repeat(np.arange(200), 4)
    logged, target = random.choice(20, 800, p=np.exp(true)), random.choice(20, 800, p=np.exp(recorded))
    liked = (random.random(800) < 1 / (1 + np.exp(-2 * (logits[logged] - 1)))).astype(np.float64)
    scores = recorded[logged] + 0.01 * random.normal(size=800)
    fresh = FreshScores(owner, recorded[target], recorded[target])
    log = LoggedSlates.from_arrays(
        liked, recorded[logged], {"target": scores}, np.arange(0, 801, 4), how="recorded", fresh={"target": fresh}
    )
    features = Features("noise", random.normal(size=(800, 1)), random.normal(size=(800, 1)), owner)
    found = model_first_estimate(log, "target", [features], objective=CU_ONLY).estimate
    assert found.verdict != "reliable"
    assert any("propensities of another temperature" in reason for reason in found.reasons)


def test_fresh_scores_are_checked_when_the_log_is_made() -> None:
    """They raised inside of an estimator, without the policy's name."""
    logging = np.full(8, -3.0)

    def made(owner: list[int], target: list[float], scored: list[float]) -> LoggedSlates:
        fresh = {"target": FreshScores(np.array(owner), np.array(target), np.array(scored))}
        return LoggedSlates.from_arrays(
            np.arange(8.0) / 8, logging, {"target": logging}, np.arange(0, 9, 2), how="recorded", fresh=fresh
        )

    made([0, 1, 2, 3], [-3.0] * 4, [-3.0, -3.0, -3.0, -np.inf])
    for arguments, message in {
        ((0, 1, 2), (-3.0,) * 3, (-3.0,) * 3): "slate 3: expected at least one fresh response",
        ((0, 1, 2, 3), (-3.0, -np.inf, -3.0, -3.0), (-3.0,) * 4): "target: fresh response 1: expected a finite number",
        ((0, 1, 2, 3), (-3.0,) * 4, (-3.0, -3.0, np.nan, -3.0)): "logging: fresh response 2: expected a number below",
        ((0, 1, 2, 3), (-3.0,) * 3, (-3.0,) * 4): "target: expected 4 numbers, one for each owner, got 3",
    }.items():
        with pytest.raises(ValueError, match=rf"fresh\['target'\].*{message}"):
            made(*map(list, arguments))


def test_no_response_has_all_the_weight() -> None:
    """One logged response is unlike all others, and much like the policy's: a ridge and a classifier extrapolate."""
    log, features = WORLD.draw(5, slates=150)
    column = np.zeros((600, 1))
    column[17] = 40.0
    random = np.random.default_rng(0)
    odd = replace(
        features,
        logged=np.column_stack([features.logged, column + random.normal(size=(600, 1))]),
        target=np.column_stack([features.target, random.normal(2.0, 1.0, (600, 1))]),
    )
    weights = classifier_weights(log, odd).log_weights
    shares = np.exp(weights - weights.max())
    assert shares[17] / shares.sum() < 0.05
    assert np.abs(cross_fit(log, odd).logged).max() < 1.5


def test_without_recorded_propensities_nothing_vouches_for_the_features() -> None:
    log, features = SHORTER.draw(1, slates=200)
    found = model_first_estimate(replace(log, how="behaviour_cloned"), "target", [features], objective=CU_ONLY).estimate
    assert found.chosen["power"] == 0
    assert any("without recorded propensities" in reason for reason in found.reasons)


def test_a_model_that_does_not_see_the_reward_is_refused() -> None:
    log, features = WORLD.draw(1, slates=200)
    random = np.random.default_rng(0)
    noise = replace(features, logged=random.random((800, 4)), target=random.random((800, 4)))
    found = model_first_estimate(log, "target", [noise], objective=CU_ONLY).estimate
    assert found.verdict in ("caution", "refuse")
    assert any("explains" in reason for reason in found.reasons)


def test_a_policy_that_says_what_the_log_never_said_is_not_reliable() -> None:
    """Fresh responses far outside what was logged: the model would have to guess."""
    log, features = WORLD.draw(2, slates=200)
    away = features.target + 8 * np.r_[WORLD.direction / np.linalg.norm(WORLD.direction), np.zeros(3)]
    found = model_first_estimate(log, "target", [replace(features, target=away)], objective=CU_ONLY).estimate
    assert found.support is not None
    assert found.support.share > 0.5
    assert found.verdict == "refuse"


def test_ratings_that_the_features_hold_are_a_leak() -> None:
    log, features = WORLD.draw(3, slates=100)
    leak = replace(
        features,
        logged=np.column_stack([features.logged, log.utility]),
        target=np.column_stack([features.target, np.full(400, 0.9)]),
    )
    found = model_first_estimate(log, "target", [leak], objective=CU_ONLY).estimate
    assert found.verdict != "reliable"


def test_diversity_needs_the_policys_own_responses() -> None:
    log, features = WORLD.draw(4, slates=20)
    log = replace(log, fresh={})
    with pytest.raises(ValueError, match=r"scored fresh responses in log\.fresh for diversity_weight 0\.1"):
        model_first_estimate(log, "target", [features], objective=replace(CU_ONLY, diversity_weight=0.1))
