"""Reads records of files one at a time, in constant memory: JSON (lines or array), Python literals, CSV, Parquet, XML.

Compressed files (.gz, .bz2, .xz, .zst) are decompressed. A byte-order mark at the start is skipped and lines
may end in CRLF.
"""

from __future__ import annotations

import ast
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.parsers import expat

from .._extras import require
from .._files import note_reading
from .._paths import address, is_remote, open_binary
from . import streams
from .archives import eval_records
from .checks import SlateError
from .records import Record

#: A parsed Python literal takes many times its size in memory; lines of the Amazon metadata have kilobytes.
_MAX_LITERAL_BYTES = 1 << 20

#: Endings of files that can be read, also with one of `streams.COMPRESSED`.
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".xml", ".eval")

Rows = Iterator[Record | SlateError]


def read_records(path: Path) -> Rows:
    """The records of a file by its ending.

    Endings: .jsonl, .ndjson, .json (lines or one array), .csv, .tsv, .parquet, .xml; .eval (samples of Inspect).

    For an invalid record (a bad line, or the last record of a truncated file) an error is yielded, which the caller may
    raise or count. A truncated archive raises.
    """
    if str(path).startswith("hub:"):
        return _hub(str(path).removeprefix("hub:"))
    plain = Path(path.stem) if path.suffix in streams.COMPRESSED else path
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": parquet_rows, ".xml": _xml}
    if path.suffix == ".eval":
        return _noted(path, eval_records(path, _parsed))
    readers |= dict.fromkeys((".jsonl", ".ndjson", ".json"), _json)
    if path.suffix == ".zst":
        readers[""] = _json  # dumps of Reddit are called RC_2020-01.zst
    if plain.suffix not in readers:
        raise ValueError(
            "input: expected a file ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .xml, also with "
            f"{', '.join(streams.COMPRESSED)}, or in .eval, got {address(path)!r}"
        )
    return _noted(path, readers[plain.suffix](path))


def _noted(path: Path, rows: Rows) -> Rows:
    note_reading(path)
    yield from rows
    note_reading(None)


def query_records(sql: str) -> Rows:
    """The rows of a DuckDB query, streamed.

    Raises:
        ValueError: DuckDB cannot run it.
    """
    duckdb = require("duckdb", extra="train", purpose="for sql")
    require("pyarrow", extra="train", purpose="for sql")
    row = 0
    with duckdb.connect() as connection:
        try:
            connection.execute("SET enable_progress_bar = false")
            for batch in connection.sql(sql).to_arrow_reader(1024):
                for values in batch.to_pylist():
                    row += 1
                    yield Record("query", row, plain_values(values))
        except (duckdb.Error, AttributeError) as error:  # a statement without a result is None
            reason = " ".join(str(error).split())
            raise ValueError(f"sql: expected a query that DuckDB can run, got {reason}") from error


def plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a typed row as JSON values: decimals become numbers, times and UUIDs text."""
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, (date, time)):  # datetime is a subclass of date
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return plain_values(value)
    return value


# --- JSON -----------------------------------------------------------------------------------------------------------


def _json(path: Path) -> Rows:
    source, row = address(path), [0]
    with streams.whole(path, row), streams.open_bytes(path) as file:
        row[0] += streams.skip_blank(file)
        if file.peek(1)[:1] == b"[":
            row[0] = 0
            yield from _array(source, row, file)
            return
        for line in streams.lines(file, row):
            yield _too_long(source, row[0]) if line is None else _parsed(source, row[0], line)


def _array(source: str, row: list[int], file: io.BufferedReader) -> Rows:
    try:
        for element in streams.elements(file):
            row[0] += 1
            yield _too_long(source, row[0]) if element is None else _parsed(source, row[0], element)
    except streams.NoArrayError as error:
        yield SlateError(source, row[0] + 1, "row", "JSON (an array and nothing else)", str(error))


def _parsed(source: str, row: int, text: bytes) -> Record | SlateError:
    """A JSON object, or, as in the metadata of the older Amazon dumps, a Python literal."""
    literal = text.lstrip()[:2] == b"{'"
    if streams.too_deep(text, "python" if literal else "json"):
        return SlateError(source, row, "row", f"JSON of at most {streams.MAX_DEPTH} levels", _shown(text))
    if literal and len(text) > _MAX_LITERAL_BYTES:
        return SlateError(source, row, "row", f"a Python literal of at most {_MAX_LITERAL_BYTES} bytes", _shown(text))
    try:
        decoded = text.decode()
        value = ast.literal_eval(decoded.strip()) if literal else json.loads(decoded, object_pairs_hook=_distinct)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        return SlateError(source, row, "row", f"JSON ({reason})", _shown(text))
    if not isinstance(value, dict):
        return SlateError(source, row, "row", "an object", _shown(text))
    return Record(source, row, value)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return values


def _shown(text: bytes) -> str:
    shown = repr(text.strip()[:80].decode("utf-8", "replace"))
    return shown if len(text) <= 80 else shown + "..."


def _too_long(source: str, row: int) -> SlateError:
    return SlateError(source, row, "row", f"at most {streams.MAX_RECORD_BYTES} bytes", "more")


# --- tables ---------------------------------------------------------------------------------------------------------


def _csv(path: Path) -> Rows:
    source, row = address(path), [0]
    csv.field_size_limit(streams.MAX_RECORD_BYTES)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with streams.whole(path, row), streams.open_bytes(path) as file:
        reader = csv.reader(_text_lines(file, source, row), delimiter=delimiter, strict=True)
        header = _header(source, reader)
        while True:
            first = reader.line_num + 1
            try:
                values = next(reader, None)
            except csv.Error as error:
                row[0] = first
                yield _bad_csv(source, first, reader.line_num, str(error))
                continue
            if values is None:
                return
            row[0] = first
            if not values:
                continue
            if len(values) != len(header):
                yield SlateError(source, first, "row", f"{len(header)} columns", f"{len(values)}")
            elif bad := next((value for value in values if not _is_unicode(value)), None):
                yield SlateError(source, first, "row", "CSV in UTF-8", repr(bad)[:80])
            else:
                yield Record(source, first, dict(zip(header, values, strict=True)), blank_is_absent=True)


def _header(source: str, reader: Any) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise _bad_csv(source, 1, reader.line_num, str(error)) from None
    if header is None:
        raise SlateError(source, None, "file", "a header line", "an empty file")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise SlateError(source, 1, "header", "every column once", f"{twice[0]!r} twice")
    return list(header)


def _bad_csv(source: str, first: int, last: int, reason: str) -> SlateError:
    if reason == "unexpected end of data":
        got = f"none up to the end of the file (line {last})"
        return SlateError(source, first, "row", "a closing quote", got)
    return SlateError(source, first, "row", "CSV with quotes in their places", reason)


def _text_lines(file: io.BufferedReader, source: str, row: list[int]) -> Iterator[str]:
    """Lines for the csv module; bytes that are not UTF-8 become half surrogate pairs, which the check of the row
    finds.
    """
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    while line := text.readline(streams.MAX_RECORD_BYTES + 1):
        if len(line) > streams.MAX_RECORD_BYTES:
            raise _too_long(source, row[0] + 1)
        yield line


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def parquet_rows(path: Path, start: int = 0, stop: int | None = None) -> Rows:
    """The rows ``[start, stop)`` of a Parquet file, counted from 0; row groups outside are not read."""
    if streams.is_pipe(path):
        raise ValueError(f"{path}: expected a file, since Parquet is read from its end, got a pipe")
    pa = require("pyarrow", extra="train", purpose="to read Parquet files")
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    row = start
    try:
        with _opened(path) as source, parquet.ParquetFile(source) as file:
            groups, first = _row_groups(file.metadata, start, stop)
            rows = (values for batch in file.iter_batches(1024, row_groups=groups) for values in batch.to_pylist())
            for values in itertools.islice(rows, start - first, None if stop is None else stop - first):
                row += 1
                yield Record(address(path), row, plain_values(values))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SlateError(address(path), row + 1, "row", "a Parquet file", str(error).partition("\n")[0]) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise SlateError(address(path), row + 1, "row", "a Parquet file", str(error).partition("\n")[0]) from None


def _row_groups(metadata: Any, start: int, stop: int | None) -> tuple[list[int], int]:
    """The row groups that hold rows of a range, and the number of the first row in them."""
    before, first = 0, start
    groups: list[int] = []
    for number in range(metadata.num_row_groups):
        count = metadata.row_group(number).num_rows
        if before + count > start and (stop is None or before < stop):
            first = first if groups else before
            groups.append(number)
        before += count
    return groups, first


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What pyarrow reads: a local file by its name, without Python in between."""
    if not is_remote(path):
        yield path
        return
    with open_binary(path) as file:
        yield file


def _hub(name: str) -> Rows:
    """The rows of ``NAME@SPLIT``, streamed."""
    datasets = require("datasets", extra="train", purpose="to read datasets of the hub")
    dataset, _, split = name.partition("@")
    rows = datasets.load_dataset(dataset, split=split or "train", streaming=True)
    for row, values in enumerate(rows, start=1):
        yield Record(f"hub:{name}", row, plain_values(values))


# --- XML ------------------------------------------------------------------------------------------------------------


def _xml(path: Path) -> Rows:
    """The attributes of every ``<row .../>``, as in the Stack Exchange dumps."""
    source, row = address(path), [0]
    found: list[dict[str, str]] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: found.append(attributes) if name == "row" else None
    parser.EntityDeclHandler = _no_entities
    unparsed = 0
    with streams.whole(path, row), streams.open_bytes(path) as file:
        while True:
            chunk = file.read(1 << 16)
            problem = _fed(parser, chunk)
            for attributes in found:
                row[0] += 1
                yield Record(source, row[0], attributes)
            unparsed = 0 if found else unparsed + len(chunk)
            found.clear()
            if problem is not None:
                yield SlateError(source, row[0] + 1, "row", "XML", problem)
                return
            if unparsed > streams.MAX_RECORD_BYTES:
                yield _too_long(source, row[0] + 1)
                return
            if not chunk:
                return


def _fed(parser: expat.XMLParserType, chunk: bytes) -> str | None:
    """Feed the parser (no bytes: end of the file); returns an error message or None."""
    try:
        parser.Parse(chunk, not chunk)
    except (expat.ExpatError, ValueError, LookupError) as error:
        return str(error)
    return None


def _no_entities(*declaration: Any) -> None:
    raise ValueError("a declaration of an entity, which the text of another could be hidden in")


def first_records(paths: Iterable[Path], count: int) -> Iterator[Record]:
    """The first valid records of every file."""
    for path in paths:
        if streams.is_pipe(path):
            raise ValueError(f"{path}: expected a file to look into, got a pipe, which is read once: name its format")
        seen = 0
        for record in read_records(path):
            if isinstance(record, Record):
                yield record
                seen += 1
            if seen == count:
                break
