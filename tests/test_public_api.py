"""Public names and signatures are those in tests/golden/public_api.json, which scripts/freeze_api.py writes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pope_core

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "freeze_api.py"


@pytest.fixture(scope="module")
def freeze() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("freeze_api", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_public_signatures_are_those_frozen(freeze: types.ModuleType) -> None:
    frozen = json.loads(freeze.FILE.read_text(encoding="utf-8"))
    assert set(frozen) == set(freeze.MODULES)
    for name in freeze.MODULES:
        assert frozen[name], f"{name} has no public name"
        found = list(freeze.differences(frozen[name], freeze.describe(name)))
        assert not found, "\n".join([*found, f"{name}: see the docstring of {SCRIPT.name}"])


def renamed(logits, labels, *, offsets=None, reduction="sum", backend=None): ...
def other_default(lengths: object = (1,)) -> None: ...


@pytest.mark.parametrize(
    ("name", "value"), [("response_logprobs", renamed), ("offsets_from_lengths", other_default), ("pope_loss", None)]
)
def test_a_changed_signature_is_a_difference(
    freeze: types.ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, value: Callable[..., object] | None
) -> None:
    frozen = freeze.describe("pope_core")
    monkeypatch.setattr(pope_core, name, value)
    (difference,) = freeze.differences(frozen, freeze.describe("pope_core"))
    assert difference.startswith(f"{name}:")


def test_a_new_name_is_a_difference(freeze: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = freeze.describe("pope_core")
    monkeypatch.setattr(pope_core, "__all__", [*pope_core.__all__, "slates"])
    (difference,) = freeze.differences(frozen, freeze.describe("pope_core"))
    assert "frozen: nothing" in difference


def test_a_changed_default_of_the_objective_is_one_difference(tmp_path: Path) -> None:
    for name in ("pope_core", "kernels/pope_kernels", "scripts", "tests/golden"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "pope_core" / "objective.py"
    text = file.read_text(encoding="utf-8")
    assert text.count("default=0.1") == 1
    file.write_text(text.replace("default=0.1", "default=0.25"), encoding="utf-8")
    program = """
import json, freeze_api
frozen = json.loads(freeze_api.FILE.read_text())
for name in ("pope_core", "pope_core.reference"):
    print(*freeze_api.differences(frozen[name], freeze_api.describe(name)))
"""
    path = os.pathsep.join(str(tmp_path / name) for name in (".", "kernels", "scripts"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("frozen:") == 1
    assert "Objective.():" in done.stdout
    assert "diversity_weight: float = 0.25" in done.stdout


class Pair(NamedTuple):
    first: Pair | None
    second: int


@dataclass
class Inheriting(Exception):
    own: int = 1

    @property
    def twice(self) -> int:
        return 2 * self.own


def test_annotations_are_texts_that_no_version_of_python_changes(freeze: types.ModuleType) -> None:
    """The signature of a NamedTuple has ``ForwardRef``, whose text other versions print otherwise."""
    assert freeze.entry(Pair) == {"()": "(first: Pair | None, second: int)"}
    assert freeze.entry(Inheriting) == {"()": "(own: int = 1) -> None", "twice": "property -> int"}


def test_a_module_without_a_list_of_names_has_those_it_defines(freeze: types.ModuleType) -> None:
    module: Any = types.ModuleType("made_up")
    exec("from json import dumps\ndef shown(): ...\ndef _hidden(): ...\nnumber = 1", vars(module))
    assert freeze.public_names(module) == ["shown"]
