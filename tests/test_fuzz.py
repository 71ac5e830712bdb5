"""Bounded runs of scripts/fuzz.py: inputs that once failed, and a few made up by hypothesis and by atheris."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
TARGETS = ("readers", "config", "arguments")
SAVED = [path for target in TARGETS for path in sorted((Path(__file__).parent / "fuzz" / target).iterdir())]


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(SCRIPTS))
    import fuzz

    yield fuzz
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("path", SAVED, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_inputs_of_the_corpus_are_answered_well(fuzz, path: Path) -> None:
    fuzz.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("what", TARGETS)
def test_hypothesis_finds_no_fault(fuzz, what: str) -> None:
    assert fuzz.with_hypothesis(what, seconds=8, examples=30) > 5


def test_a_fault_is_found_and_kept(fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(data: bytes) -> None:
        assert len(data) < 3

    monkeypatch.setattr(fuzz, "SEEDS", tmp_path)
    monkeypatch.setitem(fuzz.TARGETS, "config", breaks)
    with pytest.raises(AssertionError):
        fuzz.with_hypothesis("config", seconds=20, examples=200)
    (path,) = (tmp_path / "config").iterdir()
    assert len(path.read_bytes()) == 3  # the smallest


def test_a_backend_that_computes_something_else_is_found(fuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    from pope_kernels import native

    sums = native.response_sums
    fuzz.arguments(b"\x01")
    monkeypatch.setattr(native, "response_sums", lambda *given: sums(*given) + 0.1)
    with pytest.raises(fuzz.Fault, match=r"(?s)response_logprobs: .*the CPU backend: tensor.*the reference"):
        fuzz.arguments(b"\x01")


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_atheris_finds_no_fault(fuzz) -> None:
    assert fuzz.with_atheris("config", 3) == 0
