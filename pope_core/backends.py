"""Which implementation runs: probe, select, say why. An explicit choice that cannot run raises; nothing falls back."""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast, get_args

import torch
from torch import Tensor

from .types import Backend

if TYPE_CHECKING:
    from pope_kernels.values import ObjectiveOptions, SlateValues

#: The public operations; all of them have every backend.
OPS = ("response_logprobs", "linear_response_logprobs", "slate_objective", "pope_loss", "linear_pope_loss")

_MODULES = {"cpu": "pope_kernels.native", "cuda": "pope_kernels.native_cuda", "triton": "pope_kernels.triton"}

#: Environment variable with the backend to use where ``backend=None``.
ENVIRONMENT_VARIABLE = "POPE_BACKEND"


class Kernels(Protocol):
    """What a backend offers; ``pope_kernels.native`` documents each function.

    Everything else in ``pope_core`` is written against this, so a new backend is one module with these functions.
    Tensors stay on their device and no function reads a number back to the host.
    """

    def empty_large(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor: ...

    def project(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, /) -> Tensor: ...

    def back_project(self, gradient: Tensor, weight: Tensor, out: Tensor, /) -> Tensor: ...

    def add_outer(self, total: Tensor, gradient: Tensor, hidden: Tensor, first: bool, /) -> None: ...

    def token_logprobs(
        self, logits: Tensor, labels: Tensor, /, *, scale: float = 1.0, softcap: float | None = None
    ) -> tuple[Tensor, Tensor]: ...

    def logit_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        lse: Tensor,
        coefficients: Tensor | None,
        out: Tensor,
        /,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> Tensor: ...

    def response_sums(self, logprobs: Tensor, labels: Tensor, response_offsets: Tensor, mean: bool, /) -> Tensor: ...

    def token_coefficients(self, grad: Tensor, labels: Tensor, response_offsets: Tensor, mean: bool, /) -> Tensor: ...

    def slate_objective(
        self,
        response_logprobs: Tensor,
        logging_logprobs: Tensor,
        utility: Tensor,
        slate_offsets: Tensor,
        options: ObjectiveOptions,
        dtype: torch.dtype,
        /,
    ) -> SlateValues: ...

    def group_coefficients(
        self,
        token_logprobs: Tensor,
        labels: Tensor,
        response_offsets: Tensor,
        logging_logprobs: Tensor,
        utility: Tensor,
        slate_offsets: Tensor,
        share: Tensor | None,
        mean: bool,
        options: ObjectiveOptions,
        /,
    ) -> tuple[Tensor, Tensor]: ...


class Availability(NamedTuple):
    usable: bool
    reason: str


@functools.cache
def availability(backend: Backend, device_type: str) -> Availability:
    """Whether a backend can run on tensors of a device type in this process, and the reason; probed once."""
    if backend == "reference":
        return Availability(True, "plain float64 PyTorch, on any device")
    return {"cpu": _native, "cuda": _cuda, "triton": _triton}[backend](device_type)


def _native(device_type: str) -> Availability:
    if device_type != "cpu":
        return Availability(False, f"the CPU kernels serve CPU tensors, got tensors on {device_type}")
    try:
        native = importlib.import_module("pope_kernels.native")
    except ImportError as error:
        return Availability(
            False, f"the native extension did not load ({error}); reinstall pope-core with a C++ compiler"
        )
    return Availability(True, f"native kernels, {native.isa()}")


def _cuda(device_type: str) -> Availability:
    if device_type != "cuda":
        return Availability(False, f"the CUDA kernels serve CUDA tensors, got tensors on {device_type}")
    if torch.version.cuda is None:
        return Availability(False, "this torch was built without CUDA")
    if (missing := _missing_product()) is not None:
        return missing
    try:
        native = importlib.import_module("pope_kernels.native_cuda")
    except ImportError as error:
        return Availability(False, f"the native extension did not load ({error})")
    try:
        return Availability(True, native.probe(torch.device(device_type, torch.cuda.current_device())))
    except RuntimeError as error:
        return Availability(False, str(error))


def _triton(device_type: str) -> Availability:
    if device_type == "cuda" and (missing := _missing_product()) is not None:
        return missing
    try:
        kernels = importlib.import_module("pope_kernels.triton")
    except ImportError as error:
        return Availability(False, f"triton did not load ({error})")
    try:
        return Availability(True, kernels.probe(torch.device(device_type)))
    except Exception as error:  # a compiler may fail in any way; whatever it says is the reason
        return Availability(False, f"a small kernel did not run ({type(error).__name__}: {error})")


def _missing_product() -> Availability | None:
    if "dtype_out" in torch.ops.aten.addmm.overloads():
        return None
    return Availability(
        False, f"the head's gradient needs torch >= 2.8 (addmm with out_dtype), got {torch.__version__}"
    )


def _best(device: torch.device) -> Backend:
    if device.type == "cpu":
        return "cpu"
    return "cuda" if availability("cuda", device.type).usable else "triton"


def select(device: torch.device, requested: Backend | None) -> Backend:
    """The backend for tensors on ``device``: the one asked for, ``POPE_BACKEND``, or the best usable one.

    The best is "cpu" for CPU tensors, and "cuda" for others where it was built and fits the device, else "triton".

    Raises:
        ValueError: the name is unknown, or the CPU's kernels are asked for on another device.
        RuntimeError: the backend cannot run here; the message says why.
    """
    name = requested or os.environ.get(ENVIRONMENT_VARIABLE) or _best(device)
    if name not in get_args(Backend):
        raise ValueError(f"backend: expected one of {', '.join(get_args(Backend))} or None, got {name!r}")
    backend = cast(Backend, name)
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f"backend: 'cpu' serves CPU tensors, got tensors on {device}")
    usable, reason = availability(backend, device.type)
    if not usable:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return backend


# A trace may keep the choice: devices and installations do not change. This is torch.compiler.assume_constant_result
# without its import of the whole compiler, which takes as long as that of torch.
select._dynamo_marked_constant = True  # type: ignore[attr-defined]


def explain(device: torch.device) -> list[tuple[str, str, str]]:
    """For every public operation: its name, the backend ``auto`` picks for tensors on ``device``, and why."""
    try:
        backend = select(device, None)
        chosen, reason = str(backend), availability(backend, device.type).reason
    except (RuntimeError, ValueError) as error:
        chosen, reason = "none", str(error)
    if os.environ.get(ENVIRONMENT_VARIABLE):
        reason += f" ({ENVIRONMENT_VARIABLE} is set)"
    return [(op, chosen, reason) for op in OPS]


def kernels(backend: str) -> Kernels:
    """The kernels of a backend that :func:`select` has approved."""
    return cast(Kernels, importlib.import_module(_MODULES[backend]))
