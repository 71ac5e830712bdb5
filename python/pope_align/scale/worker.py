"""Makes one shard: reads a range of rows, runs a step on them, writes a Parquet file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import _paths
from .._extras import require
from .._files import replacing
from ..data.readers import parquet_rows
from ..data.records import Record
from ..data.schema import ERROR, SlateError, file_rows
from ..data.shards import Shard
from .columns import WHERE, ColumnStep, Row

#: The key of a shard's own description in its Parquet metadata.
_ABOUT = b"pope_shard"


@dataclass
class ShardWorker:
    """Makes shards, one after another, with one step; picklable, and the same in this process and in a Ray actor.

    A shard that is there already, made from the same rows by the same run, is kept: a task may be repeated.

    Args:
        step: what is done with the rows.
        folder: where shards are written.
        run: a hash of everything that the content depends on.
    """

    step: ColumnStep
    folder: str
    run: str

    def __call__(self, task: tuple[str, Shard]) -> Shard:
        """`make` the shard of a task."""
        return self.make(*task)

    def make(self, path: str, shard: Shard) -> Shard:
        """Make a shard from the rows of a file; returns it with its counts and its hash."""
        target = Path(self.folder, shard.name)
        self.step.load()
        about = {"run": self.run, "source": [path, _paths.identity(path)], "model": self.step.fingerprint}
        about |= {name: getattr(shard, name) for name in ("name", "input", "start", "stop")}
        if (kept := _kept(target, about)) is not None:
            return kept
        rows = list(rows_between(Path(path), shard.start, shard.stop))
        columns = self.step({name: [row.get(name) for row in rows] for name in _names(rows)})
        errors = sum(error is not None for error in columns[ERROR])
        cut = sum(bool(tokens) for tokens in columns.get("cut_tokens", ()))
        made = replace(shard, rows=len(rows), errors=errors, cut=cut, model=self.step.fingerprint)
        parquet = require("pyarrow.parquet", extra="train", purpose="to write shards")
        with replacing(target) as partial:
            parquet.write_table(
                self._table(columns, {**about, "rows": len(rows), "errors": errors, "cut": cut}), partial
            )
            return replace(made, bytes=partial.stat().st_size, sha256=_digest(partial))

    def _table(self, columns: Mapping[str, list[Any]], about: dict[str, Any]) -> Any:
        pa = require("pyarrow", extra="train", purpose="to write shards")
        names = list(columns)
        rows = _of_one_kind([dict(zip(names, values)) for values in zip(*columns.values(), strict=True)])
        metadata = {_ABOUT.decode(): json.dumps(about), **self.step.metadata()}
        return pa.Table.from_pylist(rows, schema=pa.schema(self.step.schema(pa, rows), metadata=metadata))


def _kept(target: Path, wanted: dict[str, Any]) -> Shard | None:
    """The shard that is there already; None if it is not, or is another."""
    if not _paths.exists(target):
        return None
    pa = require("pyarrow", extra="train", purpose="to read shards")
    parquet = require("pyarrow.parquet", extra="train", purpose="to read shards")
    try:
        with _paths.open_binary(target) as file:
            about = json.loads((parquet.read_schema(file).metadata or {}).get(_ABOUT, b"{}"))
    except (pa.ArrowException, ValueError):  # not a Parquet file: made again
        return None
    if any(about.get(name) != value for name, value in wanted.items()):
        return None
    names = ("name", "input", "start", "stop", "rows", "errors", "cut", "model")
    with _paths.open_binary(target) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(**{name: about[name] for name in names}, bytes=_paths.size(target), sha256=digest)


def count_rows(path: Path) -> int:
    """The rows of a file, unreadable ones included."""
    if path.suffix == ".parquet":
        parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
        with _paths.open_binary(path) as file:
            return int(parquet.read_metadata(file).num_rows)
    count = 0
    try:
        for _ in file_rows(path):
            count += 1
    except SlateError:  # an archive that breaks off: one unreadable row, the last
        count += 1
    return count


def rows_between(path: Path, start: int, stop: int) -> Iterator[Row]:
    """The rows ``[start, stop)`` of a file, counted from 0, with their places; an unreadable one is its error.

    What follows a place from which nothing can be read is unreadable too.
    """
    if path.suffix == ".parquet":
        found: Iterator[Any] = parquet_rows(path, start, stop)
    else:
        found = itertools.islice((value for _, _, value in file_rows(path)), start, stop)
    at = start
    try:
        for value in found:
            where = f"{_paths.address(path)}, row {at + 1}"
            at += 1
            if isinstance(value, SlateError):
                yield {ERROR: str(value), WHERE: where}
                continue
            row = dict(value.values if isinstance(value, Record) else value)
            yield {**row, WHERE: where}
    except SlateError as error:
        while at < stop:
            at += 1
            yield {ERROR: str(error), WHERE: f"{_paths.address(path)}, row {at}"}


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _of_one_kind(rows: list[Row]) -> list[Row]:
    """Rows with text in some prompts or responses and turns in others, which one Parquet file cannot hold, with turns
    in all.
    """
    prompts = {isinstance(row["prompt"], list) for row in rows if row.get("prompt") is not None}
    responses = {isinstance(each, list) for row in rows for each in row.get("completions") or []}
    rows = [{**row, "prompt": _turns("user", row["prompt"])} for row in rows] if len(prompts) > 1 else rows
    if len(responses) < 2:
        return rows
    return [
        {**row, "completions": [_turns("assistant", each) for each in row["completions"] or []] or None} for row in rows
    ]


def _turns(role: str, content: Any) -> Any:
    return [{"role": role, "content": content}] if isinstance(content, str) else content


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
