"""Preference datasets in TRL's formats, as a trainer is given them: rows in memory, or a file, to slates."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .assemble import Assembler
from .checks import Place, SlateError
from .formats import Format, Source
from .formats.preferences import HH_RLHF, PREFERENCE, UNPAIRED
from .options import ConvertOptions, ConvertReport
from .pieces import Piece
from .readers import first_records, read_records
from .records import Record
from .schema import SlateLog

logger = logging.getLogger(__name__)

#: The formats that are recognised by their columns.
_FORMATS = (HH_RLHF, PREFERENCE, UNPAIRED)

#: Columns of TRL's datasets that change the prompt and that slates have no field for.
_UNSUPPORTED = ("image", "images", "tools", "chat_template_kwargs")


class PreferenceLog(SlateLog):
    """Slates made of preferences, which never have log-probabilities of the policy that wrote their responses."""


@dataclass(slots=True)
class _Rows(Source):
    """Records that are in memory already, or come from one file."""

    rows: Iterable[Record | SlateError] = field(default_factory=list)

    def records(self, paths: Sequence[Path] | None = None) -> Iterator[Record]:
        for row in self.rows:
            if isinstance(row, SlateError):
                raise row
            for column in _UNSUPPORTED:
                if column in row:
                    raise row.error(
                        column, "nothing: prompts are text or turns, without images and tools", row.get(column)
                    )
            yield row


def preference_format(columns: Mapping[Any, Any]) -> Format | None:
    """TRL's format of a row by its columns: "preference", "unpaired", or Anthropic's dialogues; None for another.

    Preferences have ``chosen`` and ``rejected``, unpaired ones ``prompt``, ``completion`` and ``label``.
    """
    fields = frozenset(str(name) for name, value in columns.items() if value is not None)
    if "completions" in fields:
        return None
    return next((kind for kind in _FORMATS if kind.mark(fields) and kind.looks(columns)), None)


def preference_slates(kind: Format, name: str, rows: Iterable[Any]) -> PreferenceLog:
    """The slates of `read_preferences`, in the order in which their prompts come.

    Args:
        kind: of `preference_format`.
        name: of the rows, in errors.
        rows: records, or mappings.
    """
    report = ConvertReport(kind.name, [name], kind.feedback[0])
    source = _Rows(paths=[], rows=_numbered(name, rows))
    assembler = Assembler(_in_memory(kind), kind.feedback[0], source, ConvertOptions(min_k=1), report)
    slates = tuple(slate for _, slate in assembler.slates())
    dropped = {**report.responses_dropped, **report.without_response, **report.slates_dropped}
    if any(dropped.values()):
        counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
        logger.warning("%s: of %d rows, left out or averaged: %s", name, source.records_read, counts)
    if not slates:
        raise SlateError(name, None, "rows", "at least one response", "none")
    return PreferenceLog(slates, name)


def read_preferences(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> PreferenceLog:
    """Read preferences in TRL's formats as slates: all answers to a prompt make one slate.

    Columns ``prompt``, ``chosen`` and ``rejected`` (text or turns; without ``prompt`` it is what both begin with): the
    chosen response has the score 1 and the rejected one 0, or ``score_chosen`` and ``score_rejected``. Columns
    ``prompt``, ``completion`` and ``label``: the score is the label. A response that comes again has the mean.
    Slates of one response are kept. Everything is held in memory; `pope convert --from preference` is for more.

    Args:
        source: a file, or any iterable of mappings, such as a ``datasets.Dataset`` or a list of dicts.

    Raises:
        SlateError: a row of another format, or with images or tools; no row.
    """
    if isinstance(source, (str, os.PathLike)):
        log, name = preference_file(source), str(source)
    else:
        name = type(source).__name__
        columns, rows = first_columns(source)
        kind = preference_format(columns)
        log = None if kind is None else preference_slates(kind, name, rows)
    if log is None:
        expected = "chosen and rejected (and prompt), or prompt, completion and label"
        raise SlateError(name, 1, "row", expected, "others, or no row")
    return log


def first_columns(source: Iterable[Any]) -> tuple[Mapping[Any, Any], Iterable[Any]]:
    """The first row, and all rows; the row is empty if there is none or it is no mapping."""
    rows = iter(source)
    first = list(itertools.islice(rows, 1))
    columns = first[0] if first and isinstance(first[0], Mapping) else {}
    return columns, itertools.chain(first, rows) if rows is source else source  # an iterator is read once


def preference_file(path: str | os.PathLike[str]) -> PreferenceLog | None:
    """`preference_slates` of a file; None if its first record is of no such format."""
    first = next(first_records([Path(path)], 1), None)
    kind = None if first is None else preference_format(first.values)
    return None if kind is None else preference_slates(kind, str(path), read_records(Path(path)))


def _numbered(name: str, rows: Iterable[Any]) -> Iterator[Record | SlateError]:
    """Rows as records; those in memory are numbered from 1."""
    for number, row in enumerate(rows, start=1):
        if isinstance(row, (Record, SlateError)):
            yield row
        elif isinstance(row, Mapping):
            yield Record(name, number, row)
        else:
            yield Place(name, number).error("row", "a mapping of columns to values", row)


def _in_memory(kind: Format) -> Format:
    """The format with all responses to a prompt in one piece, so that nothing is spilled to disk to be gathered."""

    def read(source: Source, feedback: str) -> Iterator[Piece]:
        by_key: dict[str, list[Piece]] = {}
        for piece in kind.read(source, feedback):
            by_key.setdefault(piece.key, []).append(piece)
        for pieces in by_key.values():
            responses = list(itertools.chain.from_iterable(piece.responses for piece in pieces))
            yield replace(pieces[0], responses=responses)

    return replace(kind, read=read, scattered=False)
