"""The chunk plan of the ``linear_*`` operations: which rows of the lm_head product exist at the same time.

A *group* is the smallest set of rows whose gradient coefficients are known together: a response if each response has
its own weight, a slate if its responses share one. A chunk contains whole groups, so its logits can be overwritten by
their gradients as soon as they are computed. A group larger than the budget is split, and only the logits of such a
group are computed twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from .devices import default_chunk_bytes


class Chunk(NamedTuple):
    """Rows ``[start, stop)`` that are computed at once."""

    start: int
    stop: int

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)


class GroupBatch(NamedTuple):
    """Groups ``[first_group, last_group)`` whose coefficients are computed together, and their chunks.

    With one chunk its logits still exist when the coefficients are known; several chunks are one oversized group.
    """

    first_group: int
    last_group: int
    chunks: tuple[Chunk, ...]


def rows_at_once(num_rows: int, weight: torch.Tensor, chunk_bytes: int | None, *, sums_head: bool) -> int:
    """How many of ``num_rows`` rows of logits exist at the same time; at least one.

    The default is `default_chunk_bytes`. ``sums_head``: the gradient of the bfloat16 head ``weight`` [V, D] is summed
    over chunks in float32 and then rounded into a second tensor. By default the logits may use the memory of one of
    these, which does not raise the peak: that of the sum if all logits fit in it, because one chunk needs no sum;
    otherwise that of the second tensor, which is allocated after the logits are freed.
    """
    vocab, width = weight.shape
    row = vocab * weight.element_size()
    if chunk_bytes is None:
        chunk_bytes = default_chunk_bytes(weight.device)
        if sums_head:
            total = 4 * vocab * width
            chunk_bytes = max(chunk_bytes, total if num_rows * row <= total else weight.nbytes)
    return max(1, min(num_rows, chunk_bytes // row))


def plan_rows(num_rows: int, rows: int) -> Iterator[Chunk]:
    """Split ``[0, num_rows)`` into equal chunks of at most ``rows`` rows, regardless of groups."""
    count = -(-num_rows // rows)
    even = -(-num_rows // count)
    for start in range(0, num_rows, even):
        yield Chunk(start, min(start + even, num_rows))


def all_groups(group_offsets: Sequence[int], rows: int) -> GroupBatch:
    """All groups as one batch of equal chunks."""
    return GroupBatch(0, len(group_offsets) - 1, tuple(plan_rows(group_offsets[-1], rows)))


def plan_groups(group_offsets: Sequence[int], rows: int) -> Iterator[GroupBatch]:
    """Split the groups (CSR ``group_offsets`` in rows), in order, into the fewest batches of at most ``rows`` rows;
    among these splits, take one whose largest batch is smallest.
    """
    ends = batch_ends(group_offsets, rows)
    sizes = (stop - start for start, stop in pairwise(group_offsets))
    # A group that is split anyway does not limit how small the other batches may be.
    low, high = max((size for size in sizes if size <= rows), default=rows), rows
    while low < high:
        middle = (low + high) // 2
        fits = len(batch_ends(group_offsets, middle)) <= len(ends)
        low, high = (low, middle) if fits else (middle + 1, high)
    first = 0
    for last in batch_ends(group_offsets, low):
        start, stop = group_offsets[first], group_offsets[last]
        pieces = plan_rows(stop - start, rows)
        yield GroupBatch(first, last, tuple(Chunk(start + piece.start, start + piece.stop) for piece in pieces))
        first = last


def batch_ends(group_offsets: Sequence[int], rows: int) -> list[int]:
    """The last group + 1 of each batch, filled greedily with at most ``rows`` rows, or with one larger group."""
    ends, first, num_groups = [], 0, len(group_offsets) - 1
    while first < num_groups:
        last = max(first + 1, bisect_right(group_offsets, group_offsets[first] + rows) - 1)
        ends.append(last)
        first = last
    return ends


def front_order(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How to bring the rows marked in ``keep`` [n] to the front with the fewest moves.

    Returns ``order``, the row at each front position afterwards, and the moves: position ``holes[i]`` gets row
    ``movers[i]``. Every hole is before every mover, so the moves may run in any order.
    """
    count = int(keep.sum())
    holes = (~keep[:count]).nonzero().squeeze(1)
    movers = keep[count:].nonzero().squeeze(1) + count
    order = torch.arange(count)
    order[holes] = movers
    return order, holes, movers
