"""Which backend runs: the one asked for, the one the environment names, or the best; never another in silence."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch

import pope_core
from pope_core import backends
from pope_core.testing import TARGETS, Target, make_slates
from pope_core.types import Backend

CPU = torch.device("cpu")


def value(backend: Backend | None) -> torch.Tensor:
    p = make_slates()
    return pope_core.pope_loss(
        p.logits, p.labels, *p.log_data, response_offsets=p.response_offsets, backend=backend
    ).value


def test_without_a_choice_cpu_tensors_take_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    assert backends.select(CPU, None) == "cpu"
    assert torch.equal(value(None), value("cpu"))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_usable_backend_may_be_asked_for(target: Target) -> None:
    assert backends.select(torch.device(target.device), target.backend) == target.backend
    usable, reason = backends.availability(target.backend, target.device)
    assert usable
    assert reason


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^backend: expected one of cpu, cuda, triton, reference or None, got 'mps'"):
        value("mps")  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", [b for b in get_args(Backend) if not backends.availability(b, "cpu").usable])
def test_a_backend_that_cannot_run_raises_with_its_reason(backend: Backend) -> None:
    with pytest.raises(RuntimeError, match=f"^backend '{backend}' cannot run: .{{20,}}"):
        value(backend)


def test_the_cpu_backend_refuses_other_devices() -> None:
    with pytest.raises(ValueError, match=r"^backend: 'cpu' serves CPU tensors, got tensors on meta"):
        backends.select(torch.device("meta"), "cpu")


def test_a_missing_extension_is_a_reason_not_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pope_kernels.native", None)
    backends.availability.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"the native extension did not load .*reinstall pope-core with a C\+\+"):
            value(None)
        assert torch.isfinite(value("reference"))
    finally:
        backends.availability.cache_clear()


class TestEnvironmentVariable:
    def test_names_the_backend_where_none_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POPE_BACKEND", "reference")
        assert backends.select(CPU, None) == "reference"
        assert torch.equal(value(None), value("reference"))

    def test_gives_way_to_an_explicit_choice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POPE_BACKEND", "reference")
        assert backends.select(CPU, "cpu") == "cpu"

    def test_is_checked_like_an_argument(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POPE_BACKEND", "fast")
        with pytest.raises(ValueError, match=r"^backend: expected one of .* got 'fast'"):
            value(None)

    def test_does_not_fall_back_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        unusable = [b for b in get_args(Backend) if not backends.availability(b, "cpu").usable]
        if not unusable:
            pytest.skip("every backend can run here")
        monkeypatch.setenv("POPE_BACKEND", unusable[0])
        with pytest.raises(RuntimeError, match="cannot run"):
            value(None)

    def test_is_mentioned_in_the_explanation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("POPE_BACKEND", "reference")
        explained = backends.explain(CPU)
        assert [op for op, _, _ in explained] == list(backends.OPS)
        assert all(backend == "reference" and "POPE_BACKEND" in reason for _, backend, reason in explained)


def test_every_public_operation_is_explained() -> None:
    functions = {name for name in pope_core.__all__ if name.endswith(("logprobs", "objective", "loss"))}
    assert functions == set(backends.OPS)


def test_the_environment_report_tells_the_truth() -> None:
    done = subprocess.run([sys.executable, "-m", "pope_core.env"], capture_output=True, text=True, check=True)
    from pope_kernels import native

    assert f"torch                   {torch.__version__}" in done.stdout
    assert f"row kernels run as {native.isa()}" in done.stdout
    for op, backend, reason in backends.explain(CPU):
        assert f"  {op:26}{backend:12}{reason}" in done.stdout
