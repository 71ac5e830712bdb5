"""The training objective, saved with the model as provenance; evaluations do not use it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pope_core.objective import Objective

from .._files import write_json

#: The file name in the model's folder.
OBJECTIVE_NAME = "training_objective.json"


def write_training_objective(
    folder: str | os.PathLike[str], method: str, objective: Objective | None, **options: Any
) -> None:
    """Write the training objective to a model's folder.

    Args:
        method: "pope", "sft" or "dpo".
        objective: of "pope"; None for the others.
        options: other settings of the loss, by name.
    """
    content = {"method": method, "objective": None if objective is None else objective.to_dict(), **options}
    write_json(Path(folder, OBJECTIVE_NAME), content)


def read_training_objective(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content that `write_training_objective` wrote to ``folder``; None if there is none."""
    path = Path(folder, OBJECTIVE_NAME)
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
