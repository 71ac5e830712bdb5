"""POPE training and evaluation: logged slates in, an aligned language model and the estimate of its value out.

The public names load their modules on first use, so that reading slates does not wait for transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import PopeConfig
    from .evaluate import compare, evaluate_policy
    from .logging_policy import score_slates
    from .trainer import PopeTrainer

_MODULES = {
    "PopeConfig": "config",
    "PopeTrainer": "trainer",
    "compare": "evaluate",
    "evaluate_policy": "evaluate",
    "score_slates": "logging_policy",
}

__all__ = ["PopeConfig", "PopeTrainer", "compare", "evaluate_policy", "score_slates"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
