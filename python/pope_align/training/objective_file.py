"""What a model was trained for, kept beside its weights: provenance, and nothing that an evaluation asks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pope_core.objective import Objective

from .._files import write_json

#: The file's name, beside the model's files.
OBJECTIVE_NAME = "training_objective.json"


def write_training_objective(
    folder: str | os.PathLike[str], method: str, objective: Objective | None, **options: Any
) -> None:
    """Write what decided the loss into a model's folder.

    Args:
        method: "pope", "sft" or "dpo".
        objective: of "pope"; None for the others.
        options: what else decided it, by name.
    """
    content = {"method": method, "objective": None if objective is None else objective.to_dict(), **options}
    write_json(Path(folder, OBJECTIVE_NAME), content)


def read_training_objective(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `write_training_objective` left in ``folder``; None where there is nothing (or no folder)."""
    path = Path(folder, OBJECTIVE_NAME)
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
