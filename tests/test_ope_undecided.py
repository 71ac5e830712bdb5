"""Where no estimator orders the policies better than chance, an evaluation refuses in words, and only there."""

from __future__ import annotations

import numpy as np
import pytest
from pope_align.cli._evaluation_tables import lines
from pope_align.experiments.ope_similar_world import SimilarWorld
from pope_align.ope import LoggedSlates, evaluate_policies
from pope_align.ope.comparison import compare
from pope_align.ope.direction import directions
from pope_align.ope.features import Features
from pope_align.ope.long_responses import model_first_estimate
from pope_align.ope.pope import pope_value
from pope_align.ope.undecided import Undecided, undecided

pytest.importorskip("scipy")


def judged(seed: int, *, seen: bool) -> tuple[Undecided, ...]:
    """Long responses; features that hold what decides the reward, or nothing, and then ratings are noise as well."""
    log, features = SimilarWorld(0.6, wording=4.0, tokens=64).draw(seed, slates=200)
    random = np.random.default_rng(seed)
    utility = log.utility if seen else random.permutation(log.utility)
    log = LoggedSlates.from_arrays(
        utility,
        log.logging.logprobs,
        {"base": log.logging.logprobs, "target": log.policies["target"].logprobs},
        log.slate_offsets,
        how="recorded",
    )
    if not seen:
        features = Features("noise", random.normal(size=(800, 5)), random.normal(size=(800, 5)), features.owner)
    estimates = [pope_value(log, name) for name in ("base", "target")]
    estimates += [model_first_estimate(log, name, [features]).estimate for name in ("base", "target")]
    comparisons = [compare(estimates[1], estimates[0])]
    return undecided(estimates, comparisons, directions(log, "target", "base"), "base")


def test_where_nothing_orders_the_policies_the_evaluation_says_so_and_what_helps() -> None:
    found = [judged(seed, seen=False) for seed in range(12)]
    refused = [each for each in found if each]
    assert len(refused) >= 10  # the placebo of the index passes once in 20 logs
    text = str(refused[0][0])
    assert text.startswith("target: refused. On this log no estimator orders it against base better than chance")
    assert "effective sample size" in text
    assert "the reward model explains" in text
    assert "collect more ratings" in text
    assert "rate responses of the policy itself" in text


def test_where_one_estimator_does_it_does_not_refuse() -> None:
    assert not any(judged(seed, seen=True) for seed in range(3))


def test_the_command_and_the_json_show_it() -> None:
    random = np.random.default_rng(0)
    logging = np.full(400, -80.0)
    far = logging + random.normal(0, 8, 400)
    log = LoggedSlates.from_arrays(
        (random.random(400) < 0.5).astype(float),
        logging,
        {"base": logging, "far": far, "near": logging + random.normal(0, 0.1, 400)},
        np.arange(0, 401, 4),
        how="recorded",
    )
    evaluation = evaluate_policies(log)
    assert [each.policy for each in evaluation.undecided] == ["far"]
    assert next(iter(lines(evaluation))).startswith("far: refused. On this log no estimator orders it against base")
    (content,) = evaluation.to_dict()["undecided"]
    assert content["policy"] == "far"
    assert content["help"][-1] == "rate responses of the policy itself"
