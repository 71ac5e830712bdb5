"""Sums over the tokens of each response, and their adjoint: one program per response, 1024 tokens at a time.

Most responses fit in one block, and float64 costs nothing for one number per token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .rows import IGNORE_INDEX

BLOCK = 1024


@triton.jit
def bounds(offsets, num_tokens):
    """This program's run, checked: an invalid one is empty."""
    run, runs = tl.program_id(0), tl.num_programs(0)
    begin, end = tl.load(offsets + run), tl.load(offsets + run + 1)
    valid = (begin >= 0) & (begin < end) & (end <= num_tokens)
    valid = valid & ((run > 0) | (begin == 0)) & ((run < runs - 1) | (end == num_tokens))
    return tl.where(valid, begin, 0), tl.where(valid, end, 0)


@triton.jit
def kept_tokens(labels, begin, end, BLOCK: tl.constexpr):
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        label = tl.load(labels + at, mask=at < end, other=IGNORE_INDEX)
        count += (label != IGNORE_INDEX).to(tl.int32)
    return tl.sum(count, 0)


@triton.jit
def sums_kernel(logprobs, labels, offsets, out, num_tokens, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    begin, end = bounds(offsets, num_tokens)
    kept = kept_tokens(labels, begin, end, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(logprobs + at, mask=at < end, other=0.0).to(tl.float64)
    result = tl.sum(total, 0)
    if MEAN:
        result = result / kept
    # No token: invalid offsets, or a response with ignored positions only.
    tl.store(out + tl.program_id(0), tl.where(kept > 0, result, float("nan")))


@triton.jit
def spread_kernel(grad, labels, offsets, out, num_tokens, MEAN: tl.constexpr, BLOCK: tl.constexpr):
    begin, end = bounds(offsets, num_tokens)
    each = tl.load(grad + tl.program_id(0)).to(tl.float64)
    if MEAN:
        each = each / tl.maximum(kept_tokens(labels, begin, end, BLOCK), 1)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        label = tl.load(labels + at, mask=at < end, other=IGNORE_INDEX)
        tl.store(out + at, tl.where(label == IGNORE_INDEX, 0.0, each), mask=at < end)


def response_sums(
    logprobs: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor, mean: bool
) -> torch.Tensor:
    """As ``native.response_sums``; NaN where the offsets are invalid or a response has no token."""
    num_responses = response_offsets.numel() - 1
    out = logprobs.new_empty(num_responses)
    sums_kernel[(num_responses,)](
        logprobs, labels, response_offsets, out, labels.numel(), MEAN=mean, BLOCK=BLOCK, num_warps=4
    )
    return out


def token_coefficients(
    grad: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor, mean: bool
) -> torch.Tensor:
    """As ``native.token_coefficients``."""
    out = grad.new_empty(labels.shape)
    spread_kernel[(grad.numel(),)](
        grad, labels, response_offsets, out, labels.numel(), MEAN=mean, BLOCK=BLOCK, num_warps=4
    )
    return out
