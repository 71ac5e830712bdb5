"""Length-normalised log-probabilities of responses, from logits or straight from hidden states."""

from __future__ import annotations

import torch

from pope_kernels.values import accumulation_dtype

from . import _checks, reference
from .backends import select
from .slates import flatten_padded
from .types import Backend

#: Default budget of the logits buffer of the ``linear_*`` operations. On CPU it leaves room, under 64 MiB in all, for
#: the scratch space of the matrix products; on a GPU 2048 and more rows of a 128k vocabulary keep them compute-bound.
CHUNK_BYTES = {"cpu": 40 << 20, "cuda": 512 << 20}


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

    The host has to count them, so on a GPU only padded batches are worth it.
    """
    return hidden.ndim == 3 or hidden.device.type == "cpu"


def compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    """The dtype of the lm_head product: autocast's where it is on, else the common dtype of both."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    if hidden.dtype != weight.dtype:
        raise ValueError(f"lm_head_weight: expected {hidden.dtype} like hidden (or torch.autocast), got {weight.dtype}")
    return hidden.dtype


def chunk_budget(chunk_bytes: int | None, device: torch.device, weight: torch.Tensor | None = None) -> int:
    """Bytes of the logits buffer, where ``weight`` is the head if it gets a gradient.

    A 16-bit head's gradient is summed in float32 and rounded into a second one at the end. On a CPU, where adding to
    the float32 sum is what many small chunks cost, the logits have the second one's room until then: no peak is higher.
    """
    if chunk_bytes is None:
        if device.type != "cpu":
            return CHUNK_BYTES["cuda"]
        rounded = weight.nbytes if weight is not None and weight.element_size() == 2 else 0
        return max(CHUNK_BYTES["cpu"], rounded)
    if chunk_bytes < 1:
        raise ValueError(f"chunk_bytes: expected None or a number of bytes >= 1, got {chunk_bytes!r}")
    return chunk_bytes


def check_transform(logit_scale: float, logit_softcap: float | None) -> None:
    if not logit_scale > 0:
        raise ValueError(f"logit_scale: expected a number > 0, got {logit_scale!r}")
    if logit_softcap is not None and not logit_softcap > 0:
        raise ValueError(f"logit_softcap: expected None or a number > 0, got {logit_softcap!r}")


def response_logprobs(
    logits: torch.Tensor,  # [N, V] or [R, L, V]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    length_normalize: bool = True,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Mean (or total) log-probability of every response under the policy, in nats.

    Equivalent, for packed tokens::

        token = logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        torch.segment_reduce(token, "mean", offsets=response_offsets)

    reading the logits once and holding nothing of their size; backward reads them once and writes their gradient.

    Args:
        logits: ``[N, V]``, row ``n`` predicting ``labels[n]``; or the Hugging Face shape ``[R, L, V]``, row ``t``
            predicting the label at ``t + 1`` (the causal shift is done here). float32, float64, bfloat16 or float16;
            arithmetic in float32 (float64 for float64).
        labels: ``[N]`` or ``[R, L]`` token ids, -100 where no response token stands.
        response_offsets: ``[R + 1]``, response ``r`` being tokens ``[offsets[r], offsets[r + 1])``; only with packed
            logits. Offsets may stay on the CPU.
        length_normalize: divide by the number of response tokens.
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        ``[R]`` nats, differentiable; float64 for float64 logits, else float32.

    Raises:
        ValueError: shapes, dtypes, devices, offsets or labels do not fit; a response has no token; NaN or +inf in a
            row.
        RuntimeError: the backend cannot run here.

    Source: method.md section 1; POPE (arXiv 2509.19333), the token-level action.
    """
    chosen = select(logits.device, backend)
    rows, flat_labels, offsets = packed("logits", logits, labels, response_offsets)
    offsets = offsets.to(rows.device, non_blocking=True)
    if chosen == "reference":
        result = reference.response_logprobs(
            rows, flat_labels, response_offsets=offsets, length_normalize=length_normalize
        )
        return result.to(accumulation_dtype(logits.dtype))
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    return torch.ops.pope.response_logprobs(rows, flat_labels, offsets, length_normalize, chosen)[0]


def linear_response_logprobs(
    hidden: torch.Tensor,  # [N, D] or [R, L, D]
    lm_head_weight: torch.Tensor,  # [V, D]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    lm_head_bias: torch.Tensor | None = None,  # [V]
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    length_normalize: bool = True,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """:func:`response_logprobs` of ``hidden @ lm_head_weight.T``, without ever holding ``[N, V]``.

    Equivalent::

        logits = logit_scale * F.linear(hidden, lm_head_weight, lm_head_bias)
        logits = logit_softcap * torch.tanh(logits / logit_softcap)   # if logit_softcap is given
        response_logprobs(logits, labels, ...)

    The upstream gradient of each response is unknown in the forward. With a frozen head that costs nothing (4NDV: the
    gradient of every token is formed unscaled and scaled later); with a trainable head or bias backward computes the
    logits a second time (8NDV). Where the loss is POPE's, :func:`linear_pope_loss` needs 6NDV.

    Args:
        hidden: ``[N, D]`` or ``[R, L, D]``, as ``logits`` in :func:`response_logprobs`; the ignored positions of the
            latter never reach the product.
        lm_head_weight: ``[V, D]``, in the dtype of ``hidden`` unless autocast is on.
        labels: ``[N]`` or ``[R, L]``.
        lm_head_bias: ``[V]``.
        response_offsets: ``[R + 1]``; only with packed ``hidden``. On the CPU they spare a GPU a wait.
        length_normalize: divide by the number of response tokens.
        logit_scale: factor of the logits, > 0.
        logit_softcap: bound of the logits, > 0 (Gemma).
        chunk_bytes: budget of the logits buffer; None for 512 MiB on GPU; on CPU for 40 MiB, or the size of a trained
            16-bit head where that is more.
        backend: as in :func:`response_logprobs`.

    Returns:
        ``[R]`` nats, differentiable in ``hidden``, ``lm_head_weight`` and ``lm_head_bias``.

    Raises:
        ValueError: as :func:`response_logprobs`, and for a head that does not fit ``hidden``.
        RuntimeError: the backend cannot run here.

    Source: method.md section 1.
    """
    chosen = select(hidden.device, backend)
    rows, flat_labels, offsets = packed("hidden", hidden, labels, response_offsets)
    _checks.head(hidden, lm_head_weight, lm_head_bias)
    _checks.same_device("hidden", hidden.device, lm_head_weight=lm_head_weight, lm_head_bias=lm_head_bias)
    check_transform(logit_scale, logit_softcap)
    weight_trains = torch.is_grad_enabled() and lm_head_weight.requires_grad
    budget = chunk_budget(chunk_bytes, hidden.device, lm_head_weight if weight_trains else None)
    dtype = compute_dtype(hidden, lm_head_weight)
    if chosen == "reference":
        result = reference.linear_response_logprobs(
            rows,
            lm_head_weight,
            flat_labels,
            lm_head_bias=lm_head_bias,
            response_offsets=offsets.to(hidden.device),
            length_normalize=length_normalize,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        )
        return result.to(accumulation_dtype(dtype))
    bias_trains = lm_head_bias is not None and lm_head_bias.requires_grad
    need_unit = torch.is_grad_enabled() and hidden.requires_grad and not (weight_trains or bias_trains)
    return torch.ops.pope.linear_response_logprobs(
        rows,
        lm_head_weight,
        lm_head_bias,
        flat_labels,
        offsets,
        length_normalize,
        logit_scale,
        logit_softcap,
        budget,
        chosen,
        compacts(hidden),
        dtype,
        need_unit,
    )[0]
