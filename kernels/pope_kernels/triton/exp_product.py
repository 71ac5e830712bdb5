"""The logits product with an exponential in its epilogue, after which only two products read data of size [N, V].

Each row has a reference that is known before the product, ``m = z_label + 32``, where ``z`` are logits after scale and
softcap and ``z_label`` needs one row of the head only. Then with ``E = exp(z - m)`` and its sum ``S``::

    lse = m + log S        log p = log(e^-32 / S)        onehot - softmax = -E' / S, where E'[label] = e^-32 - S

bfloat16 has the exponent range of float32, so E keeps its relative precision while the row's log-probability is above
-92. Sums are in float32, before E is rounded: one per row and tile, added in a fixed order. They leave out the label's
own element, which is e^-32 by definition: ``e^-32 - S`` is minus the sum of the others, precise as p goes to 1, and no
log-probability exceeds 0. Rows out of range, and rows with NaN or infinities, are computed again relative to their own
log-sum-exp (`exp_rescue`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .exp_rescue import Rescue, rescue, select_kernel
from .rows import IGNORE_INDEX

LOG2E = math.log2(math.e)
#: Nats from the label's logit to the reference.
OFFSET = 32.0
#: Largest allowed sum of a row, e^60: E, and its products with the head, are far from the largest bfloat16.
LARGEST_SUM = math.exp(60.0)


class Configuration(NamedTuple):
    """Tile sizes of the product and how it is launched."""

    rows: int
    cols: int
    depth: int
    #: How many tiles of rows use a tile of the head before the next one is read; their hidden states stay in L2.
    group: int
    warps: int
    stages: int
    #: Whether tiles are loaded by the tensor memory accelerator, which needs 16-byte aligned rows and strides.
    tma: bool
    #: Whether there is one program per SM, which processes several tiles.
    persistent: bool


class ExpRows(NamedTuple):
    """Per-row results besides E; ``factor * E`` is ``onehot - softmax`` chained through scale and softcap."""

    logprobs: torch.Tensor  # [n] float32
    lse: torch.Tensor  # [n] float64
    factor: torch.Tensor  # [n] float32
    rescued: torch.Tensor  # [] int32, rows that were out of range


def configuration(rows: int, softcap: bool, aligned: bool, hopper: bool) -> Configuration:
    """Tile sizes by shape. Two warp groups have registers for an accumulator of 128 x 256, but not with a softcap."""
    if not (aligned and hopper):
        return Configuration(128, 128, 64, 16, 8, 3, tma=False, persistent=False)
    if rows <= 64:  # the head is read once with any tile, and that takes longest
        return Configuration(64, 128, 64, 1, 4, 4, tma=True, persistent=False)
    return Configuration(128, 128 if softcap else 256, 64, 16, 8, 3, tma=True, persistent=True)


@triton.jit
def reference_kernel(
    hidden,
    hidden_stride,
    weight,
    weight_stride,
    bias,
    labels,
    reference,
    width,
    vocab,
    inner,
    outer,
    OFFSET: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(z_label + 32) * log2(e)``; +inf for ignored rows, whose E is 0, and NaN for labels out of range."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    known = (label >= 0) & (label < vocab)
    at = tl.where(known, label, 0)
    products = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        x = tl.load(hidden + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + at * weight_stride + column, mask=inside, other=0.0).to(tl.float32)
        products += x * w
    logit = tl.sum(products, 0)
    if HAS_BIAS:
        logit += tl.load(bias + at).to(tl.float32)
    scaled = logit * inner
    if SOFTCAP:
        scaled = (1 - 2 / (1 + tl.exp2(scaled))) * outer
    result = tl.where(known, scaled + OFFSET, float("nan"))
    tl.store(reference + row, tl.where(label == IGNORE_INDEX, float("inf"), result))


@triton.jit
def finish_tile(
    logits,
    row,
    tile,
    bias,
    labels,
    reference,
    others,
    rows,
    vocab,
    tiles,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    COLS: tl.constexpr,
):
    """E of a tile as it is stored, 0 at the labels; stores the sums of its rows.

    Columns are compared only in tiles with a label or the end of the vocabulary, to save registers.
    """
    first = tile * COLS
    inside = row < rows
    if HAS_BIAS:
        column = first + tl.arange(0, COLS)
        logits += tl.load(bias + column, mask=column < vocab, other=0.0).to(tl.float32)[None, :]
    label = (tl.load(labels + row, mask=inside, other=-1) - first).to(tl.int32)
    if tl.max(((label >= 0) & (label < COLS)).to(tl.int32), 0) > 0:
        logits = tl.where(tl.arange(0, COLS)[None, :] == label[:, None], float("-inf"), logits)
    if first + COLS > vocab:
        logits = tl.where((tl.arange(0, COLS) < vocab - first)[None, :], logits, float("-inf"))
    m = tl.load(reference + row, mask=inside, other=float("inf"))
    if SOFTCAP:
        rest = 1 / (1 + tl.exp2(logits * inner))  # tanh is 1 - 2 rest, and its slope 4 rest (1 - rest)
        e = tl.exp2((1 - 2 * rest) * outer - m[:, None])
        e = tl.where(logits == float("-inf"), 0.0, e)
    else:
        e = tl.exp2(logits * inner - m[:, None])
    tl.store(others + row * tiles + tile, tl.sum(e, 1), mask=inside)
    if SOFTCAP:
        e *= 4 * rest * (1 - rest)
    return e


@triton.jit
def tile_of(index, row_tiles, tiles, GROUP: tl.constexpr):
    """Row and column of a tile; within groups of ``GROUP`` rows of tiles, the row changes fastest."""
    in_group = GROUP * tiles
    first = index // in_group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    return first + index % in_group % size, index % in_group // size


@triton.jit
def product_kernel(
    hidden,
    hidden_stride,
    weight,
    weight_stride,
    bias,
    labels,
    reference,
    out,
    out_stride,
    others,
    rows,
    width,
    vocab,
    tiles,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile with plain loads and stores, for any strides and addresses."""
    at_row, at_col = tile_of(tl.program_id(0), tl.cdiv(rows, ROWS), tiles, GROUP)
    row = at_row * ROWS + tl.arange(0, ROWS)
    column = at_col * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)
    x = hidden + tl.where(row < rows, row, 0)[:, None].to(tl.int64) * hidden_stride + depth[None, :]
    w = weight + tl.where(column < vocab, column, 0)[None, :].to(tl.int64) * weight_stride + depth[:, None]
    logits = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, width, DEPTH):
        left = tl.load(x + start, mask=depth[None, :] < width - start, other=0.0)
        right = tl.load(w + start, mask=depth[:, None] < width - start, other=0.0)
        logits = tl.dot(left, right, logits)
    e = finish_tile(
        logits, row, at_col, bias, labels, reference, others, rows, vocab, tiles, inner, outer,
        SOFTCAP, HAS_BIAS, COLS,
    )  # fmt: skip
    if STORE:
        target = out + row[:, None].to(tl.int64) * out_stride + column[None, :]
        tl.store(target, e.to(tl.bfloat16), mask=(row[:, None] < rows) & (column[None, :] < vocab))


@triton.jit
def product_tma_kernel(
    hidden,
    weight,
    bias,
    labels,
    reference,
    out,
    others,
    rows,
    width,
    vocab,
    tiles,
    inner,
    outer,
    SOFTCAP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STORE: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Tiles loaded by the tensor memory accelerator, several per program; out of bounds reads give 0."""
    row_tiles = tl.cdiv(rows, ROWS)
    for index in tl.range(tl.program_id(0), row_tiles * tiles, tl.num_programs(0)):
        at_row, at_col = tile_of(index, row_tiles, tiles, GROUP)
        logits = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, width, DEPTH):
            left = hidden.load([at_row * ROWS, start])
            right = weight.load([at_col * COLS, start])
            logits = tl.dot(left, right.T, logits)
        row = at_row * ROWS + tl.arange(0, ROWS)
        e = finish_tile(
            logits, row, at_col, bias, labels, reference, others, rows, vocab, tiles, inner, outer,
            SOFTCAP, HAS_BIAS, COLS,
        )  # fmt: skip
        if STORE:
            out.store([at_row * ROWS, at_col * COLS], e.to(tl.bfloat16))


@triton.jit
def finish_rows_kernel(
    reference,
    others,
    labels,
    out,
    out_stride,
    logprobs,
    lse,
    factor,
    flags,
    tiles,
    scale,
    inner,
    outer,
    OFFSET: tl.constexpr,
    OWN: tl.constexpr,
    LARGEST_SUM: tl.constexpr,
    LN2: tl.constexpr,
    SOFTCAP: tl.constexpr,
    STORE: tl.constexpr,
    TILES: tl.constexpr,
):
    """A row's sum, log-probability and factor, and the element of E at its label; ``flags`` marks rows out of range."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    if label == IGNORE_INDEX:
        tl.store(logprobs + row, 0.0)
        tl.store(lse + row, 0.0)
        tl.store(factor + row, 0.0)
        tl.store(flags + row, 0)
    else:
        lane = tl.arange(0, TILES)
        rest = tl.sum(tl.load(others + row * tiles + lane, mask=lane < tiles, other=0.0), 0)
        m = tl.load(reference + row)
        own = tl.full((), OWN, tl.float32)
        total = rest + own
        in_range = total <= LARGEST_SUM  # False for NaN
        tl.store(flags + row, (~in_range).to(tl.int32))
        if in_range:
            tl.store(logprobs + row, -tl.log(1 + rest.to(tl.float64) / own))
            tl.store(lse + row, m.to(tl.float64) * LN2 + tl.log(total.to(tl.float64)))
            tl.store(factor + row, -scale / total)
            if STORE:
                at_label = -rest
                if SOFTCAP:
                    ratio = (m - OFFSET) / outer
                    at_label *= 1 - ratio * ratio
                tl.store(out + row * out_stride + label, at_label.to(tl.bfloat16))


def padded_columns(vocab: int) -> int:
    """The number of columns of a buffer for E whose rows are 16-byte aligned."""
    return -(-vocab // 8) * 8


def is_aligned(*tensors: torch.Tensor | None) -> bool:
    """Whether the tensor memory accelerator can load these."""
    return all(t is None or (t.data_ptr() % 16 == 0 and t.stride(0) % 8 == 0 and t.stride(1) == 1) for t in tensors)


def scaled_exp(
    hidden: torch.Tensor,  # [n, D] bfloat16
    weight: torch.Tensor,  # [V, D] bfloat16
    bias: torch.Tensor | None,  # [V] bfloat16
    labels: torch.Tensor,  # [n] int64
    out: torch.Tensor | None,  # [n, V] bfloat16
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> ExpRows:
    """Log-probabilities of ``labels``; if ``out`` is given, writes E to it, so that ``d log p / d logits = factor *
    out``.

    Logits are ``hidden @ weight.T + bias`` in float32, never rounded. A label out of range or NaN in a row gives NaN.
    """
    (rows, width), vocab = hidden.shape, weight.shape[0]
    device, capped, has_bias = hidden.device, softcap is not None, bias is not None
    hopper = (
        device.type == "cpu" or torch.cuda.get_device_capability(device)[0] >= 9
    )  # the interpreter supports everything
    chosen = configuration(rows, capped, is_aligned(hidden, weight, out), hopper)
    tiles = triton.cdiv(vocab, chosen.cols)
    # Both in units of log2(e): z = x * inner, or outer * tanh(x * inner / 2).
    inner = (scale if softcap is None else 2 * scale / softcap) * LOG2E
    outer = (softcap or 0.0) * LOG2E
    numbers = {"inner": inner, "outer": outer, "SOFTCAP": capped}
    reference, logprobs, factor = (torch.empty(rows, device=device) for _ in range(3))
    lse = torch.empty(rows, dtype=torch.float64, device=device)
    others = torch.empty(rows, tiles, device=device)
    flags = torch.empty(rows, dtype=torch.int32, device=device)
    reference_kernel[(rows,)](
        hidden,
        hidden.stride(0),
        weight,
        weight.stride(0),
        bias,
        labels,
        reference,
        width,
        vocab,
        OFFSET=OFFSET * LOG2E,
        HAS_BIAS=has_bias,
        BLOCK=1024,
        **numbers,
    )
    shape = {"rows": rows, "width": width, "vocab": vocab, "tiles": tiles}
    constants = {
        "HAS_BIAS": has_bias,
        "STORE": out is not None,
        "ROWS": chosen.rows,
        "COLS": chosen.cols,
        "DEPTH": chosen.depth,
        "GROUP": chosen.group,
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        **numbers,
    }
    row_data = {"bias": bias, "labels": labels, "reference": reference, "others": others}
    programs = triton.cdiv(rows, chosen.rows) * tiles
    if chosen.tma:
        if chosen.persistent:
            programs = min(programs, processors(device))
        product_tma_kernel[(programs,)](
            hidden=TensorDescriptor.from_tensor(hidden, [chosen.rows, chosen.depth]),
            weight=TensorDescriptor.from_tensor(weight, [chosen.cols, chosen.depth]),
            out=None if out is None else TensorDescriptor.from_tensor(out, [chosen.rows, chosen.cols]),
            **row_data,
            **shape,
            **constants,
        )
    else:
        product_kernel[(programs,)](
            hidden=hidden,
            hidden_stride=hidden.stride(0),
            weight=weight,
            weight_stride=weight.stride(0),
            out=out,
            out_stride=0 if out is None else out.stride(0),
            **row_data,
            **shape,
            **constants,
        )
    finish_rows_kernel[(rows,)](
        reference,
        others,
        labels,
        out,
        0 if out is None else out.stride(0),
        logprobs,
        lse,
        factor,
        flags,
        tiles,
        scale,
        OFFSET=OFFSET * LOG2E,
        OWN=math.exp(-OFFSET),
        LARGEST_SUM=LARGEST_SUM,
        LN2=math.log(2),
        STORE=out is not None,
        TILES=triton.next_power_of_2(tiles),
        **numbers,
    )
    selected = torch.empty(rows, dtype=torch.int32, device=device)
    rescued = torch.empty((), dtype=torch.int32, device=device)
    select_kernel[(1,)](flags, selected, rescued, rows, BLOCK=1024)
    rescue(
        Rescue(hidden, weight, bias, labels, out, logprobs, lse, factor, selected, rescued),
        scale=scale,
        softcap=softcap,
        programs=processors(device),
    )
    return ExpRows(logprobs, lse, factor, rescued)


def processors(device: torch.device) -> int:
    """The number of SMs, i.e. of programs to launch; 3 under the interpreter."""
    return 3 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count
