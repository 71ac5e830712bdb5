"""Logged slates: the row and its errors, feedback to utility, tokens, and batches.

What needs torch (rows, batches) or NumPy (utilities) is imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .schema import Slate, SlateError, SlateLog, Turn, read_slates
from .split import group_folds, group_split, slate_group
from .tokenize import EncodedSlate, TruncationReport, encode_slate, encode_slates
from .transforms import UtilityTransform
from .write import slate_writer, write_slates

if TYPE_CHECKING:
    from .collate import SlateCollator as SlateCollator
    from .collate import SlateExample as SlateExample
    from .feedback import to_utility as to_utility
    from .preference_rows import read_preferences as read_preferences
    from .rows import TokenRows as TokenRows
    from .rows import Tree as Tree
    from .rows import lay_out as lay_out

__all__ = [
    "EncodedSlate",
    "Slate",
    "SlateCollator",
    "SlateError",
    "SlateExample",
    "SlateLog",
    "TokenRows",
    "Tree",
    "TruncationReport",
    "Turn",
    "UtilityTransform",
    "encode_slate",
    "encode_slates",
    "group_folds",
    "group_split",
    "lay_out",
    "read_preferences",
    "read_slates",
    "slate_group",
    "slate_writer",
    "to_utility",
    "write_slates",
]

_HOMES = {
    "SlateCollator": "collate",
    "SlateExample": "collate",
    "TokenRows": "rows",
    "Tree": "rows",
    "lay_out": "rows",
    "read_preferences": "preference_rows",
    "to_utility": "feedback",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
