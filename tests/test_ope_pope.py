"""POPE's estimators in evaluation are those of training, and their errors are those of clustered means and ratios."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import asked
from pope_align.ope import Confidence, LoggedSlates, compare, pope_value
from pope_align.stats.ratios import Ratios

import pope_core
from pope_core import Objective
from pope_core.objective import CHOICES

OPTIONS = list(
    itertools.product(
        CHOICES["weighting"],
        CHOICES["normalization"],
        [None, 1.2],
        CHOICES["utility_form"],
        CHOICES["diversity_form"],
    )
)


def random_log(slates: int = 60, seed: int = 0, *, spread: float = 0.3, **options: object) -> LoggedSlates:
    """Ragged slates of one to five responses; two policies near the logger."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, slates)
    count = int(sizes.sum())
    tokens = rng.integers(3, 30, count)
    logging = -tokens * rng.uniform(0.5, 3.0, count)
    policies = {name: np.minimum(logging + rng.normal(0, spread, count), -0.01) for name in ("new", "base")}
    defaults = {"tokens": tokens, "clusters": np.arange(slates) // 2, "how": "recorded"}
    return LoggedSlates.from_arrays(
        rng.random(count), logging, policies, np.append(0, sizes.cumsum()), **{**defaults, **options}
    )


@pytest.mark.parametrize("length_normalize", [True, False])
@pytest.mark.parametrize(("weighting", "normalization", "clip", "utility_form", "diversity_form"), OPTIONS)
def test_value_and_parts_are_those_of_the_training_objective(
    weighting, normalization, clip, utility_form, diversity_form, length_normalize
) -> None:
    log = random_log()
    options = {
        "weighting": weighting,
        "normalization": normalization,
        "clip": clip,
        "utility_form": utility_form,
        "diversity_form": diversity_form,
        "diversity_weight": 0.3,
        "length_normalize": length_normalize,
    }
    estimate = pope_value(log, "new", objective=Objective(**options))
    arrays = (log.policies["new"].logprobs, log.logging.logprobs, log.utility, log.slate_offsets, log.tokens("new"))
    *tensors, tokens = map(torch.from_numpy, arrays)
    expected = pope_core.slate_objective(*tensors, tokens=tokens, objective=Objective(**options))
    actual = [estimate.value, estimate.utility.value, estimate.diversity.value, estimate.diagnostics.ess]
    np.testing.assert_allclose(
        actual,
        [
            float(x)
            for x in (
                expected.value,
                expected.utility_value,
                expected.diversity_value,
                expected.effective_sample_size,
            )
        ],
        rtol=1e-9,
    )


@pytest.mark.parametrize("interval", ["t", "bootstrap", "bayesian"])
@settings(deadline=None, max_examples=15)
@given(shift=st.floats(-5, 5), factor=st.floats(-20, 20), seed=st.integers(0, 1000))
def test_self_normalised_value_follows_a_shift_of_the_rewards_and_ignores_a_factor_of_the_weights(
    interval: str, shift: float, factor: float, seed: int
) -> None:
    log = random_log(30, seed, utility_range=(-10.0, 10.0))
    options = {**asked(), "confidence": Confidence(interval, draws=50)}
    before = pope_value(log, "new", **options)
    moved = LoggedSlates.from_arrays(
        log.utility + shift,
        log.logging.logprobs - 25 - factor,
        {"new": log.policies["new"].logprobs - 25},
        log.slate_offsets,
        clusters=log.clusters,
        utility_range=(-10.0, 10.0),
    )
    after = pope_value(moved, "new", **options)
    for name in ("value", "low", "high"):
        assert getattr(after, name) == pytest.approx(getattr(before, name) + shift, abs=1e-9)
    assert after.standard_error == pytest.approx(before.standard_error, rel=1e-7)


@settings(deadline=None, max_examples=20)
@given(alpha=st.floats(0, 10), option=st.sampled_from(OPTIONS), length_normalize=st.booleans())
def test_value_is_utility_plus_alpha_times_diversity(alpha: float, option: tuple, length_normalize: bool) -> None:
    weighting, normalization, clip, utility_form, diversity_form = option
    estimate = pope_value(
        random_log(),
        "new",
        objective=Objective(
            diversity_weight=alpha,
            weighting=weighting,
            normalization=normalization,
            clip=clip,
            utility_form=utility_form,
            diversity_form=diversity_form,
            length_normalize=length_normalize,
        ),
    )
    assert estimate.value == pytest.approx(estimate.utility.value + alpha * estimate.diversity.value, rel=1e-12)


@pytest.mark.parametrize("option", OPTIONS[::5])
def test_the_order_of_slates_and_of_responses_in_a_slate_does_not_matter(option: tuple) -> None:
    weighting, normalization, clip, utility_form, diversity_form = option
    log = random_log()
    rng = np.random.default_rng(7)
    order = rng.permutation(log.num_slates)
    runs = [rng.permutation(np.arange(log.slate_offsets[q], log.slate_offsets[q + 1])) for q in order]
    rows = np.concatenate(runs)
    shuffled = LoggedSlates.from_arrays(
        log.utility[rows],
        log.logging.logprobs[rows],
        {"new": log.policies["new"].logprobs[rows]},
        np.append(0, np.cumsum([len(run) for run in runs])),
        tokens=log.tokens("new")[rows],
        clusters=log.clusters[order],
        how="recorded",
    )
    options = asked(
        weighting=weighting,
        normalization=normalization,
        clip=clip,
        utility_form=utility_form,
        diversity_form=diversity_form,
        diversity_weight=0.1,
        length_normalize=True,
    )
    before, after = pope_value(log, "new", **options), pope_value(shuffled, "new", **options)
    np.testing.assert_allclose(
        [after.value, after.standard_error, after.low, after.high],
        [before.value, before.standard_error, before.low, before.high],
        rtol=1e-9,
    )
    assert after.verdict == before.verdict


def test_without_weights_and_clusters_the_t_interval_is_that_of_a_mean() -> None:
    log = random_log(40, clusters=None)
    same = LoggedSlates.from_arrays(
        log.utility, log.logging.logprobs, {"same": log.logging.logprobs}, log.slate_offsets, how="recorded"
    )
    estimate = pope_value(same, "same", **asked(normalization="none"))
    means = np.array([part.mean() for part in np.split(log.utility, log.slate_offsets[1:-1])])
    expected = scipy.stats.t.interval(0.95, 39, loc=means.mean(), scale=scipy.stats.sem(means))
    np.testing.assert_allclose([estimate.low, estimate.high], expected, rtol=1e-12)


def test_the_delta_method_error_is_the_formula_for_a_self_normalised_mean() -> None:
    log = random_log(50)
    estimate = pope_value(log, "new")
    target, logging = log.logprobs("new", length_normalize=False)
    share = 1 / log.per_response(log.sizes)
    w = np.exp(target - logging) * share
    value = (w * log.utility).sum() / w.sum()
    cluster = log.per_response(log.clusters)
    psi = np.bincount(cluster, w * (log.utility - value))
    error = np.sqrt(psi.size / (psi.size - 1) * (psi**2).sum()) / w.sum()
    assert estimate.value == pytest.approx(value, rel=1e-12)
    assert estimate.standard_error == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize("method", ["bootstrap", "bayesian"])
def test_resampled_values_are_ratios_formed_anew_whatever_the_block_size(method: str, monkeypatch) -> None:
    rng = np.random.default_rng(3)
    ratios = Ratios(rng.normal(size=(2, 17, 2)), rng.random((2, 17)) + 0.1)
    draws = ratios.draws(method, 40, seed=5)
    random = np.random.default_rng(5)
    for draw in draws:  # a resampled log at a time
        counts = (
            random.standard_exponential(17)
            if method == "bayesian"
            else np.bincount(random.integers(0, 17, 17), None, 17)
        )
        terms = [counts @ n / (counts @ d) for n, d in zip(ratios.numerators, ratios.denominators, strict=True)]
        np.testing.assert_allclose(draw, sum(terms), rtol=1e-9)
    monkeypatch.setattr("pope_align.stats.bootstrap._BLOCK", 17 * 3)
    np.testing.assert_allclose(ratios.draws(method, 40, seed=5), draws, rtol=1e-12)


def test_a_paired_difference_is_narrower_than_two_intervals_and_zero_against_itself() -> None:
    log = random_log(200, spread=0.05)
    new, base = (pope_value(log, name, confidence=Confidence("bootstrap", draws=400)) for name in ("new", "base"))
    paired = compare(new, base)
    assert paired.difference.value == pytest.approx(new.value - base.value, rel=1e-9)
    assert paired.difference.standard_error < 0.5 * np.hypot(new.standard_error, base.standard_error)
    assert paired.difference.low < paired.difference.value < paired.difference.high
    assert compare(base, new).probability == pytest.approx(1 - paired.probability)
    itself = compare(new, new)
    assert (itself.difference.value, itself.difference.standard_error, itself.probability) == (0.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="expected the same options"):
        compare(new, pope_value(log, "base", **asked(clip=2.0), confidence=new.confidence))


def test_clusters_may_be_coarser_than_slates_and_change_only_the_uncertainty() -> None:
    log = random_log(60, clusters=[f"conversation {i // 10}" for i in range(60)])
    coarse, fine = pope_value(log, "new"), pope_value(log.clustered_by(None), "new")
    assert (coarse.num_clusters, fine.num_clusters) == (6, 60)
    assert coarse.value == pytest.approx(fine.value, rel=1e-12)
    assert coarse.standard_error != pytest.approx(fine.standard_error, rel=1e-3)
    assert coarse.verdict == "refuse"
    assert "6 independent queries" in coarse.reasons[0]
