"""The chunk plan: every row once, whole groups together, the budget kept, and the order not disturbed."""

from __future__ import annotations

from itertools import accumulate, pairwise

from hypothesis import given
from hypothesis import strategies as st

from pope_core._plan import plan_groups, plan_rows, rows_per_chunk

group_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 20), st.sampled_from([2, 4, 8]))
def test_the_buffer_fits_the_budget_or_is_one_row(chunk_bytes: int, vocab: int, itemsize: int) -> None:
    rows = rows_per_chunk(chunk_bytes, vocab, itemsize)
    assert rows == 1 or rows * vocab * itemsize <= chunk_bytes
    assert (rows + 1) * vocab * itemsize > chunk_bytes


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


@given(group_sizes, st.integers(1, 60))
def test_no_two_neighbouring_batches_would_fit_together(sizes: list[int], rows: int) -> None:
    batches = list(plan_groups([0, *accumulate(sizes)], rows))
    for batch, following in pairwise(batches):
        assert sum(sizes[batch.first_group : batch.last_group]) + sizes[following.first_group] > rows
