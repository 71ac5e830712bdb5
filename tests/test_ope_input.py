"""Bad logs are refused with the place of the fault; logs that cannot carry an estimate refuse it with the reason."""

from __future__ import annotations

import math

import numpy as np
import pytest
from objectives import asked, covered
from pope_align.data import Slate
from pope_align.ope import LoggedSlates, PolicyScores, Predictions, estimate, pope_value, set_value
from pope_align.ope.diagnostics import diagnose

GOOD = {
    "utility": [0.1, 0.9, 0.5, 0.2],
    "logging_logprobs": [-3.0, -4.0, -2.0, -5.0],
    "policies": {"new": [-2.0, -4.5, -2.0, -6.0]},
    "slate_offsets": [0, 2, 4],
    "tokens": [2, 3, 2, 4],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"utility": [0.1, 0.9, math.nan, 0.2]},
            r"utility: response 0 of slate 1: expected a number in \[0, 1\], got nan",
        ),
        ({"utility": [0.1, 1.9, 0.5, 0.2]}, r"utility: response 1 of slate 0: expected a number in \[0, 1\], got 1.9"),
        ({"utility": [0.1, 0.9]}, r"slate_offsets: expected to run from 0 to the 2 responses, got 0 to 4"),
        ({"utility": ["a"] * 4}, r"utility: expected numbers of shape \[R\]"),
        ({"utility_range": (1.0, 0.0)}, "utility_range: expected two finite numbers, low < high"),
        ({"logging_logprobs": [-3.0, 0.5, -2.0, -5.0]}, r"logging_logprobs: response 1 of slate 0: .* got 0.5"),
        ({"logging_logprobs": [-3.0, -4.0, -2.0]}, "logging_logprobs: expected 4 numbers, one per response, got 3"),
        ({"policies": {"new": [-2.0, -4.5, -2.0]}}, r"policies\['new'\]: expected 4 numbers, one per response, got 3"),
        ({"logging_logprobs": [-3.0, -np.inf, -2.0, -5.0]}, r"logging_logprobs: response 1 of slate 0: .* got -inf"),
        ({"policies": {"new": [-2.0, -4.5, math.nan, -1.0]}}, r"policies\['new'\]: response 0 of slate 1: .* got nan"),
        ({"policies": {"new": [-2.0, 4.5, -1.0, -1.0]}}, r"a log-probability <= 0, -inf for impossible .*, got 4.5"),
        ({"slate_offsets": [0, 0, 4]}, "slate_offsets: expected at least one response per slate, got none in slate 0"),
        ({"slate_offsets": [0, 4]}, "clusters: expected at least two independent queries, got one"),
        ({"clusters": ["a", "a"]}, "clusters: expected at least two independent queries, got one"),
        ({"clusters": ["a", "b", "c"]}, "clusters: expected 2 ids, one per slate"),
        ({"tokens": [2, 3, 0, 4]}, "tokens: response 0 of slate 1: expected an integer >= 1, got 0"),
        ({"tokens": [2, 3, 2.5, 4]}, "tokens: response 0 of slate 1: expected an integer >= 1, got 2.5"),
        ({"how": "guessed"}, "how: expected one of recorded, behaviour_cloned, proxy, unknown, got 'guessed'"),
        ({"unit": "mean", "tokens": None}, "tokens: expected one number per response with unit='mean'"),
        ({"unit": "bits"}, "unit: expected 'total' or 'mean', got 'bits'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arrays_that_are_no_log_are_refused_with_the_place(change: dict, message: str) -> None:
    LoggedSlates.from_arrays(**GOOD)
    with pytest.raises(ValueError, match=message):
        LoggedSlates.from_arrays(**{**GOOD, **change})


def test_policies_may_be_given_later_with_the_same_checks() -> None:
    policies = {"new": GOOD["policies"]["new"], "old": PolicyScores(np.array([-1.0] * 4), np.array([1, 2, 3, 4]))}
    unscored = LoggedSlates.from_arrays(**{**GOOD, "policies": {}})
    at_once, later = LoggedSlates.from_arrays(**{**GOOD, "policies": policies}), unscored.with_policies(policies)
    for name in policies:
        assert later.scores(name).logprobs.tolist() == at_once.scores(name).logprobs.tolist()
        assert later.scores(name).tokens.tolist() == at_once.scores(name).tokens.tolist()
    with pytest.raises(ValueError, match=r"policies\['new'\]: response 1 of slate 0: .* got 4.5"):
        unscored.with_policies({"new": [-2.0, 4.5, -1.0, -1.0]})


def test_a_missing_policy_unit_or_option_is_named() -> None:
    log = LoggedSlates.from_arrays(**GOOD)
    with pytest.raises(ValueError, match="policy: expected one of new, got 'old'"):
        pope_value(log, "old")
    without = LoggedSlates.from_arrays(**{**GOOD, "tokens": None})
    with pytest.raises(ValueError, match="tokens: expected the number of tokens per response"):
        pope_value(without, "new", **asked(length_normalize=True))
    with pytest.raises(ValueError, match=r"method: expected one of ips, .* got 'magic'"):
        estimate(log, "new", "magic")
    with pytest.raises(ValueError, match="predictions: expected those of a reward model for 'dr', got none"):
        estimate(log, "new", "dr")
    with pytest.raises(ValueError, match="lam: 'ips' has no shrinkage parameter"):
        estimate(log, "new", "ips", lam=1.0)
    with pytest.raises(ValueError, match=r"lam: expected a number, got None; SLOPE .* this log has 2"):
        estimate(log, "new", "clipped_ips")
    with pytest.raises(ValueError, match="lam: expected a finite number in"):
        estimate(log, "new", "subgaussian_ips", lam=1.5)


def test_predictions_that_do_not_fit_are_refused_with_the_place() -> None:
    log = LoggedSlates.from_arrays(**GOOD)
    with pytest.raises(ValueError, match=r"predictions.logged: response 1 of slate 1: .* finite number, got nan"):
        estimate(log, "new", "dr", predictions=Predictions(np.array([0.1, 0.2, 0.3, math.nan]), np.zeros(2)))
    with pytest.raises(ValueError, match=r"predictions.target: expected 2 numbers, one per slate"):
        estimate(log, "new", "dr", predictions=Predictions(np.zeros(4), np.zeros(4)))


SLATES = [
    Slate("A?", ["x", "y"], [1, 3], [-3.0, -4.0], [2, 2], slate_id="a", logging_policy={"how": "recorded"}),
    Slate("A?", ["z"], [2], [-2.0], [2], slate_id="a2", logging_policy={"how": "recorded"}),
    Slate("B?", ["x", "w"], [5, 0], [-2.0, -9.0], [2, 5], slate_id="b", logging_policy={"how": "recorded"}),
]
TOTALS = [[-3.5, -3.0], [-2.5], [-1.0, -9.5]]


def test_slates_become_a_log_clustered_by_query() -> None:
    log = LoggedSlates.from_slates(SLATES, {"new": TOTALS})
    assert (log.num_slates, log.num_responses, log.num_clusters, log.how) == (3, 5, 2, "recorded")
    assert log.clusters.tolist() == [0, 0, 1]
    np.testing.assert_allclose(log.utility, [0.2, 0.6, 0.4, 1, 0])  # one map, from the least score to the greatest
    np.testing.assert_allclose(log.logprobs("new", length_normalize=True)[0], [-1.75, -1.5, -1.25, -0.5, -1.9])
    conversations = LoggedSlates.from_slates(SLATES, {"new": TOTALS}, cluster=lambda slate: slate.slate_id or "")
    assert conversations.num_clusters == 3


@pytest.mark.parametrize(
    ("slates", "totals", "message"),
    [
        (SLATES, TOTALS[:2], r"policies\['new'\]: expected 3 slates, got 2"),
        (SLATES, [*TOTALS[:2], [-1.0]], r"policies\['new'\]: slate 2 \(b\): expected 2 log-probabilities, got 1"),
        (
            [*SLATES[:2], Slate("B?", ["x"], [1])],
            TOTALS,
            "slate 2: logging_logprobs: .* got none",
        ),
        ([], [], "slates: expected at least one slate"),
    ],
)
def test_slates_that_a_policy_lacks_are_refused_with_the_place(slates: list, totals: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoggedSlates.from_slates(slates, {"new": totals})


def test_means_and_totals_with_tokens_are_the_same_log() -> None:
    log = LoggedSlates.from_arrays(**GOOD)
    tokens = np.array(GOOD["tokens"])
    means = {
        "logging_logprobs": np.array(GOOD["logging_logprobs"]) / tokens,
        "policies": {"new": np.array(GOOD["policies"]["new"]) / tokens},
    }
    same = LoggedSlates.from_arrays(**{**GOOD, **means, "unit": "mean"})
    for length_normalize in (True, False):
        assert pope_value(same, "new", **asked(length_normalize=length_normalize)).value == pytest.approx(
            pope_value(log, "new", **asked(length_normalize=length_normalize)).value
        )


# --- estimates that are refused -------------------------------------------------------------------------------------


def wide_log(target: np.ndarray, slates: int = 200, **options: object) -> LoggedSlates:
    rng = np.random.default_rng(0)
    count = 2 * slates
    return covered(
        LoggedSlates.from_arrays(
            rng.random(count),
            np.full(count, -50.0),
            {"new": target},
            np.arange(0, count + 1, 2),
            **{"how": "recorded", **options},
        )
    )


def reasons(value: object) -> str:
    assert value.verdict == "refuse", value
    return "; ".join(value.reasons)


UTILITY = asked()


def test_a_single_dominating_response_is_named() -> None:
    target = np.full(400, -50.0)
    target[123] = -20.0
    value = estimate(wide_log(target), "new", "snips", **UTILITY)
    assert "effective sample size 1.0 of 400 responses" in reasons(value)
    assert "one weight has 100.0% of the total (response 1 of slate 61)" in reasons(value)


def test_weights_that_all_underflow_to_zero_are_refused() -> None:
    value = estimate(wide_log(np.full(400, -900.0)), "new", "ips", **UTILITY)
    assert value.value == 0.0
    assert "standard errors from 1: wrong propensities" in reasons(value)
    assert "mean weight 0," in reasons(value)
    product = pope_value(wide_log(np.full(400, -900.0)), "new", **asked(weighting="slate"))
    assert np.isfinite(product.value)  # self-normalised: a common factor cancels, and says nothing good
    assert product.verdict == "refuse"


def test_weights_that_overflow_are_refused_with_the_place() -> None:
    target = np.full(400, -50.0)
    target[7] = -0.0
    log = wide_log(target)
    steep = LoggedSlates.from_arrays(
        log.utility, log.logging.logprobs * 20, {"new": target}, log.slate_offsets, how="recorded"
    )
    value = estimate(steep, "new", "ips", **UTILITY)
    assert not math.isfinite(value.value)
    text = reasons(value)
    assert "the estimate is not finite" in text
    assert "log-weight 1000.0 at response 1 of slate 3: above 80 nats" in text


def test_wrong_propensities_show_in_the_mean_weight() -> None:
    rng = np.random.default_rng(0)
    target = np.full(400, -50.0) + rng.normal(0, 0.2, 400)
    assert estimate(wide_log(target), "new", "ips", **UTILITY).verdict == "reliable"
    shifted = estimate(wide_log(target - 0.5), "new", "ips", **UTILITY)
    assert "mean weight 0.6" in reasons(shifted)


def test_few_queries_are_refused_and_some_a_caution() -> None:
    target = np.full(400, -50.0) + np.random.default_rng(0).normal(0, 0.2, 400)
    log = wide_log(target)
    assert estimate(log, "new", "snips", **UTILITY).verdict == "reliable"
    assert estimate(log.clustered_by(np.arange(200) % 20), "new", "snips", **UTILITY).verdict == "caution"
    assert "4 independent queries" in reasons(estimate(log.clustered_by(np.arange(200) % 4), "new", "snips", **UTILITY))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("proxy", "the logging policy is a proxy: this is not an off-policy estimate"),
        ("behaviour_cloned", "only as good as the fit"),
        ("unknown", "does not say how"),
    ],
)
def test_a_logger_that_did_not_record_is_never_reliable(how: str, reason: str) -> None:
    target = np.full(400, -50.0) + np.random.default_rng(0).normal(0, 0.2, 400)
    value = estimate(wide_log(target, how=how), "new", "snips", **UTILITY)
    assert value.verdict == "caution"
    assert reason in value.reasons[0]


def test_different_provenance_is_a_caution_that_names_the_difference() -> None:
    target = np.full(400, -50.0) + np.random.default_rng(0).normal(0, 0.2, 400)
    logging = {"dtype": "float32", "tokenizer_fingerprint": "abc", "temperature": 0.7, "max_length": 512}
    policy = {"dtype": "bfloat16", "tokenizer_fingerprint": "abc", "max_length": 512}
    value = estimate(wide_log(PolicyScores(target, provenance=policy), provenance=logging), "new", "snips", **UTILITY)
    assert value.verdict == "caution"
    assert "dtypes differ: the log was scored with float32, the policy with bfloat16" in value.reasons
    assert any(reason.startswith("temperature differs: 0.7 for the logging policy, 1.0") for reason in value.reasons)
    assert len(value.reasons) == 2


# --- rewards of whole slates ----------------------------------------------------------------------------------------


def test_set_rewards_are_weighted_by_the_product_and_gated_by_its_sample_size() -> None:
    rng = np.random.default_rng(0)
    target = np.full(400, -50.0) + rng.normal(0, 0.2, 400)
    log = wide_log(target)
    rewards = rng.random(200)
    value = set_value(log, "new", rewards, name="anything")
    weights = np.exp((target + 50.0).reshape(200, 2).sum(1))
    assert value.value == pytest.approx((weights * rewards).sum() / weights.sum())
    assert value.utility.value == value.value
    assert value.diagnostics.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert value.verdict == "reliable"
    far = set_value(wide_log(-50 + 10 * (target + 50)), "new", rewards, name="anything")
    assert "effective sample size" in reasons(far)


def test_set_rewards_may_read_the_slate() -> None:
    log = LoggedSlates.from_slates(SLATES, {"new": TOTALS})

    def distinct_words(slate: Slate) -> float:
        return float(len(set(slate.completions)))

    value = set_value(log, "new", distinct_words, name="distinct words")
    given = set_value(log, "new", [2.0, 1.0, 2.0], name="distinct words")
    assert value.value == given.value
    with pytest.raises(ValueError, match="needs its text"):
        set_value(LoggedSlates.from_arrays(**GOOD), "new", distinct_words, name="x")
    with pytest.raises(ValueError, match="reward: slate 1: expected a finite number, got nan"):
        set_value(log, "new", [1.0, math.nan, 2.0], name="x")


# --- what an estimate changes about the raw numbers, and what the log says of a reward model --------------------------


def heavy_log(effect: float) -> LoggedSlates:
    """True propensities, and heavy weights on responses that are ``effect`` better."""
    rng = np.random.default_rng(0)
    heavy = rng.random(4000) < 0.05
    target = np.where(heavy, np.log(4.0), np.log((1 - 0.05 * 4) / 0.95)) - 50.0
    utility = np.clip(0.3 + effect * heavy + 0.1 * rng.normal(size=4000), 0, 1)
    return covered(LoggedSlates.from_arrays(utility, np.full(4000, -50.0), {"new": target}, how="recorded"))


@pytest.mark.parametrize("name", ["clipped_ips", "clipped_dr", "pope"])
def test_clipping_that_moves_the_estimate_is_no_longer_reliable(name: str) -> None:
    def clipped(effect: float, lam: float = 1.0) -> object:
        log = heavy_log(effect)
        if name == "pope":
            return pope_value(log, "new", **asked(clip=lam, normalization="none"))
        model = Predictions(np.full(4000, 0.3), np.full(4000, 0.3)) if name == "clipped_dr" else None
        return estimate(log, "new", name, lam=lam, predictions=model, **UTILITY)

    value = clipped(0.4)
    assert "far more than its own standard error" in reasons(value)
    log = heavy_log(0.4)
    raw = np.exp(log.policies["new"].logprobs + 50.0)
    residual = log.utility - (0.3 if name == "clipped_dr" else 0.0)
    assert value.chosen["shrinkage_bias"] == pytest.approx(((np.minimum(raw, 1.0) - raw) * residual).mean())
    if name == "clipped_dr":  # where the model is right, clipping its correction costs nothing
        assert clipped(0.0, lam=3.0).verdict == "reliable"


def test_a_reward_model_that_the_log_contradicts_is_refused() -> None:
    log = heavy_log(0.4)
    wrong = estimate(log, "new", "dm", predictions=Predictions(np.full(4000, 0.3), np.full(4000, 0.3)), **UTILITY)
    assert "the logged responses contradict the reward model by +0.08" in reasons(wrong)
    heavy = log.policies["new"].logprobs > -50
    right = Predictions(0.3 + 0.4 * heavy, np.full(4000, 0.3 + 0.4 * 0.2))
    assert estimate(log, "new", "dm", predictions=right, **UTILITY).verdict == "caution"


def test_tempered_weights_are_labelled_and_never_reliable() -> None:
    log = wide_log(np.full(400, -50.0) + np.random.default_rng(0).normal(0, 0.05, 400))
    for options in ({"weighting": "geometric"}, {"normalization": "slate"}):
        value = pope_value(log, "new", **asked(**options))
        assert value.verdict == "index"
        assert "biased, variance-reduced" in value.labels
    assert pope_value(log, "new", **UTILITY).verdict == "reliable"


def test_rounding_of_a_policy_on_its_own_log_is_no_doubt_about_its_propensities() -> None:
    """Weights of 1 + 1e-5 without spread were 22 standard errors from 1, and refused."""
    generator = np.random.default_rng(0)
    totals = -20.0 - generator.random(24)
    again = totals + 1e-5 + 2e-6 * generator.normal(size=24)
    log = LoggedSlates.from_arrays(
        generator.random(24), totals, {"own": again, "wrong": totals + 0.1}, np.arange(0, 25, 4), how="recorded"
    )
    kinds = {
        name: diagnose(log, name, weighting="response", length_normalize=False).mean_weight_z
        for name in ("own", "wrong")
    }
    assert abs(kinds["own"]) < 0.1
    assert kinds["wrong"] > 50
