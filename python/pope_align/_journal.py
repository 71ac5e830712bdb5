"""Finished pieces of long work, one JSON line each: a run that was killed goes on from its journal."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Journal(Mapping[str, Any]):
    """A mapping from keys to JSON values, every addition on disk before `add` returns.

    Threads may share one. The first line holds ``about``, what the pieces depend on; a journal about something else is
    refused, so pieces of different runs never mix.

    Args:
        path: the file, made if missing.
        about: JSON object.

    Raises:
        ValueError: the file is no journal, or one about something else.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._known: dict[str, Any] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self._lines()
        if lines:
            self._read(lines, json.loads(json.dumps(about)))
        else:
            self._append({"about": about})

    def add(self, key: str, value: Any) -> None:
        """Store ``value``; a key that is known already is an error, since nothing should be done twice."""
        with self._lock:
            if key in self._known:
                raise ValueError(f"{self.path}: expected a new key, got {key!r} again")
            self._append({"key": key, "value": value})
            self._known[key] = value

    def keep(self, key: str, value: Any) -> None:
        """Store ``value`` unless another thread was first: then its value stays."""
        with self._lock:
            if key not in self._known:
                self._append({"key": key, "value": value})
                self._known[key] = value

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def _lines(self) -> list[bytes]:
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the last line of a run that was killed while writing
            logger.warning("%s: dropped an unfinished last line", self.path)
            os.truncate(self.path, len(whole))
        return whole.splitlines()

    def _read(self, lines: list[bytes], about: Mapping[str, Any]) -> None:
        try:
            header, *entries = [json.loads(line) for line in lines]
            found = header["about"]
            self._known = {entry["key"]: entry["value"] for entry in entries}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: expected a journal, got a bad line ({error}); delete it") from error
        if found != about:
            differing = sorted(name for name in {*found, *about} if found.get(name) != about.get(name))
            changes = ", ".join(f"{name} {found.get(name)!r} -> {about.get(name)!r}" for name in differing)
            raise ValueError(
                f"{self.path}: expected the journal of this run, got that of another ({changes}); "
                "delete it to start anew, or repeat the run it belongs to"
            )

    def _append(self, line: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
