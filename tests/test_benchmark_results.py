"""What a run of the benchmarks leaves behind: rows that add up, conditions without which they mean nothing, tables."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import harness
import pytest
from compare import report
from harness import add_row, conditions

ABOUT = {"device": "Some GPU", "driver": "1.2", "versions": {"torch": "3.4"}, "commit": "0123456789abcdef"}


def row(name: str, backward: bool = True, median: float = 20.0, **more: Any) -> dict[str, Any]:
    return {
        "source": "hidden",
        "name": name,
        "job": "",
        "shape": {"tokens": 8192, "vocab": 128256, "width": 2048},
        "ragged": False,
        "states": "",
        "dtype": "bfloat16",
        "trainable": True,
        "backward": backward,
        "floor_ms": 16.2 if backward else 5.43,
        "median_ms": median,
        "quartiles_ms": [median - 0.1, median + 0.3],
        "best_ms": median - 1,
        "peak_bytes": 700 << 20,
        "gradient_bytes": 100 << 20,
        "loss_error": 1e-4,
        "gradient_error": 3.14e-3,
        **more,
    }


def rows_in(file: Path) -> list[tuple[str, bool, float]]:
    return [(row["name"], row["backward"], row["median_ms"]) for row in json.loads(file.read_text())["rows"]]


def test_parts_of_a_run_add_up_and_a_row_measured_again_keeps_its_place(tmp_path: Path) -> None:
    file = tmp_path / "results" / "gpu-some-gpu.json"
    for each in (row("a"), row("b"), row("a", backward=False, median=5.0), row("a", median=19.0)):
        add_row(file, {**ABOUT, "copy_tbps": 3.0}, each)
    assert rows_in(file) == [("a", True, 19.0), ("b", True, 20.0), ("a", False, 5.0)]


@pytest.mark.parametrize("other", ["device", "driver", "versions", "commit"])
def test_rows_of_other_conditions_are_not_mixed(tmp_path: Path, other: str) -> None:
    file = tmp_path / "gpu.json"
    add_row(file, ABOUT, row("a"))
    add_row(file, {**ABOUT, other: "another"}, row("b"))
    assert rows_in(file) == [("b", True, 20.0)]
    assert json.loads(file.read_text())[other] == "another"


def test_a_copy_without_git_is_told_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POPE_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert conditions()["commit"] == "unknown"
    monkeypatch.setenv("POPE_COMMIT", "abc")
    assert conditions()["commit"] == "abc"


def test_a_copy_inside_another_repository_keeps_the_commit_it_was_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--allow-empty", "-m", "other"], cwd=tmp_path, check=True)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.delenv("POPE_COMMIT", raising=False)
    assert len(conditions()["commit"]) == 40
    monkeypatch.setenv("POPE_COMMIT", "abc")
    assert conditions()["commit"] == "abc"


def test_the_table_of_a_gpu_shows_medians_floors_errors_other_losses_and_who_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    rows = [
        row("pope_core, cuda", backward=False, median=5.6),
        row("pope_core, cuda"),
        row("eager", median=30.0),
        row("DPO, fused", median=104.0, job="DPO"),
        row("eager", median=40.0, states="a model on a text", ragged=True),
        {**row("absent"), "skipped": "ImportError: no module"},
    ]
    for each in rows:
        add_row(file, ABOUT, each)
    assert report(file).splitlines() == [
        "Some GPU; driver 1.2; torch 3.4; commit 0123456789ab.",
        "",
        "From hidden: 8192 tokens, 128256 vocabulary entries, width 2048",
        "",
        "| | bfloat16, forward | bfloat16, forward+backward | memory | gradient's error |",
        "|---|---:|---:|---:|---:|",
        "| floor: the bytes, or the products | 5.43 ms | 16.2 ms | | |",
        "| **pope_core, cuda** | 5.60 ± 0.20 ms | 20.0 ± 0.2 ms | 600 MiB | 3.1e-03 |",
        "| eager |  | 30.0 ± 0.2 ms (1.5x) | 600 MiB | 3.1e-03 |",
        "| *DPO, fused* (another loss: DPO) |  | 104.0 ± 0.2 ms (5.2x) | 600 MiB | 3.1e-03 |",
        "",
        "From hidden: 8192 tokens, 128256 vocabulary entries, width 2048, states of a model on a text, "
        "ragged responses",
        "",
        "| | bfloat16, forward+backward | memory | gradient's error |",
        "|---|---:|---:|---:|",
        "| floor: the bytes, or the products | 16.2 ms | | |",
        "| eager | 40.0 ± 0.2 ms | 600 MiB | 3.1e-03 |",
        "",
        "Did not take part:",
        "- absent: ImportError: no module",
    ]


def test_steps_of_training_have_a_table(tmp_path: Path) -> None:
    step = {"model": "tiny", "difference": 1e-4, "allowed": 2e-3, "agrees": True, "seconds": 3.2, "peak_bytes": 5 << 20}
    file = tmp_path / "pipeline-some-gpu.json"
    add_row(file, ABOUT, {"name": "score", **step})
    add_row(file, ABOUT, {"name": "train", **step, "difference": 0.5, "agrees": False})
    add_row(file, ABOUT, {"name": "generate", **step, "difference": None, "agrees": False, "peak_bytes": None})
    add_row(file, ABOUT, {"name": "evaluate", "model": "tiny", "error": "ValueError: no"})
    assert report(file).splitlines()[4:] == [
        "| score | tiny | 1.0e-04 | 2e-03 | 3 s | 5 MiB |",
        "| train | tiny | **differs**: 5.0e-01 | 2e-03 | 3 s | 5 MiB |",
        "| generate | tiny | **differs**: other texts | 2e-03 | 3 s |  |",
        "| evaluate | tiny | ValueError: no | | | |",
    ]


def test_evaluation_in_one_pass_has_a_table_of_seconds_and_memory(tmp_path: Path) -> None:
    file = tmp_path / "one-pass-some-cpu.json"
    for responses, name in ((2_000_000, "a"), (1_000, "b")):
        about = {"shape": {"responses": responses}, "cpu_s": 1.26, "peak_bytes": 5 << 20}
        add_row(file, ABOUT, {"source": "one-pass", "name": name, **about})
    assert report(file).splitlines()[2:] == [
        "| | responses | CPU seconds | peak memory |",
        "|---|---:|---:|---:|",
        "| b | 1,000 | 1.3 | 5 MiB |",
        "| a | 2,000,000 | 1.3 | 5 MiB |",
    ]


def test_scoring_has_a_table_of_tokens_per_second(tmp_path: Path) -> None:
    file = tmp_path / "scoring-some-cpu.json"
    shape = {"prompt": 160, "responses_to_a_prompt": 4}
    add_row(file, ABOUT, {"source": "scoring", "name": "a", "shape": shape, "tokens": 512, "best_ms": 250.0})
    add_row(file, ABOUT, {"source": "check", "name": "b", "shape": {"prompt": 160}, "tokens": 0, "best_ms": 1500.0})
    assert report(file).splitlines()[4:] == [
        "| scoring | a | prompt 160, responses to a prompt 4 | 2,048 | 0.25 s |",
        "| check | b | prompt 160 |  | 1.50 s |",
    ]
