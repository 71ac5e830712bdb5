"""A journal of finished parts of a long run, one JSON line each, from which a killed run continues."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ._files import named_writes, replacing

logger = logging.getLogger(__name__)


class Journal(Mapping[str, Any]):
    """A mapping from keys to JSON values; every addition is on disk before `add` returns.

    Threads may share a journal, and processes may share its file. The first line is ``about``, the settings that the
    entries depend on; a journal with another ``about`` is refused, so that entries of different runs never mix. Every
    line has a checksum. A line that is incomplete, edited or invalid is removed and counted, and its part is done
    again.

    Args:
        path: the file, created if missing.
        about: JSON object.
        valid: whether a value is valid in this journal; None accepts any.

    Attributes:
        bad_lines: how many lines were removed.

    Raises:
        ValueError: the file is not a journal, or a journal of another run.
        OSError: the file cannot be written, here and in `add` and `keep`; what was added before remains.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: Mapping[str, Any], *, valid: Callable[[Any], bool] | None = None
    ) -> None:
        self.path = Path(path)
        self.bad_lines = 0
        self._valid = valid or (lambda value: True)
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open({"about": json.loads(json.dumps(about))})

    def add(self, key: str, value: Any) -> None:
        """Store ``value``; a known key is an error, because no part should be done twice."""
        with self._lock:
            if key in self._known:
                raise ValueError(f"{self.path}: expected a new key, got {key!r} again")
            self._store(key, value)

    def keep(self, key: str, value: Any) -> None:
        """Store ``value`` unless the key is known already."""
        with self._lock:
            if key not in self._known:
                self._store(key, value)

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _store(self, key: str, value: Any) -> None:
        try:
            line = _line({"key": key, "value": value})
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{self.path}: {key}: expected a value that JSON can hold, got {error}") from None
        if not self._valid(value):
            raise ValueError(f"{self.path}: {key}: expected a valid value, got {value!r:.80}")
        with _locked(self.path) as file:
            _append(file, line)
        self._known[key] = value

    def _open(self, header: Mapping[str, Any]) -> None:
        first = _line(header)
        with _locked(self.path) as file:
            content = self.path.read_bytes()
            if content != first and first.startswith(content):  # new, or killed while it wrote its first line
                os.ftruncate(file, 0)
                _append(file, first)
                return
            top, *lines = content.split(b"\n")
            self._check(_read(top), header["about"])
            good = [top, *filter(self._take, lines)]
            self.bad_lines = sum(map(bool, lines)) + 1 - len(good)
            if self.bad_lines:
                logger.warning(
                    "%s: %d of %d lines are unfinished or changed; their parts are done again",
                    self.path,
                    self.bad_lines,
                    self.bad_lines + len(good),
                )
            if self.bad_lines or not content.endswith(b"\n"):
                with replacing(self.path) as partial:
                    partial.write_bytes(b"\n".join(good) + b"\n")

    def _take(self, line: bytes) -> bool:
        entry = _read(line)
        if entry is None or not isinstance(entry.get("key"), str) or not self._valid(entry.get("value")):
            return False
        self._known[entry["key"]] = entry["value"]
        return True

    def _check(self, header: Mapping[str, Any] | None, about: Mapping[str, Any]) -> None:
        found = None if header is None else header.get("about")
        if not isinstance(found, dict):
            raise self._no_journal()
        if found != about:
            differing = sorted(name for name in {*found, *about} if found.get(name) != about.get(name))
            changes = ", ".join(f"{name} {found.get(name)!r} -> {about.get(name)!r}" for name in differing)
            raise ValueError(
                f"{self.path}: expected the journal of this run, got that of another ({changes}); "
                "delete it to start from scratch, or repeat the run it belongs to"
            )

    def _no_journal(self) -> ValueError:
        return ValueError(f"{self.path}: expected a journal of this version, got a first line that is none; delete it")


def journal_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``about`` of the journal at ``path``; empty if there is none or it cannot be read."""
    try:
        with open(path, "rb") as file:
            header = _read(file.readline())
    except FileNotFoundError:
        return {}
    about = (header or {}).get("about")
    return about if isinstance(about, dict) else {}


def _line(content: Mapping[str, Any]) -> bytes:
    """A line in ASCII, because a reply may contain half of a surrogate pair, which UTF-8 cannot encode."""
    return json.dumps({**content, "checksum": _checksum(content)}, allow_nan=False).encode() + b"\n"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:16]


def _read(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is not as it was written."""
    try:
        content = json.loads(line)
        checksum = content.pop("checksum")
        return content if checksum == _checksum(content) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _append(file: int, line: bytes) -> None:
    size = os.fstat(file).st_size
    written = os.write(file, line)
    if written < len(line):
        os.ftruncate(file, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The file, opened for appending, while no other process reads or appends."""
    while True:
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o666)
        try:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file), os.stat(path)):
                continue  # another process replaced it meanwhile
            with named_writes(path):
                yield file
            return
        finally:
            os.close(file)
