"""Decompresses files and splits them into lines or array elements, in bounded memory for any content."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import re
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, cast

from .. import _paths
from .._extras import require
from .checks import SlateError

COMPRESSED = (".gz", ".bz2", ".xz", ".zst")

#: Maximum size of a line, an array element or a row of a table; longer ones are bad rows.
MAX_RECORD_BYTES = 64 << 20
#: Maximum expansion of a compressed file, beyond the first 64 MiB.
MAX_EXPANSION = 250
#: Maximum nesting of lists and objects.
MAX_DEPTH = 100

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n\v\f"


class NoArrayError(Exception):
    """A file that begins as an array is not a valid array."""


class _Expanded(Exception):
    """An archive expands beyond the limit."""


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's content, decompressed according to its ending, without a byte-order mark. A pipe is streamed."""
    with contextlib.ExitStack() as stack:
        file = cast(BinaryIO, stack.enter_context(_open(path)))
        buffered = stack.enter_context(io.BufferedReader(cast(Any, file), 1 << 20))
        if buffered.peek(3)[:3] == _BOM:
            buffered.read(3)
        yield buffered


@contextlib.contextmanager
def whole(path: Path, row: Iterable[int]) -> Iterator[None]:
    """Raise one kind of error for every way in which an archive can be truncated; ``row`` contains the last row
    read.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the file system, not of the archive
        (last,) = row
        raise SlateError(
            _paths.address(path), last + 1, "row", "a whole archive", f"one that breaks off ({error})"
        ) from None
    except _Expanded as error:
        (last,) = row
        expected = f"an archive of at most {MAX_EXPANSION} bytes for each of its own"
        raise SlateError(_paths.address(path), last + 1, "row", expected, str(error)) from None


def is_pipe(path: Path) -> bool:
    """Whether the file can be read only once, and in order."""
    return path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()


def lines(file: io.BufferedReader, row: list[int]) -> Iterator[bytes | None]:
    """The lines that are not blank; None for a line that is too long. ``row`` contains the number of the last line
    read.
    """
    while line := file.readline(MAX_RECORD_BYTES + 1):
        row[0] += 1
        if len(line) > MAX_RECORD_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(1 << 20)
            yield None
        elif line.strip():
            yield line
        else:
            row[0] += skip_blank(file)


def skip_blank(file: io.BufferedReader) -> int:
    """Skip white space; returns the number of line ends in it."""
    count = 0
    while ahead := file.peek(1):
        blank = len(ahead) - len(ahead.lstrip(_BLANK))
        count += ahead[:blank].count(b"\n")
        file.read(blank)
        if blank < len(ahead):
            break
    return count


def elements(file: io.BufferedReader) -> Iterator[bytes | None]:
    """The text of each element of the JSON array that starts here; None for an element that is too long.

    Raises:
        NoArrayError: the file ends before the array or continues after it; complete elements were yielded before.
    """
    scanner = _Scanner()
    while chunk := file.read(1 << 20):
        yield from scanner.feed(chunk)
        if scanner.done:
            if rest := (scanner.rest + file.read(80)).strip():
                raise NoArrayError(f"one with more after it, {rest[:40].decode('utf-8', 'replace')!r}")
            return
    raise NoArrayError("one that breaks off there")


class _Scanner:
    """Finds the ends of array elements; keeps at most one element in memory."""

    _outside = re.compile(rb'["\[\]{},]')
    _inside = re.compile(rb'["\\]')

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = self.escaped = self.done = self.too_long = False
        self.element = bytearray()
        self.rest = b""  # of the chunk that ended the array

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        at = start = 0  # start of the part of the element that is not kept yet
        if self.escaped:
            self.escaped, at = False, 1
        while found := (self._inside if self.in_string else self._outside).search(chunk, at):
            at = found.end()
            mark = found.group()
            if mark == b"\\":
                at += 1
                self.escaped = at > len(chunk)
            elif mark == b'"':
                self.in_string = not self.in_string
            elif mark in b"[{":
                self.depth += 1
                if self.depth == 1:
                    start = at
            elif mark in b"]}":
                self.depth -= 1
                if self.depth == 0:
                    self.done, self.rest = True, chunk[at:]
                    yield from self.end(chunk[start : at - 1])
                    return
            elif self.depth == 1:
                yield from self.end(chunk[start : at - 1])
                start = at
        self.keep(chunk[start:])

    def keep(self, part: bytes) -> None:
        self.too_long = self.too_long or len(self.element) + len(part) > MAX_RECORD_BYTES
        if self.too_long:
            self.element.clear()
        else:
            self.element += part

    def end(self, part: bytes) -> Iterator[bytes | None]:
        self.keep(part)
        element = None if self.too_long else bytes(self.element)
        self.element.clear()
        self.too_long = False
        if element is None or element.strip():
            yield element


_TEXT, _LITERAL, _BRACKET = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', rb"'[^'\\]*+(?:\\.[^'\\]*+)*+'?", rb"[\[\]{}()]"
_STRUCTURE = {
    "json": re.compile(_TEXT + b"|" + _BRACKET, re.DOTALL),
    "python": re.compile(_TEXT + b"|" + _LITERAL + b"|" + _BRACKET, re.DOTALL),
}


def too_deep(text: bytes, language: Literal["json", "python"]) -> bool:
    """Whether brackets are nested deeper than `MAX_DEPTH`."""
    if sum(map(text.count, (b"[", b"{", b"("))) <= MAX_DEPTH:
        return False
    depth = 0
    for found in _STRUCTURE[language].finditer(text):
        mark = found.group()
        depth += (mark in (b"[", b"{", b"(")) - (mark in (b"]", b"}", b")"))
        if depth > MAX_DEPTH:
            return True
    return False


def _open(path: Path) -> Any:
    if path.suffix not in COMPRESSED:
        return _paths.open_binary(path)
    if is_pipe(path):
        raise ValueError(f"{path}: expected a file, got a pipe, which is read as it comes: decompress before it")
    if path.suffix == ".zst":
        zstandard = require("zstandard", extra="train", purpose="to read .zst files")
        file: Any = _Zstandard(_paths.open_binary(path), zstandard)
    else:
        openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        file = openers[path.suffix](_paths.open_binary(path) if _paths.is_remote(path) else path, "rb")
    return _Bounded(file, MAX_RECORD_BYTES + MAX_EXPANSION * _paths.size(path))


class _Bounded(io.RawIOBase):
    """The content of an archive, up to a number of bytes."""

    def __init__(self, file: Any, limit: int) -> None:
        self.file, self.limit, self.seen = file, limit, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self.file.readinto(buffer) or 0)
        self.seen += count
        if self.seen > self.limit:
            raise _Expanded(f"one that holds more than {self.limit} bytes")
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


class _Zstandard(io.RawIOBase):
    """Decompressed frames; unlike the library's own reader, it detects a truncated last frame."""

    def __init__(self, file: BinaryIO, zstandard: ModuleType) -> None:
        self.file, self.zstandard = file, zstandard
        self.frame: Any = None
        self.ready, self.at = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self.at == len(self.ready):
            compressed = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            # Few bytes at a time: a block of four bytes can expand to 128 KiB.
            compressed = compressed or self.file.read(1 << 10)
            if not compressed:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("compressed file ended before the end of its last frame")
                return 0
            if self.frame is None or self.frame.eof:
                # Reddit dumps are written with windows larger than the default limit.
                self.frame = self.zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self.ready, self.at = self.frame.decompress(compressed), 0
            except self.zstandard.ZstdError as error:
                raise EOFError(str(error)) from None
        count = min(len(buffer), len(self.ready) - self.at)
        buffer[:count] = memoryview(self.ready)[self.at : self.at + count]
        self.at += count
        return count

    def close(self) -> None:
        self.file.close()
        super().close()
