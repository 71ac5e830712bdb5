"""The definition of a format: its name, its kinds of feedback, and how a record becomes pieces of slates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..checks import SlateError
from ..pieces import Piece
from ..readers import query_records, read_records
from ..records import Record
from ..split import column_text

#: The number of bad rows whose messages are kept; all are counted.
MAX_MESSAGES = 1000


@dataclass(frozen=True, slots=True)
class Nothing:
    """A record without a response, with the reason; it is counted and is not an error."""

    reason: str


@dataclass(slots=True)
class Source:
    """The input of one conversion, and the counts of what was read from it."""

    paths: Sequence[Path]
    skip_bad_rows: bool = False
    mapping: dict[str, str] = field(default_factory=dict)  # names of the format's `maps` -> what the user gives them
    sql: str | None = None  # rows of this query instead of files
    group_column: str | None = None  # its value groups slates that a split keeps together
    check: Callable[[Record], None] = lambda record: None  # raises if the record has another format
    records_read: int = 0
    bad_row_count: int = 0
    bad_rows: list[str] = field(default_factory=list)  # the first messages
    nothing: Counter[str] = field(default_factory=Counter)
    without_propensity: Counter[str] = field(default_factory=Counter)  # responses, by why they have none

    def records(self, paths: Sequence[Path] | None = None) -> Iterator[Record]:
        """Records of all files in order; a bad one is raised or counted."""
        if self.sql is not None:
            readers: Iterable[Iterator[Record | SlateError]] = [query_records(self.sql)]
        else:
            readers = map(read_records, self.paths if paths is None else paths)
        for records in readers:
            for record in records:
                if isinstance(record, SlateError):
                    self.records_read += 1
                    self.bad(record)
                else:
                    yield record

    def bad(self, error: SlateError) -> None:
        """Raise the error of a row, or count the row."""
        if not self.skip_bad_rows:
            raise error
        self.bad_row_count += 1
        if len(self.bad_rows) < MAX_MESSAGES:
            self.bad_rows.append(str(error))


#: Converts a record to pieces of slates, or says why it has none. The text is the requested kind of feedback.
OfRecord = Callable[[Record, str], Iterable["Piece | Nothing"] | Nothing]
Read = Callable[[Source, str], Iterator[Piece]]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of log.

    Attributes:
        name: the value of ``--from``.
        summary: a description for the list of formats.
        feedback: kinds of feedback that can become scores, the default first.
        read: the reader.
        scattered: whether parts of a slate stand apart in the files, so that they must be gathered.
        repeats: what a response that comes again in its slate means: a copy of which the "best" score is kept, or
            another rating, which goes into the "mean".
        marks: sets of fields, in one text each, of which one is in every record of the format; none for any record.
        any_columns: whether a user says which columns are read, so that no record is of another format.
        looks: what else its records have, where another format has the same marks.
        by_people: whether all its responses were written by people, so that there is no logging policy.
        maps: the names that ``--map`` accepts: of columns, or of what a record has several of.
        keeps_ratings: whether annotators are copied without being asked for, because they were asked for before.
    """

    name: str
    summary: str
    feedback: tuple[str, ...]
    read: Read
    scattered: bool
    repeats: Literal["best", "mean"] = "best"
    marks: tuple[str, ...] = ()
    any_columns: bool = False
    looks: Callable[[Mapping[str, Any]], bool] = lambda values: True
    by_people: bool = False
    maps: tuple[str, ...] = ()
    keeps_ratings: bool = False

    def mark(self, fields: frozenset[str]) -> frozenset[str]:
        """The largest of the format's marks that is contained in these fields; empty if none is."""
        held = [mark for mark in map(frozenset, map(str.split, self.marks)) if mark <= fields]
        return max(held, key=len, default=frozenset())


def per_record(of_record: OfRecord) -> Read:
    """A reader that needs one record at a time."""

    def read(source: Source, feedback: str) -> Iterator[Piece]:
        for record in source.records():
            source.records_read += 1
            try:
                source.check(record)
                result = of_record(record, feedback)
                pieces = [result] if isinstance(result, Nothing) else _grouped(record, result, source.group_column)
            except SlateError as error:
                source.bad(error)
                continue
            for piece in pieces:
                if isinstance(piece, Nothing):
                    source.nothing[piece.reason] += 1
                else:
                    yield piece

    return read


def _grouped(record: Record, found: Iterable[Piece | Nothing], column: str | None) -> list[Piece | Nothing]:
    """The checked pieces of a record, with the group from its column."""
    group = None if column is None else column_text(record.values, column)
    return [
        each
        if isinstance(each, Nothing)
        else (each if group is None else replace(each, group=group)).checked(record.place)
        for each in found
    ]
