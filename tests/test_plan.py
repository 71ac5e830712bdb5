"""The chunk plan: every row once, whole groups together, the budget kept, and the order not disturbed."""

from __future__ import annotations

import functools
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pope_core._plan import plan_groups, plan_rows, rows_at_once
from pope_core.devices import DEVICES, default_chunk_bytes

group_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


num_rows = st.integers(1, 1 << 20)


def heads(*dtypes: torch.dtype) -> st.SearchStrategy[torch.Tensor]:
    shapes = st.tuples(st.integers(1, 1 << 20), st.integers(1, 1 << 14))
    return st.builds(
        lambda shape, dtype: torch.empty(shape, dtype=dtype, device="meta"), shapes, st.sampled_from(dtypes)
    )


@given(num_rows, heads(torch.bfloat16, torch.float32, torch.float64), st.integers(1, 1 << 40), st.booleans())
def test_the_buffer_holds_as_many_rows_as_fit_the_budget(
    num_rows: int, head: torch.Tensor, chunk_bytes: int, sums_head: bool
) -> None:
    rows = rows_at_once(num_rows, head, chunk_bytes, sums_head=sums_head)
    row = head.shape[0] * head.element_size()
    assert 1 <= rows <= num_rows
    assert rows == 1 or rows * row <= chunk_bytes
    assert rows == num_rows or (rows + 1) * row > chunk_bytes


@given(num_rows, heads(torch.bfloat16))
def test_the_default_buffer_takes_no_more_than_its_budget_or_the_sum_that_it_replaces(
    num_rows: int, head: torch.Tensor
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "meta", DEVICES["cpu"])
        plain = rows_at_once(num_rows, head, None, sums_head=False)
        rows = rows_at_once(num_rows, head, None, sums_head=True)
    vocab, width = head.shape
    row = 2 * vocab
    assert rows >= plain == rows_at_once(num_rows, head, DEVICES["cpu"].chunk_bytes, sums_head=False)
    if plain < rows < num_rows:  # the rounded gradient's room, which comes later
        assert rows * row <= head.nbytes
    elif plain < rows:  # the sum's room, and no sum
        assert rows * row <= 4 * vocab * width


@given(st.integers(1, 500), st.integers(1, 60))
def test_rows_are_cut_into_as_few_and_as_equal_chunks_as_fit(num_rows: int, rows: int) -> None:
    chunks = list(plan_rows(num_rows, rows))
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert [row for chunk in chunks for row in range(chunk.start, chunk.stop)] == list(range(num_rows))
    assert max(sizes) <= rows
    assert len(chunks) == -(-num_rows // rows)
    assert all(size == sizes[0] for size in sizes[:-1])


@given(group_sizes, st.integers(1, 60))
def test_every_row_is_in_one_chunk_and_every_group_in_one_batch(sizes: list[int], rows: int) -> None:
    offsets = [0, *accumulate(sizes)]
    batches = list(plan_groups(offsets, rows))
    covered = [
        row for batch in batches for chunk in batch.chunks for row in range(offsets[-1])[chunk.start : chunk.stop]
    ]
    assert covered == list(range(offsets[-1]))
    assert [group for batch in batches for group in range(batch.first_group, batch.last_group)] == list(
        range(len(sizes))
    )
    for batch in batches:
        assert batch.chunks[0].start == offsets[batch.first_group]
        assert batch.chunks[-1].stop == offsets[batch.last_group]
        assert all(chunk.stop - chunk.start <= rows for chunk in batch.chunks)


@given(group_sizes, st.integers(1, 60))
def test_only_a_group_larger_than_the_budget_is_cut(sizes: list[int], rows: int) -> None:
    for batch in plan_groups([0, *accumulate(sizes)], rows):
        if len(batch.chunks) > 1:
            assert batch.last_group == batch.first_group + 1
            assert sizes[batch.first_group] > rows


def fewest_and_smallest(sizes: list[int], rows: int) -> tuple[int, int]:
    """The least number of batches, and then the least size of the largest that may hold several groups, by search."""
    whole = len(sizes)

    @functools.cache
    def best(first: int) -> tuple[int, int]:
        if first == whole:
            return 0, 0
        choices = []
        for last in range(first + 1, whole + 1):
            size = sum(sizes[first:last])
            if last > first + 1 and size > rows:
                break
            count, largest = best(last)
            choices.append((count + 1, max(largest, size if size <= rows else 0)))
        return min(choices)

    return best(0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=14), st.integers(1, 60))
def test_batches_are_as_few_and_then_as_equal_as_whole_groups_allow(sizes: list[int], rows: int) -> None:
    taken = [sum(sizes[b.first_group : b.last_group]) for b in plan_groups([0, *accumulate(sizes)], rows)]
    assert (len(taken), max((size for size in taken if size <= rows), default=0)) == fewest_and_smallest(sizes, rows)


def test_the_default_budget_of_a_gpu_follows_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, expected in ((80 << 30, 5 << 29), (8 << 30, 512 << 20)):
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, properties=properties: properties)
        assert default_chunk_bytes(torch.device("cuda")) == expected
    assert default_chunk_bytes(torch.device("cpu")) == DEVICES["cpu"].chunk_bytes
