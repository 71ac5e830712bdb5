"""`pope score`, killed for real: it resumes to the very bytes of a run that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from pope_align.data import read_slates, write_slates

#: One process imports the libraries; the runs are its children and start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "pope_align.cli.console",
        "pope_align.propensity.logging_policy",
        "transformers.models.llama.modeling_llama",
        "tokenizers",
    ]
)


def pope(*arguments: str) -> None:
    from pope_align.cli import app

    app(list(arguments), standalone_mode=False)


@pytest.fixture
def folder(tmp_path: Path, make_tiny_model, tiny_tokenizer, make_slates) -> Path:
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    slates = make_slates(80, scored=False)
    write_slates([replace(slate, prompt=f"Question {i}?") for i, slate in enumerate(slates)], tmp_path / "log.jsonl")
    return tmp_path


def start(folder: Path, output: str, cache: str) -> BaseProcess:
    process = PROCESSES.Process(
        target=pope,
        args=(
            *("score", str(folder / "log.jsonl"), "--model", str(folder / "model"), "--how", "proxy"),
            *("--output", str(folder / output), "--cache", str(folder / cache), "--batch-tokens", "100"),
        ),
    )
    process.start()
    return process


def cached_batches(folder: Path, cache: str) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / cache).glob("*.jsonl"))


def test_a_scoring_run_killed_three_times_ends_with_the_bytes_of_one_that_was_not(folder: Path) -> None:
    whole = start(folder, "whole.parquet", "whole")
    whole.join()
    assert whole.exitcode == 0
    batches = cached_batches(folder, "whole")
    assert batches > 40

    moments = random.Random(0)
    for _ in range(3):
        process = start(folder, "resumed.parquet", "resumed")
        goal = cached_batches(folder, "resumed") + moments.randrange(1, batches // 5)
        while process.is_alive() and cached_batches(folder, "resumed") < goal:
            time.sleep(moments.random() * 1e-3)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (folder / "resumed.parquet").exists()
        assert 0 < cached_batches(folder, "resumed") < batches

    last = start(folder, "resumed.parquet", "resumed")
    last.join()
    assert last.exitcode == 0
    assert (folder / "resumed.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert len(read_slates(folder / "resumed.parquet")) == 80

    cache_after = {path.name: path.read_bytes() for path in (folder / "resumed").glob("*.jsonl")}
    again = start(folder, "again.parquet", "resumed")
    again.join()
    assert (folder / "again.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert cache_after == {path.name: path.read_bytes() for path in (folder / "resumed").glob("*.jsonl")}  # all from it
    entries = [json.loads(line) for content in cache_after.values() for line in content.splitlines()]
    scored = [entry["value"] for entry in entries if "value" in entry]
    assert len({key for batch in scored for key in batch}) == sum(map(len, scored)) > 0  # nothing was computed twice
