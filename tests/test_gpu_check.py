"""Parts of scripts/gpu_check.py, and of the program that it runs under a sanitizer, that need no GPU."""

from __future__ import annotations

import importlib.util
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
    module = importlib.util.module_from_spec(spec)
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


def test_wheels_that_came_in_pieces_are_put_together(tmp_path: Path) -> None:
    gpu_check = script("gpu_check")
    for name, content in (("a.whl.part-00", b"one "), ("a.whl.part-01", b"two"), ("b.whl", b"whole")):
        (tmp_path / name).write_bytes(content)
    assert gpu_check.join_parts(tmp_path) == [tmp_path / "a.whl"]
    assert (tmp_path / "a.whl").read_bytes() == b"one two"
    assert sorted(path.name for path in tmp_path.glob("*.whl")) == ["a.whl", "b.whl"]
