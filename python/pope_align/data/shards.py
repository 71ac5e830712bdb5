"""Folders of shards: Parquet files with a manifest that says which rows of which input each of them holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import _paths
from .._files import write_json
from .._paths import StrPath

#: The manifest's name; readers of folders (pyarrow, DuckDB, Spark) leave out names that begin with an underscore.
MANIFEST = "_manifest.json"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a folder of shards, and the rows of the input that it was made from.

    Attributes:
        name: of the file; it follows from ``input`` and ``start`` alone.
        input: number of the input file.
        start, stop: its rows ``[start, stop)``, counted from 0.
        rows: in the shard, bad ones included.
        errors: bad rows among them, which have a text in the column ``error``.
        cut: slates of which a prompt or response was longer than ``max_length`` and was cut.
        model: a hash of the weights that it was made with.
        bytes, sha256: of the file.
    """

    name: str
    input: int
    start: int
    stop: int
    rows: int = 0
    errors: int = 0
    cut: int = 0
    model: str = ""
    bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder of shards holds, and how it was made.

    Attributes:
        run: everything that the content depends on: command, model, options, inputs.
        shards: in the order of the input's rows.
        complete: whether all of the input was processed.
    """

    run: Mapping[str, Any]
    shards: Sequence[Shard] = field(default_factory=tuple)
    complete: bool = False

    def write(self, folder: StrPath) -> None:
        """Write it into the folder, atomically."""
        counts = {name: sum(getattr(shard, name) for shard in self.shards) for name in ("rows", "errors", "cut")}
        about = {"version": _VERSION, "complete": self.complete, **counts, "run": dict(self.run)}
        write_json(Path(folder, MANIFEST), {**about, "shards": [asdict(shard) for shard in self.shards]})

    @classmethod
    def read(cls, folder: StrPath) -> Manifest | None:
        """The manifest of a folder, None if it has none.

        Raises:
            ValueError: the file is not a manifest of this version.
        """
        try:
            content = json.loads(_paths.read_bytes(Path(folder, MANIFEST)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{_paths.address(folder)}/{MANIFEST}: expected JSON, got {error}") from None
        try:
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            return cls(content["run"], [Shard(**each) for each in content["shards"]], content["complete"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{_paths.address(folder)}/{MANIFEST}: expected a manifest of version {_VERSION}, got {error}"
            ) from None


def input_files(path: StrPath, endings: Sequence[str] = (), argument: str = "input") -> list[Path]:
    """`_paths.expand`; of a folder with a manifest, the shards in the order of the rows that they were made from.

    Raises:
        ValueError: no such file; a folder whose run is unfinished, or that lacks a shard of its manifest.
    """
    if not _paths.is_folder(path) or (manifest := Manifest.read(path)) is None:
        return _paths.expand(path, endings, argument)
    where = _paths.address(path)
    if not manifest.complete:
        raise ValueError(
            f"{argument}: {where}: expected a finished folder of shards, got one of an unfinished run; repeat the "
            "command that writes it, which continues there"
        )
    there = _paths.sizes(path)
    if gone := [shard.name for shard in manifest.shards if there.get(shard.name) != shard.bytes]:
        raise ValueError(
            f"{argument}: {where}: expected the {len(manifest.shards)} shards of its manifest, but {len(gone)} are "
            f"missing or of another size, e.g. {gone[0]}; repeat the command that wrote it, which fills the gaps"
        )
    return [Path(path, shard.name) for shard in manifest.shards]


def changed_shards(folder: StrPath) -> list[str]:
    """The names of shards whose content is not what the manifest says, by their SHA-256; reads every byte.

    Raises:
        ValueError: a folder without a manifest.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        raise ValueError(f"folder: expected one with {MANIFEST}, got {_paths.address(folder)!r}")
    there = _paths.sizes(folder)
    return [
        shard.name
        for shard in manifest.shards
        if shard.name not in there or _digest(Path(folder, shard.name)) != shard.sha256
    ]


def _digest(path: Path) -> str:
    with _paths.open_binary(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
