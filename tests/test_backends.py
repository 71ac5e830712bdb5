"""Which backend runs: the one asked for, the one the environment names, or the best; never another in silence."""

from __future__ import annotations

import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import test_golden
import torch

import pope_core
from pope_core import backends, testing
from pope_core.testing import TARGETS, Target, make_slates
from pope_core.types import Backend
from pope_kernels import native

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


def test_the_names_of_backends_are_those_registered() -> None:
    assert get_args(Backend) == backends.names()


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_module_has_every_function_of_the_protocol(backend: Backend) -> None:
    usable = [type_ for type_ in ("cpu", "cuda") if backends.availability(backend, type_).usable]
    if not usable:
        pytest.skip(f"{backend} does not run here")
    module = backends.kernels(backend)
    functions = [name for name, value in vars(backends.Kernels).items() if callable(value) and name[0] != "_"]
    assert {"probe", "slate_objective", "token_logprobs"} <= set(functions)
    assert not [name for name in functions if not callable(getattr(module, name, None))]


def test_tensors_that_no_kernels_serve_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^backend: no kernels serve tensors on meta; backend='reference' does"):
        backends.select(torch.device("meta"), None)
    with pytest.raises(RuntimeError, match=r"the CUDA kernels serve CUDA tensors, got tensors on meta"):
        backends.select(torch.device("meta"), "cuda")


class TestAnotherBackend:
    """What CONTRIBUTING says of a new backend: a module with the functions, and its name in one place."""

    TOY: Any = "toy"  # a name that the literal of backends does not have

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
        """How often each function of the backend was called, which hands everything on to the CPU's kernels."""
        counted: Counter[str] = Counter()

        def forwarding(name: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                counted[name] += 1
                return getattr(native, name)(*arguments, **options)

            return call

        module: Any = types.ModuleType("toy_kernels")
        for name in [name for name in vars(backends.Kernels) if name[0] != "_" and name != "probe"]:
            setattr(module, name, forwarding(name))
        module.probe = lambda device: f"a toy on {device.type}"
        monkeypatch.setitem(sys.modules, "toy_kernels", module)
        entry = backends.Registered("toy_kernels", ("cpu",), (), "the toy did not load ({error})")
        monkeypatch.setitem(backends.BACKENDS, "toy", entry)
        testing._targets.cache_clear()
        yield counted
        testing._targets.cache_clear()
        backends.availability.cache_clear()

    @pytest.mark.parametrize("combination", [*test_golden.CASES][::9], ids=lambda c: "-".join(map(str, c)))
    def test_gives_the_golden_values(self, calls: Counter[str], combination: tuple[Any, ...]) -> None:
        for test in (
            test_golden.test_objective_from_response_logprobs,
            test_golden.test_loss_from_logits,
            test_golden.test_loss_from_hidden_states_under_an_identity_head,
        ):
            test(combination, Target(self.TOY), torch.float64)
        functions = {name for name in vars(backends.Kernels) if name[0] != "_"} - {"probe"}
        assert set(calls) == functions

    def test_is_known_everywhere(self, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        assert Target(self.TOY, "cpu") in testing.TARGETS
        assert backends.availability(self.TOY, "cpu") == (True, "a toy on cpu")
        with pytest.raises(ValueError, match=r"^backend: expected one of cpu, cuda, triton, toy, reference or None"):
            value("mps")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^backend: 'toy' serves CPU tensors, got tensors on meta"):
            backends.select(torch.device("meta"), self.TOY)
        monkeypatch.setenv("POPE_BACKEND", "toy")
        assert {(backend, reason) for _, backend, reason in backends.explain(CPU)} == {
            ("toy", "a toy on cpu (POPE_BACKEND is set)")
        }
        assert torch.equal(value(None), value("cpu"))

    def test_is_what_no_choice_means_where_it_comes_first(
        self, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        toy = backends.BACKENDS["toy"]._replace(default_for=("cpu",))
        monkeypatch.setattr(backends, "BACKENDS", {"toy": toy, **(backends.BACKENDS | {"toy": toy})})
        monkeypatch.delenv("POPE_BACKEND", raising=False)
        assert backends.select(CPU, None) == "toy"

    def test_that_does_not_load_says_so(self, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "toy_kernels", None)
        with pytest.raises(RuntimeError, match=r"^backend 'toy' cannot run: the toy did not load \(.*\)"):
            value(self.TOY)


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
    assert f"torch                   {torch.__version__}" in done.stdout
    assert f"row kernels run as {native.isa()}" in done.stdout
    for op, backend, reason in backends.explain(CPU):
        assert f"  {op:26}{backend:12}{reason}" in done.stdout
