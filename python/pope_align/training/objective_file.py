"""The training objective, saved with the model as provenance; evaluations do not use it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from .._files import write_json
from .methods import TrainingMethod

#: The file name in the model's folder.
OBJECTIVE_NAME = "training_objective.json"


def write_training_objective(
    folder: str | os.PathLike[str], method: TrainingMethod, objective: dict[str, Any] | None, **options: Any
) -> None:
    """Write the training objective to a model's folder.

    Args:
        objective: of "pope", as `pope_core.Objective.to_dict` gives it; None for the others.
        options: other settings of the loss, by name.
    """
    content = {"method": method, "objective": objective, **options}
    write_json(Path(folder, OBJECTIVE_NAME), content)


def read_training_objective(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content that `write_training_objective` wrote to ``folder``; None if there is none."""
    path = Path(folder, OBJECTIVE_NAME)
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
