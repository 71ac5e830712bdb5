"""What an audit found marked as reliable, each with its true value: none of it is again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from objectives import PAPER, asked, covered
from pope_align.data import Slate
from pope_align.experiments.ope_worlds import DEVELOPMENT
from pope_align.ope import (
    Confidence,
    LoggedSlates,
    Predictions,
    balanced_logprobs,
    compare,
    directions,
    estimate,
    evaluate_policies,
    pope_value,
    set_value,
)
from pope_align.ope.logging_policies import rescoring_gap
from pope_align.ope.rules import RULES, rules_table

QUALITY = np.linspace(0, 1, 8)
TILTED = np.exp(1.2 * QUALITY) / np.exp(1.2 * QUALITY).sum()
TRUE_LOGGING, TRUE_TILTED = float(QUALITY.mean()), float(TILTED @ QUALITY)  # .500 and .625


def thumbs(size: int, slates: int = 1200, seed: int = 0) -> tuple[list[Slate], dict[str, list[list[float]]]]:
    """Eight responses of quality 0 to 1, drawn uniformly; each is liked with the probability of its quality."""
    random = np.random.default_rng(seed)
    rows, totals = [], {"logging": [], "tilted": []}
    for index in range(slates):
        drawn = random.integers(0, 8, size)
        liked = (random.random(size) < QUALITY[drawn]).astype(float)
        logging = [float(np.log(1 / 8))] * size
        texts = [f"answer {at}" for at in drawn]
        rows.append(Slate(f"prompt {index}", texts, liked.tolist(), logging, logging_policy={"how": "recorded"}))
        totals["logging"].append(logging)
        totals["tilted"].append(np.log(TILTED[drawn]).tolist())
    return rows, totals


# --- 1. utilities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_utilities_of_the_whole_log_give_the_true_values_whatever_the_slates_size(size: int) -> None:
    """Was .5 for both policies, difference 2.6e-15 and reliable, by minmax within slates of one."""
    assert (0.5, pytest.approx(0.625, abs=0.005)) == (TRUE_LOGGING, TRUE_TILTED)
    evaluation = evaluate_policies(*thumbs(size))
    (comparison,) = evaluation.comparisons
    assert evaluation.of("logging").low <= TRUE_LOGGING <= evaluation.of("logging").high
    assert evaluation.of("tilted").low <= TRUE_TILTED <= evaluation.of("tilted").high
    assert comparison.utility.low <= TRUE_TILTED - TRUE_LOGGING <= comparison.utility.high
    assert comparison.utility.low > 0.05
    assert evaluation.of("tilted").unit == "1 of the score (0 to 1, as given)"


def test_relative_and_constant_utilities_are_named_and_refused_where_they_say_nothing() -> None:
    slates, totals = thumbs(1)
    constant = evaluate_policies(slates, totals, utility_transform="minmax")
    assert constant.of("tilted").verdict == "refuse"
    assert "nothing tells policies apart" in constant.of("tilted").reasons[0]
    slates, totals = thumbs(2)
    relative = evaluate_policies(
        slates, totals, utility_transform="minmax", estimators=["pope", "slate_snips", "pseudo_inverse"]
    )
    assert relative.of("tilted").verdict == "caution"
    assert "relative utilities" in relative.of("tilted").labels
    assert relative.of("tilted", "slate_snips").verdict == "refuse"  # was .5 for every policy, and reliable
    assert relative.of("tilted", "pseudo_inverse").verdict == "refuse"
    log = LoggedSlates.from_slates(slates, totals, utility_transform="minmax")
    assert set_value(log, "tilted", np.ones(log.num_slates), name="one").verdict == "refuse"


def test_scores_beyond_the_unit_interval_take_one_map_and_the_unit_says_which() -> None:
    slates, totals = thumbs(2, 60)
    stars = [replace(slate, scores=[1 + 4 * score for score in slate.scores]) for slate in slates]
    declared = LoggedSlates.from_slates(stars, totals, score_range=(0, 5))
    assert declared.scale.unit == "5 of the score (0 to 5, declared)"
    assert set(declared.utility.tolist()) == {0.2, 1.0}
    fitted = LoggedSlates.from_slates(stars, totals)
    assert fitted.scale.unit == "4 of the score (1 to 5, least and greatest of this log)"
    heavy = LoggedSlates.from_slates(stars, totals, utility_transform="log1p_calibrated")
    np.testing.assert_allclose(heavy.utility, (np.log1p(1 + 4 * fitted.utility) - np.log(2)) / (np.log(6) - np.log(2)))
    with pytest.raises(ValueError, match=r"slate 0: scores\[0\]: expected a number in the score_range \[0, 3\], got"):
        LoggedSlates.from_slates([replace(s, scores=[5.0, 1.0]) for s in slates], totals, score_range=(0, 3))
    with pytest.raises(ValueError, match="score_range: expected the least and greatest score"):
        LoggedSlates.from_slates([replace(s, scores=[7.0, 7.0]) for s in slates], totals)
    with pytest.raises(ValueError, match="utility_transform: expected one of calibrated"):
        LoggedSlates.from_slates(slates, totals, utility_transform="magic")


# --- 2. length-normalised weights are an index ---------------------------------------------------------------------


def long_log(tokens: int = 300, slates: int = 500) -> LoggedSlates:
    """Sequences whose true weights are those of one response, and whose length-normalised ones look even."""
    random = np.random.default_rng(0)
    count = 4 * slates
    logging = -tokens * random.uniform(1, 2, count)
    gain = random.normal(0, 0.1 * tokens, count)
    utility = 1 / (1 + np.exp(-gain / (0.1 * tokens)))
    return LoggedSlates.from_arrays(
        utility,
        logging - 60,
        {"logging": logging - 60, "new": np.minimum(logging - 60 + gain, 0)},
        np.arange(0, count + 1, 4),
        tokens=np.full(count, tokens),
        how="recorded",
    )


def test_length_normalised_weights_are_an_index_and_meet_nothing() -> None:
    log = covered(long_log())
    evaluation = evaluate_policies(log, **asked(**PAPER), baseline="logging")
    mine = evaluation.of("new")
    assert mine.diagnostics.ess_fraction > 0.95  # what looked healthy
    assert mine.diagnostics.sequence_ess < 3
    assert mine.verdict == "index"
    assert not evaluation.meets("caution")
    assert evaluation.ranking() == []
    (comparison,) = evaluation.comparisons
    assert (comparison.verdict, comparison.probability) == ("index", None)
    index, tempered = evaluation.indices
    assert (index.weights, index.verdict) == ("length-normalised", "index")
    assert index.placebo.p_value < 0.01
    assert index.rank_correlation is not None
    assert index.sequence_ess < 3
    assert tempered.weights.startswith("tempered, power 0.")
    assert tempered.gain.value > 2 * index.gain.value  # and tells more of the same direction
    assert tempered.ess >= 0.24 * log.num_responses
    assert evaluate_policies(log, baseline="logging").of("new").verdict == "refuse"  # the value itself


# --- 4. SLOPE ------------------------------------------------------------------------------------------------------


def test_the_data_choose_no_clip_that_doubles_the_error_beside_the_logging_policy() -> None:
    """Was .062 against .033: intervals full of common noise hide the bias."""
    errors: dict[str, list[float]] = {"ips": [], "clipped_ips": []}
    covered_by_clip = 0
    world = DEVELOPMENT["tilted"](np.random.default_rng(1))
    for seed in range(40):
        log, _ = world.sample(np.random.default_rng(seed))
        truth = world.value("first")
        for name, found in errors.items():
            value = estimate(log, "first", name)
            found.append(value.value - truth)
            covered_by_clip += name == "clipped_ips" and value.low <= truth <= value.high
    plain, clipped = (float(np.sqrt(np.mean(np.square(found)))) for found in errors.values())
    assert clipped < 1.3 * plain
    assert covered_by_clip >= 32


# --- 5. a reward model that has seen the ratings -------------------------------------------------------------------


def test_a_reward_model_that_leaks_is_refused() -> None:
    """Truth .40, predictions equal to the logged utilities on the log and .9 on the target: was .900 and reliable."""
    random = np.random.default_rng(0)
    utility = (random.random(2000) < 0.4).astype(float)
    log = covered(LoggedSlates.from_arrays(utility, np.full(2000, -5.0), {"new": np.full(2000, -5.0)}, how="recorded"))
    leaking = Predictions(utility, np.full(2000, 0.9))
    for name in ("dr", "sndr", "dm"):
        value = estimate(log, "new", name, predictions=leaking)
        assert value.value == pytest.approx(0.9)
        assert value.verdict != "reliable"
        assert any("repeats the logged utilities" in reason for reason in value.reasons)
    assert estimate(log, "new", "dr", predictions=leaking).verdict == "refuse"
    assert estimate(log, "new", "snips").low <= 0.4 <= estimate(log, "new", "snips").high


# --- 6. what the log never shows -----------------------------------------------------------------------------------


def test_rare_good_responses_are_not_missed_by_comparisons() -> None:
    """Was coverage .05 to .42 while reliable."""
    off = reliable = 0
    for seed in range(12):
        random = np.random.default_rng([7, seed])
        world = DEVELOPMENT["rare and good"](random)
        log, _ = world.sample(random)
        first, base = (estimate(log, name, "snips") for name in ("first", "logging"))
        comparison = compare(first, base)
        truth = world.value("first") - world.value("logging")
        wrong = abs(comparison.utility.value - truth) > 3 * comparison.utility.standard_error
        off += wrong
        reliable += wrong and comparison.verdict == "reliable"
        assert not wrong or first.support.share > 0.01
    assert off >= 3  # else no test
    assert reliable == 0


def test_support_that_was_not_checked_is_said() -> None:
    slates, totals = thumbs(2)
    value = evaluate_policies(slates, totals).of("tilted")
    assert value.verdict == "caution"
    assert value.reasons == (
        "support not checked: no fresh responses of the policy were scored under the logging policy",
    )
    assert evaluate_policies(slates, totals).of("logging").verdict == "reliable"  # it is the logging policy


# --- 7, 8. clusters and tails --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_one_cluster_with_much_of_the_log_is_refused(share: float) -> None:
    """Was coverage .58 and .16, and reliable."""
    slates, totals = thumbs(2, 600)
    log = covered(LoggedSlates.from_slates(slates, totals))
    clusters = np.arange(600)
    clusters[: int(600 * share)] = 0
    lumped = estimate(log.clustered_by(clusters), "tilted", "snips")
    assert lumped.verdict == "refuse"
    assert "effective independent queries" in lumped.reasons[0]
    assert estimate(log, "tilted", "snips").verdict == "reliable"


def test_the_tail_index_refuses_nothing_healthy_and_is_not_asked_of_few_weights() -> None:
    random = np.random.default_rng(0)
    few = random.random(2000) < 0.02
    target = np.where(few, np.log(1.4), np.log((1 - 0.02 * 1.4) / 0.98)) - 5.0 + 1e-6 * random.normal(size=2000)
    log = covered(LoggedSlates.from_arrays(random.random(2000), np.full(2000, -5.0), {"new": target}, how="recorded"))
    value = estimate(log, "new", "snips")
    assert value.diagnostics.ess_fraction > 0.99
    assert value.verdict == "reliable"  # was refused
    small = covered(
        LoggedSlates.from_arrays(
            random.random(24), np.full(24, -5.0), {"new": -5.0 + 0.01 * random.normal(size=24)}, how="recorded"
        )
    )
    value = estimate(small, "new", "snips")
    assert np.isnan(value.diagnostics.pareto_k)
    assert value.verdict == "caution"  # was refused for an infinite k-hat beside "ESS 24.0 of 24"
    assert "24 weights: too few to judge their tail" in value.reasons


# --- 9. propensities recorded at another temperature -----------------------------------------------------------


def test_a_temperature_recorded_wrongly_shows_in_responses_scored_again() -> None:
    """Sampled at .8, recorded at 1: the mean weight of the recorded policy is 1, and was reliable."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 1.5, (400, 12, 30))  # 400 responses of 12 tokens from 30 vocabulary entries
    cold = logits / 0.8 - np.logaddexp.reduce(logits / 0.8, axis=2, keepdims=True)
    token = (cold + random.gumbel(size=cold.shape)).argmax(2)
    recorded = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    totals, truth = (np.take_along_axis(each, token[:, :, None], 2)[:, :, 0].sum(1) for each in (recorded, cold))
    log = LoggedSlates.from_arrays(random.random(400), totals, {"new": totals}, how="recorded")
    assert estimate(log, "new", "snips").verdict == "reliable"  # nothing in the weights shows it
    gap = rescoring_gap(totals, truth, np.full(400, 12))
    checked = LoggedSlates.from_arrays(random.random(400), totals, {"new": totals}, how="recorded", rescored_gap=gap)
    value = estimate(checked, "new", "snips")
    assert value.verdict in ("caution", "refuse")
    assert "recorded and rescored log-probabilities differ by 0." in value.reasons[0]
    assert rescoring_gap(totals, totals, np.full(400, 12)) == 0


# --- 10. provenance of every slate, several logging policies -------------------------------------------------------


def test_every_slate_s_provenance_counts() -> None:
    slates, totals = thumbs(2, 100)
    other = {"how": "recorded", "temperature": 0.2, "tokenizer_fingerprint": "other"}
    mixed = [slates[0], *(replace(slate, logging_policy=other) for slate in slates[1:])]
    value = evaluate_policies(mixed, totals).of("tilted")
    assert any("temperature differs: 0.2" in reason and "(99 of 100 slates)" in reason for reason in value.reasons)
    proxies = [replace(slates[0], logging_policy={"how": "proxy"}), *slates[1:]]
    assert LoggedSlates.from_slates(proxies, totals).how == "proxy"
    fitted = [replace(s, logging_policy={"how": "behaviour_cloned", "fit": {"in_sample": 2}}) for s in slates]
    value = evaluate_policies(fitted, totals).of("tilted")
    assert "200 of 200 responses were scored by a policy that was fitted to them" in value.reasons


def test_balanced_weights_of_two_logging_policies_are_unbiased_and_vary_less() -> None:
    """By enumeration: half the responses from each of two policies, the target between them."""
    one, two = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    target, reward = np.array([0.3, 0.4, 0.3]), np.array([1.0, 0.5, 0.2])
    logs = {"one": np.log(one), "two": np.log(two)}
    mixture = np.exp(balanced_logprobs(logs, {"one": 0.5, "two": 0.5}))
    np.testing.assert_allclose(mixture, (one + two) / 2)
    balanced, own = target / mixture * reward, [target / p * reward for p in (one, two)]
    assert mixture @ balanced == pytest.approx(target @ reward)
    second_moment = np.mean([p @ w**2 for p, w in zip((one, two), own)])
    assert mixture @ balanced**2 < second_moment
    with pytest.raises(ValueError, match="sum to 1"):
        balanced_logprobs(logs, {"one": 0.5, "two": 0.4})


# --- 11. comparisons -----------------------------------------------------------------------------------------------


def test_estimates_that_cannot_be_paired_are_refused_by_name() -> None:
    slates, totals = thumbs(2, 200)
    log = LoggedSlates.from_slates(slates, totals)
    mine = estimate(log, "tilted", "snips")
    with pytest.raises(ValueError, match="expected the same confidence"):
        compare(mine, estimate(log, "logging", "snips", confidence=Confidence(level=0.9)))
    elsewhere = LoggedSlates.from_slates(*thumbs(2, 200, seed=1))
    with pytest.raises(ValueError, match="expected the same log"):
        compare(mine, estimate(elsewhere, "logging", "snips"))
    permuted = log.clustered_by(np.random.default_rng(0).permutation(200))
    with pytest.raises(ValueError, match="expected the same clusters"):
        compare(mine, estimate(permuted, "logging", "snips"))
    with pytest.raises(ValueError, match="expected the same estimator"):
        compare(mine, estimate(log, "logging", "ips"))


# --- 12. inputs that were refused or taken wrongly -----------------------------------------------------------------


def test_impossible_responses_and_yes_or_no_are_legitimate() -> None:
    """A top-p policy cannot write some of the log; its value is that of the rest."""
    slates, _ = thumbs(1, 800)
    drawn = np.array([int(slate.completions[0].split()[1]) for slate in slates])
    top = [[float(np.log(1 / 4)) if at >= 4 else -np.inf] for at in drawn]
    log = LoggedSlates.from_slates(slates, {"top": top})
    truth = float(QUALITY[4:].mean())
    for name in ("snips", "ips"):
        value = estimate(log, "top", name, **asked(diversity_weight=0.1))
        assert value.utility.low <= truth <= value.utility.high
        assert value.diversity.value == pytest.approx(np.log(4), rel=0.1)
    liked = np.array([slate.scores[0] for slate in slates])
    same = LoggedSlates.from_arrays(liked.astype(bool), log.logging.logprobs, {"top": np.concatenate(top)})
    assert estimate(same, "top", "snips").value == estimate(log, "top", "snips").value


def test_a_reward_model_for_totals_needs_no_diversity_and_missing_samples_name_the_policy() -> None:
    slates, totals = thumbs(2, 60)
    samples = {"tilted": [["answer 7", "answer 3"]] * 60}

    def embed(texts: list[str]) -> np.ndarray:
        return np.array([[float(text.split()[-1]) / 100, 1.0] for text in texts])

    with_samples = evaluate_policies(slates, totals, samples=samples, embed=embed, **asked(diversity_weight=0.1))
    assert np.isfinite(with_samples.of("tilted", "dm").value)  # raised
    with pytest.raises(ValueError, match="'dr' needs samples or predictions of every policy, got none for logging"):
        evaluate_policies(slates, totals, samples=samples, embed=embed, estimators=["dr"])
    rewards = {"distinct": lambda slate: float(len(set(slate.completions)))}
    sets = evaluate_policies(slates, totals, set_rewards=rewards)
    assert [each.estimator for each in sets.comparisons] == ["pope", "set:distinct"]


# --- 13. people wrote the log --------------------------------------------------------------------------------------


def test_values_of_a_log_that_people_wrote_are_refused_and_directions_survive() -> None:
    slates, totals = thumbs(2)
    people = [
        replace(slate, responders=["human:a", "human:b"], logging_policy={"how": "behaviour_cloned"})
        for slate in slates
    ]
    evaluation = evaluate_policies(people, totals)
    for name in ("logging", "tilted"):
        assert evaluation.of(name).verdict == "refuse"
        assert evaluation.of(name).reasons[0].startswith("people wrote this log")
    (comparison,) = evaluation.comparisons
    assert comparison.verdict == "caution"
    assert any(reason.startswith("people wrote this log") for reason in comparison.reasons)
    assert comparison.utility.low > 0


# --- 14. diversity alone wins nothing ------------------------------------------------------------------------------


def test_a_policy_that_leaves_the_log_wins_nothing() -> None:
    """200 slates of 4, every log-probability 3 nats a token lower: was +.3 [.3, .3] and P(better) = 1."""
    random = np.random.default_rng(0)
    tokens = random.integers(5, 20, 800)
    logging = -tokens * random.uniform(1, 2, 800)
    log = LoggedSlates.from_arrays(
        random.random(800),
        logging,
        {"base": logging, "garbage": logging - 3 * tokens},
        np.arange(0, 801, 4),
        tokens=tokens,
        how="recorded",
    )
    evaluation = evaluate_policies(log)
    (comparison,) = evaluation.comparisons
    assert comparison.verdict == "refuse"
    assert [each.policy for each in evaluation.ranking()] == ["base", "garbage"]
    index = directions(log, "garbage", "base")[0]
    assert index.gain.value == pytest.approx(0)
    assert index.verdict == "refuse"  # not beyond its placebo
    weighted = evaluate_policies(log, **asked(diversity_weight=0.1))
    assert any("rewards a policy for leaving it" in reason for reason in weighted.of("garbage").reasons)


# --- 15. placebo ---------------------------------------------------------------------------------------------------


def test_a_gain_is_held_against_utilities_permuted_within_slates() -> None:
    """One policy prefers what is liked; one likes prompts, which differ by far more than their responses."""
    random = np.random.default_rng(1)
    level = np.repeat(random.random(300), 4)
    better = random.normal(size=1200)
    utility = np.clip(level + 0.1 * better, 0, 1)
    drift = np.repeat(2 * (level.reshape(300, 4)[:, 0] - 0.5), 4)  # likes prompts, and no response more than another
    log = LoggedSlates.from_arrays(
        utility,
        np.full(1200, -60.0),
        {"base": np.full(1200, -60.0), "learned": -60 + 0.3 * better, "drifted": -60 + drift},
        np.arange(0, 1201, 4),
        tokens=np.full(1200, 20),
        how="recorded",
    )
    evaluation = evaluate_policies(log, baseline="base")
    learned, drifted = evaluation.comparisons
    assert learned.placebo.p_value < 0.01
    assert learned.verdict == "caution"  # support is not checked here
    assert drifted.utility.low > 0  # a gain, by its interval
    assert drifted.placebo.p_value > 0.05
    assert drifted.verdict == "refuse"
    correlations = {each.policy: each.rank_correlation for each in evaluation.indices}
    assert correlations["learned"].low > 0.5
    assert correlations["drifted"] is None


# --- the table -----------------------------------------------------------------------------------------------------


def test_the_documented_rules_are_those_of_the_code() -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    assert rules_table() in page


def test_every_rule_is_used() -> None:
    sources = Path(pope_value.__code__.co_filename).parent.glob("*.py")
    code = "\n".join(file.read_text() for file in sources if file.name != "rules.py")
    assert not [name for name in RULES if not re.search(f'"{name}"', code)]
