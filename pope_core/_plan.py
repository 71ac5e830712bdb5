"""The chunk plan of the ``linear_*`` operations: which rows of the lm_head product exist at the same time.

A *group* is the smallest set of rows whose gradient coefficients are known together: a response where each response has
its own weight, a slate where the slate shares one. A chunk holds whole groups, so the logits of a chunk can be turned
into gradients in place as soon as they are there; a group larger than the budget is cut into pieces, and only such a
group computes its logits twice.
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
    """Groups ``[first_group, last_group)`` whose coefficients are computed together, and the chunks they are made of.

    One chunk: its logits are still there when the coefficients are known. Several: one oversized group, cut up.
    """

    first_group: int
    last_group: int
    chunks: tuple[Chunk, ...]


def rows_at_once(num_rows: int, weight: torch.Tensor, chunk_bytes: int | None, *, sums_head: bool) -> int:
    """How many of ``num_rows`` rows of logits exist at the same time; never less than one.

    The default is `default_chunk_bytes`. ``sums_head``: over several chunks the gradient of the bfloat16 head
    ``weight`` [V, D] is summed in float32 and then rounded into a second tensor. By default the logits may take that
    memory instead, which raises no peak: the sum's where all of them fit it, so that nothing is left to sum; else that
    of the second tensor, which comes later.
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
    """Cut ``[0, num_rows)`` into equal chunks of at most ``rows`` rows, for work that needs no alignment."""
    count = -(-num_rows // rows)
    even = -(-num_rows // count)
    for start in range(0, num_rows, even):
        yield Chunk(start, min(start + even, num_rows))


def all_groups(group_offsets: Sequence[int], rows: int) -> GroupBatch:
    """All groups as one batch of equal chunks."""
    return GroupBatch(0, len(group_offsets) - 1, tuple(plan_rows(group_offsets[-1], rows)))


def plan_groups(group_offsets: Sequence[int], rows: int) -> Iterator[GroupBatch]:
    """Cut the groups (CSR ``group_offsets`` in rows) into as few batches of at most ``rows`` rows as there can be, in
    order, and these as equal as whole groups allow: their largest is as small as it can be.
    """
    ends = batch_ends(group_offsets, rows)
    sizes = (stop - start for start, stop in pairwise(group_offsets))
    # A group that is cut in any case does not limit how small the others' batches may be.
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

    Returns ``order``, the row that each of the front positions then holds, and the moves that get there: position
    ``holes[i]`` takes row ``movers[i]``. Every hole lies in front of every mover, so the moves may run in any order.
    """
    count = int(keep.sum())
    holes = (~keep[:count]).nonzero().squeeze(1)
    movers = keep[count:].nonzero().squeeze(1) + count
    order = torch.arange(count)
    order[holes] = movers
    return order, holes, movers
