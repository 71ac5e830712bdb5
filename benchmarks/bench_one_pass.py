"""Evaluation in one pass of 1,000,000 and 10,000,000 responses on disk, and in memory: seconds, peak memory, equality.

    pytest benchmarks/bench_one_pass.py
    ONE_PASS_FILES=/big/disk pytest benchmarks/bench_one_pass.py -k 10000000

Slates of five responses, two policies, estimators ``pope`` and ``ips`` and their comparison; shards of a million
rows. Each job runs in a process of its own, whose CPU seconds (of the work, not of imports) and largest resident memory
(of everything) are written to ``results/one-pass-*``, which ``python benchmarks/compare.py`` prints. In memory the same
files are read into arrays; the placebo, 1,000 permutations of the log, is left out there, for it alone takes minutes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from harness import add_row, conditions, results_file
from pope_align.ope import Columns, Confidence, LoggedSlates, compare, estimate, evaluate_shards, pope_value

SIZE, SHARD = 5, 1_000_000
POLICIES = {"base": "base", "new": "new"}


def write_log(folder: Path, responses: int) -> None:
    """Shards of a log whose weights have a log-normal spread of 0.4."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, responses, SHARD)):
        rng, count = np.random.default_rng(number), min(SHARD, responses - start)
        tokens = rng.integers(3, 200, count)
        logging = -tokens * rng.uniform(1.0, 3.0, count) - 5
        columns = {
            "query": (start + np.arange(count)) // SIZE,
            "logging_logprob": logging,
            "score": rng.random(count),
            "tokens": tokens,
            "new": logging + rng.normal(-0.08, 0.4, count),
            "base": logging + rng.normal(-0.08, 0.4, count),
        }
        pq.write_table(pa.table(columns), folder / f"{number:04}.parquet")


def in_memory(folder: Path, confidence: Confidence) -> list[Any]:
    table = pq.read_table(folder).combine_chunks()
    array = {name: table.column(name).to_numpy() for name in table.column_names}
    log = LoggedSlates.from_arrays(
        array["score"],
        array["logging_logprob"],
        {name: array[name] for name in POLICIES},
        np.arange(0, table.num_rows + 1, SIZE),
        how="recorded",
    )
    estimates = {}
    for name in POLICIES:
        estimates["pope", name] = pope_value(log, name, confidence=confidence)
        estimates["ips", name] = estimate(log, name, "ips", confidence=confidence)
    difference = compare(estimates["pope", "new"], estimates["pope", "base"])
    return [estimates["pope", "new"], estimates["ips", "new"], difference]


def one_pass(folder: Path, confidence: Confidence, columns: Columns = Columns()) -> list[Any]:  # noqa: B008 (frozen)
    evaluation = evaluate_shards(folder, POLICIES, columns=columns, confidence=confidence, how="recorded")
    return [evaluation.of("new"), evaluation.of("new", "ips"), *evaluation.comparisons]


def with_tokens(folder: Path, confidence: Confidence) -> list[Any]:
    return one_pass(folder, confidence, Columns(tokens="tokens"))


#: Name, how it is done, and the interval.
JOBS: dict[str, tuple[Callable[[Path, Confidence], list[Any]], Confidence]] = {
    "evaluate_shards": (one_pass, Confidence()),
    "evaluate_shards, with length-normalised indices": (with_tokens, Confidence()),
    "evaluate_shards, 1,000 bootstrap draws": (one_pass, Confidence("bootstrap")),
    "in memory": (in_memory, Confidence()),
    "in memory, 1,000 bootstrap draws": (in_memory, Confidence("bootstrap")),
}


def numbers(results: list[Any]) -> dict[str, float]:
    """Everything that must agree."""
    pope, ips, difference = results
    found = {"difference": difference.utility.value, "its error": difference.utility.standard_error}
    for name, each in (("pope", pope), ("ips", ips)):
        found |= {f"{name} value": each.value, f"{name} error": each.standard_error}
        found |= {f"{name} ESS": each.diagnostics.ess, f"{name} k-hat": each.diagnostics.pareto_k}
        found |= {f"{name} low": each.low, f"{name} high": each.high}
    return found


def measure(name: str, folder: Path) -> dict[str, Any]:
    work, confidence = JOBS[name]
    cpu, wall = time.process_time(), time.perf_counter()
    found = numbers(work(folder, confidence))
    return {
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "numbers": found,
    }


def measured_in_child(name: str, folder: Path) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, name, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def folders() -> Iterator[Callable[[int], Path]]:
    """The log of a size, written once."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ONE_PASS_FILES")) as root:

        def folder(responses: int) -> Path:
            path = Path(root) / str(responses)
            if not path.exists():
                write_log(path, responses)
            return path

        yield folder


#: A bootstrap of ten million in memory takes many minutes.
SIZES = [
    (name, responses)
    for responses in (1_000_000, 10_000_000)
    for name in JOBS
    if responses == 1_000_000 or name != "in memory, 1,000 bootstrap draws"
]


@pytest.mark.parametrize(("name", "responses"), SIZES)
def test_evaluation(name: str, responses: int, folders: Callable[[int], Path], smoke: bool) -> None:
    if smoke:
        measure(name, folders(responses // 500))
        return
    row = measured_in_child(name, folders(responses))
    about = conditions()
    row = {"source": "one-pass", "name": name, "shape": {"responses": responses}, **row}
    add_row(results_file("one-pass", about["device"]), about, row)


@pytest.mark.parametrize("responses", [1_000_000])
def test_both_are_equal(responses: int, folders: Callable[[int], Path], smoke: bool) -> None:
    """Value, standard error, ESS, k-hat and t interval to 1e-9."""
    folder = folders(responses // 500 if smoke else responses)
    mine, theirs = (numbers(work(folder, Confidence())) for work in (one_pass, in_memory))
    for name, value in theirs.items():
        assert mine[name] == pytest.approx(value, rel=1e-9), name


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
