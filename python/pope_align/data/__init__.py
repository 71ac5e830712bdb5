"""Logged slates: the row and its errors, feedback to utility, tokens, and batches."""

from __future__ import annotations

from .collate import SlateCollator, SlateExample
from .feedback import UtilityTransform, to_utility
from .rows import TokenRows, Tree, lay_out
from .schema import Slate, SlateError, SlateLog, Turn, read_slates
from .split import group_folds, group_split, slate_group
from .tokenize import EncodedSlate, TruncationReport, encode_slate, encode_slates
from .write import slate_writer, write_slates

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
    "read_slates",
    "slate_group",
    "slate_writer",
    "to_utility",
    "write_slates",
]
