"""Model-first estimates against closed-form values: errors, intervals, and what each rating counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope import LoggedSlates
from pope_align.ope.crossfit import Ridge, best_fit, cross_fit, deal
from pope_align.ope.features import Features, fresh_mean, given_prompt, surface
from pope_align.ope.model_first import model_first, residual_check, weighted_mean
from pope_align.ope.tempered import tempered
from pope_align.stats.intervals import Confidence, quantities

WORLD = SimilarWorld()


def raw_weights(log: LoggedSlates) -> np.ndarray:
    target, logging = log.logprobs("target", length_normalize=False)
    return target - logging


def test_the_ridge_is_the_ridge() -> None:
    """Against the normal equations, at each fit's own penalty."""
    random = np.random.default_rng(0)
    x, y = random.normal(2, 3, (60, 4)), random.random(60)
    model = Ridge.fit(x, y)
    z = (x - x.mean(0)) / x.std(0)
    penalty = 1 / model.shrunken - np.linalg.eigvalsh(z.T @ z)
    np.testing.assert_allclose(penalty, penalty[0])
    expected = np.linalg.solve(z.T @ z + penalty[0] * np.eye(4), z.T @ (y - y.mean()))
    np.testing.assert_allclose(model(x), z @ expected + y.mean())


def test_shares_are_the_estimate() -> None:
    """An estimate is linear in the ratings, through the weights and through the models, and the shares say how."""
    log, features = WORLD.draw(0, slates=40)
    fit = cross_fit(log, features)
    for log_weights in (None, WORLD.marginal(log, features), raw_weights(log)):
        result = model_first(log, fit, log_weights)
        assert result.shares @ log.utility == pytest.approx(result.value, abs=1e-12)
        assert result.shares.sum() == pytest.approx(1.0)
        assert float(result.ratios.values()[0]) == pytest.approx(result.value)


def test_the_direct_method_is_the_mean_prediction_of_fresh_responses() -> None:
    log, features = WORLD.draw(1, slates=30)
    fit = cross_fit(log, features)
    assert model_first(log, fit).direct == pytest.approx(float(fresh_mean(log, features.owner, fit.target).mean()))


def test_no_prediction_has_seen_a_rating_of_its_cluster() -> None:
    log, features = WORLD.draw(2, slates=20)
    before = cross_fit(log, features)
    mine = np.repeat(log.clusters, log.sizes) == 3
    changed = cross_fit(replace(log, utility=np.where(mine, 1 - log.utility, log.utility)), features)
    np.testing.assert_array_equal(before.logged[mine], changed.logged[mine])
    assert not np.allclose(before.logged[~mine], changed.logged[~mine])


def test_whole_clusters_are_dealt() -> None:
    clusters = np.array([0, 1, 0, 2, 3, 1])
    fold = deal(clusters, 2, seed=0)
    assert fold[0] == fold[2]
    assert fold[1] == fold[5]
    with pytest.raises(ValueError, match="between 2 and the 4 clusters of the log, got 5"):
        deal(clusters, 5, seed=0)


@pytest.mark.slow
def test_intervals_hold_the_truth_where_weights_of_sequences_cannot() -> None:
    """Of 200 logs of 150 slates: doubly robust and direct intervals hold it, the tempered index recovers a part."""
    found: dict[str, list[tuple[float, float, bool]]] = {"direct": [], "robust": [], "index": []}
    for seed in range(200):
        log, features = WORLD.draw(seed)
        fit = cross_fit(log, features)
        index = tempered(raw_weights(log)).log_weights
        for name, ratios in (
            ("direct", model_first(log, fit).ratios),
            ("robust", model_first(log, fit, WORLD.marginal(log, features)).ratios),
            ("index", weighted_mean(log, index)),
        ):
            q = quantities(ratios, Confidence())[0]
            found[name].append((q.value, q.standard_error, q.low <= WORLD.truth <= q.high))
    values = {name: np.array(rows) for name, rows in found.items()}
    for name in ("direct", "robust"):
        value, error, covered = values[name].T
        assert 0.90 <= covered.mean() <= 0.99, (name, covered.mean())
        assert error.mean() == pytest.approx(value.std(), rel=0.2), name
        assert value.mean() == pytest.approx(WORLD.truth, abs=4 * value.std() / 14), name
    recovered = (values["index"][:, 0].mean() - WORLD.base) / (WORLD.truth - WORLD.base)
    assert 0.3 < recovered < 0.9


def test_the_interval_knows_of_the_model_it_rests_on() -> None:
    """Without the term of the model's own fit, the direct method's error would be understated."""
    values, with_model, without = [], [], []
    for seed in range(120):
        log, features = WORLD.draw(seed, slates=120)
        ratios = model_first(log, cross_fit(log, features)).ratios
        values.append(float(ratios.values()[0]))
        with_model.append(float(np.sqrt(ratios.covariance()[0, 0])))
        alone = type(ratios)(ratios.numerators[:1], ratios.denominators[:1])
        without.append(float(np.sqrt(alone.covariance()[0, 0])))
    assert np.mean(without) < 0.85 * np.std(values)
    assert np.mean(with_model) == pytest.approx(np.std(values), rel=0.25)


def test_a_model_that_does_not_see_the_reward_says_so() -> None:
    log, features = WORLD.draw(3, slates=300)
    random = np.random.default_rng(0)
    blind = replace(features, name="noise", logged=random.random((1200, 5)), target=random.random((1200, 5)))
    fit = cross_fit(log, blind)
    assert fit.r2 < 0.02
    sees = cross_fit(log, features)
    assert sees.r2 > 0.25
    assert sees.calibration == pytest.approx(1.0, abs=4 * sees.calibration_error)
    assert best_fit(log, [blind, features]).features.name == "meaning"


def test_residuals_contradict_a_model_that_is_wrong_where_the_policy_goes() -> None:
    log, features = SimilarWorld(shift=1.2, wording=0.3).draw(4, slates=600)
    lean = tempered(raw_weights(log)).log_weights
    right = cross_fit(log, features)
    assert abs(residual_check(log, right, lean).z) < 3
    random = np.random.default_rng(0)
    blind = replace(features, logged=random.random((2400, 5)), target=random.random((2400, 5)))
    assert residual_check(log, cross_fit(log, blind), lean).z > 3


def test_features_of_words_and_prompts() -> None:
    rows = surface(["Extraordinary elephants eat 3 apples.", ""])
    assert rows.shape == (2, 12)
    assert rows[0, 3] == pytest.approx(2 / 4)  # of four words two have seven letters and more
    assert np.isfinite(rows).all()
    unit = np.array([[0.6, 0.8], [1.0, 0.0]])
    both = given_prompt(unit, unit[::-1].copy())
    np.testing.assert_allclose(both[:, -1], [0.6, 0.6])
    assert both.shape == (2, 5)


def test_errors_say_what_does_not_fit() -> None:
    log, features = WORLD.draw(5, slates=20)
    with pytest.raises(ValueError, match=r"features 'meaning': logged: expected \[80, d\], got \[79, 9\]"):
        cross_fit(log, replace(features, logged=features.logged[1:]))
    with pytest.raises(ValueError, match="owner: slate 19: expected at least one fresh response, got none"):
        cross_fit(log, replace(features, owner=np.minimum(features.owner, 18)))
    broken = features.logged.copy()
    broken[5, 0] = np.nan
    with pytest.raises(ValueError, match="response 1 of slate 1: expected finite numbers"):
        cross_fit(log, replace(features, logged=broken))
    with pytest.raises(ValueError, match=r"log_weights: expected \[80\], got \[3\]"):
        weighted_mean(log, np.zeros(3))
    with pytest.raises(ValueError, match="largest is finite, got -inf"):
        weighted_mean(log, np.full(80, -np.inf))
    other = Features("other", features.logged, features.target, features.owner[::-1].copy())
    with pytest.raises(ValueError, match="which differ"):
        features.beside(other)
