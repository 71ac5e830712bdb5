"""Log-probability of a row's label and its gradient. Memory-bound: each pass reads a row once.

A program processes a row in blocks of 8 KiB, 32 bytes per thread: each thread has two 16-byte loads in flight, and few
enough registers that several programs share an SM and hide each other's reductions. The vocabulary size is a run-time
value, so a new size needs no compilation; row offsets have 64 bits; the grid is one-dimensional, because other
dimensions end at 65535.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..values import accumulation_dtype
from .numbers import number, split

BLOCK_BYTES = 8192
WARPS = 8
IGNORE_INDEX = tl.constexpr(-100)


@triton.jit
def exp_minus_1(x):
    """``exp(x) - 1`` for x <= 0: a series where the difference would cancel, accurate for the dtype."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    if x.dtype == tl.float64:
        return tl.where(x > -0.0078125, series, tl.exp(x) - 1)
    return tl.where(x > -0.25, series, tl.exp(x) - 1)


@triton.jit
def tanh(x):
    """Accurate near 0 too, where ``1 - exp(-2|x|)`` cancels."""
    magnitude = tl.abs(x)
    decay = exp_minus_1(-2 * magnitude)
    result = -decay / (2 + decay)
    return tl.where(x < 0, -result, result)


@triton.jit
def transformed(x, scale, softcap, SOFTCAP: tl.constexpr):
    z = x * scale
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def forward_kernel(
    logits,
    row_stride,
    labels,
    logprobs,
    lse,
    cols,
    scale_high,
    scale_low,
    softcap_high,
    softcap_low,
    SOFTCAP: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale, softcap = number(scale_high, scale_low, ACC), number(softcap_high, softcap_low, ACC)
    label = tl.load(labels + row)
    if label == IGNORE_INDEX:
        tl.store(logprobs + row, 0.0)
        tl.store(lse + row, 0.0)
    else:
        data = logits + row * row_stride
        lanes = tl.arange(0, BLOCK)
        top = tl.full((), -3.4e38, ACC)
        sums = tl.zeros((BLOCK,), ACC)
        for start in range(0, cols, BLOCK):
            inside = start + lanes < cols
            x = tl.load(data + start + lanes, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
            z = tl.where(inside, transformed(x, scale, softcap, SOFTCAP), float("-inf"))
            new_top = tl.maximum(top, tl.max(z, 0))  # one reduction per block; the sum is reduced once, at the end
            sums = sums * tl.exp(top - new_top) + tl.exp(z - new_top)
            top = new_top
        log_sum = tl.log(tl.sum(sums, 0).to(tl.float64))
        # Read from the same memory as the sum: a target computed separately could exceed it. Out of range gives NaN.
        known = (label >= 0) & (label < cols)
        x = tl.load(data + label, mask=known, other=float("nan")).to(ACC)
        target = transformed(x, scale, softcap, SOFTCAP)
        tl.store(logprobs + row, (target - top).to(tl.float64) - log_sum)
        tl.store(lse + row, top.to(tl.float64) + log_sum)


@triton.jit
def backward_kernel(
    logits,
    row_stride,
    labels,
    lse,
    coefficients,
    out,
    out_row_stride,
    cols,
    blocks,
    scale_high,
    scale_low,
    softcap_high,
    softcap_low,
    SOFTCAP: tl.constexpr,
    HAS_COEFFICIENTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64)
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < cols
    scale, softcap = number(scale_high, scale_low, ACC), number(softcap_high, softcap_low, ACC)
    label = tl.load(labels + row)
    coefficient = tl.full((), 1.0, ACC)
    if HAS_COEFFICIENTS:
        coefficient = tl.load(coefficients + row)
    target = out + row * out_row_stride + at
    if (label == IGNORE_INDEX) | (coefficient == 0):
        tl.store(target, tl.zeros((BLOCK,), out.dtype.element_ty), mask=inside)
    else:
        # The log-sum-exp in two parts: its rounding error would be a relative error of every probability.
        log_sum = tl.load(lse + row)
        high = log_sum.to(ACC)
        low = (log_sum - high.to(tl.float64)).to(ACC)
        x = tl.load(logits + row * row_stride + at, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)
        z = transformed(x, scale, softcap, SOFTCAP)
        log_p = tl.minimum((z - high) - low, 0.0)
        # 1 - p at the target is computed before rounding: as p -> 1, 16 bits would lose it.
        gradient = tl.where(at == label, -exp_minus_1(log_p), -tl.exp(log_p)) * (coefficient * scale)
        if SOFTCAP:
            ratio = z / softcap
            gradient *= 1 - ratio * ratio
        tl.store(target, gradient.to(out.dtype.element_ty), mask=inside)


def _options(logits: torch.Tensor, scale: float, softcap: float | None) -> dict[str, object]:
    acc = tl.float64 if accumulation_dtype(logits.dtype) == torch.float64 else tl.float32
    scale_high, scale_low = split(scale)
    softcap_high, softcap_low = split(softcap or 0.0)
    return {
        "scale_high": scale_high,
        "scale_low": scale_low,
        "softcap_high": softcap_high,
        "softcap_low": softcap_low,
        "SOFTCAP": softcap is not None,
        "ACC": acc,
        "BLOCK": BLOCK_BYTES // logits.element_size(),
        "num_warps": WARPS,
    }


def token_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``native.token_logprobs``; a label out of range or NaN in the row gives NaN."""
    rows, cols = logits.shape
    logprobs = labels.new_empty(labels.shape, dtype=accumulation_dtype(logits.dtype))
    lse = labels.new_empty(labels.shape, dtype=torch.float64)
    forward_kernel[(rows,)](logits, logits.stride(0), labels, logprobs, lse, cols, **_options(logits, scale, softcap))
    return logprobs, lse


def logit_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    coefficients: torch.Tensor | None,
    out: torch.Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """As ``native.logit_gradient``. Each program processes one block of one row, so that small batches fill the device
    too.
    """
    rows, cols = logits.shape
    options = _options(logits, scale, softcap)
    blocks = triton.cdiv(cols, options["BLOCK"])
    backward_kernel[(rows * blocks,)](
        logits,
        logits.stride(0),
        labels,
        lse,
        coefficients,
        out,
        out.stride(0),
        cols,
        blocks,
        HAS_COEFFICIENTS=coefficients is not None,
        **options,
    )
    return out
