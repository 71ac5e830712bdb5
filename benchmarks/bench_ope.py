"""Off-policy evaluation of 1,000,000 responses in 200,000 slates: point estimates, bootstraps, and the peers.

    pytest benchmarks/bench_ope.py

``extra_info`` has the peak of memory that NumPy allocated beyond the log itself. Open Bandit Pipeline declares a Python
below 3.11; where it can be imported (``pip install --no-deps --ignore-requires-python obp seaborn``) it runs beside
ours, else its formulas do, in the NumPy it uses.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from pope_align.ope import METHODS, Confidence, FreshScores, LoggedSlates, Predictions, diagnose, estimate, pope_value
from pope_align.ope.classifier_weights import classifier_weights
from pope_align.ope.features import Features
from pope_align.ope.kernel_weights import kernel_weights
from pope_align.ope.long_responses import model_first_estimate

from pope_core import Objective

SLATES, SIZE = 200_000, 5
SMALL = 2_000  # slates, when the benchmarks run as tests


@pytest.fixture(scope="module")
def log(request: pytest.FixtureRequest) -> LoggedSlates:
    rng = np.random.default_rng(0)
    slates = SMALL if request.config.getoption("benchmark_disable") else SLATES
    count = slates * SIZE
    tokens = rng.integers(3, 200, count)
    logging = -tokens * rng.uniform(1.0, 3.0, count) - 5
    return LoggedSlates.from_arrays(
        rng.random(count),
        logging,
        {"new": logging + rng.normal(-0.08, 0.4, count), "base": logging + rng.normal(-0.08, 0.4, count)},
        np.arange(0, count + 1, SIZE),
        tokens=tokens,
        how="recorded",
    )


@pytest.fixture(scope="module")
def predictions(log: LoggedSlates) -> Predictions:
    rng = np.random.default_rng(1)
    return Predictions(rng.random(log.num_responses), rng.random(log.num_slates))


def run(benchmark: Any, function: Callable[[], Any], log: LoggedSlates) -> Any:
    """Time ``function`` and note the peak of its allocations."""
    tracemalloc.start()
    function()
    benchmark.extra_info["peak_mib"] = round(tracemalloc.get_traced_memory()[1] / 2**20)
    tracemalloc.stop()
    benchmark.extra_info["responses"] = log.num_responses
    return benchmark.pedantic(function, rounds=3)


@pytest.mark.benchmark(group="point estimate, t interval, diagnostics and verdict")
@pytest.mark.parametrize("weighting", ["response", "slate", "geometric"])
def test_pope(benchmark: Any, log: LoggedSlates, weighting: str) -> None:
    objective = replace(Objective.evaluation(), weighting=weighting)
    value = run(benchmark, lambda: pope_value(log, "new", objective=objective), log)
    assert np.isfinite(value.value)


@pytest.mark.benchmark(group="point estimate, t interval, diagnostics and verdict")
@pytest.mark.parametrize("method", METHODS)
def test_method(benchmark: Any, log: LoggedSlates, predictions: Predictions, method: str) -> None:
    options: dict[str, Any] = {"predictions": predictions if METHODS[method].predictions else None}
    if METHODS[method].shrink:
        options["lam"] = 0.5
    value = run(benchmark, lambda: estimate(log, "new", method, **options), log)
    assert np.isfinite(value.value)


@pytest.mark.benchmark(group="point estimate, parameter chosen by SLOPE")
def test_slope(benchmark: Any, log: LoggedSlates) -> None:
    run(benchmark, lambda: estimate(log, "new", "clipped_ips"), log)


@pytest.mark.benchmark(group="diagnostics alone")
def test_diagnostics(benchmark: Any, log: LoggedSlates) -> None:
    run(benchmark, lambda: diagnose(log, "new", weighting="response", length_normalize=False), log)


@pytest.mark.benchmark(group="point estimate with support and balance of 400,000 fresh responses")
def test_fresh(benchmark: Any, log: LoggedSlates) -> None:
    rng = np.random.default_rng(2)
    owner = np.repeat(np.arange(log.num_slates), 2)
    logging = -rng.uniform(5, 600, owner.size)
    fresh = FreshScores(owner, logging + rng.normal(0.08, 0.4, owner.size), logging)
    checked = log.with_fresh({"new": fresh})
    value = run(benchmark, lambda: pope_value(checked, "new"), checked)
    assert value.support is not None


@pytest.mark.benchmark(group="empirical-likelihood interval")
def test_empirical_likelihood(benchmark: Any, log: LoggedSlates) -> None:
    value = run(benchmark, lambda: pope_value(log, "new", confidence=Confidence("empirical_likelihood")), log)
    assert value.low < value.value < value.high


@pytest.fixture(scope="module")
def embedded(request: pytest.FixtureRequest) -> tuple[LoggedSlates, Features]:
    """100,000 logged and 80,000 fresh responses with 384 features, as all-MiniLM-L6-v2 has."""
    rng = np.random.default_rng(3)
    slates = SMALL // 10 if request.config.getoption("benchmark_disable") else SLATES // 10
    count, owner = slates * SIZE, np.repeat(np.arange(slates), 4)
    logging = np.full(count, -200.0)
    log = LoggedSlates.from_arrays(
        rng.random(count),
        logging,
        {"base": logging, "new": logging + rng.normal(-2, 2, count)},
        np.arange(0, count + 1, SIZE),
        how="recorded",
    )
    return log, Features("embedding", rng.normal(size=(count, 384)), rng.normal(0.02, 1, (owner.size, 384)), owner)


@pytest.mark.benchmark(group="weights and model first from 384 features of 100,000 responses")
@pytest.mark.parametrize("which", ["classifier", "kernel", "model_first"])
def test_features(benchmark: Any, embedded: tuple[LoggedSlates, Features], which: str) -> None:
    log, features = embedded
    made = {
        "classifier": lambda: classifier_weights(log, features).log_weights,
        "kernel": lambda: kernel_weights(log, features).log_weights,
        "model_first": lambda: model_first_estimate(log, "new", [features]).shares,
    }
    benchmark.extra_info["responses"] = log.num_responses
    assert np.isfinite(benchmark.pedantic(made[which], rounds=1)).all()


@pytest.mark.benchmark(group="interval of 1,000 draws")
@pytest.mark.parametrize("interval", ["bootstrap", "bayesian"])
def test_bootstrap(benchmark: Any, log: LoggedSlates, interval: str) -> None:
    value = run(benchmark, lambda: pope_value(log, "new", confidence=Confidence(interval, draws=1000)), log)
    assert value.low < value.value < value.high


# --- peers ----------------------------------------------------------------------------------------------------------


def rows_of(log: LoggedSlates) -> dict[str, np.ndarray]:
    """What Open Bandit Pipeline takes: probabilities, one row per response."""
    scale = 1e-2  # of both: a probability of e^-300 underflows there, so only ratios are realistic
    w = np.exp(log.policies["new"].logprobs - log.logging.logprobs)
    dist = np.empty((log.num_responses, 2, 1))
    dist[:, 0, 0], dist[:, 1, 0] = scale * w, 1 - scale * w
    return {
        "reward": log.utility,
        "action": np.zeros(log.num_responses, dtype=int),
        "action_dist": dist,
        "pscore": np.full(log.num_responses, scale),
    }


@pytest.mark.benchmark(group="peers: self-normalised value")
def test_formula_in_numpy(benchmark: Any, log: LoggedSlates) -> None:
    rows = rows_of(log)

    def snips() -> float:
        w = rows["action_dist"][np.arange(log.num_responses), rows["action"], 0] / rows["pscore"]
        return float((w * rows["reward"] / w.mean()).mean())

    assert run(benchmark, snips, log) == pytest.approx(estimate(log, "new", "snips").value)


@pytest.mark.benchmark(group="peers: self-normalised value")
def test_obp(benchmark: Any, log: LoggedSlates) -> None:
    obp = pytest.importorskip("obp.ope")
    rows, snips = rows_of(log), obp.SelfNormalizedInverseProbabilityWeighting()
    value = run(benchmark, lambda: snips.estimate_policy_value(**rows), log)
    assert value == pytest.approx(estimate(log, "new", "snips").value)


@pytest.mark.benchmark(group="peers: interval of 1,000 draws")
def test_obp_bootstrap(benchmark: Any, log: LoggedSlates) -> None:
    """Over rows, not clusters, and with the mean weight held fixed (zr-obp #187)."""
    obp = pytest.importorskip("obp.ope")
    rows, snips = rows_of(log), obp.SelfNormalizedInverseProbabilityWeighting()
    benchmark.pedantic(lambda: snips.estimate_interval(**rows, n_bootstrap_samples=1000, random_state=0), rounds=1)


@pytest.mark.benchmark(group="peers: slate value")
def test_obp_slate(benchmark: Any, log: LoggedSlates) -> None:
    obp = pytest.importorskip("obp.ope")
    slates = obp.SlateIndependentIPS(len_list=SIZE)
    rows = {
        "slate_id": np.repeat(np.arange(log.num_slates), SIZE),
        "reward": log.utility,
        "position": np.tile(np.arange(SIZE), log.num_slates),
        "pscore_item_position": np.full(log.num_responses, 1e-2),
        "evaluation_policy_pscore_item_position": 1e-2 * np.exp(log.policies["new"].logprobs - log.logging.logprobs),
    }
    value = benchmark.pedantic(lambda: slates.estimate_policy_value(**rows), rounds=1)
    assert value == pytest.approx(SIZE * estimate(log, "new", "ips").value)
