"""The study on meanings: worlds agree across lengths, exact values are exact, and the table says what is known."""

from __future__ import annotations

import numpy as np
from pope_align.experiments.ope_similar_study import as_text, study
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope.diagnostics import effective_sample_size


def test_the_exact_value_is_that_of_many_fresh_responses() -> None:
    world = SimilarWorld(0.9, wording=0.2)
    log, _ = world.draw(0, slates=40_000, size=1, fresh=1)
    weights = np.exp(np.subtract(*log.logprobs("target", length_normalize=False)))
    found = weights * log.utility
    assert abs(found.mean() - world.truth) < 4 * found.std() / 200
    assert abs(weights.mean() - 1) < 4 * weights.std() / 200
    assert abs(log.utility.mean() - world.base) < 4 * 0.5 / 200


def test_one_log_in_more_and_more_words() -> None:
    short, features = SimilarWorld(0.6, 0.5 * 2**0.5, 2).draw(3)
    long, same = SimilarWorld(0.6, 0.5 * 64**0.5, 64).draw(3)
    np.testing.assert_array_equal(short.utility, long.utility)
    np.testing.assert_array_equal(features.logged, same.logged)
    sizes = [
        effective_sample_size(np.subtract(*log.logprobs("target", length_normalize=False))) for log in (short, long)
    ]
    assert sizes[0] > 200 > 10 > sizes[1]


def test_weights_hold_short_responses_and_models_long_ones() -> None:
    tables = study(2, 80)["tables"]
    assert len(tables) == 8
    short, long = tables["seen, 2 tokens"]["estimators"], tables["seen, 64 tokens"]["estimators"]
    assert short["snips"]["rmse"] < 0.05 < long["snips"]["rmse"]
    assert long["model first, classifier dr"]["rmse"] < 0.04
    assert long["length-normalised snips"]["recovered"] < 0.2
    blind = tables["unseen, 64 tokens"]
    assert blind["estimators"]["model first, classifier dr"]["recovered"] < 0.2
    assert all(row["r2"] < 0.05 for row in blind["checks"])
    assert "| snips |" in as_text(short)
