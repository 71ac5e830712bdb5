"""Log-probabilities of responses, from logits or directly from hidden states."""

from __future__ import annotations

from typing import get_args

import torch
import torch.nn.functional as F

from pope_kernels.values import accumulation_dtype

from . import _checks, _linear_ops, reference  # noqa: F401  (registers torch.ops.pope.*)
from .backends import select
from .devices import device_type
from .slates import flatten_padded
from .types import Backend, Reduction


def packed(
    name: str, rows: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Checked arguments in the packed layout, indices as int64."""
    _checks.rows_and_labels(name, rows, labels, response_offsets)
    _checks.same_device(name, rows.device, labels=labels)
    if response_offsets is None:
        return flatten_padded(rows, labels.long())
    _checks.offsets_device("response_offsets", response_offsets, rows.device)
    return rows, labels.long().contiguous(), response_offsets.long().contiguous()


def compacts(hidden: torch.Tensor) -> bool:
    """Whether ignored positions are taken out before the lm_head.

    The host must count them, so on a GPU this pays off for padded batches only.
    """
    return hidden.ndim == 3 or not device_type(hidden.device).asynchronous


def compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """The dtype of the lm_head product: autocast's if it is on, otherwise the common dtype of both."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if hidden.dtype != weight.dtype:
        raise ValueError(f"lm_head_weight: expected {hidden.dtype} like hidden (or torch.autocast), got {weight.dtype}")
    return hidden.dtype


def check_head_options(logit_scale: float, logit_softcap: float | None, chunk_bytes: int | None) -> None:
    # Kernels keep both, and the inverse of the softcap, in float32.
    if not _checks.is_real(logit_scale) or not 1e-30 <= logit_scale <= 1e30:
        raise ValueError(f"logit_scale: expected a number in [1e-30, 1e+30], got {logit_scale!r}")
    if logit_softcap is not None and (not _checks.is_real(logit_softcap) or not 1e-30 <= logit_softcap <= 1e30):
        raise ValueError(f"logit_softcap: expected None or a number in [1e-30, 1e+30], got {logit_softcap!r}")
    if chunk_bytes is not None and (not _checks.is_integer(chunk_bytes) or chunk_bytes < 1):
        raise ValueError(f"chunk_bytes: expected None or a number of bytes >= 1, got {chunk_bytes!r}")


def check_reduction(reduction: str) -> None:
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction: expected one of {', '.join(get_args(Reduction))}, got {reduction!r}")


def in_layout_of(labels: torch.Tensor, logprobs: torch.Tensor, reduction: str) -> torch.Tensor:
    """Token log-probabilities at the positions of their labels: undoes the causal shift of padded labels."""
    if reduction != "none" or labels.ndim == 1:
        return logprobs
    return F.pad(logprobs.reshape(labels.shape)[:, :-1], (1, 0))


def wanted(tensor: torch.Tensor | None) -> bool:
    """Whether autograd needs the gradient of an argument."""
    return torch.is_grad_enabled() and tensor is not None and tensor.requires_grad


def response_logprobs(
    logits: torch.Tensor,  # [N, V] or [R, L, V]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    reduction: Reduction = "sum",
    backend: Backend | None = None,
) -> torch.Tensor:
    """Total log-probability of every response under the policy, in nats.

    Equivalent, for packed tokens::

        token = logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        torch.segment_reduce(token, "sum", offsets=response_offsets)

    The forward reads the logits once and allocates nothing of their size; backward reads them once and writes their
    gradient.

    Args:
        logits: ``[N, V]``, where row ``n`` predicts ``labels[n]``; or the Hugging Face shape ``[R, L, V]``, where row
            ``t`` predicts the label at ``t + 1`` (the causal shift is done here). float32, float64, bfloat16 or
            float16; arithmetic is in float32 (float64 for float64).
        labels: ``[N]`` or ``[R, L]`` token ids, -100 outside the response.
        response_offsets: ``[R + 1]``; response ``r`` is tokens ``[offsets[r], offsets[r + 1])``; only with packed
            logits. Offsets may be on the CPU.
        reduction: "sum" for totals; "mean" divides them by the number of response tokens; "none" gives the
            log-probability of every token in the layout of ``labels``, 0 where they are -100.
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        ``[R]`` nats (with "none" ``[N]`` or ``[R, L]``), differentiable; float64 for float64 logits, otherwise float32.

    Raises:
        ValueError: shapes, dtypes, devices, offsets or labels are invalid; a response has no token; a row has NaN or
            +inf.
        RuntimeError: the backend cannot run here.

    Source: docs/method.md, "Policies, responses, slates"; POPE (arXiv 2509.19333), the token-level action.
    """
    _checks.tensor("logits", logits)
    check_reduction(reduction)
    chosen = select(logits.device, backend)
    rows, flat_labels, offsets = packed("logits", logits, labels, response_offsets)
    offsets = offsets.to(rows.device, non_blocking=True)
    if chosen == "reference":
        result = reference.response_logprobs(rows, flat_labels, response_offsets=offsets, reduction=reduction)
        return in_layout_of(labels, result.to(accumulation_dtype(logits.dtype)), reduction)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    _checks.no_tangent(logits=logits)
    logprobs = torch.ops.pope.response_logprobs(rows, flat_labels, offsets, reduction, chosen)[0]
    return in_layout_of(labels, logprobs, reduction)


def linear_response_logprobs(
    hidden: torch.Tensor,  # [N, D] or [R, L, D]
    lm_head_weight: torch.Tensor,  # [V, D]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    lm_head_bias: torch.Tensor | None = None,  # [V]
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    reduction: Reduction = "sum",
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """:func:`response_logprobs` of ``hidden @ lm_head_weight.T``, in memory that does not grow with N x V.

    Equivalent::

        logits = logit_scale * F.linear(hidden, lm_head_weight, lm_head_bias)
        logits = logit_softcap * torch.tanh(logits / logit_softcap)   # if logit_softcap is given
        response_logprobs(logits, labels, ...)

    The padded layout shifts labels itself, as :func:`response_logprobs` does: the state at ``t`` predicts the label at
    ``t + 1``. In the packed layout row ``n`` predicts ``labels[n]``.

    The upstream gradient of each response is unknown in the forward. With a frozen head this costs nothing (4NDV: the
    forward computes the unscaled gradient of every token, backward scales it); with a trainable head or bias, backward
    computes the logits a second time (8NDV). For the POPE loss use :func:`linear_pope_loss`, which needs 6NDV.

    Args:
        hidden: ``[N, D]`` or ``[R, L, D]``, as ``logits`` in :func:`response_logprobs`; ignored positions of padded
            states are left out of the product.
        lm_head_weight: ``[V, D]``, in the dtype of ``hidden`` unless autocast is on.
        labels: ``[N]`` or ``[R, L]``.
        lm_head_bias: ``[V]``.
        response_offsets: ``[R + 1]``; only with packed ``hidden``. If they are on the CPU, the GPU is not synchronised.
        reduction: as in :func:`response_logprobs`.
        logit_scale: factor of the logits, > 0.
        logit_softcap: bound of the logits, > 0 (Gemma).
        chunk_bytes: size of the logits buffer; None for 36 MiB on CPU and 1/32 of the memory (at least 512 MiB) on GPU,
            or more if the float32 sum of a trained bfloat16 head's gradient needs that memory anyway (docs/kernels.md).
        backend: as in :func:`response_logprobs`.

    Returns:
        ``[R]`` nats (with "none" ``[N]`` or ``[R, L]``), differentiable in ``hidden``, ``lm_head_weight`` and
        ``lm_head_bias``.

    Raises:
        ValueError: as :func:`response_logprobs`, and if the head's shape or dtype does not match ``hidden``.
        RuntimeError: the backend cannot run here.

    Source: docs/method.md, "Policies, responses, slates".
    """
    _checks.tensor("hidden", hidden)
    check_reduction(reduction)
    rows, flat_labels, offsets = packed("hidden", hidden, labels, response_offsets)
    _checks.head(hidden, lm_head_weight, lm_head_bias)
    _checks.same_device("hidden", hidden.device, lm_head_weight=lm_head_weight, lm_head_bias=lm_head_bias)
    check_head_options(logit_scale, logit_softcap, chunk_bytes)
    dtype = compute_dtype(hidden, lm_head_weight)
    chosen = select(hidden.device, backend, dtype)
    if chosen == "reference":
        result = reference.linear_response_logprobs(
            rows,
            lm_head_weight,
            flat_labels,
            lm_head_bias=lm_head_bias,
            response_offsets=offsets.to(hidden.device),
            reduction=reduction,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        )
        return in_layout_of(labels, result.to(accumulation_dtype(dtype)), reduction)
    _checks.no_tangent(hidden=hidden, lm_head_weight=lm_head_weight, lm_head_bias=lm_head_bias)
    logprobs = torch.ops.pope.linear_response_logprobs(
        rows,
        lm_head_weight,
        lm_head_bias,
        flat_labels,
        offsets,
        logit_scale,
        logit_softcap,
        chunk_bytes,
        chosen,
        compacts(hidden),
        dtype,
        wanted(hidden),
        wanted(lm_head_weight),
        wanted(lm_head_bias),
        reduction,
    )[0]
    return in_layout_of(labels, logprobs, reduction)
