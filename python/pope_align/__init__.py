"""Training and evaluation on top of ``pope_core``: slates, propensities, trainer, value estimates, command line.

Names are imported when first used, so that ``pope_align.data`` works without transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import Slate as Slate
    from .data import read_slates as read_slates
    from .data import write_slates as write_slates
    from .ope import evaluate_policies as evaluate_policies
    from .propensity.logging_policy import score_slates as score_slates
    from .training.config import PopeConfig as PopeConfig
    from .training.trainer import PopeTrainer as PopeTrainer

_HOMES = {
    "PopeConfig": "training.config",
    "PopeTrainer": "training.trainer",
    "Slate": "data",
    "evaluate_policies": "ope",
    "read_slates": "data",
    "score_slates": "propensity.logging_policy",
    "write_slates": "data",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("pope_"):
            raise
        raise ImportError(
            f"pope_align.{name} needs {error.name}; install it with: pip install 'pope-core[train]'"
        ) from error
