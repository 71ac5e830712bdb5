"""Stages of a run: commands of `pope` that are run once, and again only where what they depend on has changed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pope_core.version import __version__

from .._files import write_json, write_text

#: Where a run's folder keeps what was done, and what each command printed.
STAMPS, LOGS = "stages.json", "logs"


#: Runs a command of `pope`, given its arguments.
RunCommand = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage, and of its log.
        what: it does, for the plan.
        cost: what it takes, for the plan.
        argv: after ``pope``.
        reads: files and folders that its result depends on, beside the arguments.
        writes: files and folders that it makes; removed before it is run again.
        work: files and folders that it leaves when it is killed; removed before it is run again.
        resume: added to ``argv`` where the stage was begun with the same inputs and not finished.
    """

    name: str
    what: str
    cost: str
    argv: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    work: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def key(self) -> str:
        """A hash of the command, of all that it reads, and of the version of this library."""
        content = [__version__, list(self.argv), [fingerprint(Path(path)) for path in self.reads]]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def fingerprint(path: Path) -> str:
    """Equal for equal files and folders: the content of a file; names, sizes and times of the files of a folder.

    Weights are too large to be read for this.
    """
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file())
        return json.dumps(
            [[str(each.relative_to(path)), each.stat().st_size, each.stat().st_mtime_ns] for each in files]
        )
    return str(path)


def check_run_folder(folder: Path, argument: str, what: str) -> None:
    """Refuse a folder that holds other things than a run.

    Args:
        argument, what: for the error: the argument that names the folder, and what made its files.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STAMPS).is_file():
        raise ValueError(f"{argument}: {folder}: holds files that no {what} made; name another folder")


def run_stage(stage: Stage, folder: Path, run: RunCommand) -> bool:
    """Run a stage unless its result is there already; whether it was run.

    Args:
        folder: the run's.
        run: runs a command of `pope`, given its arguments; what it prints goes into the stage's log.
    """
    if is_done(stage, folder):
        return False
    stamps, key = _stamps(folder), stage.key()
    stamp = stamps.get(stage.name, {})
    begun = stamp.get("key") == key and not stamp["done"]
    for path in (*stage.writes, *(() if begun else stage.work)):
        _remove(Path(path))
    write_json(folder / STAMPS, {**stamps, stage.name: {"key": key, "done": False}})
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run([*stage.argv, *(stage.resume if begun else ())])
    finally:
        (folder / LOGS).mkdir(exist_ok=True)
        write_text(folder / LOGS / f"{stage.name}.txt", printed.getvalue())
    if missing := [path for path in stage.writes if not Path(path).exists()]:
        raise ValueError(f"stage {stage.name}: expected it to write {', '.join(missing)}, got no such file")
    made = [fingerprint(Path(path)) for path in stage.writes]
    write_json(folder / STAMPS, {**stamps, stage.name: {"key": key, "done": True, "made": made}})
    return True


def replaced(stage: Stage, folder: Path) -> bool:
    """Whether somebody put another result in the place of the stage's own."""
    made = _stamps(folder).get(stage.name, {}).get("made")
    return made is not None and made != [fingerprint(Path(path)) for path in stage.writes]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_done(stage: Stage, folder: Path) -> bool:
    """Whether the stage's result is there, made by this command from what it reads now."""
    stamp = _stamps(folder).get(stage.name, {})
    there = all(Path(path).exists() for path in stage.writes)
    return there and bool(stamp.get("done")) and stamp["key"] == stage.key()


def _stamps(folder: Path) -> dict[str, Any]:
    """By stage: its key, whether it is done, and the fingerprints of what it made."""
    path = folder / STAMPS
    try:
        stamps: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: expected the JSON of a run, got {error}; delete it to run all again") from None
    return stamps
