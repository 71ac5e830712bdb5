"""Files of records, one at a time in constant memory: JSON lines, Python literals, JSON arrays, CSV, Parquet, XML rows.

Compressed files (.gz, .bz2, .xz, .zst) are read as what they hold. A byte-order mark at the start is skipped and lines
may end in CRLF.
"""

from __future__ import annotations

import ast
import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, cast
from xml.etree import ElementTree

from .._extras import require
from .schema import SlateError

_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file, and the checks that name file, row and field when they fail."""

    source: str
    row: int  # from 1; the line of a line-based file
    values: Mapping[str, Any]

    def error(self, field: str, expected: str, got: Any) -> SlateError:
        text = repr(got)
        return SlateError(self.source, self.row, field, expected, text if len(text) <= 80 else text[:77] + "...")

    def __contains__(self, field: str) -> bool:
        return self.values.get(field) is not None

    def get(self, field: str) -> Any:
        """The value as it stands, None where there is none."""
        return self.values.get(field)

    def required(self, field: str) -> Any:
        value = self.values.get(field)
        if value is None:
            raise SlateError(self.source, self.row, field, "a value (it is required)", "nothing")
        return value

    def text(self, field: str) -> str:
        """Text, which may be empty."""
        value = self.required(field)
        if not isinstance(value, str):
            raise self.error(field, "text", value)
        return value

    def optional_text(self, field: str) -> str | None:
        return self.text(field) if field in self else None

    def name(self, field: str) -> str:
        """An identifier: text that is not empty, or an integer."""
        value = self.required(field)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise self.error(field, "non-empty text or an integer", value)
        return value

    def optional_name(self, field: str) -> str | None:
        return self.name(field) if field in self else None

    def number(self, field: str) -> float:
        """A finite number, or text that spells one."""
        return self.as_number(field, self.required(field))

    def optional_number(self, field: str) -> float | None:
        return self.number(field) if field in self else None

    def as_number(self, field: str, value: Any) -> float:
        number = float("nan")
        if isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str):
            with contextlib.suppress(ValueError):
                number = float(value)
        if not abs(number) < float("inf"):
            raise self.error(field, "a finite number", value)
        return number

    def array(self, field: str) -> list[Any]:
        value = self.required(field)
        if not isinstance(value, list):
            raise self.error(field, "a list", value)
        return value

    def records(self, field: str) -> list[Record]:
        """The objects of a list, as records whose errors name this row."""
        entries = []
        for index, value in enumerate(self.array(field)):
            if not isinstance(value, Mapping):
                raise self.error(f"{field}[{index}]", "an object", value)
            entries.append(Record(f"{self.source}, row {self.row}, {field}", index, value))
        return entries

    def date(self, field: str) -> float:
        """Seconds since 1970 of an ISO 8601 time, in UTC where it names no zone."""
        text = self.text(field)
        try:
            time = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            raise self.error(field, "a time such as 2012-05-17T08:30:00", text) from None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def read_records(path: Path) -> Iterator[Record | SlateError]:
    """The records of a file by its ending: .jsonl, .ndjson, .json (lines or one array), .csv, .tsv, .parquet, .xml.

    A line that is no record comes as the error that names it, so that the caller may raise or count it. What makes the
    rest unreadable, such as a truncated archive or array, is raised.
    """
    if str(path).startswith("hub:"):
        return _hub(str(path).removeprefix("hub:"))
    plain = Path(path.stem) if path.suffix in _COMPRESSED else path
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".xml": _xml}
    if plain.suffix in readers:
        return readers[plain.suffix](path)
    if plain.suffix not in (".jsonl", ".ndjson", ".json"):
        raise ValueError(
            "input: expected a file ending in .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .xml, also with "
            f"{', '.join(_COMPRESSED)}, got {str(path)!r}"
        )
    with _whole(path, [0]), open_bytes(path) as file:
        start = _first_byte(file)
    return _json_array(path) if start == b"[" else _json_lines(path)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The file's content, decompressed by its ending, after any byte-order mark."""
    with contextlib.ExitStack() as stack:
        file = cast(BinaryIO, stack.enter_context(_open(path)))
        buffered = stack.enter_context(io.BufferedReader(cast(Any, file), 1 << 20))
        if buffered.peek(3)[:3] == _BOM:
            buffered.read(3)
        yield buffered


def _open(path: Path) -> Any:
    if path.suffix == ".zst":
        zstandard = require("zstandard", extra="train", purpose="to read .zst files")
        return _Zstandard(path.open("rb"), zstandard)
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers.get(path.suffix, open)(path, "rb")


class _Zstandard(io.RawIOBase):
    """Decompressed frames; unlike the library's own reader, it notices when the last one is cut off."""

    def __init__(self, file: BinaryIO, zstandard: ModuleType) -> None:
        self.file, self.zstandard = file, zstandard
        self.frame: Any = None
        self.ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            compressed = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            compressed = compressed or self.file.read(1 << 17)
            if not compressed:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            if self.frame is None or self.frame.eof:
                # Reddit dumps are written with windows larger than the default limit.
                self.frame = self.zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self.ready = self.frame.decompress(compressed)
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


@contextlib.contextmanager
def _whole(path: Path, row: Iterable[int]) -> Iterator[None]:
    """Turns the ways in which an archive can end early into one error; ``row`` holds the last row that was read."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file system's, not the archive's
        (last,) = row
        raise SlateError(str(path), last + 1, "row", "a whole archive", f"one that breaks off ({error})") from None


def _first_byte(file: BinaryIO) -> bytes:
    while (byte := file.read(1)).isspace():
        pass
    return byte


def _json_lines(path: Path) -> Iterator[Record | SlateError]:
    source, row = str(path), [0]
    with _whole(path, row), open_bytes(path) as file:
        for line in file:
            row[0] += 1
            if line.strip():
                yield _line(source, row[0], line)


def _line(source: str, row: int, line: bytes) -> Record | SlateError:
    """A JSON object, or, as in the metadata of the older Amazon dumps, a Python literal."""
    try:
        text = line.decode()
        value = ast.literal_eval(text.strip()) if text.lstrip().startswith("{'") else json.loads(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        return SlateError(source, row, "row", f"JSON ({reason})", _shown(line))
    if not isinstance(value, dict):
        return SlateError(source, row, "row", "an object", _shown(line))
    return Record(source, row, value)


def _shown(line: bytes) -> str:
    text = repr(line.strip()[:80])
    return text if len(line) <= 80 else text + "..."


def _json_array(path: Path) -> Iterator[Record | SlateError]:
    ijson = require("ijson", extra="train", purpose="to read JSON arrays piece by piece")
    source, row = str(path), [0]
    with _whole(path, row), open_bytes(path) as file:
        try:
            for value in ijson.items(file, "item", use_float=True):
                row[0] += 1
                if isinstance(value, dict):
                    yield Record(source, row[0], value)
                else:
                    yield SlateError(source, row[0], "row", "an object", repr(value)[:80])
        except ijson.JSONError as error:
            raise SlateError(source, row[0] + 1, "row", f"JSON ({error})", "an array that breaks off there") from None


def _csv(path: Path) -> Iterator[Record | SlateError]:
    source, row = str(path), [0]
    csv.field_size_limit(1 << 30)
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with _whole(path, row), open_bytes(path) as file:
        reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""), delimiter=delimiter)
        try:
            header = next(reader, None)
            if header is None:
                raise SlateError(source, None, "file", "a header line", "an empty file")
            for values in reader:
                row[0] = reader.line_num
                if not values:
                    continue
                if len(values) != len(header):
                    yield SlateError(source, row[0], "row", f"{len(header)} columns", f"{len(values)}")
                    continue
                yield Record(source, row[0], {k: v for k, v in zip(header, values, strict=True) if v != ""})
        except (UnicodeDecodeError, csv.Error) as error:
            raise SlateError(source, row[0] + 1, "row", "CSV in UTF-8", str(error)) from None


def _parquet(path: Path) -> Iterator[Record | SlateError]:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    row = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for values in batch.to_pylist():
                row += 1
                yield Record(str(path), row, values)


def _hub(name: str) -> Iterator[Record | SlateError]:
    """The rows of ``NAME@SPLIT``, streamed."""
    datasets = require("datasets", extra="train", purpose="to read datasets of the hub")
    dataset, _, split = name.partition("@")
    rows = datasets.load_dataset(dataset, split=split or "train", streaming=True)
    for row, values in enumerate(rows, start=1):
        yield Record(f"hub:{name}", row, values)


def _xml(path: Path) -> Iterator[Record | SlateError]:
    """The attributes of every ``<row .../>``, as in the Stack Exchange dumps."""
    source, row = str(path), [0]
    with _whole(path, row), open_bytes(path) as file:
        try:
            events = ElementTree.iterparse(file, events=("start", "end"))
            _, root = next(events)
            for event, element in events:
                if event == "end" and element.tag == "row":
                    row[0] += 1
                    yield Record(source, row[0], dict(element.attrib))
                    root.clear()  # or the tree would grow to the size of the file
        except ElementTree.ParseError as error:
            raise SlateError(source, row[0] + 1, "row", "XML", str(error)) from None
