"""The operators ``torch.ops.pope.linear_*``, laid out as in ``_ops.py``.

``unit``, ``coefficients``, ``d_weight`` and ``d_bias`` among their outputs are saved for backward, which may overwrite
them; the public functions do not return them. All operators begin with the same arguments, `HeadInputs`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pope_kernels.values import accumulation_dtype

from . import _checks
from ._linear import (
    ChunkedHead,
    Needs,
    ScaledExpHead,
    Tokens,
    forward,
    head_gradient_dtype,
    multiply,
    recompute_gradients,
)
from ._linear_loss import LossPass
from ._offsets import both
from ._ops import (
    LIBRARY,
    OBJECTIVE_ARGUMENTS,
    VALUES,
    empty,
    fake_values,
    first_derivatives_only,
    num_logprobs,
    register,
    restored,
)
from ._plan import rows_at_once
from .backends import kernels, linear_method
from .devices import device_type
from .slates import token_counts

_HEAD_INPUTS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor response_offsets, "
    "float logit_scale, float? logit_softcap, int? chunk_bytes, str backend, bool compact, ScalarType compute_dtype"
)
_NEEDS = "bool need_hidden, bool need_weight, bool need_bias"


class HeadInputs(NamedTuple):
    """Hidden states, the head, the responses, and how logits are computed."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    labels: Tensor  # [N]
    response_offsets: Tensor  # [R + 1]
    logit_scale: float
    logit_softcap: float | None
    chunk_bytes: int | None
    backend: str
    compact: bool
    compute_dtype: torch.dtype

    @classmethod
    def split(cls, arguments: tuple[Any, ...]) -> tuple[HeadInputs, tuple[Any, ...]]:
        """The inputs at the front of an operator's arguments, and the operator's own."""
        count = len(cls._fields)
        return cls(*arguments[:count]), tuple(arguments[count:])

    def check_tokens(self) -> None:
        if not _checks.deferred(self.labels.device):
            _checks.packed_values(self.labels, self.response_offsets, self.weight.shape[0])
        elif not self.compact:  # the plan needs the offsets on the host; those of padded rows come from us
            host = both(self.response_offsets, self.labels.device).host
            _checks.segments("response_offsets", host, self.labels.numel(), "the number of labels")

    @property
    def head_gradient_dtype(self) -> torch.dtype:
        return head_gradient_dtype(self.weight, self.compute_dtype)

    def chunked(self, needs: Needs) -> ChunkedHead:
        """The head in the dtype of the products, ready to run."""
        dtype, gradient_dtype = self.compute_dtype, self.head_gradient_dtype
        weight = self.weight.to(dtype)
        tokens = Tokens(self.hidden.to(dtype).contiguous(), self.labels, self.response_offsets, self.compact)
        sums_head = needs.weight and gradient_dtype == torch.bfloat16
        method = linear_method(self.backend, self.hidden.device, dtype).name
        return {"classic": ChunkedHead, "scaled_exp": ScaledExpHead}[method](
            kernels(self.backend),
            tokens,
            weight,
            None if self.bias is None else self.bias.to(dtype),
            self.logit_scale,
            self.logit_softcap,
            rows_at_once(tokens.labels.numel(), weight, self.chunk_bytes, sums_head=sums_head),
            gradient_dtype,
        )


def scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad * factor`` with one rounding to ``dtype``; in place if backward runs only once, which saves a copy of the
    gradient.

    Only the autograd engine knows whether the graph, and ``grad`` with it, is kept for another backward. Traced code
    must not write to saved tensors either.
    """
    if type(grad) is not Tensor or type(factor) is not Tensor or torch.compiler.is_compiling():
        return (grad * (factor if factor.ndim else factor.unsqueeze(0))).to(dtype)
    grad = grad.detach()  # an output of the operator: without this, the gradient would keep the graph
    once = not torch._C._autograd._get_current_graph_task_keep_graph()
    out = grad if once and grad.dtype == dtype else torch.empty_like(grad, dtype=dtype)
    if not device_type(grad.device).asynchronous and out is grad and factor.ndim == 0 and float(factor) == 1.0:
        return grad
    return multiply(grad, factor, out)


# --- linear_response_logprobs ---

LIBRARY.define(
    f"linear_response_logprobs({_HEAD_INPUTS}, {_NEEDS}, str reduction) "
    "-> (Tensor logprobs, Tensor lse, Tensor unit, Tensor row_factors)"
)
LIBRARY.define(
    f"linear_response_logprobs_backward({_HEAD_INPUTS}, {_NEEDS}, str reduction, Tensor lse, Tensor grad) "
    "-> (Tensor d_hidden, Tensor d_weight, Tensor d_bias)"
)


def _linear_response_logprobs(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, (*needed, reduction) = HeadInputs.split(arguments)
    inputs.check_tokens()
    needs = Needs(*needed)
    head = inputs.chunked(needs)
    unit = forward(head, needs)
    logprobs = head.logprobs
    if reduction == "none":
        logprobs = head.tokens.scatter(logprobs)
    else:
        num_responses = inputs.response_offsets.numel() - 1
        logprobs = head.response_logprobs(0, num_responses, reduction == "mean").to(logprobs.dtype)
    if _checks.deferred(logprobs.device):
        _checks.finite_later("labels, response_offsets, hidden or the head", logprobs)
    lse, factors = head.tokens.scatter(head.lse), unit.new_empty(0, dtype=head.logprobs.dtype)
    if needs.unit:
        factors = head.with_row_factors(torch.ones_like(head.logprobs), slice(0, head.logprobs.numel()))
        unit, factors = head.tokens.scatter(unit), head.tokens.scatter(factors)
    return logprobs, lse, unit, factors


def _linear_response_logprobs_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, (*needed, reduction, lse, grad) = HeadInputs.split(arguments)
    needs = Needs(*needed)
    head = inputs.chunked(needs)
    index = head.tokens.index
    head.lse.copy_(lse if index is None else lse[index])
    if reduction == "none":
        coefficients = grad.contiguous() if index is None else grad[index]
    else:
        coefficients = head.token_coefficients(grad, 0, grad.numel(), reduction == "mean")
    d_hidden, d_weight, d_bias = recompute_gradients(head, coefficients, needs)
    if needs.hidden:
        d_hidden = head.tokens.scatter(d_hidden)
    of_bias = inputs.weight if inputs.bias is None else inputs.bias
    return d_hidden.to(inputs.hidden.dtype), d_weight.to(inputs.weight.dtype), d_bias.to(of_bias.dtype)


@torch.library.register_fake("pope::linear_response_logprobs", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs, (*needed, reduction) = HeadInputs.split(arguments)
    (num_tokens, width), dtype = inputs.hidden.shape, inputs.compute_dtype
    count = num_logprobs(inputs.labels, inputs.response_offsets, reduction)
    rows = num_tokens if Needs(*needed).unit else 0
    return (
        empty(inputs.hidden, count, dtype=accumulation_dtype(dtype)),
        empty(inputs.hidden, num_tokens, dtype=torch.float64),
        empty(inputs.hidden, rows, width, dtype=dtype),
        empty(inputs.hidden, rows, dtype=accumulation_dtype(dtype)),
    )


@torch.library.register_fake("pope::linear_response_logprobs_backward", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, own = HeadInputs.split(arguments)
    needs, (vocab, width) = Needs(*own[:3]), inputs.weight.shape
    return (
        empty(inputs.hidden, inputs.hidden.shape[0] if needs.hidden else 0, width),
        empty(inputs.weight, vocab if needs.weight else 0, width),
        empty(inputs.weight if inputs.bias is None else inputs.bias, vocab if needs.bias else 0),
    )


def _linear_response_logprobs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # otherwise backward would get zeros of the size of every output
    named, (*needed, ctx.reduction) = HeadInputs.split(inputs)
    ctx.unit = Needs(*needed).unit
    _, lse, unit, factors = output
    ctx.options = named[5:]
    ctx.dtype = named.hidden.dtype
    if ctx.unit:
        ctx.save_for_backward(unit, factors, named.labels, named.response_offsets)
    else:
        ctx.save_for_backward(*named[:5], lse)


@first_derivatives_only
def _linear_response_logprobs_autograd(
    ctx: Any, grad: Tensor | None, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.needs_input_grad)
    if grad is None:  # nothing depends on the value
        return nothing
    if ctx.unit:
        return _scaled_unit(ctx, grad), *nothing[1:]
    *tensors, lse = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    gradients = torch.ops.pope.linear_response_logprobs_backward(
        *tensors, *ctx.options, *needs, ctx.reduction, lse, grad
    )
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *nothing[3:]


def _scaled_unit(ctx: Any, grad: Tensor) -> Tensor:
    """With a frozen head: scale the gradient that the forward computed."""
    unit, factors, labels, response_offsets = ctx.saved_tensors
    each = grad
    if ctx.reduction != "none":
        response_offsets = response_offsets.to(labels.device, non_blocking=True)
        if ctx.reduction == "mean":
            each = grad / token_counts(labels, response_offsets)
        each = torch.repeat_interleave(each, response_offsets.diff(), output_size=labels.shape[0])
    return scaled(unit, (each * factors * (labels >= 0)).unsqueeze(1), ctx.dtype)


register("linear_response_logprobs", _linear_response_logprobs)
register("linear_response_logprobs_backward", _linear_response_logprobs_backward)
torch.library.register_autograd(
    "pope::linear_response_logprobs",
    _linear_response_logprobs_autograd,
    setup_context=_linear_response_logprobs_setup,
    lib=LIBRARY,
)

# --- linear_pope_loss ---

LIBRARY.define(
    f"linear_pope_loss({_HEAD_INPUTS}, {_NEEDS}, Tensor logging_logprobs, Tensor utility, Tensor slate_offsets, "
    f"{OBJECTIVE_ARGUMENTS}) -> ({VALUES}, Tensor response_logprobs, Tensor unit, Tensor coefficients, "
    "Tensor d_weight, Tensor d_bias)"
)


def _linear_pope_loss(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, own = HeadInputs.split(arguments)
    needs, (logging_logprobs, utility, slate_offsets) = Needs(*own[:3]), own[3:6]
    objective, num_slates = restored(own[6:])
    num_responses = inputs.response_offsets.numel() - 1
    slates = both(slate_offsets, inputs.hidden.device)
    inputs.check_tokens()
    _checks.segments("slate_offsets", slates.host, num_responses, "the number of responses")
    if not _checks.deferred(inputs.hidden.device):
        _checks.objective_data(logging_logprobs, utility, slate_offsets, num_responses)
    head = inputs.chunked(needs)
    logging_logprobs = logging_logprobs.double().contiguous()
    if objective.length_normalize:
        tokens = token_counts(head.tokens.labels, head.tokens.offsets.device).double()
        logging_logprobs = logging_logprobs / tokens
    work = LossPass(
        head,
        logging_logprobs,
        utility.double().contiguous(),
        slates,
        objective,
        num_slates or slate_offsets.numel() - 1,
        needs,
    )
    values, gradients = work.run()
    unit, coefficients = gradients.unit, gradients.coefficients
    if needs.hidden:
        unit, coefficients = head.tokens.scatter(unit), head.tokens.scatter(coefficients)
    logprobs = work.response_logprobs * tokens if objective.length_normalize else work.response_logprobs
    return *values.reported, logprobs.to(head.logprobs.dtype), unit, coefficients, gradients.weight, gradients.bias


@torch.library.register_fake("pope::linear_pope_loss", lib=LIBRARY)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, own = HeadInputs.split(arguments)
    needs, hidden = Needs(*own[:3]), inputs.hidden
    (num_tokens, width), vocab = hidden.shape, inputs.weight.shape[0]
    num_responses, acc = inputs.response_offsets.shape[0] - 1, accumulation_dtype(inputs.compute_dtype)
    rows = num_tokens if needs.hidden else 0
    return (
        *fake_values(hidden, num_responses, acc),
        empty(hidden, num_responses, dtype=acc),
        empty(hidden, rows, width, dtype=inputs.compute_dtype),
        empty(hidden, rows, dtype=acc),
        empty(hidden, vocab if needs.weight else 0, width, dtype=inputs.head_gradient_dtype),
        empty(hidden, vocab if needs.bias else 0, dtype=acc),
    )


def _linear_pope_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    named, own = HeadInputs.split(inputs)
    ctx.needs = Needs(*own[:3])
    of_bias = named.weight if named.bias is None else named.bias
    ctx.dtypes = named.hidden.dtype, named.weight.dtype, of_bias.dtype
    ctx.save_for_backward(*output[-4:])


@first_derivatives_only
def _linear_pope_loss_autograd(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * len(ctx.needs_input_grad)
    if upstream is None:  # nothing depends on the value
        return nothing
    unit, coefficients, weight, bias = ctx.saved_tensors
    of_hidden, of_weight, of_bias = ctx.dtypes
    return (
        scaled(unit, (coefficients * upstream).unsqueeze(1), of_hidden) if ctx.needs.hidden else None,
        scaled(weight, upstream, of_weight) if ctx.needs.weight else None,
        scaled(bias, upstream, of_bias) if ctx.needs.bias else None,
        *nothing[3:],
    )


register("linear_pope_loss", _linear_pope_loss)
torch.library.register_autograd(
    "pope::linear_pope_loss", _linear_pope_loss_autograd, setup_context=_linear_pope_loss_setup, lib=LIBRARY
)
