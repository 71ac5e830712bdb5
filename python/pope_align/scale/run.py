"""Runs a step over files into a folder of shards, in this process or on Ray; a repeat fills the gaps."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import _paths
from .._files import claim_folder
from .._paths import StrPath
from ..data.schema import slate_files
from ..data.shards import MANIFEST, Manifest, Shard
from .columns import ColumnStep
from .worker import ShardWorker, count_rows

#: A shard to be made, and the file that its rows are in.
Task = tuple[str, Shard]
#: Makes shards with a worker, and yields each when it is there, in any order.
Engine = Callable[[ShardWorker, Sequence[Task]], Iterable[Shard]]

#: Least seconds between writes of the manifest, and more where writing takes long: a shard that it does not name yet is
#: found again by its own metadata.
_SAVE_SECONDS = 10.0

logger = logging.getLogger(__name__)


def local_engine(worker: ShardWorker, tasks: Sequence[Task]) -> Iterator[Shard]:
    """One shard after another, in this process."""
    for path, shard in tasks:
        yield worker.make(path, shard)


def run_shards(
    step: ColumnStep,
    source: StrPath,
    out: StrPath,
    *,
    engine: Engine = local_engine,
    shard_rows: int = 1024,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Run a step over all rows of ``source`` and write its results to the folder ``out``.

    A shard has up to ``shard_rows`` rows of one input file, and its name says which: ``part-00002-000001024.parquet``
    has the rows from 1,024 of the third file. Numbers in it depend on its rows alone, not on the engine or on other
    shards. ``_manifest.json`` says what is there. After a kill, or if shards are lost, the same call makes the missing
    ones; files that are new in ``source`` come after the others. Rows that cannot be processed are counted in the
    manifest and have the reason in the column ``error``.

    Args:
        source: as in `pope_align.data.read_slates`, a path.
        out: local folder, or the address of a folder on an object store.
        engine: `local_engine`, or `ray_engine.RayEngine`.
        overwrite: whether results of another run in ``out`` may be replaced.
        progress: called with the number of rows done and of all rows.

    Raises:
        ValueError: ``out`` holds other files, or results of another run, without ``overwrite``; input files that were
            part of the run are gone or changed; another process writes there; the model changed during the run; no
            row could be processed.
    """
    if shard_rows < 1:
        raise ValueError(f"shard_rows: expected an integer >= 1, got {shard_rows}")
    with nullcontext() if _paths.is_remote(out) else claim_folder(out):
        plan = _Plan.of(step, source, out, shard_rows, overwrite)
        if not _paths.is_remote(out):
            Path(out).mkdir(parents=True, exist_ok=True)
        _make(plan, engine, progress or (lambda done, of: None))
    manifest = plan.manifest()
    if (bad := sum(shard.errors for shard in manifest.shards)) == plan.rows:
        raise ValueError(
            f"{_paths.address(out)}: expected rows that can be processed, got errors in all {bad}: see its column error"
        )
    return manifest


def _make(plan: _Plan, engine: Engine, report: Callable[[int, int], None]) -> None:
    worker = ShardWorker(plan.step, _paths.address(plan.out), plan.key)
    rows = sum(shard.rows for shard in plan.done.values())
    report(rows, plan.rows)
    plan.save()
    next_save = time.monotonic() + _SAVE_SECONDS
    try:
        for shard in engine(worker, plan.pending()):
            plan.add(shard)
            rows += shard.rows
            report(rows, plan.rows)
            if time.monotonic() > next_save:
                began = time.monotonic()
                plan.save()
                next_save = time.monotonic() + max(_SAVE_SECONDS, 20 * (time.monotonic() - began))
    finally:
        plan.save()


@dataclass
class _Plan:
    """What is to be made, and what of it is there."""

    step: ColumnStep
    out: StrPath
    about: dict[str, Any]
    tasks: list[Task]
    done: dict[str, Shard]

    @classmethod
    def of(cls, step: ColumnStep, source: StrPath, out: StrPath, shard_rows: int, overwrite: bool) -> _Plan:
        there = _paths.sizes(out)
        before = Manifest.read(out) if MANIFEST in there else None
        if before is None and there and not overwrite:
            raise ValueError(
                f"out: {_paths.address(out)}: holds files already, and none is a manifest; pass --overwrite to write "
                "there, or name another folder"
            )
        files = [_paths.address(path) for path in slate_files(source, "input")]
        settings = json.loads(json.dumps({**step.settings(), "shard_rows": shard_rows}))
        try:
            known = [] if before is None else _known_inputs(before.run, files, settings, out)
        except ValueError:
            if not overwrite:
                raise
            before, known = None, []
        if before is None:
            for name in there:
                if name == MANIFEST or name.startswith("part-"):
                    _paths.remove(Path(out, name))
            there = {}
        day = getattr(step, "day", None) if before is None else before.run["day"]
        if day is not None:
            step.day = day  # type: ignore[attr-defined]  # the day on which the run began
        about = {"settings": settings, "day": day, "inputs": [*known, *_new_inputs(files, known)]}
        tasks = [
            (
                each["path"],
                Shard(f"part-{number:05d}-{start:09d}.parquet", number, start, min(start + shard_rows, each["rows"])),
            )
            for number, each in enumerate(about["inputs"])
            for start in range(0, each["rows"], shard_rows)
        ]
        wanted = {shard.name: shard for _, shard in tasks}
        found = [] if before is None else before.shards
        done = {
            shard.name: shard
            for shard in found
            if shard.name in wanted and shard.stop == wanted[shard.name].stop and there.get(shard.name) == shard.bytes
        }
        return cls(step, out, about, tasks, done)

    @property
    def rows(self) -> int:
        return sum(shard.stop - shard.start for _, shard in self.tasks)

    @property
    def key(self) -> str:
        """A hash of the run, by which a shard is known to be its own."""
        content = [self.about["settings"], self.about["day"]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def pending(self) -> list[Task]:
        return [task for task in self.tasks if task[1].name not in self.done]

    def add(self, shard: Shard) -> None:
        models = {each.model for each in self.done.values()} | {shard.model}
        if len(models) > 1:
            raise ValueError(
                f"model: {shard.name}: expected the weights that the shards before were made with "
                f"({min(models - {shard.model})}), got others ({shard.model}); name another folder"
            )
        self.done[shard.name] = shard

    def manifest(self) -> Manifest:
        shards = [self.done[shard.name] for _, shard in self.tasks if shard.name in self.done]
        return Manifest(self.about, shards, complete=len(shards) == len(self.tasks))

    def save(self) -> None:
        self.manifest().write(self.out)


def _known_inputs(
    run: Mapping[str, Any], files: Sequence[str], settings: dict[str, Any], out: StrPath
) -> list[dict[str, Any]]:
    """The input files of the run so far.

    Raises:
        ValueError: it was another run; one of its files is gone or changed.
    """
    if run["settings"] != settings:
        raise _other(out, run["settings"], settings)
    for each in run["inputs"]:
        if each["path"] not in files or _paths.identity(each["path"]) != each["identity"]:
            what = "changed" if each["path"] in files else "not in the input"
            raise ValueError(
                f"input: {each['path']}: expected the file of the run so far, and it is {what}; pass --overwrite to "
                "begin again, or name another folder"
            )
    return list(run["inputs"])


def _new_inputs(files: Sequence[str], known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Files that were not part of the run so far, with what identifies their content."""
    old = {each["path"] for each in known}
    return [
        {"path": path, "identity": _paths.identity(path), "rows": count_rows(Path(path))}
        for path in files
        if path not in old
    ]


def _other(out: StrPath, found: dict[str, Any], wanted: dict[str, Any]) -> ValueError:
    changes = ", ".join(
        f"{name} {found.get(name)!r} -> {wanted.get(name)!r}"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    )
    return ValueError(
        f"out: {_paths.address(out)}: holds the results of another run ({changes}); pass --overwrite to replace them, "
        "or name another folder"
    )
