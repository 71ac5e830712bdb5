"""The chunk plan of the ``linear_*`` operations: which rows of the lm_head product exist at the same time.

A *group* is the smallest set of rows whose gradient coefficients are known together: a response where each response has
its own weight, a slate where the slate shares one. A chunk holds whole groups, so the logits of a chunk can be turned
into gradients in place as soon as they are there; a group larger than the budget is cut into pieces, and only such a
group computes its logits twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from .devices import device_type


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

    ``sums_head``: over several chunks the gradient of the bfloat16 head ``weight`` [V, D] is summed in float32 and then
    rounded into a second tensor. By default the logits may take that room instead, which raises no peak: the sum's
    where all of them fit it, so that nothing is left to sum; else that of the second tensor, which comes later.
    """
    vocab, width = weight.shape
    row = vocab * weight.element_size()
    if chunk_bytes is None:
        chunk_bytes = device_type(weight.device).chunk_bytes
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
    """Cut the groups (CSR ``group_offsets`` in rows) into batches of at most ``rows`` rows, greedily and in order."""
    first, num_groups = 0, len(group_offsets) - 1
    while first < num_groups:
        start = group_offsets[first]
        last = first + 1
        while last < num_groups and group_offsets[last + 1] - start <= rows:
            last += 1
        stop = group_offsets[last]
        pieces = plan_rows(stop - start, rows)
        yield GroupBatch(first, last, tuple(Chunk(start + piece.start, start + piece.stop) for piece in pieces))
        first = last


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
