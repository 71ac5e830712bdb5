"""Reads Parquet shards with one row per response, sorted by query, in batches of whole queries."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._arrays import Floats, Integers
from ..._extras import require

#: Rows of a batch: 1 MiB of each column.
ROWS = 2**17

#: The name of a cluster or slate in a file.
Key = str | int


@dataclass(frozen=True)
class Columns:
    """The names of columns in files with one row per response.

    Attributes:
        query: integer or text, equal for the responses of one slate; rows are sorted by it.
        logging_logprob: total log-probability under the policy that wrote the response, nats.
        score: the feedback.
        cluster: integer or text, equal for slates that are not independent, such as those of one user; rows are then
            sorted by cluster and query. None: every query is a cluster.
        tokens: tokens of the response, for length-normalised objectives and indices. None: not known.
    """

    query: str = "query"
    logging_logprob: str = "logging_logprob"
    score: str = "score"
    cluster: str | None = None
    tokens: str | None = None

    @property
    def keys(self) -> list[str]:
        """The columns that rows are sorted by."""
        return [self.query] if self.cluster is None else [self.cluster, self.query]


@dataclass(frozen=True, eq=False)
class Rows:
    """Whole slates of a shard as arrays, checked; log-probabilities are totals in nats."""

    pieces: tuple[tuple[int, str, int], ...]  # from which row on they are of which file, and the row there
    scores: Floats  # [R]
    logging: Floats  # [R]
    policies: Mapping[str, Floats]  # each [R]
    tokens: Integers | None  # [R]
    slate_offsets: Integers  # [S + 1]
    slate_clusters: Integers  # [S] 0 ... C - 1
    clusters: list[Key]  # [C]
    queries: list[Key]  # [S] of edges; empty within a shard

    def place(self, row: int) -> str:
        start, path, first = [piece for piece in self.pieces if piece[0] <= row][-1]
        return f"row {first + row - start} of {path}"


def parquet_files(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, required: bool = True
) -> list[str]:
    """The shards in order: files, and the ``.parquet`` files of folders by name, but those that begin with "_" or ".".

    Raises:
        ValueError: no such file; or nothing to read, if that is required.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[str] = []
    for path in map(Path, given):
        if not path.exists():
            raise ValueError(f"paths: {path}: no such file or folder")
        found = [path]
        if path.is_dir():
            found = sorted(file for file in path.glob("*.parquet") if file.name[0] not in "_.")
        if not found and required:
            raise ValueError(f"paths: {path}: expected files that end in .parquet, found none in this folder")
        files += map(str, found)
    if not files and required:
        raise ValueError("paths: expected Parquet files or a folder of them, got none")
    if len(set(files)) < len(files):
        raise ValueError(f"paths: {next(file for file in files if files.count(file) > 1)} is given twice")
    return files


def rows_and_score_range(files: Sequence[str], score: str) -> tuple[int, float, float]:
    """The number of responses, and the least and greatest score: from the footers, or the column where they lack it.

    Raises:
        ValueError: no such column, or no rows.
    """
    count, least, most = 0, np.inf, -np.inf
    for file in files:
        reader = _open(file)
        _check_types(file, reader.schema_arrow, [score], [])
        meta = reader.metadata
        count += meta.num_rows
        for group in range(meta.num_row_groups):
            column = next(
                each
                for each in (meta.row_group(group).column(i) for i in range(meta.num_columns))
                if each.path_in_schema == score
            )
            known = column.statistics
            if known is not None and known.has_min_max:
                least, most = min(least, known.min), max(most, known.max)
            elif meta.row_group(group).num_rows:
                values = reader.read_row_group(group, columns=[score]).column(0).to_numpy()
                least, most = min(least, float(np.nanmin(values))), max(most, float(np.nanmax(values)))
    if count == 0:
        raise ValueError(f"paths: expected rows, got none in {files[0]}{' and the others' if len(files) > 1 else ''}")
    return count, float(least), float(most)


def read_shard(
    path: str, columns: Columns, policies: Mapping[str, str], rows: int = ROWS
) -> Iterator[tuple[bool, Rows]]:
    """Batches of whole clusters of one shard, in order, each with whether it is an edge: the first or last cluster of
    the shard, which may continue in another.

    Args:
        policies: the column of each policy.
        rows: of a batch, or more where a cluster has more.

    Raises:
        ValueError: a missing column, one of another type, a missing or invalid number, or rows that are not sorted;
            with the place.
    """
    pa = require("pyarrow", extra="train", purpose="to read Parquet files")
    reader = _open(path)
    numbers = [columns.logging_logprob, columns.score, *policies.values(), *filter(None, [columns.tokens])]
    _check_types(path, reader.schema_arrow, numbers, columns.keys)
    names = list(dict.fromkeys([*columns.keys, *numbers]))
    kept, first, opened = None, 0, False  # rows of a cluster that may not be complete
    for batch in reader.iter_batches(batch_size=rows, columns=names):
        table = pa.Table.from_batches([batch])
        kept = table if kept is None else pa.concat_tables([kept, table]).combine_chunks()
        slates, starts = _boundaries(path, first, kept, columns)
        cut = 0
        if not opened and starts.size > 1:
            yield True, _rows(path, first, kept, slates, starts, 0, starts[1], columns, policies, edge=True)
            opened, cut = True, int(starts[1])
        if starts[-1] > cut:
            yield False, _rows(path, first, kept, slates, starts, cut, starts[-1], columns, policies)
            cut = int(starts[-1])
        kept, first = kept.slice(cut), first + cut
    if kept is not None and kept.num_rows:
        slates, starts = _boundaries(path, first, kept, columns)
        yield True, _rows(path, first, kept, slates, starts, 0, kept.num_rows, columns, policies, edge=True)


def _open(path: str) -> Any:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    try:
        return parquet.ParquetFile(path)
    except ValueError as error:  # pyarrow's errors of content are ValueErrors
        raise ValueError(f"{path}: expected a Parquet file: {error}") from error


def _check_types(path: str, schema: Any, numbers: Sequence[str], keys: Sequence[str]) -> None:
    types = require("pyarrow.types", extra="train", purpose="to read Parquet files")
    for name in [*keys, *numbers]:
        if name not in schema.names:
            raise ValueError(
                f"{path}: expected a column {name!r}, got {', '.join(schema.names)}; `columns` says what they are named"
            )
        kind = schema.field(name).type
        if name in keys:
            plain = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_integer(plain) or types.is_string(plain) or types.is_large_string(plain)):
                raise ValueError(f"{path}: {name}: expected integers or text, got {kind}")
        elif not (types.is_floating(kind) or types.is_integer(kind)):
            raise ValueError(f"{path}: {name}: expected numbers, got {kind}")


def _boundaries(path: str, first: int, table: Any, columns: Columns) -> tuple[Integers, Integers]:
    """The rows at which slates and clusters begin.

    Raises:
        ValueError: rows that are not sorted.
    """
    pc = require("pyarrow.compute", extra="train", purpose="to read Parquet files")
    same = np.ones(table.num_rows - 1, dtype=bool)  # as the row before, in the columns seen so far
    starts = []
    for name in columns.keys:
        values = _keys(path, first, table, name)
        before, after = values.slice(0, len(values) - 1), values.slice(1)
        falls = same & pc.less(after, before).to_numpy(zero_copy_only=False)
        if falls.any():
            at = int(falls.argmax())
            order = " and ".join(columns.keys)
            raise ValueError(
                f"{path}: row {first + at + 1}: expected rows sorted by {order}, got {name} "
                f"{values[at + 1].as_py()!r} after {values[at].as_py()!r}; sort the log once, for example with DuckDB: "
                f"COPY (FROM 'log/*.parquet' ORDER BY {', '.join(columns.keys)}) TO 'sorted.parquet'"
            )
        same = same & pc.equal(after, before).to_numpy(zero_copy_only=False)
        starts.append(np.flatnonzero(np.append(True, ~same)))
    return starts[-1], starts[0]


def _keys(path: str, first: int, table: Any, name: str) -> Any:
    """The column as one array of integers or text."""
    types = require("pyarrow.types", extra="train", purpose="to read Parquet files")
    column = table.column(name)
    _check_nulls(path, first, name, column)
    column = column.combine_chunks()
    column = column.chunk(0) if hasattr(column, "chunk") else column
    return column.dictionary_decode() if types.is_dictionary(column.type) else column


def _check_nulls(path: str, first: int, name: str, column: Any) -> None:
    if column.null_count:
        at = int(np.argmax(column.is_null().to_numpy()))
        raise ValueError(f"{path}: row {first + at}: {name}: expected a value, got none")


def _rows(
    path: str,
    first: int,
    table: Any,
    slates: Integers,
    starts: Integers,
    low: int,
    high: int,
    columns: Columns,
    policies: Mapping[str, str],
    *,
    edge: bool = False,
) -> Rows:
    """Rows ``low`` to ``high`` of the table, which begin and end with clusters."""
    part = table.slice(low, high - low)
    where = first + low

    def numbers(name: str) -> Floats:
        column = part.column(name)
        _check_nulls(path, where, name, column)
        return np.ascontiguousarray(column.to_numpy(), dtype=np.float64)

    def logprobs(name: str, *, may_be_zero: bool) -> Floats:
        values = numbers(name)
        fine = (values <= 0) & (np.isfinite(values) | may_be_zero)  # NaN fails the first
        kind = "a log-probability <= 0, -inf for impossible" if may_be_zero else "a finite log-probability <= 0"
        _check(path, where, name, values, fine, f"{kind} (nats, the total over the response)")
        return values

    inner = slates[(slates >= low) & (slates < high)]
    mine = starts[(starts >= low) & (starts < high)]
    tokens = None
    if columns.tokens is not None:
        counts = numbers(columns.tokens)
        fine = (counts >= 1) & (counts == np.floor(counts))
        _check(path, where, columns.tokens, counts, fine, "an integer >= 1")
        tokens = counts.astype(np.int64)
    scores = numbers(columns.score)
    _check(path, where, columns.score, scores, np.isfinite(scores), "a finite number")
    return Rows(
        pieces=((0, path, where),),
        scores=scores,
        logging=logprobs(columns.logging_logprob, may_be_zero=False),
        policies={name: logprobs(column, may_be_zero=True) for name, column in policies.items()},
        tokens=tokens,
        slate_offsets=np.append(inner, high) - low,
        slate_clusters=np.searchsorted(mine, inner, side="right") - 1,
        clusters=_keys(path, first, table.take(mine), columns.keys[0]).to_pylist(),
        queries=_keys(path, first, table.take(inner), columns.query).to_pylist() if edge else [],
    )


def _check(path: str, first: int, name: str, values: Floats, fine: npt.NDArray[np.bool_], expected: str) -> None:
    if not fine.all():
        at = int(fine.argmin())
        raise ValueError(f"{path}: row {first + at}: {name}: expected {expected}, got {values[at]:g}")
