"""The operators ``torch.ops.pope.*``: schema, implementation, fake and autograd of each, in this order.

Being operators, they pass ``torch.compile(fullgraph=True)`` and ``opcheck``; being few and coarse, their dispatch cost
does not show. The implementation of an operator checks the values of its inputs and hands over to the kernels of the
backend that was selected by the public function. Gradients are formed with the values where that saves work
(``coefficients``, ``d_hidden``, ...), returned as outputs that the public functions keep to themselves, and scaled in
backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pope_kernels.values import accumulation_dtype

from . import _checks
from ._objective import evaluate_checked
from .backends import kernels
from .types import Objective

LIBRARY = torch.library.Library("pope", "DEF")

OBJECTIVE_ARGUMENTS = (
    "float diversity_weight, str weighting, str normalization, float? clip, str utility_form, str diversity_form, "
    "int? num_slates"
)


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


def register(name: str, implementation: Callable[..., Any]) -> None:
    """One implementation for every device: the backend was selected by the public function and is an argument."""
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, key)


# --- response_logprobs ---

LIBRARY.define(
    "response_logprobs(Tensor logits, Tensor labels, Tensor response_offsets, bool length_normalize, str backend) "
    "-> (Tensor response_logprobs, Tensor lse)"
)
LIBRARY.define(
    "response_logprobs_backward(Tensor grad, Tensor logits, Tensor labels, Tensor response_offsets, Tensor lse, "
    "bool length_normalize, str backend) -> Tensor"
)


def _response_logprobs(
    logits: Tensor, labels: Tensor, response_offsets: Tensor, length_normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    deferred = _checks.deferred(logits.device)
    if not deferred:
        _checks.packed_values(labels, response_offsets, logits.shape[1])
    native = kernels(backend)
    logprobs, lse = native.token_logprobs(logits, labels)
    if not deferred:
        _checks.finite_rows("logits", lse)
    sums = native.response_sums(logprobs, labels, response_offsets, length_normalize)
    if deferred:
        _checks.finite_later("labels, response_offsets or logits", sums)
    return sums, lse


def _response_logprobs_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    length_normalize: bool,
    backend: str,
) -> Tensor:
    native = kernels(backend)
    coefficients = native.token_coefficients(grad.contiguous(), labels, response_offsets, length_normalize)
    out = native.empty_large(*logits.shape, dtype=logits.dtype, device=logits.device)
    return native.logit_gradient(logits, labels, lse, coefficients, out)


@torch.library.register_fake("pope::response_logprobs", lib=LIBRARY)
def _(
    logits: Tensor, labels: Tensor, response_offsets: Tensor, length_normalize: bool, backend: str
) -> tuple[Tensor, Tensor]:
    acc = accumulation_dtype(logits.dtype)
    return empty(logits, response_offsets.shape[0] - 1, dtype=acc), empty(logits, logits.shape[0], dtype=torch.float64)


@torch.library.register_fake("pope::response_logprobs_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    length_normalize: bool,
    backend: str,
) -> Tensor:
    return empty(logits, *logits.shape)


def _response_logprobs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    logits, labels, response_offsets, ctx.length_normalize, ctx.backend = inputs
    ctx.save_for_backward(logits, labels, response_offsets, output[1])


@once_differentiable
def _response_logprobs_autograd(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    logits, labels, response_offsets, lse = ctx.saved_tensors
    d_logits = torch.ops.pope.response_logprobs_backward(
        grad, logits, labels, response_offsets, lse, ctx.length_normalize, ctx.backend
    )
    return d_logits, None, None, None, None


register("response_logprobs", _response_logprobs)
register("response_logprobs_backward", _response_logprobs_backward)
torch.library.register_autograd(
    "pope::response_logprobs", _response_logprobs_autograd, setup_context=_response_logprobs_setup, lib=LIBRARY
)

# --- slate_objective ---

VALUES = (
    "Tensor value, Tensor utility_value, Tensor diversity_value, Tensor log_weights, Tensor weights, "
    "Tensor effective_sample_size, Tensor clip_fraction"
)
LIBRARY.define(
    f"slate_objective(Tensor response_logprobs, Tensor logging_logprobs, Tensor utility, Tensor slate_offsets, "
    f"{OBJECTIVE_ARGUMENTS}, str backend) -> ({VALUES}, Tensor coefficients)"
)


def fake_values(like: Tensor, num_responses: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes: tuple[tuple[int, ...], ...] = ((), (), (), (num_responses,), (num_responses,), (), ())
    return tuple(empty(like, *shape, dtype=dtype) for shape in shapes)


def _slate_objective(
    response_logprobs: Tensor,
    logging_logprobs: Tensor,
    utility: Tensor,
    slate_offsets: Tensor,
    diversity_weight: float,
    weighting: Any,
    normalization: Any,
    clip: float | None,
    utility_form: Any,
    diversity_form: Any,
    num_slates: int | None,
    backend: str,
) -> tuple[Tensor, ...]:
    acc = accumulation_dtype(response_logprobs.dtype)
    if not _checks.deferred(response_logprobs.device):
        _checks.objective_data(logging_logprobs, utility, slate_offsets, response_logprobs.numel())
    values = evaluate_checked(
        kernels(backend),
        response_logprobs.double().contiguous(),
        logging_logprobs.double().contiguous(),
        utility.double().contiguous(),
        slate_offsets,
        Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates),
        acc,
    )
    return *values.reported, values.coefficients.to(acc)


@torch.library.register_fake("pope::slate_objective", lib=LIBRARY)
def _(
    response_logprobs: Tensor,
    logging_logprobs: Tensor,
    utility: Tensor,
    slate_offsets: Tensor,
    diversity_weight: float,
    weighting: str,
    normalization: str,
    clip: float | None,
    utility_form: str,
    diversity_form: str,
    num_slates: int | None,
    backend: str,
) -> tuple[Tensor, ...]:
    num_responses, acc = response_logprobs.shape[0], accumulation_dtype(response_logprobs.dtype)
    values = fake_values(response_logprobs, num_responses, acc)
    return *values, empty(response_logprobs, num_responses, dtype=acc)


def _slate_objective_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[-1])


@once_differentiable
def _slate_objective_autograd(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    (coefficients,) = ctx.saved_tensors
    return (upstream * coefficients).to(ctx.dtype), *([None] * 11)


register("slate_objective", _slate_objective)
torch.library.register_autograd(
    "pope::slate_objective", _slate_objective_autograd, setup_context=_slate_objective_setup, lib=LIBRARY
)
