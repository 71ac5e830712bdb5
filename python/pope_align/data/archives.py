"""Reads the samples in Inspect's ``.eval`` logs, which are zip archives of JSON files, one at a time."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .._extras import require
from .._paths import open_binary
from . import streams
from .checks import SlateError
from .records import Record

#: The method of zip archives whose members are compressed by zstandard, which Python 3.11 cannot read.
_ZSTANDARD = 93
_LOCAL_HEADER = 30

#: What is not read of a sample, and may be most of it.
_UNREAD = ("events", "events_data", "store", "timelines")

_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    RuntimeError,
    NotImplementedError,
    UnicodeError,
    ValueError,
)


def eval_records(path: Path, parse: Any) -> Iterator[Record | SlateError]:
    """The samples of a log, each with ``eval``: the task, the model and the settings of the whole log.

    Args:
        parse: a function from source, row and JSON text to a record or an error.
    """
    source, row = str(path), 0
    try:
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            about = _about(archive, file)
            for member in archive.infolist():
                if not member.filename.startswith("samples/") or not member.filename.endswith(".json"):
                    continue
                row += 1
                if member.filename.count("/") > 1:
                    expected = "a sample in one file; `inspect log convert` writes such logs"
                    raise SlateError(source, row, member.filename, expected, "one in chunks")
                text = _member(archive, file, member)
                if text is None:
                    yield SlateError(source, row, "row", f"at most {streams.MAX_RECORD_BYTES} bytes", "more")
                    continue
                found = parse(source, row, text)
                if isinstance(found, Record):
                    kept = {name: value for name, value in found.values.items() if name not in _UNREAD}
                    found = Record(source, row, {"eval": about, **kept})
                yield found
    except _BROKEN as error:
        if isinstance(error, SlateError):
            raise
        raise SlateError(
            source, max(row, 1), "row", "a whole log of Inspect (a zip archive)", str(error)[:200]
        ) from None


def _about(archive: zipfile.ZipFile, file: BinaryIO) -> dict[str, Any]:
    """The task, the model and its settings; from the first file of a log whose evaluation was cut off."""
    names = {member.filename: member for member in archive.infolist()}
    member = names.get("header.json") or names.get("_journal/start.json")
    if member is None:
        raise ValueError("it has no header.json")
    header = json.loads(_member(archive, file, member) or b"{}")
    spec = header.get("eval") if isinstance(header, dict) else None
    if not isinstance(spec, dict):
        raise ValueError("its header.json has no eval")
    return {name: spec.get(name) for name in ("task", "model", "model_generate_config")}


def _member(archive: zipfile.ZipFile, file: BinaryIO, member: zipfile.ZipInfo) -> bytes | None:
    """The content of a member; None if it is larger than a record may be."""
    limit = streams.MAX_RECORD_BYTES
    if member.compress_type != _ZSTANDARD:
        with archive.open(member) as opened:
            content = opened.read(limit + 1)
        return content if len(content) <= limit else None
    file.seek(max(member.header_offset, 0))
    header = file.read(_LOCAL_HEADER)
    if not header.startswith(b"PK\3\4"):
        raise zipfile.BadZipFile(f"no header for file {member.filename!r}")
    name, extra = struct.unpack("<HH", header[26:30])
    file.seek(name + extra, 1)
    zstandard = require("zstandard", extra="train", purpose="to read logs of Inspect")
    packed = file.read(min(member.compress_size, limit))
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            content = reader.read(limit + 1)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if len(content) > limit:
        return None
    if zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile(f"bad CRC-32 for file {member.filename!r}")
    return bytes(content)
