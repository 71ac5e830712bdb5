"""The operators ``torch.ops.pope.linear_*``, laid out as in ``_ops.py``.

``unit``, ``coefficients``, ``d_weight`` and ``d_bias`` among their outputs are scratch of backward, which may overwrite
them; the public functions drop them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pope_kernels.values import accumulation_dtype

from . import _checks
from ._linear import ChunkedHead, LossPass, Needs, Tokens, forward, recompute_gradients
from ._offsets import both
from ._ops import LIBRARY, OBJECTIVE_ARGUMENTS, VALUES, empty, fake_values, register
from .backends import kernels
from .types import Objective

_HEAD_ARGUMENTS = "float logit_scale, float? logit_softcap, int chunk_bytes, str backend, bool compact"


#: On a CPU a product of two dtypes copies its operands; this many rows at a time.
SCALED_ROWS = 1024


def scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``grad * factor`` with one rounding to ``dtype``; in place where backward runs once, for a second copy of a
    gradient is worth avoiding.

    Only the engine knows whether the graph, and ``grad`` with it, is kept for another backward. A trace must not write
    to what it saved either.
    """
    if type(grad) is not Tensor or type(factor) is not Tensor or torch.compiler.is_compiling():
        return (grad * factor).to(dtype)
    once = not torch._C._autograd._get_current_graph_task_keep_graph()
    out = grad if once and grad.dtype == dtype else torch.empty_like(grad, dtype=dtype)
    if grad.device.type != "cpu":
        return torch.mul(grad, factor, out=out)
    if out is grad and factor.ndim == 0 and float(factor) == 1.0:
        return grad
    for begin in range(0, grad.shape[0], SCALED_ROWS):
        rows = slice(begin, begin + SCALED_ROWS)
        torch.mul(grad[rows], factor[rows] if factor.ndim else factor, out=out[rows])
    return out


# --- linear_response_logprobs ---

LIBRARY.define(
    "linear_response_logprobs(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor response_offsets, "
    f"bool length_normalize, {_HEAD_ARGUMENTS}, ScalarType compute_dtype, bool need_unit) "
    "-> (Tensor response_logprobs, Tensor lse, Tensor unit)"
)
LIBRARY.define(
    "linear_response_logprobs_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, "
    f"Tensor response_offsets, Tensor lse, bool length_normalize, {_HEAD_ARGUMENTS}, ScalarType compute_dtype, "
    "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor d_hidden, Tensor d_weight, Tensor d_bias)"
)


def _chunked_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
) -> ChunkedHead:
    tokens = Tokens(hidden.to(compute_dtype).contiguous(), labels, response_offsets, compact)
    bias = None if bias is None else bias.to(compute_dtype)
    weight = weight.to(compute_dtype)
    return ChunkedHead(kernels(backend), tokens, weight, bias, logit_scale, logit_softcap, chunk_bytes)


def _check_tokens(labels: Tensor, response_offsets: Tensor, vocab: int, compact: bool) -> None:
    if not _checks.deferred(labels.device):
        _checks.packed_values(labels, response_offsets, vocab)
    elif not compact:  # the plan needs the offsets on the host; those of padded rows are our own
        host = both(response_offsets, labels.device).host
        _checks.segments("response_offsets", host, labels.numel(), "the number of labels")


def _linear_response_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_tokens(labels, response_offsets, weight.shape[0], compact)
    head = _chunked_head(
        hidden,
        weight,
        bias,
        labels,
        response_offsets,
        logit_scale,
        logit_softcap,
        chunk_bytes,
        backend,
        compact,
        compute_dtype,
    )
    unit = forward(head, need_unit)
    num_responses = response_offsets.numel() - 1
    logprobs = head.response_logprobs(0, num_responses, length_normalize).to(head.logprobs.dtype)
    if _checks.deferred(logprobs.device):
        _checks.finite_later("labels, response_offsets, hidden or the head", logprobs)
    lse = head.tokens.scatter(head.lse)
    return logprobs, lse, head.tokens.scatter(unit) if need_unit else unit


def _linear_response_logprobs_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _chunked_head(
        hidden,
        weight,
        bias,
        labels,
        response_offsets,
        logit_scale,
        logit_softcap,
        chunk_bytes,
        backend,
        compact,
        compute_dtype,
    )
    head.lse.copy_(lse if head.tokens.index is None else lse[head.tokens.index])
    coefficients = head.token_coefficients(grad, 0, grad.numel(), length_normalize)
    needs = Needs(need_hidden, need_weight, need_bias)
    d_hidden, d_weight, d_bias = recompute_gradients(head, coefficients, needs)
    if need_hidden:
        d_hidden = head.tokens.scatter(d_hidden)
    return (
        d_hidden.to(hidden.dtype),
        d_weight.to(weight.dtype),
        d_bias.to(weight.dtype if bias is None else bias.dtype),
    )


@torch.library.register_fake("pope::linear_response_logprobs", lib=LIBRARY)
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_unit: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_tokens, width = hidden.shape
    acc = accumulation_dtype(compute_dtype)
    return (
        empty(hidden, response_offsets.shape[0] - 1, dtype=acc),
        empty(hidden, num_tokens, dtype=torch.float64),
        empty(hidden, num_tokens if need_unit else 0, width, dtype=compute_dtype),
    )


def _fake_gradients(hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: Needs) -> tuple[Tensor, Tensor, Tensor]:
    vocab, width = weight.shape
    return (
        empty(hidden, hidden.shape[0] if needs.hidden else 0, width),
        empty(weight, vocab if needs.weight else 0, width),
        empty(weight if bias is None else bias, vocab if needs.bias else 0),
    )


@torch.library.register_fake("pope::linear_response_logprobs_backward", lib=LIBRARY)
def _(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    lse: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_gradients(hidden, weight, bias, Needs(need_hidden, need_weight, need_bias))


def _linear_response_logprobs_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # or backward would be handed zeros of the size of every output
    hidden, weight, bias, labels, response_offsets, ctx.length_normalize, *ctx.head, ctx.need_unit = inputs
    ctx.has_bias = bias is not None
    _, lse, unit = output
    saved = (unit, labels, response_offsets) if ctx.need_unit else (hidden, weight, labels, response_offsets, lse)
    ctx.save_for_backward(*saved, *(() if bias is None or ctx.need_unit else (bias,)))
    ctx.dtype = hidden.dtype


@once_differentiable
def _linear_response_logprobs_autograd(
    ctx: Any, grad: Tensor | None, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    if grad is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    if ctx.need_unit:  # frozen head: the coefficients scale what the forward already has
        unit, labels, response_offsets = ctx.saved_tensors
        kept, response_offsets = labels >= 0, response_offsets.to(labels.device, non_blocking=True)
        sizes = response_offsets.diff()
        each = grad
        if ctx.length_normalize:
            before = torch.nn.functional.pad(kept.to(torch.int64).cumsum(0), (1, 0))
            each = grad / before[response_offsets].diff()
        rows = torch.repeat_interleave(each, sizes, output_size=labels.shape[0]) * kept
        return scaled(unit, rows.unsqueeze(1), ctx.dtype), *([None] * 12)
    hidden, weight, labels, response_offsets, lse, *rest = ctx.saved_tensors
    bias = rest[0] if rest else None
    needs = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]]
    gradients = torch.ops.pope.linear_response_logprobs_backward(
        grad, hidden, weight, bias, labels, response_offsets, lse, ctx.length_normalize, *ctx.head, *needs
    )
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), *([None] * 10)


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
    "linear_pope_loss(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, Tensor response_offsets, "
    "Tensor logging_logprobs, Tensor utility, Tensor slate_offsets, bool length_normalize, "
    f"{_HEAD_ARGUMENTS}, ScalarType compute_dtype, bool need_hidden, bool need_weight, bool need_bias, "
    f"{OBJECTIVE_ARGUMENTS}) -> ({VALUES}, Tensor response_logprobs, Tensor unit, Tensor coefficients, "
    "Tensor d_weight, Tensor d_bias)"
)


def _linear_pope_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    logging_logprobs: Tensor,
    utility: Tensor,
    slate_offsets: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    diversity_weight: float,
    weighting: Any,
    normalization: Any,
    clip: float | None,
    utility_form: Any,
    diversity_form: Any,
    num_slates: int | None,
) -> tuple[Tensor, ...]:
    slates = both(slate_offsets, hidden.device)
    _check_tokens(labels, response_offsets, weight.shape[0], compact)
    _checks.segments("slate_offsets", slates.host, response_offsets.numel() - 1, "the number of responses")
    if not _checks.deferred(hidden.device):
        _checks.objective_data(logging_logprobs, utility, slate_offsets, response_offsets.numel() - 1)
    head = _chunked_head(
        hidden,
        weight,
        bias,
        labels,
        response_offsets,
        logit_scale,
        logit_softcap,
        chunk_bytes,
        backend,
        compact,
        compute_dtype,
    )
    needs = Needs(need_hidden, need_weight, need_bias)
    work = LossPass(
        head,
        logging_logprobs.double().contiguous(),
        utility.double().contiguous(),
        slates,
        Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates),
        length_normalize,
        needs,
    )
    values, gradients = work.run()
    unit, coefficients = gradients.unit, gradients.coefficients
    if need_hidden:
        unit, coefficients = head.tokens.scatter(unit), head.tokens.scatter(coefficients)
    logprobs = work.response_logprobs.to(head.logprobs.dtype)
    return *values.reported, logprobs, unit, coefficients, gradients.weight, gradients.bias


@torch.library.register_fake("pope::linear_pope_loss", lib=LIBRARY)
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    response_offsets: Tensor,
    logging_logprobs: Tensor,
    utility: Tensor,
    slate_offsets: Tensor,
    length_normalize: bool,
    logit_scale: float,
    logit_softcap: float | None,
    chunk_bytes: int,
    backend: str,
    compact: bool,
    compute_dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    diversity_weight: float,
    weighting: str,
    normalization: str,
    clip: float | None,
    utility_form: str,
    diversity_form: str,
    num_slates: int | None,
) -> tuple[Tensor, ...]:
    (num_tokens, width), vocab, num_responses = hidden.shape, weight.shape[0], utility.shape[0]
    acc = accumulation_dtype(compute_dtype)
    rows = num_tokens if need_hidden else 0
    return (
        *fake_values(hidden, num_responses, acc),
        empty(hidden, num_responses, dtype=acc),
        empty(hidden, rows, width, dtype=compute_dtype),
        empty(hidden, rows, dtype=acc),
        empty(hidden, vocab if need_weight else 0, width, dtype=acc),
        empty(hidden, vocab if need_bias else 0, dtype=acc),
    )


def _linear_pope_loss_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    hidden, weight, bias = inputs[:3]
    ctx.needs = inputs[15:18]
    ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype
    ctx.save_for_backward(*output[-4:])


@once_differentiable
def _linear_pope_loss_autograd(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:  # nothing depends on the value
        return (None,) * len(ctx.needs_input_grad)
    unit, coefficients, weight, bias = ctx.saved_tensors
    need_hidden, need_weight, need_bias = ctx.needs
    of_hidden, of_weight, of_bias = ctx.dtypes
    return (
        scaled(unit, (coefficients * upstream).unsqueeze(1), of_hidden) if need_hidden else None,
        scaled(weight, upstream, of_weight) if need_weight else None,
        scaled(bias, upstream, of_bias) if need_bias else None,
        *([None] * 22),
    )


register("linear_pope_loss", _linear_pope_loss)
torch.library.register_autograd(
    "pope::linear_pope_loss", _linear_pope_loss_autograd, setup_context=_linear_pope_loss_setup, lib=LIBRARY
)
