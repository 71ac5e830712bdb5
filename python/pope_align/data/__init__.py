"""Logged slates: the row and its errors, feedback to utility, tokens, and batches."""

from __future__ import annotations

from .collate import SlateCollator, SlateExample
from .rows import TokenRows, Tree, lay_out
from .schema import Slate, SlateError, SlateLog, Turn, read_slates, write_slates
from .split import group_folds, group_split
from .tokenize import EncodedSlate, TruncationReport, encode_slate, encode_slates
from .utility import UtilityTransform, to_utility

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
    "to_utility",
    "write_slates",
]
