"""Rows that are out of range for `scaled_exp`: labels of probability below e^-92, infinities, NaN.

Their logits are computed twice more: once for the largest logit and the sum relative to it, once for the softmax, which
replaces E (with a sum of one). Only the device knows how many such rows there are, so a fixed number of programs
processes a list of them, which is usually empty. The host neither waits nor reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .rows import exp_minus_1, transformed

#: Rows and vocabulary entries of a tile, and hidden dimensions per step.
ROWS, COLS, DEPTH = 16, 128, 64
#: Number of parts of the vocabulary that are summed separately.
SPLITS = 32
WARPS = 4


class Rescue(NamedTuple):
    """A call of `scaled_exp`, and those of its rows that must be computed again."""

    hidden: torch.Tensor  # [n, D]
    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None  # [V]
    labels: torch.Tensor  # [n]
    out: torch.Tensor | None  # [n, V]
    logprobs: torch.Tensor  # [n]
    lse: torch.Tensor  # [n] float64
    factor: torch.Tensor  # [n]
    selected: torch.Tensor  # [n] int32, the first `rescued` are row numbers
    rescued: torch.Tensor  # [] int32


@triton.jit
def select_kernel(flags, selected, count, rows, BLOCK: tl.constexpr):
    """The indices of the flagged rows, in order, and their count; one program."""
    total = tl.zeros((), tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        flag = tl.load(flags + row, mask=row < rows, other=0)
        tl.store(selected + total + tl.cumsum(flag, 0) - 1, row, mask=flag != 0)
        total += tl.sum(flag, 0)
    tl.store(count, total)


@triton.jit
def logits_tile(
    hidden, hidden_stride, weight, weight_stride, bias, row, column, width, vocab, scale, softcap,
    SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Logits [ROWS, COLS] after scale and softcap, -inf beyond the vocabulary."""
    depth = tl.arange(0, DEPTH)
    inside = column < vocab
    x = hidden + row[:, None].to(tl.int64) * hidden_stride + depth[None, :]
    w = weight + tl.where(inside, column, 0)[None, :].to(tl.int64) * weight_stride + depth[:, None]
    logits = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, width, DEPTH):
        left = tl.load(x + start, mask=depth[None, :] < width - start, other=0.0)
        right = tl.load(w + start, mask=depth[:, None] < width - start, other=0.0)
        logits = tl.dot(left, right, logits)
    if HAS_BIAS:
        logits += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    return tl.where(inside[None, :], transformed(logits, scale, softcap, SOFTCAP), float("-inf"))


@triton.jit
def rescue_sums_kernel(
    hidden, hidden_stride, weight, weight_stride, bias, labels, selected, count, tops, sums, own,
    width, vocab, scale, softcap,
    SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Largest logit and sum relative to it of a part of the vocabulary, and the label's logit."""
    total = tl.load(count)
    part = tl.cdiv(tl.cdiv(vocab, SPLITS), COLS) * COLS
    for item in range(tl.program_id(0), tl.cdiv(total, ROWS) * SPLITS, tl.num_programs(0)):
        at = item // SPLITS * ROWS + tl.arange(0, ROWS)
        mine = at < total
        row = tl.load(selected + at, mask=mine, other=0)
        label = tl.load(labels + row)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        partial = tl.zeros((ROWS,), tl.float32)
        first = item % SPLITS * part
        for start in range(first, tl.minimum(first + part, vocab), COLS):
            column = start + tl.arange(0, COLS)
            z = logits_tile(
                hidden, hidden_stride, weight, weight_stride, bias, row, column, width, vocab, scale, softcap,
                SOFTCAP, HAS_BIAS, ROWS, COLS, DEPTH,
            )  # fmt: skip
            new_top = tl.maximum(top, tl.max(z, 1))  # NaN stays in the sum
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            partial = partial * tl.exp(top - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)
            top = new_top
            is_label = column[None, :] == label[:, None]
            logit = tl.max(tl.where(is_label, z, float("-inf")), 1)
            here = (label >= start) & (label < start + COLS) & (label < vocab)
            tl.store(own + at, logit, mask=mine & here)
        tl.store(tops + at * SPLITS + item % SPLITS, top, mask=mine)
        tl.store(sums + at * SPLITS + item % SPLITS, partial, mask=mine)


@triton.jit
def rescue_rows_kernel(
    selected, count, labels, tops, sums, own, logprobs, lse, factor, vocab, scale, SPLITS: tl.constexpr
):
    """Log-probability and log-sum-exp of a row from its parts, and its factor (the sum is one)."""
    for at in range(tl.program_id(0), tl.load(count), tl.num_programs(0)):
        row = tl.load(selected + at)
        lane = tl.arange(0, SPLITS)
        top = tl.load(tops + at * SPLITS + lane)
        largest = tl.max(top, 0)
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        # exp(-inf - shift) is 0 for an empty part of the vocabulary; NaN in any part makes the sum NaN.
        total = tl.sum(tl.load(sums + at * SPLITS + lane) * tl.exp(top - shift), 0)
        log_sum = shift.to(tl.float64) + tl.log(total.to(tl.float64))
        label = tl.load(labels + row)
        known = (label >= 0) & (label < vocab)
        logit = tl.load(own + at, mask=known, other=float("nan"))
        tl.store(logprobs + row, logit.to(tl.float64) - log_sum)
        tl.store(lse + row, log_sum)
        tl.store(factor + row, -scale)


@triton.jit
def rescue_write_kernel(
    hidden, hidden_stride, weight, weight_stride, bias, labels, selected, count, lse, out, out_stride,
    width, vocab, scale, softcap,
    SOFTCAP: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Write ``softmax - onehot``, computed in float32, in place of E."""
    total = tl.load(count)
    tiles = tl.cdiv(vocab, COLS)
    for item in range(tl.program_id(0), tl.cdiv(total, ROWS) * tiles, tl.num_programs(0)):
        at = item // tiles * ROWS + tl.arange(0, ROWS)
        mine = at < total
        row = tl.load(selected + at, mask=mine, other=0)
        column = item % tiles * COLS + tl.arange(0, COLS)
        z = logits_tile(
            hidden, hidden_stride, weight, weight_stride, bias, row, column, width, vocab, scale, softcap,
            SOFTCAP, HAS_BIAS, ROWS, COLS, DEPTH,
        )  # fmt: skip
        log_p = tl.minimum(z - tl.load(lse + row).to(tl.float32)[:, None], 0.0)
        is_label = column[None, :] == tl.load(labels + row)[:, None]
        gradient = tl.where(is_label, exp_minus_1(log_p), tl.exp(log_p))
        if SOFTCAP:
            ratio = z / softcap
            gradient *= 1 - ratio * ratio
        target = out + row[:, None].to(tl.int64) * out_stride + column[None, :]
        tl.store(target, gradient.to(tl.bfloat16), mask=mine[:, None] & (column[None, :] < vocab))


def rescue(r: Rescue, *, scale: float, softcap: float | None, programs: int) -> None:
    """Compute log-probability, log-sum-exp, factor and E of the selected rows."""
    (rows, width), vocab, device = r.hidden.shape, r.weight.shape[0], r.hidden.device
    tops, sums = (torch.empty(rows, SPLITS, device=device) for _ in range(2))
    own = torch.empty(rows, device=device)
    numbers = {
        "scale": scale,
        "softcap": softcap or 0.0,
        "SOFTCAP": softcap is not None,
        "HAS_BIAS": r.bias is not None,
    }
    tile = {"ROWS": ROWS, "COLS": COLS, "DEPTH": DEPTH, "num_warps": WARPS}
    product = (r.hidden, r.hidden.stride(0), r.weight, r.weight.stride(0), r.bias, r.labels, r.selected, r.rescued)
    rescue_sums_kernel[(programs,)](*product, tops, sums, own, width, vocab, SPLITS=SPLITS, **numbers, **tile)
    rescue_rows_kernel[(programs,)](
        r.selected, r.rescued, r.labels, tops, sums, own, r.logprobs, r.lse, r.factor, vocab, scale, SPLITS=SPLITS
    )
    if r.out is not None:
        rescue_write_kernel[(programs,)](*product, r.lse, r.out, r.out.stride(0), width, vocab, **numbers, **tile)
