"""Intervals hold what they promise: on simulated clustered logs with a known value, and by their formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import asked
from pope_align.ope import (
    Confidence,
    Estimate,
    LoggedSlates,
    Predictions,
    Shrink,
    estimate,
    log_value_lower_bound,
    log_weights,
    pope_value,
    slate_lower_bounds,
)
from pope_align.ope.log import FreshScores
from pope_align.stats.empirical_likelihood import empirical_likelihood_interval
from pope_align.stats.intervals import anytime_interval, quantities
from pope_align.stats.ratios import Ratios
from scipy.optimize import brentq
from scipy.special import stdtrit

#: A world of six responses: probabilities under both policies, and mean rewards.
LOGGING = np.array([0.30, 0.25, 0.20, 0.10, 0.10, 0.05])
TARGET = np.array([0.10, 0.15, 0.20, 0.20, 0.20, 0.15])
MEANS = np.array([0.2, 0.9, 0.4, 0.7, 0.5, 1.0])
VALUE = float(TARGET @ MEANS)
LOGS, QUERIES, SLATES, SIZE = 1000, 100, 2, 2  # slates of SIZE responses, SLATES of them for every query


def simulate(seed: int, shift: float = 0.0) -> tuple[LoggedSlates, Predictions]:
    """A log whose queries differ by much more than their responses: rewards of one query share a draw."""
    rng = np.random.default_rng(seed)
    count = QUERIES * SLATES * SIZE
    actions = rng.choice(6, count, p=LOGGING)
    query = np.repeat(np.arange(QUERIES), SLATES * SIZE)
    rewards = MEANS[actions] + rng.normal(0, 0.4, QUERIES)[query] + rng.normal(0, 0.2, count) + shift
    log = LoggedSlates.from_arrays(
        rewards,
        np.log(LOGGING[actions]),
        {"target": np.log(TARGET[actions])},
        np.arange(0, count + 1, SIZE),
        clusters=np.arange(QUERIES * SLATES) // SLATES,
        how="recorded",
        utility_range=(-10.0, 10.0),
    )
    wrong = 0.5 * MEANS + 0.3  # a reward model that is off; doubly robust estimates must not care
    return log, Predictions(wrong[actions], np.full(log.num_slates, TARGET @ wrong))


UTILITY = asked()
BOOTSTRAP = Confidence("bootstrap", draws=400)
INTERVALS: dict[str, Callable[[LoggedSlates, Predictions], Estimate]] = {
    "t": lambda log, _: estimate(log, "target", "ips", **UTILITY),
    "snips, delta method": lambda log, _: estimate(log, "target", "snips", **UTILITY),
    "snips, bootstrap": lambda log, _: estimate(log, "target", "snips", confidence=BOOTSTRAP, **UTILITY),
    "dr": lambda log, model: estimate(log, "target", "dr", predictions=model, **UTILITY),
    "sndr": lambda log, model: estimate(log, "target", "sndr", predictions=model, **UTILITY),
    "bayesian bootstrap": lambda log, _: estimate(
        log, "target", "snips", confidence=Confidence("bayesian", draws=400), **UTILITY
    ),
    "t, slates taken for independent": lambda log, _: estimate(log.clustered_by(None), "target", "snips", **UTILITY),
}


@pytest.fixture(scope="module")
def coverage() -> dict[str, float]:
    """Share of simulated logs whose 95% interval holds the true value; standard error 0.7%."""
    covered = dict.fromkeys(INTERVALS, 0)
    for seed in range(LOGS):
        log, model = simulate(seed)
        for name, interval in INTERVALS.items():
            result = interval(log, model)
            covered[name] += result.low <= VALUE <= result.high
    return {name: count / LOGS for name, count in covered.items()}


@pytest.mark.parametrize("name", list(INTERVALS)[:-1])
def test_95_percent_intervals_of_clustered_logs_cover_the_value(coverage: dict[str, float], name: str) -> None:
    assert 0.93 <= coverage[name] <= 0.97, coverage


def test_intervals_that_ignore_the_clusters_do_not(coverage: dict[str, float]) -> None:
    assert coverage["t, slates taken for independent"] < 0.91, coverage


def test_the_width_of_a_self_normalised_interval_does_not_depend_on_the_level_of_the_rewards() -> None:
    near, far = (estimate(simulate(0, shift)[0], "target", "snips", **UTILITY) for shift in (0.0, 3.0))
    assert far.value == pytest.approx(near.value + 3.0)
    assert far.high - far.low == pytest.approx(near.high - near.low)
    naive, moved = (estimate(simulate(0, shift)[0], "target", "ips", **UTILITY) for shift in (0.0, 3.0))
    assert moved.high - moved.low > 1.5 * (naive.high - naive.low)  # so the shift is not a trivial one


def test_joint_region_covers_utility_and_diversity_together() -> None:
    diversity = float(-TARGET @ np.log(TARGET))
    inside = 0
    for seed in range(400):
        region = estimate(simulate(seed)[0], "target", "snips", **asked(diversity_weight=0.1)).joint
        away = np.array([VALUE, diversity]) - region.centre
        inside += away @ np.linalg.solve(region.covariance, away) <= region.radius2
    assert 0.915 <= inside / 400 <= 0.98  # 0.95 -+ 3 standard errors


# --- a log that is evaluated again and again ------------------------------------------------------------------------


def ever_missed(method: str, logs: int = 600) -> float:
    """Share of growing logs of which any of 15 evaluations, from 50 to 1,500 clusters, misses the value."""
    looks = np.unique(np.geomspace(50, 1500, 15).astype(int))
    missed = 0
    for seed in range(logs):
        rng = np.random.default_rng(seed)
        actions = rng.choice(6, 1500, p=LOGGING)
        weights = (TARGET / LOGGING)[actions]
        rewards = MEANS[actions] + rng.normal(0, 0.4, 1500)
        for count in looks:
            top, bottom = (weights * rewards)[None, :count, None], weights[None, :count]  # self-normalised
            (found,) = quantities(Ratios(top, bottom), Confidence(method))
            if not found.low <= VALUE <= found.high:
                missed += 1
                break
    return missed / logs


def test_looking_again_and_again_is_paid_for() -> None:
    assert ever_missed("anytime") <= 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5
    assert ever_missed("t") > 0.15


def test_the_sequence_is_its_formula_and_wider_than_t() -> None:
    values, errors = np.array([1.0]), np.array([0.1])
    rho2 = (-2 * np.log(0.05) + np.log(-2 * np.log(0.05) + 1)) / 200
    for clusters in (50, 200, 5000):
        low, high = anytime_interval(values, errors, clusters, 0.95, 200)
        sd = 0.1 * clusters**0.5  # the boundary as the paper has it, in standard deviations
        scaled = clusters * rho2
        boundary = sd * np.sqrt(2 * (scaled + 1) / (clusters**2 * rho2) * np.log(np.sqrt(scaled + 1) / 0.05))
        assert high - values == pytest.approx(boundary)
        assert values - low == pytest.approx(boundary)
        assert boundary > 1.96 * 0.1
    with pytest.raises(ValueError, match="narrowest_at: expected an integer >= 1"):
        Confidence("anytime", narrowest_at=0)


# --- bounds at any sample size --------------------------------------------------------------------------------------


def bounded_log(count: int = 50, clusters: object = None) -> LoggedSlates:
    rng = np.random.default_rng(1)
    actions = rng.choice(6, count, p=LOGGING)
    return LoggedSlates.from_arrays(
        rng.random(count),
        np.log(LOGGING[actions]),
        {"target": np.log(TARGET[actions])},
        clusters=clusters,
        how="recorded",
    )


def test_hoeffding_and_bernstein_are_their_formulas() -> None:
    log = bounded_log()
    options = asked(normalization="none", clip=2.0)
    hoeffding = pope_value(log, "target", confidence=Confidence("hoeffding", 0.9), **options)
    assert hoeffding.high - hoeffding.value == pytest.approx(2.0 * np.sqrt(np.log(2 / 0.1) / (2 * 50)))
    bernstein = pope_value(log, "target", confidence=Confidence("bernstein", 0.9), **options)
    rows = np.minimum(np.exp(log_weights(log, "target", "response", length_normalize=False)), 2.0) * log.utility
    logarithm = np.log(4 / 0.1)
    half = np.sqrt(2 * rows.var(ddof=1) * logarithm / 50) + 7 * 2.0 * logarithm / (3 * 49)
    assert bernstein.value - bernstein.low == pytest.approx(half)
    same = estimate(log, "target", "clipped_ips", lam=2.0, confidence=Confidence("hoeffding", 0.9), **UTILITY)
    assert (same.low, same.high) == pytest.approx((hoeffding.low, hoeffding.high))


def test_the_diversity_of_fresh_responses_has_its_own_range_whatever_the_maximum_weight() -> None:
    log = bounded_log()
    owner = np.arange(log.num_slates)
    fresh = FreshScores(owner, np.linspace(-3.0, 0.0, owner.size), None, np.ones_like(owner))
    log = replace(log, fresh={"target": fresh})
    confidence = Confidence("hoeffding", 0.9, diversity_range=(0.0, 3.0))
    options = asked(normalization="none", clip=0.5, diversity_weight=0.1, diversity_form="neg_log_prob")
    by_pope = pope_value(log, "target", confidence=confidence, **options)
    by_row = estimate(log, "target", "clipped_ips", lam=0.5, confidence=confidence, objective=options["objective"])
    for each in (by_pope, by_row):
        half = 3.0 * np.sqrt(np.log(2 / 0.1) / (2 * 50))
        assert each.diversity.high - each.diversity.value == pytest.approx(half)


def test_hoeffding_counts_unequal_clusters_for_what_they_are() -> None:
    clusters = np.repeat([0, 1, 2], [40, 5, 5])
    options = asked(normalization="none", clip=2.0)
    log = bounded_log(clusters=clusters)
    estimate_ = pope_value(log, "target", confidence=Confidence("hoeffding"), **options)
    shares = np.array([0.8, 0.1, 0.1])
    half = 2.0 * np.sqrt(np.log(2 / 0.05) / 2 * (shares**2).sum())
    assert estimate_.high - estimate_.value == pytest.approx(half)
    with pytest.raises(ValueError, match="'bernstein' needs clusters of equal size"):
        pope_value(log, "target", confidence=Confidence("bernstein"), **options)


def test_bounds_need_a_clip_and_declared_ranges() -> None:
    log = bounded_log()
    with pytest.raises(ValueError, match="needs contributions of bounded size"):
        pope_value(log, "target", confidence=Confidence("hoeffding"), **UTILITY)
    with pytest.raises(ValueError, match="diversity_range: 'hoeffding' needs the declared range"):
        pope_value(
            log,
            "target",
            **asked(normalization="none", clip=2.0, diversity_weight=0.1),
            confidence=Confidence("hoeffding"),
        )
    wide = pope_value(
        log,
        "target",
        **asked(normalization="none", clip=2.0, diversity_weight=0.1),
        confidence=Confidence("hoeffding", diversity_range=(0.0, 3.0)),
    )
    assert wide.high - wide.value == pytest.approx((2.0 + 0.1 * 6.0) * np.sqrt(np.log(2 / 0.05) / 100))


# --- shrinkage, and the lower bounds of Theorem 4.1c ----------------------------------------------------------------


@given(
    kind=st.sampled_from(["clip", "switch", "dros", "subgaussian"]),
    lam=st.floats(0.01, 1.0),
    log_w=st.lists(st.floats(-700, 700), min_size=1, max_size=20),
)
def test_shrunken_weights_keep_to_their_maximum_and_all_but_one_kind_only_lower_them(
    kind: str, lam: float, log_w: list[float]
) -> None:
    shrink = Shrink(kind, lam)
    shrunk = shrink.log(np.array(log_w))
    if kind != "subgaussian":  # w / (1 - lam + lam w) raises weights below 1 towards 1
        assert (shrunk <= np.array(log_w) + 1e-12).all()
    assert (shrunk <= np.log(shrink.max_weight) + 1e-9).all()


@pytest.mark.parametrize("kind", ["dros", "subgaussian"])
def test_smooth_shrinking_in_log_space_is_its_formula(kind: str) -> None:
    w = np.array([0.0625, 0.5, 1.0, 3.0, 40.0])
    formula = {"dros": 0.7 * w / (w**2 + 0.7), "subgaussian": w / (0.3 + 0.7 * w)}[kind]
    np.testing.assert_allclose(np.exp(Shrink(kind, 0.7).log(np.log(w))), formula, rtol=1e-12)


@st.composite
def rewarded_logs(draw: st.DrawFn) -> LoggedSlates:
    sizes = draw(st.lists(st.integers(1, 5), min_size=2, max_size=8))
    count = sum(sizes)
    numbers = st.lists(st.floats(-6, -0.01), min_size=count, max_size=count)
    rewards = draw(st.lists(st.one_of(st.just(0.0), st.floats(0.001, 1)), min_size=count, max_size=count))
    return LoggedSlates.from_arrays(rewards, draw(numbers), {"new": draw(numbers)}, np.append(0, np.cumsum(sizes)))


@settings(deadline=None)
@given(log=rewarded_logs())
def test_lower_bounds_never_exceed_what_they_bound(log: LoggedSlates) -> None:
    w = np.exp(log_weights(log, "new", "response", length_normalize=False))
    sums = log.slate_sums(w * log.utility)
    bounds = slate_lower_bounds(log, "new", log.utility, length_normalize=False)
    assert (bounds <= sums * (1 + 1e-9) + 1e-12).all()
    whole = np.exp(log_weights(log, "new", "slate", length_normalize=False))
    joint = (whole * log.slate_sums(log.utility) / log.sizes).mean()
    bound = log_value_lower_bound(log, "new", log.utility, length_normalize=False)
    assert bound <= np.log(joint) + 1e-9 if joint > 0 else bound == -np.inf


def test_lower_bounds_are_tight_for_equal_weights_and_refuse_negative_rewards() -> None:
    log = LoggedSlates.from_arrays([0.5, 0.25, 1.0], [-1.0, -1.0, -2.0], {"new": [-0.5, -0.5, -1.5]}, [0, 2, 3])
    bounds = slate_lower_bounds(log, "new", log.utility, length_normalize=False)
    np.testing.assert_allclose(bounds, np.exp(0.5) * np.array([0.75, 1.0]))
    with pytest.raises(ValueError, match=r"rewards: .* got -1.0 at response 0 of slate 1"):
        slate_lower_bounds(log, "new", np.array([0.5, 0.25, -1.0]), length_normalize=False)


# --- empirical likelihood ---------------------------------------------------------------------------------------------


def skewed(clusters: int, seed: int) -> Ratios:
    """A self-normalised mean of thumbs with lognormal weights: ``E w = 1``, and w rises with how much is liked."""
    random = np.random.default_rng(seed)
    draw = random.normal(size=clusters)
    weights = np.exp(draw - 0.5)
    liked = (random.random(clusters) < 1 / (1 + np.exp(-draw))).astype(float)
    return Ratios((weights * liked)[None, :, None], weights[None])


SKEWED_VALUE = float(np.mean(1 / (1 + np.exp(-np.random.default_rng(0).normal(1, 1, 1_000_000)))))


def covered_and_width(method: str, clusters: int, logs: int = 800) -> tuple[float, float]:
    found = [quantities(skewed(clusters, seed), Confidence(method))[0] for seed in range(logs)]
    held = [each.low <= SKEWED_VALUE <= each.high for each in found]
    return float(np.mean(held)), float(np.mean([each.high - each.low for each in found]))


@pytest.mark.parametrize("clusters", [12, 30])
def test_few_skewed_clusters_are_covered_better_and_no_wider(clusters: int) -> None:
    likelihood, width = covered_and_width("empirical_likelihood", clusters)
    t, t_width = covered_and_width("t", clusters)
    assert likelihood >= 0.895
    assert t <= likelihood - 0.02
    assert width < t_width


def test_the_interval_holds_what_the_likelihood_ratio_allows() -> None:
    """Against the ratio itself, solved for its multiplier at each end (Owen 2001), and within the utilities' range."""
    ratios = skewed(25, 3)
    (found,) = quantities(ratios, Confidence("empirical_likelihood"))
    limit = stdtrit(24, 0.975) ** 2
    for end in (found.low, found.high):
        x = ratios.numerators[0, :, 0] - end * ratios.denominators[0]
        multiplier = brentq(lambda m, x=x: (x / (1 + m * x)).sum(), -(1 - 1e-12) / x.max(), -(1 - 1e-12) / x.min())
        assert 2 * np.log1p(multiplier * x).sum() == pytest.approx(limit, rel=1e-6)
    assert 0 < found.low < found.value < found.high < 1


def test_differences_and_doubly_robust_sums_have_such_intervals_too() -> None:
    """A difference of two means with one log is that of their difference; two equal policies differ by nothing."""
    one, other = skewed(40, 1), skewed(40, 2)
    ones = np.ones((1, 40))
    means = [Ratios(each.numerators, ones) for each in (one, other)]
    both = quantities(means[0].minus(means[1]), Confidence("empirical_likelihood"))[0]
    single = Ratios(one.numerators - other.numerators, ones)
    (alone,) = quantities(single, Confidence("empirical_likelihood"))
    assert (both.low, both.high) == pytest.approx((alone.low, alone.high), abs=1e-8)
    (nothing,) = quantities(one.minus(one), Confidence("empirical_likelihood"))
    assert (nothing.low, nothing.high) == pytest.approx((0.0, 0.0), abs=1e-9)
    covered = 0
    for seed in range(300):
        difference = skewed(40, seed).minus(skewed(40, 1000 + seed))
        (found,) = quantities(difference, Confidence("empirical_likelihood"))
        covered += found.low <= 0 <= found.high
    assert covered / 300 >= 0.91


def test_a_value_that_is_not_a_number_has_no_such_interval() -> None:
    with np.errstate(all="ignore"):
        (found,) = quantities(Ratios(np.ones((1, 3, 1)), np.zeros((1, 3))), Confidence("empirical_likelihood"))
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_one_cluster_shows_no_spread_and_two_allow_all_weight_on_one() -> None:
    one = Ratios(np.array([[[0.2]]]), np.ones((1, 1)))
    assert np.isnan(empirical_likelihood_interval(one, 0.95)).all()
    two = Ratios(np.array([[[0.2], [0.8]]]), np.ones((1, 2)))
    (wide,) = quantities(two, Confidence("empirical_likelihood", level=0.99))
    assert (wide.low, wide.high) == pytest.approx((0.2, 0.8))
