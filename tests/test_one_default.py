"""The options of the objective stand in one place: no other literal, and one changed line changes every door."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pope_core import Objective

ROOT = Path(__file__).parent.parent
OPTIONS = {field.name for field in fields(Objective)}
SOURCES = [ROOT / "pope_core", ROOT / "python" / "pope_align"]

#: Every place where an objective is a default: those of training, and those of evaluation.
DOORS = """
import inspect
import pope_core
from pope_align import PopeConfig, evaluate_policies
from pope_align.ope import pope_value
from pope_core import Objective

def default(function):
    return inspect.signature(function).parameters["objective"].default

names = ("slate_objective", "pope_loss", "linear_pope_loss")
training = [default(getattr(library, name)) for library in (pope_core, pope_core.reference) for name in names]
training += [default(pope_core.PopeLoss), default(pope_core.LinearPopeLoss), PopeConfig("unused").objective]
evaluation = [default(evaluate_policies), default(pope_value)]
print(all(objective == Objective() for objective in training))
print(all(objective == Objective.evaluation() for objective in evaluation))
print(*{objective.diversity_weight for objective in training})
"""


#: What an estimator is, not what an objective defaults to.
OF_ESTIMATORS = "python/pope_align/ope/estimators.py"


def literal_defaults(file: Path) -> Iterator[str]:
    """Parameters and fields named as an option of the objective that have a literal as their default."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = node.args
            pairs = list(zip(reversed(arguments.posonlyargs + arguments.args), reversed(arguments.defaults)))
            pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults))
            for argument, default in pairs:
                if argument.arg in OPTIONS and isinstance(default, ast.Constant):
                    yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}({argument.arg}=...)"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in OPTIONS:
            value = node.value
            if isinstance(value, ast.Call):
                value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
            if isinstance(value, ast.Constant):
                yield f"{file.relative_to(ROOT)}:{node.lineno} {node.target.id}"


def test_no_other_place_has_a_default_of_the_objective() -> None:
    found = [
        each
        for source in SOURCES
        for file in sorted(source.rglob("*.py"))
        if str(file.relative_to(ROOT)) not in ("pope_core/objective.py", OF_ESTIMATORS)
        for each in literal_defaults(file)
    ]
    assert not found
    assert len(list(literal_defaults(ROOT / "pope_core" / "objective.py"))) == len(OPTIONS)


@pytest.mark.slow
def test_a_changed_default_changes_every_door(tmp_path: Path) -> None:
    for name, root in (("pope_core", "."), ("pope_kernels", "kernels"), ("pope_align", "python")):
        shutil.copytree(ROOT / root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "pope_core" / "objective.py"
    text = file.read_text(encoding="utf-8")
    assert text.count("default=0.1") == 1
    file.write_text(text.replace("default=0.1", "default=0.25"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", DOORS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["True", "True", "0.25"]
