"""Selects the backend of an operation and explains why. An explicit choice that cannot run raises; nothing falls
back.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .types import Backend

if TYPE_CHECKING:
    from pope_kernels.triton.exp_product import ExpRows
    from pope_kernels.values import ObjectiveOptions, SlateValues

#: The public operations; every backend has all of them.
OPS = ("response_logprobs", "linear_response_logprobs", "slate_objective", "pope_loss", "linear_pope_loss")


class Registered(NamedTuple):
    """What is known about a backend before its module is imported, which may take seconds or fail."""

    #: The module with the functions of `Kernels`.
    module: str
    #: Device types that it supports in principle; its ``probe`` tells whether it runs on this machine.
    device_types: tuple[str, ...]
    #: Device types on which ``backend=None`` may select it: the first usable backend in the order of `BACKENDS`.
    default_for: tuple[str, ...]
    #: The message if the import of its module fails with ``{error}``.
    not_imported: str


#: Every backend but the reference, which is plain PyTorch. The names are those of ``pope_core.types.Backend``.
BACKENDS: dict[Backend, Registered] = {
    "cpu": Registered(
        "pope_kernels.native",
        ("cpu",),
        ("cpu",),
        "the native extension did not load ({error}); reinstall pope-core with a C++ compiler",
    ),
    "cuda": Registered("pope_kernels.native_cuda", ("cuda",), ("cuda",), "the native extension did not load ({error})"),
    # On a CPU its kernels run in Triton's interpreter, for tests.
    "triton": Registered("pope_kernels.triton", ("cuda", "cpu"), ("cuda",), "triton did not load ({error})"),
}

#: Environment variable: how Triton's linear operations run in bfloat16, "scaled_exp" or "classic", on any device.
LINEAR_VARIABLE = "POPE_TRITON_LINEAR"

#: Environment variable with the backend to use if ``backend=None``.
ENVIRONMENT_VARIABLE = "POPE_BACKEND"


class Kernels(Protocol):
    """The functions of a backend's module; ``pope_core`` uses nothing else of it. ``pope_kernels.native`` documents the
    meaning and shapes of each.

    Guaranteed to a backend:

    - All tensors of a call are on one device, of a type in its ``device_types``; results go to the same device.
    - ``logits``, ``hidden``, ``weight`` and ``bias`` are float32, float64, bfloat16 or float16, and it must support all
      four. Logits have column stride 1 and any row stride; the matrix products get matrices of any strides; everything
      else is contiguous.
    - Labels and offsets are int64. Inputs of the slate objective are float64; values per token and per row have the
      ``pope_kernels.values.accumulation_dtype`` of the logits, the log-sum-exp is float64.

    Required of a backend:

    - No function synchronises with the device or copies a number to the host.
    - On asynchronous devices (``pope_core.devices``) kernels check their input: invalid input gives NaN instead of an
      illegal access, and makes ``SlateValues.valid`` false. On other devices the host has checked the input.
    - Results are bit-identical from call to call, and arithmetic is in float32 or better.
    """

    def probe(self, device: torch.device, /) -> str:
        """A description of what runs the kernels on ``device``; raises RuntimeError with the reason if they cannot
        run.
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


class ExponentialKernels(Kernels, Protocol):
    """The additional functions of the method "scaled_exp"; ``pope_kernels.triton.exp_product`` documents them."""

    def padded_columns(self, vocab: int, /) -> int: ...

    def scaled_exp(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        out: Tensor | None,
        /,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
    ) -> ExpRows: ...


class Availability(NamedTuple):
    usable: bool
    reason: str


@functools.cache
def availability(backend: Backend, device_type: str) -> Availability:
    """Whether a backend can run on a type of device in this process, and why (not); probed once."""
    if backend == "reference":
        return Availability(True, "plain float64 PyTorch, on any device")
    entry = BACKENDS[backend]
    if device_type not in entry.device_types:
        serves = " or ".join(entry.device_types).upper()
        return Availability(
            False, f"the {backend.upper()} kernels serve {serves} tensors, got tensors on {device_type}"
        )
    try:
        module = kernels(backend)
    except ImportError as error:
        return Availability(False, entry.not_imported.format(error=error))
    try:
        return Availability(True, module.probe(torch.device(device_type)))
    except RuntimeError as error:
        return Availability(False, str(error))


def names() -> tuple[Backend, ...]:
    """The values of ``backend=``, except None."""
    return (*BACKENDS, "reference")


class LinearMethod(NamedTuple):
    """How a backend's ``linear_*`` operations compute gradients from hidden states, and why.

    "scaled_exp" computes exponentials in the epilogue of the logits product, so that nothing but the products passes
    over the logits; "classic" computes logits and overwrites them with their gradient.
    """

    name: str
    reason: str


def linear_method(backend: str, device: torch.device, dtype: torch.dtype) -> LinearMethod:
    """The method of a backend for products in ``dtype`` on ``device``; it does not depend on values.

    Raises:
        ValueError: ``POPE_TRITON_LINEAR`` is not the name of a method.
    """
    if backend != "triton":
        return LinearMethod("classic", "the only method of this backend")
    if dtype != torch.bfloat16:  # float16 lacks its exponent range
        return LinearMethod("classic", f"products in {str(dtype).removeprefix('torch.')}")
    if (named := os.environ.get(LINEAR_VARIABLE)) is not None:
        if named not in ("classic", "scaled_exp"):
            raise ValueError(f"{LINEAR_VARIABLE}: expected classic or scaled_exp, got {named!r}")
        return LinearMethod(named, f"{LINEAR_VARIABLE} is set")
    if device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0):
        return LinearMethod("scaled_exp", "bfloat16 on sm_90")
    return LinearMethod("classic", "not a device of compute capability 9.0")


def _best(device: torch.device, linear_dtype: torch.dtype | None) -> Backend:
    exponentials = linear_dtype is not None and linear_method("triton", device, linear_dtype).name == "scaled_exp"
    candidates = [name for name, entry in BACKENDS.items() if device.type in entry.default_for]
    if not candidates:
        raise RuntimeError(
            f"backend: no kernels serve tensors on {device.type}; backend='reference' does, in plain PyTorch"
        )
    if exponentials and "triton" in candidates and availability("triton", device.type).usable:
        return "triton"
    *first, last = candidates  # the last is not probed here: if it cannot run, its reason is the error
    return next((name for name in first if availability(name, device.type).usable), last)


def select(device: torch.device, requested: Backend | None, linear_dtype: torch.dtype | None = None) -> Backend:
    """The backend for tensors on ``device``: ``requested``, else ``POPE_BACKEND``, else the best usable one.

    The best is "cpu" for CPU tensors; on GPUs it is "cuda" if that was built and supports the device, otherwise
    "triton". For ``linear_*`` operations (``linear_dtype`` is the dtype of their products) it is "triton" if
    `linear_method` is "scaled_exp".

    Raises:
        ValueError: the name is unknown, or a CPU backend is requested for another device.
        RuntimeError: the backend cannot run here; the message says why.
    """
    name = requested or os.environ.get(ENVIRONMENT_VARIABLE) or _best(device, linear_dtype)
    if name not in names():
        raise ValueError(f"backend: expected one of {', '.join(names())} or None, got {name!r}")
    backend = name
    if backend in BACKENDS and BACKENDS[backend].device_types == ("cpu",) and device.type != "cpu":
        raise ValueError(f"backend: {backend!r} serves CPU tensors, got tensors on {device}")
    usable, reason = availability(backend, device.type)
    if not usable:
        raise RuntimeError(f"backend {name!r} cannot run: {reason}")
    return backend


# A trace may treat the choice as constant: devices and installations do not change. This does what
# torch.compiler.assume_constant_result does, without importing the compiler, which takes as long as importing torch.
select._dynamo_marked_constant = True  # type: ignore[attr-defined]


def explain(device: torch.device) -> list[tuple[str, str, str]]:
    """For every public operation: its name, the backend that None means for tensors on ``device``, and why.

    For the linear operations this is the choice in bfloat16.
    """
    rows = []
    for op in OPS:
        linear = op.startswith("linear_")
        try:
            backend = select(device, None, torch.bfloat16 if linear else None)
            chosen, reason = str(backend), availability(backend, device.type).reason
            if linear and backend == "triton":
                method = linear_method(backend, device, torch.bfloat16)
                reason = f"{method.name} in bfloat16 ({method.reason}); {reason}"
        except (RuntimeError, ValueError) as error:
            chosen, reason = "none", str(error)
        if os.environ.get(ENVIRONMENT_VARIABLE):
            reason += f" ({ENVIRONMENT_VARIABLE} is set)"
        rows.append((op, chosen, reason))
    return rows


def kernels(backend: str) -> Kernels:
    """The module of a backend; raises ImportError if it cannot be loaded (:func:`select` refuses such a backend)."""
    return cast(Kernels, importlib.import_module(BACKENDS[cast(Backend, backend)].module))
