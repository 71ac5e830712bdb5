"""The CPU backend: functions on tensors that call the native extension ``_C``.

Callers pass contiguous CPU tensors of the right dtype (``pope_core`` ensures this); this module allocates the outputs
and passes addresses, sizes and the number of threads. Only it and ``native_cuda.py`` import ``_C``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch  # before _C: torch brings the OpenMP runtime that the extension shares

from . import _C
from .seam import composed
from .values import (
    DTYPE_CODES,
    ObjectiveOptions,
    SlateValues,
    accumulation_dtype,
)

isa = _C.isa
use_isa = _C.use_isa
compiler = _C.compiler
cuda_devices = _C.cuda_devices


def probe(device: torch.device) -> str:
    """The instruction set of the row kernels, which run wherever the extension loads."""
    return f"native kernels, {isa()}"


def empty_large(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty`` for a buffer that will be written completely, backed by huge pages if the system has them."""
    out = torch.empty(shape, dtype=dtype, device=device)
    _C.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous(), "the kernels read consecutive elements"
    return tensor.data_ptr()


def _matrix(logits: torch.Tensor) -> tuple[int, int, int, int, int]:
    rows, cols = logits.shape
    return logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, cols, logits.stride(0)


#: Size of the blocks of the lm_head, and of logits or products with it, in one matrix product. With few rows, a product
#: with a large head spends much of its time packing the head; a block that stays in the L2 cache is faster.
HEAD_BLOCK_BYTES = 3 << 20

#: Whether float32 products go to oneDNN. torch.mm calls MKL, which uses only 256-bit instructions on AMD processors and
#: takes nearly twice as long there where they have AVX-512. Where they have not, MKL is the faster one
#: (docs/kernels-cpu.md).
PREFER_ONEDNN = _C.cpu_is_amd() and _C.isa() == "avx512" and torch.backends.mkldnn.is_available()

#: 16-bit types that this processor cannot multiply: torch.mm takes plain loops for them, 10 to 40 times as long as
#: float32 products of the same size. They are widened and multiplied in float32, whose sums are more exact, too.
WIDENED = {
    dtype
    for dtype, supported in (
        (torch.bfloat16, "_is_mkldnn_bf16_supported"),
        (torch.float16, "_is_mkldnn_fp16_supported"),
    )
    if not (torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, supported)())
}


def head_blocks(weight: torch.Tensor, tokens: torch.Tensor) -> Iterator[slice]:
    """Split the rows of an lm_head ``[V, D]`` into blocks for products with ``tokens`` ``[n, ...]``."""
    vocab, width = weight.shape
    step = max(1, HEAD_BLOCK_BYTES // (max(width, tokens.shape[0]) * tokens.element_size()))
    for begin in range(0, vocab, step):
        yield slice(begin, min(begin + step, vocab))


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` by oneDNN, for matrices of any strides."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _with_onednn(tensor: torch.Tensor) -> bool:
    return PREFER_ONEDNN and tensor.dtype == torch.float32


def _widened_rows(tokens: torch.Tensor) -> int:
    """How many tokens ``[n, D]`` have the size of a block in float32."""
    return max(1, HEAD_BLOCK_BYTES // (4 * tokens.shape[1]))


def _float32(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``F.linear`` in float32, of any operands."""
    product = _linear if PREFER_ONEDNN else torch.nn.functional.linear
    return product(x.float(), weight.float(), None if bias is None else bias.float())


def project(
    hidden: torch.Tensor,  # [n, D]
    weight: torch.Tensor,  # [V, D]
    bias: torch.Tensor | None,  # [V]
    out: torch.Tensor,  # [n, V]
) -> torch.Tensor:
    """``F.linear(hidden, weight, bias)`` written to ``out``."""
    if hidden.dtype in WIDENED:
        x = hidden.float()
        for block in head_blocks(weight, x):
            out[:, block] = _float32(x, weight[block], None if bias is None else bias[block])
        return out
    for block in head_blocks(weight, hidden):
        if _with_onednn(weight):
            out[:, block] = _linear(hidden, weight[block], None if bias is None else bias[block])
        elif bias is None:
            torch.mm(hidden, weight[block].t(), out=out[:, block])
        else:
            torch.addmm(bias[block], hidden, weight[block].t(), out=out[:, block])
    return out


def back_project(
    gradient: torch.Tensor,  # [n, V]
    weight: torch.Tensor,  # [V, D]
    out: torch.Tensor,  # [n, D]
) -> torch.Tensor:
    """``gradient @ weight`` written to ``out``."""
    if gradient.dtype in WIDENED:
        size = _widened_rows(out)
        for rows, part in zip(gradient.split(size), out.split(size), strict=True):
            total = torch.zeros_like(part, dtype=torch.float32)
            for block in head_blocks(weight, total):
                total += _float32(rows[:, block], weight[block].t())
            part.copy_(total)
        return out
    if not _with_onednn(weight):
        return torch.mm(gradient, weight, out=out)
    out.zero_()
    for block in head_blocks(weight, gradient):
        out += _linear(gradient[:, block], weight[block].t())
    return out


def add_outer(
    total: torch.Tensor,  # [V, D] float32 or float64; with a single chunk, the dtype of gradient
    gradient: torch.Tensor,  # [n, V]
    hidden: torch.Tensor,  # [n, D]
    first: bool,
) -> None:
    """``total += gradient.T @ hidden`` (``=`` for the first chunk), summed in the dtype of ``total``; the product of
    16-bit operands is 16-bit where the processor multiplies them, because PyTorch has no wider one on a CPU.
    """
    if gradient.dtype in WIDENED:
        size = _widened_rows(hidden)
        for block in head_blocks(total, hidden[:size].float()):
            part = torch.zeros(block.stop - block.start, total.shape[1])
            for columns, rows in zip(gradient[:, block].split(size), hidden.split(size), strict=True):
                part += _float32(columns.t(), rows.t())
            if first:
                total[block] = part
            else:
                total[block].add_(part)
        return
    if total.dtype == gradient.dtype and not _with_onednn(gradient):
        torch.addmm(total, gradient.t(), hidden, beta=0 if first else 1, out=total)
        return
    blocks = list(head_blocks(total, gradient))
    onednn = _with_onednn(gradient)
    scratch = gradient.new_empty(0 if onednn else blocks[0].stop, total.shape[1])
    for block in blocks:
        columns = gradient[:, block].t()
        part = _linear(columns, hidden.t()) if onednn else torch.mm(columns, hidden, out=scratch[: columns.shape[0]])
        if first:
            total[block] = part
        else:
            total[block].add_(part)


def token_logprobs(
    logits: torch.Tensor,  # [N, V], unit column stride
    labels: torch.Tensor,  # [N] int64
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each label and the log-sum-exp (float64) of its row, ``[N]`` each; 0 where ignored."""
    logprobs = torch.empty(labels.shape, dtype=accumulation_dtype(logits.dtype))
    lse = torch.empty(labels.shape, dtype=torch.float64)
    _C.token_logprobs(
        *_matrix(logits),
        _address(labels),
        scale,
        softcap or 0.0,
        _address(logprobs),
        _address(lse),
        torch.get_num_threads(),
    )
    return logprobs, lse


def logit_gradient(
    logits: torch.Tensor,  # [N, V]
    labels: torch.Tensor,  # [N] int64
    lse: torch.Tensor,  # [N] float64
    coefficients: torch.Tensor | None,  # [N], None for ones
    out: torch.Tensor,  # [N, V], may be `logits`
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """``coefficients[n] * d logprobs[n] / d logits[n]`` written to ``out``; ignored rows become zero."""
    _C.logit_gradient(
        *_matrix(logits),
        _address(labels),
        scale,
        softcap or 0.0,
        _address(lse),
        0 if coefficients is None else _address(coefficients),
        out.data_ptr(),
        out.stride(0),
        torch.get_num_threads(),
    )
    return out


def response_sums(
    logprobs: torch.Tensor,  # [N]
    labels: torch.Tensor,  # [N] int64
    response_offsets: torch.Tensor,  # [R + 1] int64
    mean: bool,
) -> torch.Tensor:
    """Sum (or mean) of ``logprobs`` over the tokens of each response: ``[R]``."""
    out = torch.empty(response_offsets.numel() - 1, dtype=logprobs.dtype)
    _C.response_sums(
        _address(logprobs),
        logprobs.dtype == torch.float64,
        _address(labels),
        _address(response_offsets),
        out.numel(),
        mean,
        _address(out),
    )
    return out


def token_coefficients(
    grad: torch.Tensor,  # [R]
    labels: torch.Tensor,  # [N] int64
    response_offsets: torch.Tensor,  # [R + 1] int64
    mean: bool,
) -> torch.Tensor:
    """Adjoint of :func:`response_sums`: spreads each response's coefficient over its tokens, ``[N]``."""
    out = torch.empty(labels.shape, dtype=grad.dtype)
    _C.token_coefficients(
        _address(grad),
        grad.dtype == torch.float64,
        _address(labels),
        _address(response_offsets),
        grad.numel(),
        mean,
        _address(out),
    )
    return out


def slate_objective(
    response_logprobs: torch.Tensor,  # [R] float64
    logging_logprobs: torch.Tensor,  # [R] float64
    utility: torch.Tensor,  # [R] float64
    slate_offsets: torch.Tensor,  # [S + 1] int64
    options: ObjectiveOptions,
    dtype: torch.dtype,
) -> SlateValues:
    """The value of the slates, its parts and the weights in ``dtype``, and ``dV / d response_logprobs``."""
    log_weights, weights, coefficients = torch.empty(3, response_logprobs.numel(), dtype=torch.float64)
    value, utility_value, diversity_value, effective_size, clip_fraction, largest, slate = _C.slate_objective(
        _address(response_logprobs),
        _address(logging_logprobs),
        _address(utility),
        _address(slate_offsets),
        slate_offsets.numel() - 1,
        response_logprobs.numel(),
        *options.native,
        _address(log_weights),
        _address(weights),
        _address(coefficients),
    )
    return SlateValues(
        value=torch.tensor(value, dtype=dtype),
        utility_value=torch.tensor(utility_value, dtype=dtype),
        diversity_value=torch.tensor(diversity_value, dtype=dtype),
        log_weights=log_weights.to(dtype),
        weights=weights.to(dtype),
        effective_sample_size=torch.tensor(effective_size, dtype=dtype),
        clip_fraction=torch.tensor(clip_fraction, dtype=dtype),
        coefficients=coefficients,
        largest_log_weight=torch.tensor(largest, dtype=torch.float64),
        largest_slate=torch.tensor(slate),
        valid=None,
    )


group_coefficients = composed(response_sums, slate_objective, token_coefficients)
