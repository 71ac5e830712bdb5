"""The operators ``torch.ops.pope.*``: schema, implementation, fake and autograd of each, in this order.

As operators they pass ``torch.compile(fullgraph=True)`` and ``opcheck``; they are few and coarse, so dispatch costs
little. The implementation checks the values of its inputs and calls the kernels of the backend that the public function
selected. Where that saves work, the forward also computes gradients (``coefficients``, ``d_hidden``, ...) and returns
them as extra outputs, which backward scales and the public functions do not return.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pope_kernels.values import accumulation_dtype

from . import _checks
from ._objective import evaluate_checked, kernel_options
from .backends import kernels
from .devices import DEVICES
from .objective import Objective

LIBRARY = torch.library.Library("pope", "DEF")

_OBJECTIVE_FIELDS = tuple(each.name for each in fields(Objective))
_SCHEMA_TYPES = {"float": "float", "float | None": "float?", "bool": "bool"}  # any other option is a name

#: The objective in an operator's schema. An operator takes no objects, so the objective is flattened, only here.
OBJECTIVE_ARGUMENTS = ", ".join(
    [*(f"{_SCHEMA_TYPES.get(str(each.type), 'str')} {each.name}" for each in fields(Objective)), "int? num_slates"]
)


def flattened(objective: Objective, num_slates: int | None) -> tuple[Any, ...]:
    """The arguments of `OBJECTIVE_ARGUMENTS`."""
    return *(getattr(objective, name) for name in _OBJECTIVE_FIELDS), num_slates


def restored(arguments: tuple[Any, ...]) -> tuple[Objective, int | None]:
    """The inverse of `flattened`."""
    *options, num_slates = arguments
    return Objective(*options), num_slates


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(shape, dtype=dtype)


def register(name: str, implementation: Callable[..., Any]) -> None:
    """Register one implementation for every device: the backend is an argument, selected by the public function."""
    for each in DEVICES.values():
        LIBRARY.impl(name, implementation, each.dispatch_key)


def first_derivatives_only(backward: Callable[..., Any]) -> Callable[..., Any]:
    """``backward`` of an operator; refused under ``create_graph=True``, which would treat gradients as constants."""

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                "create_graph=True: second derivatives are not implemented, and would be left out of the result; "
                "backend='reference' has them"
            )
        with torch.no_grad():
            return backward(ctx, *gradients)

    return checked


# --- response_logprobs ---

LIBRARY.define(
    "response_logprobs(Tensor logits, Tensor labels, Tensor response_offsets, str reduction, str backend) "
    "-> (Tensor logprobs, Tensor lse)"
)
LIBRARY.define(
    "response_logprobs_backward(Tensor grad, Tensor logits, Tensor labels, Tensor response_offsets, Tensor lse, "
    "str reduction, str backend) -> Tensor"
)


def _response_logprobs(
    logits: Tensor, labels: Tensor, response_offsets: Tensor, reduction: str, backend: str
) -> tuple[Tensor, Tensor]:
    deferred = _checks.deferred(logits.device)
    if not deferred:
        _checks.packed_values(labels, response_offsets, logits.shape[1])
    native = kernels(backend)
    logprobs, lse = native.token_logprobs(logits, labels)
    if not deferred:
        _checks.finite_rows("logits", lse)
    if reduction != "none":
        logprobs = native.response_sums(logprobs, labels, response_offsets, reduction == "mean")
    if deferred:
        _checks.finite_later("labels, response_offsets or logits", logprobs)
    return logprobs, lse


def _response_logprobs_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    reduction: str,
    backend: str,
) -> Tensor:
    native = kernels(backend)
    coefficients = grad.contiguous()
    if reduction != "none":
        coefficients = native.token_coefficients(coefficients, labels, response_offsets, reduction == "mean")
    out = native.empty_large(*logits.shape, dtype=logits.dtype, device=logits.device)
    return native.logit_gradient(logits, labels, lse, coefficients, out)


def num_logprobs(labels: Tensor, response_offsets: Tensor, reduction: str) -> Any:
    """How many numbers a reduction returns: one per token, or one per response."""
    return labels.shape[0] if reduction == "none" else response_offsets.shape[0] - 1


@torch.library.register_fake("pope::response_logprobs", lib=LIBRARY)
def _(logits: Tensor, labels: Tensor, response_offsets: Tensor, reduction: str, backend: str) -> tuple[Tensor, Tensor]:
    count = num_logprobs(labels, response_offsets, reduction)
    acc = accumulation_dtype(logits.dtype)
    return empty(logits, count, dtype=acc), empty(logits, logits.shape[0], dtype=torch.float64)


@torch.library.register_fake("pope::response_logprobs_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    reduction: str,
    backend: str,
) -> Tensor:
    return empty(logits, *logits.shape)


def _response_logprobs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    logits, labels, response_offsets, ctx.reduction, ctx.backend = inputs
    ctx.save_for_backward(logits, labels, response_offsets, output[1])


@first_derivatives_only
def _response_logprobs_autograd(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    logits, labels, response_offsets, lse = ctx.saved_tensors
    d_logits = torch.ops.pope.response_logprobs_backward(
        grad, logits, labels, response_offsets, lse, ctx.reduction, ctx.backend
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
    f"Tensor? tokens, str backend, {OBJECTIVE_ARGUMENTS}) -> ({VALUES}, Tensor coefficients)"
)


class SlateInputs(NamedTuple):
    """The tensors of ``slate_objective``, and the backend; the options of the objective follow them."""

    response_logprobs: Tensor  # [R] totals
    logging_logprobs: Tensor  # [R] totals
    utility: Tensor  # [R]
    slate_offsets: Tensor  # [S + 1]
    tokens: Tensor | None  # [R]
    backend: str


def fake_values(like: Tensor, num_responses: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes: tuple[tuple[int, ...], ...] = ((), (), (), (num_responses,), (num_responses,), (), ())
    return tuple(empty(like, *shape, dtype=dtype) for shape in shapes)


def _slate_objective(*arguments: Any) -> tuple[Tensor, ...]:
    inputs = SlateInputs(*arguments[: len(SlateInputs._fields)])
    objective, num_slates = restored(arguments[len(SlateInputs._fields) :])
    policy, num_responses = inputs.response_logprobs, inputs.response_logprobs.numel()
    if not _checks.deferred(policy.device):
        _checks.objective_data(inputs.logging_logprobs, inputs.utility, inputs.slate_offsets, num_responses)
    tokens = torch.ones_like(policy, dtype=torch.float64)
    if objective.length_normalize:
        assert inputs.tokens is not None, "the public function checks this"
        if not _checks.deferred(policy.device):
            _checks.positive_tokens(inputs.tokens)
        tokens = inputs.tokens.double()
    values = evaluate_checked(
        kernels(inputs.backend),
        (policy.double() / tokens).contiguous(),
        (inputs.logging_logprobs.double() / tokens).contiguous(),
        inputs.utility.double().contiguous(),
        inputs.slate_offsets,
        kernel_options(objective, num_slates or inputs.slate_offsets.numel() - 1),
        accumulation_dtype(policy.dtype),
    )
    return *values.reported, (values.coefficients / tokens).to(accumulation_dtype(policy.dtype))


@torch.library.register_fake("pope::slate_objective", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    like = arguments[0]
    num_responses, acc = like.shape[0], accumulation_dtype(like.dtype)
    return *fake_values(like, num_responses, acc), empty(like, num_responses, dtype=acc)


def _slate_objective_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(output[-1])


@first_derivatives_only
def _slate_objective_autograd(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    (coefficients,) = ctx.saved_tensors
    return (upstream * coefficients).to(ctx.dtype), *([None] * (len(ctx.needs_input_grad) - 1))


register("slate_objective", _slate_objective)
torch.library.register_autograd(
    "pope::slate_objective", _slate_objective_autograd, setup_context=_slate_objective_setup, lib=LIBRARY
)
