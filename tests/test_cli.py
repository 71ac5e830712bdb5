"""The command ``pope``, as a user runs it: through a subprocess, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pope_align.cli.train import parse
from pope_align.data import read_slates, write_slates


def pope(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pope_align.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_slates) -> Path:
    """A folder with a model and an unscored log."""
    folder = tmp_path_factory.mktemp("cli")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(make_slates(6, scored=False), folder / "log.jsonl")
    return folder


def test_score_then_train_leaves_a_model_metrics_and_curves(work: Path) -> None:
    run = pope(
        "score", "log.jsonl", "--model", "model", "--how", "proxy", "-o", "scored.jsonl", "--max-length", 64, cwd=work
    )
    assert run.returncode == 0, run.stderr
    assert "6 slates" in run.stderr
    scored = read_slates(work / "scored.jsonl")
    assert all(slate.logging_policy["how"] == "proxy" for slate in scored)
    config = {
        "model": "model",
        "train_data": "scored.jsonl",
        "eval_data": "scored.jsonl",
        "output_dir": "out",
        "learning_rate": "1e-3",
        "max_length": 64,
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "gradient_accumulation_steps": 2,
        "clip": None,
        "use_cpu": True,
    }
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    run = pope("train", "--config", "run.yaml", "--dry-run", cwd=work)
    assert run.returncode == 0, run.stderr
    assert "steps       3 of 2 slates; 3 an epoch" in run.stdout
    assert not (work / "out").exists()
    run = pope("train", "--config", "run.yaml", "--diversity-weight", "0.2", cwd=work)
    assert run.returncode == 0, run.stderr
    assert "step 3 of 3: V " in run.stderr
    assert "held out: V " in run.stderr
    metrics = json.loads((work / "out" / "metrics.json").read_text())
    assert metrics["objective"]["diversity_weight"] == 0.2
    assert metrics["objective"]["clip"] is None
    assert [entry["step"] for entry in metrics["history"] if "loss" in entry] == [1, 2, 3]
    assert (work / "out" / "model.safetensors").exists()
    assert (work / "out" / "training.png").stat().st_size > 10_000
    assert "## Held-out estimate" in (work / "out" / "README.md").read_text()


def test_a_mistake_is_one_line_and_exit_code_2(work: Path) -> None:
    (work / "bad.jsonl").write_text('{"prompt": "p", "completions": ["a"], "scores": [1, 2]}\n')
    run = pope("score", "bad.jsonl", "--model", "model", "--how", "proxy", "-o", "out.jsonl", cwd=work)
    assert run.returncode == 2
    assert "bad.jsonl, row 1: scores: expected 1 entries, one per completion, got 2 entries" in run.stderr
    assert "Traceback" not in run.stderr
    run = pope("score", "none.jsonl", "--model", "model", "--how", "proxy", "-o", "out.jsonl", cwd=work)
    assert run.returncode == 2
    assert "none.jsonl" in run.stderr
    run = pope("train", "--model", "model", "--train_data", "log.jsonl", "--use_cpu", cwd=work)
    assert run.returncode == 2
    assert "logging_logprobs" in run.stderr
    assert "pope score" in run.stderr


def test_help_teaches(tmp_path: Path) -> None:
    for arguments in (["--help"], ["score", "--help"], ["train", "--help"], ["env", "--help"]):
        run = pope(*arguments, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
    run = pope("train", "--help", cwd=tmp_path)
    assert "alpha, the weight of diversity against utility." in run.stdout
    assert "--adam_beta1" not in run.stdout  # there, but not shown


def test_flags_go_over_the_file_and_none_means_no_value(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain_data: t\nlearning_rate: 1e-6\nclip: 3.0\nbf16: false\nuse_cpu: true\n")
    flags = ["--config", str(path), "--clip", "none", "--learning_rate", "2e-6", "--normalization", "none"]
    run, args = parse([*flags, "--utility-transform", "none", "--max-steps", "7"])
    assert (run.model, run.train_data) == ("m", "t")
    assert args.clip is None
    assert args.learning_rate == 2e-6
    assert args.normalization == args.utility_transform == "none"
    assert args.max_steps == 7
    path.write_text("model: m\ntrain_data: t\nlearning_rte: 1e-6\n")
    with pytest.raises(ValueError, match=r"run\.yaml: learning_rte: expected an argument of pope train"):
        parse(["--config", str(path)])
