"""Writes slates to files, one at a time and atomically; files read back equal."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .._extras import require
from .._files import replacing
from .schema import FIELDS, Slate

#: Endings of files that slates can be written to.
ENDINGS = (".jsonl", ".parquet")
#: Columns that Parquet stores as JSON text, because they have no single type.
JSON_COLUMNS = ("logging_policy", "group_scores", "ratings", "origin")
_ROW_GROUP = 1000

Row = dict[str, Any]


class Writer(Protocol):
    """Writes slates one at a time."""

    def write(self, slate: Slate) -> None: ...


class RowFormat(NamedTuple):
    """How slates become the rows of a file.

    Attributes:
        row: the row of a slate, without absent values; None to skip the slate.
        schema: the columns of a Parquet file, given the pyarrow module and which fields in ``turns`` contain turns.
        turns: fields with text or turns, which a Parquet file cannot mix.
    """

    row: Callable[[Slate], Row | None]
    schema: Callable[[Any, dict[str, bool]], Row]
    turns: tuple[str, ...]

    @contextmanager
    def write_to(self, path: Path) -> Iterator[Writer]:
        """A writer in constant memory of a file that ends in ``.jsonl`` or ``.parquet``."""
        writer = _JsonLines(path, self.row) if path.suffix == ".jsonl" else _Parquet(path, self)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()

    @contextmanager
    def replace(self, path: str | os.PathLike[str]) -> Iterator[Writer]:
        """The same; the file appears when the block ends without an error.

        Raises:
            ValueError: another ending; another process is writing the file.
        """
        path = Path(path)
        if path.suffix not in ENDINGS:
            raise ValueError(f"path: expected a file ending in .jsonl or .parquet, got {str(path)!r}")
        with replacing(path) as partial, self.write_to(partial) as writer:
            yield writer


def write_slates(slates: Iterable[Slate], path: str | os.PathLike[str]) -> None:
    """Write slates to ``.jsonl`` or ``.parquet``; `read_slates` returns equal slates.

    The write is atomic. Parquet has one type per column: there ``logging_policy``, ``group_scores``, ``ratings``
    and ``origin`` are JSON text, and prompts (and completions) must be all text or all turns.

    Raises:
        ValueError: the ending is neither of the two, a Parquet file would have to mix text and turns, or another
            process is writing the file.
    """
    with slate_writer(path) as writer:
        for slate in slates:
            writer.write(slate)


@contextmanager
def slate_writer(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """A writer in constant memory; the file appears when the block ends without an error."""
    with SLATES.replace(path) as writer:
        yield writer


def _row(slate: Slate) -> Row:
    return {name: value for name in FIELDS if (value := getattr(slate, name)) is not None}


def columns_of(slate: Slate) -> Row:
    """The row of a slate as Parquet stores it: objects without a single type are JSON text."""
    row = _row(slate)
    for name in JSON_COLUMNS:
        if name in row:
            row[name] = json.dumps(row[name], ensure_ascii=False, allow_nan=False)
    return row


def slate_schema(pa: Any, rows: Iterable[Row]) -> Row:
    """The columns of a Parquet file of these rows, of which some may have neither prompt nor responses.

    Raises:
        ValueError: some have text and others turns.
    """
    turns: dict[str, bool] = {}
    for row in rows:
        _one_kind(turns, "prompt", [row.get("prompt")])
        _one_kind(turns, "completions", row.get("completions") or [])
    return _schema(pa, turns)


def _one_kind(turns: dict[str, bool], field: str, entries: Iterable[Any]) -> None:
    """Note whether a field holds turns, which a Parquet file cannot mix with text."""
    for entry in entries:
        if entry is not None and turns.setdefault(field, isinstance(entry, list)) != isinstance(entry, list):
            raise ValueError(
                f"{field}: expected all text or all turns in a Parquet file, got both; write .jsonl instead"
            )


def turns_type(pa: Any) -> Any:
    """The Parquet type of a list of turns."""
    return pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))


def _schema(pa: Any, turns: dict[str, bool]) -> Row:
    """The columns of a Parquet file, given which fields hold turns."""
    return {
        "prompt": turns_type(pa) if turns.get("prompt") else pa.string(),
        "completions": pa.list_(turns_type(pa) if turns.get("completions") else pa.string()),
        "scores": pa.list_(pa.float64()),
        "logging_logprobs": pa.list_(pa.float64()),
        "completion_tokens": pa.list_(pa.int64()),
        "ranks": pa.list_(pa.int64()),
        "slate_id": pa.string(),
        "responders": pa.list_(pa.string()),
        "finished": pa.list_(pa.bool_()),
        "completion_ids": pa.list_(pa.list_(pa.int64())),
        **{name: pa.string() for name in JSON_COLUMNS},
    }


class _JsonLines:
    def __init__(self, path: Path, row: Callable[[Slate], Row | None]) -> None:
        self.row = row
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, slate: Slate) -> None:
        if (row := self.row(slate)) is not None:
            self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class _Parquet:
    def __init__(self, path: Path, rows: RowFormat) -> None:
        self.path, (self.row, self.schema, self.fields) = path, rows
        self.pa = require("pyarrow", extra="train", purpose="to write Parquet files")
        self.parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
        self.turns: dict[str, bool] = {}
        self.rows: list[Row] = []
        self.writer: Any = None

    def write(self, slate: Slate) -> None:
        row = self.row(slate)
        if row is None:
            return
        for name in self.fields:
            _one_kind(self.turns, name, row[name] if name == "completions" else [row[name]])
        for name in JSON_COLUMNS:
            if name in row:
                row[name] = json.dumps(row[name], ensure_ascii=False, allow_nan=False)
        self.rows.append(row)
        if len(self.rows) == _ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.writer is None:
            self.table_schema = self.pa.schema(self.schema(self.pa, self.turns))
            self.writer = self.parquet.ParquetWriter(self.path, self.table_schema)
        self.writer.write_table(self.pa.Table.from_pylist(self.rows, schema=self.table_schema))
        self.rows = []

    def finish(self) -> None:
        if self.rows or self.writer is None:
            self.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


#: The format that `read_slates` reads.
SLATES = RowFormat(_row, _schema, ("prompt", "completions"))
