"""Groups pieces of slates by key, for input of any size and order."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, Self, TypeVar

from .._extras import require
from .._files import named_writes

_BATCH = 20_000
#: Fewer are sorted in memory.
_FEW = 2_000


class Keyed(Protocol):
    """What can be gathered: it has a key, and can be spilled to disk."""

    @property
    def key(self) -> str: ...

    def to_json(self) -> str: ...

    @classmethod
    def from_json(cls, text: str) -> Self: ...


_Keyed = TypeVar("_Keyed", bound=Keyed)


def gather(pieces: Iterable[_Keyed], kind: type[_Keyed], *, memory_limit: str = "512MB") -> Iterator[list[_Keyed]]:
    """Groups of pieces with the same key: keys in the order of their bytes, pieces of a key in their own order.

    Equivalent, if everything fits in memory::

        itertools.groupby(sorted(pieces, key=lambda piece: piece.key), key=lambda piece: piece.key)

    The pieces are spilled to a temporary folder and sorted by DuckDB within ``memory_limit``; a few thousand are sorted
    in memory.

    Args:
        kind: the class of the pieces.
    """
    iterator = iter(pieces)
    first = list(itertools.islice(iterator, _FEW))
    if len(first) < _FEW:
        first.sort(key=lambda piece: piece.key.encode())
        yield from (list(group) for _, group in itertools.groupby(first, key=lambda piece: piece.key))
        return
    duckdb = require("duckdb", extra="train", purpose="to join and group files that may be larger than memory")
    with tempfile.TemporaryDirectory(prefix="pope-convert-") as folder:
        spilled, ordered = Path(folder, "pieces.parquet"), Path(folder, "sorted.parquet")
        with named_writes(spilled):
            _spill(itertools.chain(first, iterator), spilled)
        del first
        config = {"memory_limit": memory_limit, "temp_directory": folder, "threads": min(os.cpu_count() or 1, 4)}
        with duckdb.connect(config=config) as connection:
            connection.execute("SET enable_progress_bar = false")
            query = f"SELECT key, piece FROM read_parquet('{spilled}') ORDER BY key, number"
            connection.execute(f"COPY ({query}) TO '{ordered}' (FORMAT parquet, ROW_GROUP_SIZE 10000)")
        spilled.unlink()
        for _, group in itertools.groupby(_read(ordered), key=lambda row: row[0]):
            yield [kind.from_json(text) for _, text in group]


def _spill(pieces: Iterable[Keyed], path: Path) -> None:
    """Write numbered pieces to a Parquet file."""
    pa = require("pyarrow", extra="train", purpose="to spill slates to disk")
    parquet = require("pyarrow.parquet", extra="train", purpose="to spill slates to disk")
    schema = pa.schema({"key": pa.string(), "number": pa.int64(), "piece": pa.string()})
    count = 0
    iterator = iter(pieces)
    with parquet.ParquetWriter(path, schema, compression="snappy", use_dictionary=False) as writer:
        while batch := list(itertools.islice(iterator, _BATCH)):
            columns = [[p.key for p in batch], range(count, count + len(batch)), [p.to_json() for p in batch]]
            arrays = [pa.array(values, type=field.type) for values, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            count += len(batch)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read what was spilled")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(4096):
            yield from zip(*(batch.column(index).to_pylist() for index in range(2)), strict=True)
