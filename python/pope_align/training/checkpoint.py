"""Finding complete checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from accelerate.logging import get_logger
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = get_logger(__name__)


#: The file that each of our processes adds to a checkpoint.
STATE_FILE = "slate_window_{}.pt"


def last_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint in ``output_dir``, or None.

    The trainer's state is written last, after all processes; a checkpoint without it is incomplete and is skipped.
    """
    folders = [path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(path) is not None]
    for path in sorted(folders, key=lambda path: _step(path) or 0, reverse=True):
        if _whole(path / TRAINER_STATE_NAME):
            return str(path)
        logger.warning("%s: passed over, because writing it was interrupted", path)
    return None


def checkpoint_date(output_dir: str | os.PathLike[str]) -> str | None:
    """The ``template_date`` of the run whose checkpoints are in ``output_dir``; None without one."""
    folder = last_checkpoint(output_dir)
    state = Path(folder) / STATE_FILE.format(0) if folder else None
    if state is None or not state.exists():
        return None
    date: str | None = torch.load(state, map_location="cpu", weights_only=True).get("template_date")
    return date


def _step(path: Path) -> int | None:
    step = path.name.rpartition("-")[2]
    return int(step) if step.isdigit() else None


def _whole(state: Path) -> bool:
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True
