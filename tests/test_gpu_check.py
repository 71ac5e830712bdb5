"""Parts of scripts/gpu_check.py, and of the program that it runs under a sanitizer, that need no GPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import torch

from pope_core.objective import Normalization, Weighting
from pope_core.testing import Target

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_case_that_a_sanitizer_watches_runs(dtype: str) -> None:
    """On the CPU, so that a changed signature is not found out on a GPU only."""
    case = script("gpu_small_case")
    assert set(case.DTYPES) == {"bfloat16", "float16", "float32"}
    assert case.small_case(Target("cpu"), getattr(torch, dtype), 37) == 1 + len(get_args(Weighting)) * len(
        get_args(Normalization)
    )


@pytest.mark.parametrize("name", ["score, bfloat16", "train, packed", "train, LoRA", "evaluate", "generate"])
def test_steps_of_training_agree_with_plain_ones(name: str, tmp_path: Path) -> None:
    """On the CPU as both devices; a GPU runs all steps."""
    training = script("gpu_training")
    at = training.Place("cpu", "tiny", tmp_path)
    expected = training.references([name], "tiny", tmp_path)[training.STEPS[name].reference]
    assert training.known_references(tmp_path) == {training.STEPS[name].reference: expected}
    row = training.measured(name, at, expected)
    assert row["agrees"], row
    assert all(len(values) >= 3 for values in row["found"].values())
    numbers = [value for values in expected.values() for value in values if not isinstance(value, str)]
    assert any(numbers) or name == "generate"
    assert json.loads(json.dumps(row)) == row


def test_a_step_that_differs_or_fails_has_a_row_and_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = script("gpu_training")
    work = {
        "close": lambda at, off: {"loss": [1.0 + off]},
        "far": lambda at, off: {"loss": [1.0 + 10 * off]},
        "text": lambda at, off: {"answer": ["a" if off else "b"]},
        "nothing": lambda at, off: {"loss": [1.0] * int(off == 0)},
        "not a number": lambda at, off: {"loss": [float("nan") if off else 1.0]},
        "broken": lambda at, off: {"loss": [1 / off]},
    }
    monkeypatch.setattr(
        training,
        "STEPS",
        {
            name: training.Step(each, {"off": 0.0 if name == "broken" else 0.01}, {"off": 0.0})
            for name, each in work.items()
        },
    )
    monkeypatch.setattr(
        training, "reference_without_gpu", lambda name, at: {"answer": ["b"]} if name == "text" else {"loss": [1.0]}
    )
    at, out = training.Place("cpu", "tiny", tmp_path), tmp_path / "rows.json"
    assert training.all_agree(["close"], at, out)
    assert not training.all_agree(list(work), at, out)
    rows = {row["name"]: row for row in json.loads(out.read_text())["rows"]}
    assert [name for name, row in rows.items() if row.get("agrees")] == ["close"]
    assert rows["broken"]["error"].startswith("ZeroDivisionError")
    assert set(rows) == set(work)


def test_weights_that_came_in_pieces_are_put_together(tmp_path: Path) -> None:
    training = script("gpu_training")
    for number, content in enumerate((b"weights", b" of a model")):
        (tmp_path / f"small.gguf.part-{number:02}").write_bytes(content)
    for given in (tmp_path, tmp_path / "small.gguf"):
        assert training.joined(str(given)) == str(given)
        assert (tmp_path / "small.gguf").read_bytes() == b"weights of a model"
        (tmp_path / "small.gguf").unlink()
    assert training.joined("tiny") == "tiny"


def test_wheels_that_came_in_pieces_are_put_together(tmp_path: Path) -> None:
    gpu_check = script("gpu_check")
    for name, content in (("a.whl.part-00", b"one "), ("a.whl.part-01", b"two"), ("b.whl", b"whole")):
        (tmp_path / name).write_bytes(content)
    assert gpu_check.join_parts(tmp_path) == [tmp_path / "a.whl"]
    assert (tmp_path / "a.whl").read_bytes() == b"one two"
    assert sorted(path.name for path in tmp_path.glob("*.whl")) == ["a.whl", "b.whl"]
