"""Complete checkpoints: every one has a list of its files, by which damage is found before anything is loaded."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .._files import write_json

logger = logging.getLogger(__name__)


#: The file that each of our processes adds to a checkpoint.
STATE_FILE = "slate_window_{}.pt"

#: Sizes and checksums of a checkpoint's files, but for the trainer's state, which is written after it.
FILES_NAME = "checkpoint_files.json"

_BLOCK = 1 << 24


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest undamaged checkpoint in ``output_dir``, or None; newer ones are named in a warning."""
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    for path in sorted(folders, key=lambda path: _step(path) or 0, reverse=True):
        reason = damage(path)
        if reason is None:
            return str(path)
        logger.warning("%s: passed over, because %s", path, reason)
    return None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None if nothing is.

    The trainer's state is written last, after all processes; a checkpoint without it is incomplete. All other files
    are compared with `note_files`; a checkpoint of another program has no such list.
    """
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return "writing it was interrupted"
    try:
        noted: dict[str, Any] = json.loads((checkpoint / FILES_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        return f"{FILES_NAME} is damaged"
    for name, expected in noted.items():
        try:
            if _size_and_checksum(checkpoint / name) != expected:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
    return None


def check_checkpoint(checkpoint: str | os.PathLike[str]) -> None:
    """Refuse a damaged checkpoint.

    Raises:
        ValueError: says what is damaged.
    """
    if Path(checkpoint).is_dir() and (reason := damage(Path(checkpoint))) is not None:
        raise ValueError(
            f"resume_from_checkpoint: {os.fspath(checkpoint)}: expected a complete checkpoint, but {reason}; name an "
            'earlier one, or "last", which finds the newest that is complete'
        )


def note_files(checkpoint: str | os.PathLike[str]) -> None:
    """Sync the files of a checkpoint to disk, and note their sizes and checksums in it."""
    folder = Path(checkpoint)
    noted = {str(path.relative_to(folder)): _size_and_checksum(path, sync=True) for path in sorted(_files(folder))}
    write_json(folder / FILES_NAME, noted)


def checkpoint_date(output_dir: str | os.PathLike[str]) -> str | None:
    """The ``template_date`` of the run whose checkpoints are in ``output_dir``; None without one."""
    folder = last_checkpoint(output_dir)
    state = Path(folder) / STATE_FILE.format(0) if folder else None
    if state is None or not state.exists():
        return None
    date: str | None = torch.load(state, map_location="cpu", weights_only=True).get("template_date")
    return date


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in (TRAINER_STATE_NAME, FILES_NAME) and not path.name.startswith("."):
            yield path


def _size_and_checksum(path: Path, *, sync: bool = False) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(_BLOCK):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return [size, checksum]


def _step(path: Path) -> int | None:
    step = path.name.rpartition("-")[2]
    return int(step) if step.isdigit() else None
