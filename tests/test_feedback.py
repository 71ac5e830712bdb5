"""Feedback to utility: ranges, order, permutations and ties as properties; Plackett-Luce against choix."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import choix
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pope_align.data.feedback import (
    Aggregation,
    UtilityTransform,
    age_corrected,
    beta_prior,
    bradley_terry,
    group_utility,
    is_constant,
    plackett_luce,
    shrunk_rate,
    to_utility,
)

quick = settings(max_examples=40, deadline=None)
finite = st.floats(-1e9, 1e9)
unit = st.floats(0, 1)
TRANSFORMS = get_args(UtilityTransform)


@pytest.mark.parametrize(
    ("transform", "scores", "expected"),
    [
        ("minmax", [1, 2, 5], [0, 0.25, 1]),
        ("log1p_minmax", [0, math.e - 1, math.e**2 - 1], [0, 0.5, 1]),
        ("log1p_minmax", [1 - math.e, 0, math.e - 1], [0, 0.5, 1]),
        ("rank", [10, 3, 99], [0.5, 0, 1]),
        ("rank", [1, 1, 2, 3], [1 / 6, 1 / 6, 2 / 3, 1]),
        ("softmax", [0, math.log(3)], [0.25, 0.75]),
        ("softmax", [7, 7, 7], [1 / 3, 1 / 3, 1 / 3]),
        ("plackett_luce", [5, 2], [1, 0]),
        ("plackett_luce", [4, 4], [0.5, 0.5]),
        ("none", [0, 0.3, 1], [0, 0.3, 1]),
        ("none", [0.2, 0.2], [0.2, 0.2]),
    ],
)
def test_utilities_by_hand(transform: UtilityTransform, scores: list[float], expected: list[float]) -> None:
    np.testing.assert_allclose(to_utility(scores, transform), expected, atol=1e-9)


@pytest.mark.parametrize("transform", TRANSFORMS)
@quick
@given(data=st.data())
def test_utilities_stay_in_range_keep_order_and_follow_permutations(
    transform: UtilityTransform, data: st.DataObject
) -> None:
    numbers = unit if transform == "none" else st.integers(-5, 5) if transform == "plackett_luce" else finite
    scores = np.array(data.draw(st.lists(numbers, min_size=1, max_size=8)), dtype=float)
    utility = to_utility(scores, transform)
    assert utility.shape == scores.shape
    assert 0 <= utility.min() <= utility.max() <= 1
    order = np.argsort(scores, kind="stable")
    assert (np.diff(utility[order]) >= -1e-6).all()
    for level in np.unique(scores):  # equal feedback, equal utility
        assert np.ptp(utility[scores == level]) <= 1e-6
    permutation = np.array(data.draw(st.permutations(range(scores.size))))
    np.testing.assert_allclose(to_utility(scores[permutation], transform), utility[permutation], atol=2e-5)
    if is_constant(scores) and transform != "none":
        assert (utility == (1 / scores.size if transform == "softmax" else 0.5)).all()
    elif transform in ("minmax", "log1p_minmax", "rank", "plackett_luce") and not is_constant(scores):
        assert utility.max() - utility.min() <= 1
    if transform == "rank":
        assert utility.mean() == pytest.approx(0.5)
    if transform == "softmax":
        assert utility.sum() == pytest.approx(1)


def test_huge_scores_do_not_overflow() -> None:
    for transform in ("minmax", "log1p_minmax", "rank", "softmax"):
        assert to_utility([-1.7e308, 0.0, 1.7e308], transform)[2] == 1


def test_utilities_refuse_bad_scores_by_name() -> None:
    with pytest.raises(ValueError, match=r"scores\[1\]: expected a number in \[0, 1\] with transform='none', got 1\.5"):
        to_utility([0.5, 1.5], "none")
    with pytest.raises(ValueError, match=r"scores\[0\]: expected a finite number, got nan"):
        to_utility([math.nan], "minmax")
    with pytest.raises(ValueError, match="transform: expected one of minmax"):
        to_utility([1.0], "votes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="non-empty"):
        to_utility([], "rank")


# --- votes ----------------------------------------------------------------------------------------------------------


def test_one_of_one_is_not_better_than_95_of_100() -> None:
    rates = shrunk_rate([1, 95, 0, 0], [1, 100, 0, 50])
    np.testing.assert_allclose(rates, [2 / 3, 96 / 102, 1 / 2, 1 / 52])
    assert rates[0] < rates[1]


@quick
@given(up=st.integers(0, 1000), down=st.integers(0, 1000), prior=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)))
def test_a_shrunk_rate_lies_between_the_rate_and_the_prior_and_grows_with_votes(
    up: int, down: int, prior: tuple[float, float]
) -> None:
    options = {"prior_up": prior[0], "prior_total": sum(prior)}
    rate, mean = float(shrunk_rate(up, up + down, **options)), prior[0] / sum(prior)
    raw = up / (up + down) if up + down else mean
    assert min(raw, mean) - 1e-12 <= rate <= max(raw, mean) + 1e-12
    assert shrunk_rate(up + 1, up + down + 1, **options) > rate > shrunk_rate(up, up + down + 1, **options)


def test_a_fitted_prior_is_the_one_that_the_votes_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    total = rng.integers(0, 60, size=4000)
    up = rng.binomial(total, rng.beta(6.0, 2.0, size=4000))
    prior_up, prior_total = beta_prior(up, total)
    assert prior_up / prior_total == pytest.approx(0.75, abs=0.01)
    assert prior_total == pytest.approx(8, rel=0.1)


def test_votes_are_corrected_for_the_time_they_had() -> None:
    corrected = age_corrected([10, 10, -10, 3], [1, 1e9, 1, 0], scale=1.0)
    np.testing.assert_allclose(corrected, [10 / (1 - math.exp(-1)), 10, -10 / (1 - math.exp(-1)), 60])
    truth, scale, ages = 40.0, 3.0, np.array([0.5, 1, 5, 30])
    np.testing.assert_allclose(age_corrected(truth * (1 - np.exp(-ages / scale)), ages, scale=scale), truth)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: shrunk_rate(3, 2), "up: expected counts with 0 <= up <= total"),
        (lambda: shrunk_rate([1], [1, 2]), r"total: expected the shape of up, \[1\], got \[2\]"),
        (lambda: shrunk_rate(1, 2, prior_up=2.0), "prior_up: expected 0 < prior_up < prior_total, got 2.0 and 2.0"),
        (lambda: beta_prior([0, 1], [0, 1]), "at least two responses with votes, got 1"),
        (lambda: age_corrected([1], [-1], scale=1), r"age\[0\]: expected a number >= 0, got -1"),
        (lambda: age_corrected([1], [1, 2], scale=1), "age: expected 1 numbers"),
        (lambda: age_corrected([1], [1], scale=0), "scale: expected a number > 0, got 0"),
        (lambda: plackett_luce([], 3), "rankings: expected at least one ranking, got none"),
        (lambda: plackett_luce([[0, 0]], 3), r"rankings\[0\]: expected distinct items in 0 \.\.\. 2"),
        (lambda: plackett_luce([[0, 1], [3]], 3), r"rankings\[1\]: expected distinct items"),
        (lambda: plackett_luce([[0, []]], 3), r"rankings\[0\]: expected at least one item at every place"),
        (lambda: plackett_luce([[0, 1]], 2), "penalty: expected a positive number for rankings in which some"),
        (lambda: plackett_luce([[0, 1], [1, 0]], 3), "penalty: expected a positive number for rankings in which some"),
        (lambda: plackett_luce([[0, 1]], 2, penalty=-1), "penalty: expected a number >= 0"),
        (lambda: group_utility([[0.5]], "sum"), "aggregation: expected one of utilitarian, maximin, nash, got 'sum'"),
        (lambda: group_utility([0.5], "nash"), r"group_scores: expected \[groups, responses\], got shape \[1\]"),
        (lambda: group_utility([[1.5]], "nash"), r"group_scores: expected numbers in \[0, 1\]"),
        (lambda: group_utility([[0.5]], "nash", [0]), "weights: expected 1 numbers >= 0 that are not all 0"),
    ],
)
def test_bad_arguments_are_named(call, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


# --- rankings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [0.0, 0.01, 1.0])
def test_plackett_luce_of_full_and_partial_rankings_is_that_of_choix(penalty: float) -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=6)
    full = [list(np.argsort(-(truth + rng.gumbel(size=6)))) for _ in range(24)]
    partial = [ranking[:3] for ranking in full[:12]] + [ranking[2:] for ranking in full[12:]]
    for rankings in (full, partial, full + partial):
        rankings = [[int(item) for item in ranking] for ranking in rankings]
        ours = plackett_luce(rankings, 6, penalty=penalty)
        theirs = choix.opt_rankings(6, rankings, alpha=penalty, method="BFGS", tol=1e-12)
        np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=1e-4)
        if penalty == 0:
            iterated = choix.ilsr_rankings(6, rankings)
            np.testing.assert_allclose(ours, iterated - iterated.mean(), atol=1e-4)


def test_bradley_terry_is_that_of_choix_and_of_two_items_by_hand() -> None:
    pairs = [(0, 1)] * 3 + [(1, 0)]
    first, second = bradley_terry(pairs, 2)
    assert first - second == pytest.approx(math.log(3), abs=1e-5)
    rng = np.random.default_rng(2)
    data = choix.generate_pairwise(rng.normal(size=5), n_comparisons=200)
    theirs = choix.opt_pairwise(5, data, alpha=0.1, method="BFGS", tol=1e-12)
    np.testing.assert_allclose(bradley_terry(data, 5, penalty=0.1), theirs - theirs.mean(), atol=1e-4)


def test_ties_lie_between_the_orders_that_break_them() -> None:
    """Efron's formula is close to the average likelihood over all orders of the tied items, and symmetric in them."""
    rankings = [[0, [1, 2], 3], [2, 1, 0, 3], [3, 0, 1, 2], [1, [0, 3], 2]]
    tied = plackett_luce(rankings, 4, penalty=0.1)
    swapped = plackett_luce([[0, [2, 1], 3], *rankings[1:]], 4, penalty=0.1)
    np.testing.assert_allclose(tied, swapped, atol=1e-6)
    alone = plackett_luce([[[0, 1, 2]]], 3, penalty=0.1)
    np.testing.assert_allclose(alone, 0, atol=1e-6)
    orders = [
        plackett_luce([[0, *a, 3], *rankings[1:3], [1, *b, 2]], 4, penalty=0.1)
        for a in itertools.permutations((1, 2))
        for b in itertools.permutations((0, 3))
    ]
    assert (np.min(orders, 0) - 1e-3 <= tied).all()
    assert (tied <= np.max(orders, 0) + 1e-3).all()


def test_plackett_luce_recovers_the_worths_that_rankings_were_drawn_from() -> None:
    rng = np.random.default_rng(3)
    truth = np.array([1.0, 0.5, 0.0, -0.5, -1.0])
    rankings = [np.argsort(-(truth + rng.gumbel(size=5))).tolist() for _ in range(1500)]
    np.testing.assert_allclose(plackett_luce(rankings, 5), truth, atol=0.1)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_groups_by_hand() -> None:
    scores = [[1.0, 0.5, 0.0], [0.25, 0.5, 1.0]]
    np.testing.assert_allclose(group_utility(scores, "utilitarian"), [0.625, 0.5, 0.5])
    np.testing.assert_allclose(group_utility(scores, "maximin"), [0.25, 0.5, 0.0])
    np.testing.assert_allclose(group_utility(scores, "nash"), [0.5, 0.5, 0.0])
    np.testing.assert_allclose(group_utility(scores, "utilitarian", [3, 1]), [0.8125, 0.5, 0.25])
    np.testing.assert_allclose(group_utility(scores, "maximin", [0, 1]), [0.25, 0.5, 1.0])
    np.testing.assert_allclose(group_utility(scores, "nash", [0, 1]), [0.25, 0.5, 1.0])


@quick
@given(
    scores=st.integers(1, 4).flatmap(
        lambda k: st.lists(st.lists(unit, min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    data=st.data(),
)
def test_maximin_nash_and_utilitarian_are_ordered_and_blind_to_the_order_of_groups(
    scores: list[list[float]], data: st.DataObject
) -> None:
    results = {name: group_utility(scores, name) for name in get_args(Aggregation)}
    assert (results["maximin"] <= results["nash"] + 1e-12).all()
    assert (results["nash"] <= results["utilitarian"] + 1e-12).all()
    shuffled = data.draw(st.permutations(scores))
    for name, result in results.items():
        assert ((result >= 0) & (result <= 1)).all()
        np.testing.assert_allclose(group_utility(shuffled, name), result, atol=1e-12)
        np.testing.assert_allclose(group_utility([scores[0], scores[0]], name), scores[0], atol=1e-12)
