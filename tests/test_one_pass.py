"""Evaluation in one pass is that in memory, however the log is cut into shards and in whatever order they are read."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import re
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pope_align.cli import main
from pope_align.ope import Columns, Confidence, LoggedSlates, evaluate_policies, evaluate_shards, pareto_k
from pope_align.ope.diagnostics import tail_size
from pope_align.ope.one_pass import LogSums, OnePass, evaluation_of, read_sums
from pope_align.ope.one_pass import sums as sums_module
from pope_align.ope.one_pass.placebo_sums import PlaceboSums
from pope_align.ope.one_pass.shards import read_shard
from pope_align.ope.placebo import gain_shares
from pope_align.ope.utility import calibration
from pope_align.ope.weights import log_weights
from pope_align.stats.keyed_bootstrap import KeyedBootstrap, hashes_of

from pope_core import Objective
from pope_core.objective import CHOICES

POLICIES = {"base": "base", "new": "new"}
WEIGHTED = ("pope", "ips", "snips", "clipped_ips", "subgaussian_ips", "slate_ips", "slate_snips", "pseudo_inverse")


def make_rows(queries: int = 120, seed: int = 0, spread: float = 0.4, **columns: Any) -> pa.Table:
    """Slates of one to five responses, sorted by query, and two policies near the logging policy."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, queries)
    count = int(sizes.sum())
    tokens = rng.integers(3, 30, count)
    logging = -tokens * rng.uniform(0.5, 3.0, count)
    new, base = (np.minimum(logging + rng.normal(0, scale, count), 0.0) for scale in (spread, spread / 2))
    score = np.clip(rng.random(count) + 0.1 * (new - logging), 0, 1)
    return pa.table(
        {
            "query": np.repeat(np.arange(queries), sizes),
            "user": np.repeat(np.arange(queries) // 3, sizes),
            "logging_logprob": logging,
            "score": score,
            "tokens": tokens,
            "new": new,
            "base": base,
            **columns,
        }
    )


def write(folder: Path, rows: pa.Table, cuts: list[int] | None = None, **options: Any) -> list[str]:
    """Shards that end before these rows."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (low, high) in enumerate(itertools.pairwise([0, *(cuts or []), rows.num_rows])):
        paths.append(str(folder / f"{number:04}.parquet"))
        pq.write_table(rows.slice(low, high - low), paths[-1], **options)
    return paths


def in_memory(rows: pa.Table, cluster: str = "query") -> LoggedSlates:
    array = {name: rows.column(name).to_numpy() for name in rows.column_names}
    starts = np.flatnonzero(np.append(True, array["query"][1:] != array["query"][:-1]))
    return LoggedSlates.from_arrays(
        array["score"],
        array["logging_logprob"],
        {name: array[name] for name in POLICIES},
        np.append(starts, rows.num_rows),
        tokens=array["tokens"],
        clusters=array[cluster][starts],
        how="recorded",
    )


#: What names a log or a row; the placebo, whose permutations are drawn in memory; and what is known to a bin.
NAMES = {"log", "log_fingerprint", "clusters_fingerprint", "unit", "log_weight_max_place"}
OTHER = NAMES | {"placebo", "probability", "target_coverage"}


def differences(mine: Any, theirs: Any, tolerance: float, at: str = "") -> list[str]:
    """Where two evaluations as JSON differ by more than the tolerance, relative or absolute."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        both = [key for key in {**mine, **theirs} if key not in OTHER]
        return [
            line
            for key in both
            for line in differences(mine.get(key, "none"), theirs.get(key, "none"), tolerance, f"{at}.{key}")
        ]
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [line for i, each in pairs for line in differences(*each, tolerance, f"{at}[{i}]")]
    if isinstance(mine, float) and isinstance(theirs, float):
        near = abs(mine - theirs) <= tolerance * max(abs(mine), abs(theirs), 1.0)
        return [] if near else [f"{at}: {mine} and {theirs}"]
    if isinstance(mine, str) and isinstance(theirs, str):  # reasons name the place of a weight, and the placebo's p
        mine, theirs = (re.split(r" \(| with p = ", text)[0] for text in (mine, theirs))
    return [] if mine == theirs else [f"{at}: {mine} and {theirs}"]


def assert_same(one: Any, memory: Any, tolerance: float = 1e-9) -> None:
    mine, theirs = one.to_dict(), memory.to_dict()
    theirs["indices"] = [each for each in theirs["indices"] if each["weights"] == "length-normalised"]
    if not one.indices:
        theirs["indices"] = []
    mine, theirs = ({**each, "undecided": None} for each in (mine, theirs))  # it repeats the verdicts of the indices
    assert not differences(mine, theirs, tolerance)
    for each, other in zip(one.estimates, memory.estimates, strict=True):
        coverage = other.diagnostics.target_coverage
        assert each.diagnostics.target_coverage == pytest.approx(coverage, abs=2.5 / other.num_responses, nan_ok=True)


def request_of(rows: pa.Table, **options: Any) -> OnePass:
    return OnePass(policies=POLICIES, calibration=calibration(None, 0.0, 1.0), how="recorded", **options)


# --- equal to the evaluation in memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", ["query", "user"])
def test_every_estimator_is_that_in_memory(tmp_path: Path, cluster: str) -> None:
    rows = make_rows()
    columns = Columns(tokens="tokens", cluster=None if cluster == "query" else cluster)
    write(tmp_path / "log", rows, [7, 8, 90, 200])
    one = evaluate_shards(tmp_path / "log", POLICIES, columns=columns, estimators=WEIGHTED, lam=0.9, how="recorded")
    memory = evaluate_policies(in_memory(rows, cluster), estimators=WEIGHTED, lam=0.9)
    assert_same(one, memory)
    assert len(one.estimates) == 2 * len(WEIGHTED)
    assert one.indices[0].rank_correlation is not None
    for mine, theirs in zip(one.comparisons, memory.comparisons, strict=True):
        assert mine.probability == pytest.approx(theirs.probability, abs=0.05)


OBJECTIVES = [
    {"weighting": weighting, "normalization": normalization, "clip": clip, "length_normalize": normalize}
    for weighting, normalization, clip, normalize in itertools.product(
        CHOICES["weighting"], CHOICES["normalization"], [None, 1.2], [False, True]
    )
]


@pytest.mark.parametrize("options", OBJECTIVES, ids=lambda options: "-".join(map(str, options.values())))
def test_every_objective_is_that_in_memory(tmp_path: Path, options: dict[str, Any]) -> None:
    rows = make_rows(80)
    forms = {"utility_form": "log_likelihood"} if options["clip"] is None else {"diversity_form": "entropy"}
    objective = Objective(diversity_weight=0.3, **{**options, **forms})
    write(tmp_path / "log", rows, [31])
    columns = Columns(tokens="tokens")
    one = evaluate_shards(tmp_path / "log", POLICIES, columns=columns, objective=objective, how="recorded")
    assert_same(one, evaluate_policies(in_memory(rows), objective=objective))


def test_weights_of_a_thousand_nats_neither_overflow_nor_vanish(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = make_rows(60)
    logging = rng.uniform(-2100, -2000, rows.num_rows)
    new = logging + rng.choice([-1000.0, 0.0, 995.0, 1000.0], rows.num_rows)
    base = logging - rng.uniform(900, 1000, rows.num_rows)
    rows = make_rows(60, logging_logprob=logging, new=new, base=base)
    write(tmp_path / "log", rows, [10, 50, 51, 120])
    chosen = ("pope", "snips", "slate_snips")
    columns = Columns(tokens="tokens")
    one = evaluate_shards(tmp_path / "log", POLICIES, columns=columns, estimators=chosen, how="recorded")
    memory = evaluate_policies(in_memory(rows), estimators=chosen)
    assert math.isfinite(one.of("new").value)
    assert one.of("new").diagnostics.log_weight_max == 1000
    assert_same(one, memory)
    plain = evaluate_shards(tmp_path / "log", POLICIES, estimators=("ips",), how="recorded").of("new")
    assert plain.verdict == "refuse"
    assert any(finding.rule == "overflow" for finding in plain.findings)


def test_a_response_that_the_policy_cannot_write_has_weight_0(tmp_path: Path) -> None:
    rows = make_rows()
    new = rows.column("new").to_numpy().copy()
    new[::3] = -np.inf
    rows = make_rows(new=new)
    write(tmp_path / "log", rows, [3, 4, 5, 6, 200])
    one = evaluate_shards(tmp_path / "log", POLICIES, columns=Columns(tokens="tokens"), how="recorded")
    assert_same(one, evaluate_policies(in_memory(rows)))


def test_a_policy_without_any_weight_is_refused_as_in_memory(tmp_path: Path) -> None:
    rows = make_rows(new=np.full(make_rows().num_rows, -np.inf))
    write(tmp_path / "log", rows, [100])
    columns = Columns(tokens="tokens")
    one = evaluate_shards(tmp_path / "log", POLICIES, columns=columns, estimators=("pope",), how="recorded")
    with np.errstate(all="ignore"):
        memory = evaluate_policies(in_memory(rows), estimators=("pope",))
    assert one.of("new").verdict == memory.of("new").verdict == "refuse"
    assert one.indices == memory.indices == ()


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shards_in_any_order_give_the_same(tmp_path: Path, data: st.DataObject) -> None:
    rows = make_rows(30)
    cuts = sorted(data.draw(st.sets(st.integers(1, rows.num_rows - 1), max_size=12)))
    folder = tmp_path / str(abs(hash(tuple(cuts))))
    paths = write(folder, rows, cuts, row_group_size=data.draw(st.sampled_from([1, 5, 1000])))
    cluster = data.draw(st.sampled_from([None, "user"]))
    request = request_of(
        rows,
        columns=Columns(tokens="tokens", cluster=cluster),
        confidence=Confidence("bootstrap", draws=50),
        estimators=("pope", "ips", "slate_snips"),
    )
    parts = [read_sums(path, request) for path in data.draw(st.permutations(paths))]
    while len(parts) > 1:  # any tree of merges
        first = parts.pop(data.draw(st.integers(0, len(parts) - 1)))
        at = data.draw(st.integers(0, len(parts) - 1))
        parts[at] = parts[at].merge(first)
    whole = read_sums(write(tmp_path / "whole", rows)[0], request)
    mine, theirs = (evaluation_of(sums, request) for sums in (parts[0], whole))
    assert not differences(mine.to_dict(), theirs.to_dict(), 1e-12)
    fingerprints = {(each.log_fingerprint, each.clusters_fingerprint) for each in (*mine.estimates, *theirs.estimates)}
    assert len(fingerprints) == 1
    draws = [each.of("new").ratios.draws("bootstrap", 50, 0) for each in (mine, theirs)]
    np.testing.assert_allclose(*draws, rtol=1e-12)


def test_two_processes_give_the_same_as_one(tmp_path: Path) -> None:
    write(tmp_path / "log", make_rows(), [100, 200])
    one, two = (evaluate_shards(tmp_path / "log", POLICIES, workers=workers) for workers in (1, 2))
    assert one.to_dict() == two.to_dict()


def test_queries_may_be_text_and_dictionaries(tmp_path: Path) -> None:
    rows = make_rows()
    names = np.array([f"q{query:05}" for query in rows.column("query").to_pylist()])
    write(tmp_path / "integers", rows, [50])
    write(tmp_path / "text", make_rows(query=pa.array(names)), [50])
    write(tmp_path / "codes", make_rows(query=pa.array(names).dictionary_encode()), [50])
    texts = [evaluate_shards(tmp_path / name, POLICIES).of("new") for name in ("integers", "text", "codes")]
    assert len({each.value for each in texts}) == 1
    assert texts[1].clusters_fingerprint == texts[2].clusters_fingerprint


# --- the tail, the bootstrap and the placebo ------------------------------------------------------------------------


def test_the_tail_index_needs_only_the_largest_weights(tmp_path: Path) -> None:
    rows = make_rows(2000, spread=2.0)
    paths = write(tmp_path / "log", rows, [1000, 3000], row_group_size=100)
    needed = tail_size(rows.num_rows)
    assert needed < rows.num_rows / 10
    request = request_of(rows, largest=needed)
    total = reduce(LogSums.merge, [read_sums(path, request) for path in paths])
    log = in_memory(rows)
    for name in POLICIES:
        found = evaluation_of(total, request).of(name).diagnostics.pareto_k
        assert found == pareto_k(log_weights(log, name, "response", length_normalize=False))
    few = replace(request, largest=needed // 4)
    with pytest.raises(ValueError, match="largest: expected"):
        evaluation_of(reduce(LogSums.merge, [read_sums(path, few) for path in paths]), few)


@pytest.mark.parametrize("resampling", ["bootstrap", "bayesian"])
def test_multiplicities_follow_from_the_name_of_a_cluster_and_have_mean_and_variance_1(resampling: str) -> None:
    keys = hashes_of([f"query {number}" for number in range(3000)])
    bootstrap = KeyedBootstrap(resampling, draws=203, seed=1)
    drawn = np.concatenate(list(bootstrap.multiplicities(keys)))
    assert drawn.shape == (3000, 203)
    assert drawn.mean() == pytest.approx(1, abs=5 / math.sqrt(drawn.size))
    assert drawn.var() == pytest.approx(1, abs=15 / math.sqrt(drawn.size))
    for axis in (0, 1):  # neither draws nor clusters are correlated
        others = np.corrcoef(drawn if axis == 0 else drawn.T)
        size = drawn.shape[1 - axis]
        assert abs(others[np.triu_indices_from(others, 1)].mean()) < 5 / math.sqrt(drawn.size)
        assert abs(others[0, 1:]).max() < 6 / math.sqrt(size)
    np.testing.assert_array_equal(np.concatenate(list(bootstrap.multiplicities(keys[1000:1007]))), drawn[1000:1007])
    other = np.concatenate(list(replace(bootstrap, seed=2).multiplicities(keys[:10])))
    assert not np.array_equal(other, drawn[:10])
    if resampling == "bootstrap":
        share = [float((drawn == count).mean()) for count in range(5)]
        poisson = [math.exp(-1) / math.factorial(count) for count in range(5)]
        assert share == pytest.approx(poisson, abs=5 / math.sqrt(drawn.size))


@pytest.mark.parametrize("method", ["bootstrap", "bayesian"])
def test_intervals_agree_within_their_monte_carlo_error(tmp_path: Path, method: str) -> None:
    rows = make_rows(3000)
    write(tmp_path / "log", rows, [2000])
    confidence = Confidence(method, draws=2000)
    one = evaluate_shards(tmp_path / "log", POLICIES, estimators=("pope", "ips"), confidence=confidence)
    memory = evaluate_policies(in_memory(rows), estimators=("pope", "ips"), confidence=confidence)
    pairs = [*zip(one.estimates, memory.estimates, strict=True)]
    pairs += [
        *zip((each.utility for each in one.comparisons), (each.utility for each in memory.comparisons), strict=True)
    ]
    for mine, theirs in pairs:
        error = 0.065 * theirs.standard_error  # of a 2.5% quantile of 2,000 normal draws
        assert mine.low == pytest.approx(theirs.low, abs=5 * error)
        assert mine.high == pytest.approx(theirs.high, abs=5 * error)
        assert mine.low != theirs.low
    by_chance = math.sqrt(0.25 / 1000)
    assert one.comparisons[0].probability == pytest.approx(memory.comparisons[0].probability, abs=5 * by_chance)


def test_the_placebo_has_the_mean_and_variance_of_all_permutations() -> None:
    rng = np.random.default_rng(5)
    sizes = [1, 2, 3, 3]
    count = sum(sizes)
    logging = np.full(count, -3.0)
    policies = {name: logging + rng.normal(0, 1, count).clip(-2, 2) for name in ("a", "b", "c")}
    offsets = np.append(0, np.cumsum(sizes))
    log = LoggedSlates.from_arrays(rng.random(count), logging, policies, offsets)
    weights = [log_weights(log, name, "response", length_normalize=False) for name in policies]
    shares = gain_shares(log, weights[2], weights[0])
    slates = [np.arange(low, high) for low, high in itertools.pairwise(offsets)]
    orders = itertools.product(*(itertools.permutations(slate) for slate in slates))
    gains = np.array([shares @ log.utility[np.concatenate(order)] for order in orders])
    found = PlaceboSums.of(log, weights).placebo(2, 0, of_loss=False)
    assert found is not None
    assert found.gain == pytest.approx(shares @ log.utility)
    assert found.mean == pytest.approx(gains.mean())
    assert (found.high - found.mean) / 1.959963984540054 == pytest.approx(gains.std())


def test_the_placebo_agrees_with_permutations(tmp_path: Path) -> None:
    rows = make_rows(1500)
    write(tmp_path / "log", rows)
    (one,) = evaluate_shards(tmp_path / "log", POLICIES).comparisons
    (memory,) = evaluate_policies(in_memory(rows)).comparisons
    assert one.placebo is not None
    assert memory.placebo is not None
    spread = (memory.placebo.high - memory.placebo.low) / 4
    assert one.placebo.gain == pytest.approx(memory.placebo.gain, rel=1e-9)
    for end in ("mean", "low", "high"):
        assert getattr(one.placebo, end) == pytest.approx(getattr(memory.placebo, end), abs=0.5 * spread)


# --- what is held ---------------------------------------------------------------------------------------------------


def test_what_is_held_does_not_grow_with_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = sums_module.BatchSums.of

    def of(rows: Any, *arguments: Any) -> Any:
        batches.append(rows.scores.size)
        return original(rows, *arguments)

    monkeypatch.setattr(sums_module.BatchSums, "of", of)
    monkeypatch.setattr(sums_module, "read_shard", lambda *arguments: read_shard(*arguments, rows=500))
    sizes = []
    for queries in (2_000, 20_000):
        rows = make_rows(queries)
        (path,) = write(tmp_path / str(queries), rows)
        request = request_of(rows, largest=tail_size(70_000), columns=Columns(tokens="tokens"))
        sizes.append(len(pickle.dumps(read_sums(path, request))))
        assert len(batches) >= rows.num_rows / 510
        assert max(batches) < 510
        assert sum(batches) > 0.99 * rows.num_rows
        batches.clear()
    assert sizes[1] < 1.02 * sizes[0]


def test_scores_are_calibrated_by_the_footers_or_by_the_column(tmp_path: Path) -> None:
    scores = make_rows().column("score").to_numpy() * 5 + 2
    rows = make_rows(score=scores)
    values = []
    for name, options in (("with", {}), ("without", {"write_statistics": False})):
        write(tmp_path / name, rows, [20], row_group_size=30, **options)
        one = evaluate_shards(tmp_path / name, POLICIES)
        assert one.of("new").unit.startswith(f"{scores.max() - scores.min():g} of the score (")
        values.append(one.of("new").value)
    assert values[0] == values[1]
    declared = evaluate_shards(tmp_path / "with", POLICIES, score_range=(2, 7))
    expected = evaluate_policies(in_memory(make_rows(score=np.clip((scores - 2) / 5, 0, 1))))
    assert declared.of("new").value == pytest.approx(expected.of("new").value, rel=1e-12)
    logarithmic = evaluate_shards(tmp_path / "with", POLICIES, utility_transform="log1p_calibrated", score_range=(2, 7))
    mapped = np.clip((np.log1p(scores) - np.log(3)) / (np.log(8) - np.log(3)), 0, 1)
    expected = evaluate_policies(in_memory(make_rows(score=mapped)))
    assert logarithmic.of("new").value == pytest.approx(expected.of("new").value, rel=1e-12)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ("dr",)}, "estimators: 'dr' needs a reward model"),
        ({"estimators": ("model_first",)}, "estimators: 'model_first' needs a reward model"),
        ({"estimators": ("none",)}, "estimators: expected pope or one of"),
        ({"estimators": ("clipped_ips",)}, "lam: expected a number for 'clipped_ips'"),
        ({"lam": 2.0}, "lam: expected None"),
        ({"confidence": Confidence("empirical_likelihood")}, "'empirical_likelihood' needs every cluster"),
        ({"confidence": Confidence("hoeffding")}, "'hoeffding' needs every cluster"),
        ({"utility_transform": "rank"}, "utility_transform: expected 'calibrated'"),
        ({"score_range": (0.5, 1.0)}, r"row \d+ of .*: score: expected a number in the score_range \[0.5, 1\]"),
        ({"objective": Objective()}, "columns: expected the name of the tokens"),
        ({"columns": Columns(query="prompt")}, "expected a column 'prompt', got query, user"),
        ({"columns": Columns(query="score")}, "score: expected integers or text, got double"),
        ({"baseline": "other"}, "baseline: expected one of base, new"),
        ({"workers": 0}, "workers: expected an integer >= 1, got 0"),
    ],
)
def test_what_one_pass_cannot_do_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write(tmp_path / "log", make_rows())
    with pytest.raises(ValueError, match=message):
        evaluate_shards(tmp_path / "log", POLICIES, **options)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("new", 40, 0.5, r"row 40: new: expected a log-probability <= 0, -inf for impossible .*, got 0.5"),
        ("new", 41, math.nan, r"row 41: new: expected a log-probability <= 0.*, got nan"),
        (
            "logging_logprob",
            42,
            -math.inf,
            r"row 42: logging_logprob: expected a finite log-probability <= 0.*, got -inf",
        ),
        ("score", 43, math.nan, r"row 43: score: expected a finite number, got nan"),
        ("tokens", 44, 0, r"row 44: tokens: expected an integer >= 1, got 0"),
        ("score", 45, None, r"row 45: score: expected a value, got none"),
        ("query", 46, None, r"row 46: query: expected a value, got none"),
        ("query", 47, 1, r"row 47: expected rows sorted by query, got query 1 after \d+; sort the log once"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, column: str, row: int, value: Any, message: str) -> None:
    rows = make_rows()
    values = rows.column(column).to_pylist()
    values[row] = value
    rows = rows.set_column(rows.column_names.index(column), column, pa.array(values, rows.column(column).type))
    write(tmp_path / "log", rows, row_group_size=17)
    with pytest.raises(ValueError, match=message):
        evaluate_shards(tmp_path / "log", POLICIES, columns=Columns(tokens="tokens"))


def test_shards_that_share_more_than_an_edge_are_refused(tmp_path: Path) -> None:
    rows = make_rows()
    write(tmp_path / "log", rows, [100])
    pq.write_table(rows.slice(80, 40), tmp_path / "log" / "more.parquet")
    with pytest.raises(ValueError, match=r"ends with \d+ and .* begins with \d+: expected the whole log sorted"):
        evaluate_shards(tmp_path / "log", POLICIES)
    with pytest.raises(ValueError, match="is given twice"):
        evaluate_shards([tmp_path / "log" / "0000.parquet"] * 2, POLICIES)
    pq.write_table(make_rows(3), tmp_path / "few.parquet")
    by_user = Columns(cluster="user")
    with pytest.raises(ValueError, match="clusters: expected at least two independent queries, got one"):
        evaluate_shards(tmp_path / "few.parquet", POLICIES, columns=by_user)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"expected files that end in .parquet, found none"):
        evaluate_shards(tmp_path / "empty", POLICIES)
    write(tmp_path / "none", rows.slice(0, 0))
    with pytest.raises(ValueError, match="paths: expected rows, got none"):
        evaluate_shards(tmp_path / "none", POLICIES)


def test_the_figure_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "log", make_rows())
    with pytest.raises(ValueError, match="figure: it draws every weight of a log"):
        evaluate_shards(tmp_path / "log", POLICIES).write_figure(tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()


# --- the command ----------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pope", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_the_command_writes_what_the_function_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows().rename_columns(["prompt", "user", "logging_logprob", "rating", "tokens", "new", "base"])
    write(tmp_path / "log", rows, [60])
    columns = Columns(query="prompt", score="rating", tokens="tokens")
    expected = evaluate_shards(tmp_path / "log", POLICIES, columns=columns, how="recorded")
    named = ["--columns", "query=prompt", "--columns", "score=rating", "--columns", "tokens=tokens"]
    command = ["evaluate", str(tmp_path / "log"), "--policy", "base=base", "--policy", "new=new", *named]
    results = ["--how", "recorded", "-o", str(tmp_path / "out.json"), "--require", "reliable"]
    assert run(monkeypatch, *command, *results) == 1  # support is not checked
    assert json.loads((tmp_path / "out.json").read_text()) == expected.to_dict()
    shown = capsys.readouterr().out
    assert "paired" in shown
    assert "length-normalised" in shown
    for extra, message in (
        (["--samples", "new=x.jsonl"], "--samples: expected none for a log with one row per response"),
        (["--figure", "x.png"], "--figure: expected none for a log with one row per response"),
        (["--columns", "prompt=query"], "--columns: expected NAME=COLUMN with a name among query, logging_logprob"),
    ):
        assert run(monkeypatch, *command, *extra) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_options_for_rows_are_refused_for_slates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.jsonl").write_text("")
    assert run(monkeypatch, "evaluate", str(tmp_path / "log.jsonl"), "--policy", "a=b", "--workers", "2") == 2
    assert "--workers: expected none for slates" in " ".join(capsys.readouterr().err.split())
