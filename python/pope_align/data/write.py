"""Slates to files, one at a time: what is written reads back equal, and a file appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from .._extras import require
from .._files import replacing
from .schema import FIELDS, Slate

#: Columns that Parquet holds as JSON text, because one type cannot describe them.
_JSON_COLUMNS = ("logging_policy", "group_scores", "origin")
_ROW_GROUP = 1000


class Writer(Protocol):
    """Takes slates one at a time."""

    def write(self, slate: Slate) -> None: ...


def write_slates(slates: Iterable[Slate], path: str | os.PathLike[str]) -> None:
    """Write slates to ``.jsonl`` or ``.parquet`` so that `read_slates` gives equal ones back.

    The file appears complete or not at all. Parquet has one type a column: there ``logging_policy``, ``group_scores``
    and ``origin`` are JSON text, and prompts (and completions) must be all text or all turns.

    Raises:
        ValueError: the ending is neither of the two, or a Parquet file would have to mix text and turns.
    """
    with slate_writer(path) as writer:
        for slate in slates:
            writer.write(slate)


@contextmanager
def slate_writer(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """A file that is being written, in constant memory; it gets its name when the block ends without an error."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"path: expected a file ending in .jsonl or .parquet, got {str(path)!r}")
    with replacing(path) as partial:
        writer = _JsonLines(partial) if path.suffix == ".jsonl" else _Parquet(partial)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self.file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, slate: Slate) -> None:
        present = {name: value for name in FIELDS if (value := getattr(slate, name)) is not None}
        self.file.write(json.dumps(present, ensure_ascii=False, allow_nan=False) + "\n")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.file.close()


class _Parquet:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.pa = require("pyarrow", extra="train", purpose="to write Parquet files")
        self.parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
        self.turns: dict[str, bool] = {}
        self.rows: list[dict[str, Any]] = []
        self.writer: Any = None

    def write(self, slate: Slate) -> None:
        row = {name: getattr(slate, name) for name in FIELDS}  # as it is: dataclasses.asdict would copy every text
        for name in _JSON_COLUMNS:
            if row[name] is not None:
                row[name] = json.dumps(row[name], ensure_ascii=False, allow_nan=False)
        self.one_kind("prompt", [row["prompt"]])
        self.one_kind("completions", row["completions"])
        self.rows.append(row)
        if len(self.rows) == _ROW_GROUP:
            self.flush()

    def one_kind(self, field: str, values: list[Any]) -> None:
        for value in values:
            if self.turns.setdefault(field, isinstance(value, list)) != isinstance(value, list):
                raise ValueError(
                    f"{field}: expected all text or all turns in a Parquet file, got both; write .jsonl instead"
                )

    def flush(self) -> None:
        if self.writer is None:
            self.schema = self.make_schema()
            self.writer = self.parquet.ParquetWriter(self.path, self.schema)
        self.writer.write_table(self.pa.Table.from_pylist(self.rows, schema=self.schema))
        self.rows = []

    def make_schema(self) -> Any:
        pa = self.pa
        turns = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
        return pa.schema(
            {
                "prompt": turns if self.turns.get("prompt") else pa.string(),
                "completions": pa.list_(turns if self.turns.get("completions") else pa.string()),
                "scores": pa.list_(pa.float64()),
                "logging_logprobs": pa.list_(pa.float64()),
                "completion_tokens": pa.list_(pa.int64()),
                "ranks": pa.list_(pa.int64()),
                "slate_id": pa.string(),
                "responders": pa.list_(pa.string()),
                **{name: pa.string() for name in _JSON_COLUMNS},
            }
        )

    def finish(self) -> None:
        if self.rows or self.writer is None:
            self.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
