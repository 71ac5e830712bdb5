"""What a format is: a name, the feedback it offers, and how one of its records becomes pieces of slates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..pieces import Piece
from ..records import Record, read_records
from ..schema import SlateError


@dataclass(frozen=True, slots=True)
class Nothing:
    """A record that holds no response, and why: counted, never an error."""

    reason: str


@dataclass(slots=True)
class Source:
    """The input files of one conversion, and the counts of what was read from them."""

    paths: Sequence[Path]
    skip_bad_rows: bool = False
    mapping: dict[str, str] = field(default_factory=dict)  # of the table format: slate field -> column
    records_read: int = 0
    bad_rows: list[str] = field(default_factory=list)
    nothing: Counter[str] = field(default_factory=Counter)

    def records(self, paths: Sequence[Path] | None = None) -> Iterator[Record]:
        """Records of all files in order; a bad one is raised or counted."""
        for path in self.paths if paths is None else paths:
            for record in read_records(path):
                if isinstance(record, SlateError):
                    self.bad(record)
                else:
                    yield record

    def bad(self, error: SlateError) -> None:
        if not self.skip_bad_rows:
            raise error
        self.records_read += 1
        self.bad_rows.append(str(error))


#: Turns a record into pieces of slates, or says why it holds none. The text is the kind of feedback asked for.
OfRecord = Callable[[Record, str], Iterable[Piece] | Nothing]
Read = Callable[[Source, str], Iterator[Piece]]


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of log.

    Attributes:
        name: what ``--from`` takes.
        summary: what it is, for the list of formats.
        feedback: kinds of feedback that can become scores, the default first.
        read: the reader.
        scattered: whether parts of a slate stand apart in the files, so that they must be gathered.
        repeats: what a response that comes again in its slate means: a copy of which the "best" score is kept, or
            another rating, which goes into the "mean".
    """

    name: str
    summary: str
    feedback: tuple[str, ...]
    read: Read
    scattered: bool
    repeats: Literal["best", "mean"] = "best"


def per_record(of_record: OfRecord) -> Read:
    """A reader that needs one record at a time."""

    def read(source: Source, feedback: str) -> Iterator[Piece]:
        for record in source.records():
            try:
                result = of_record(record, feedback)
                pieces = [result] if isinstance(result, Nothing) else list(result)
            except SlateError as error:
                source.bad(error)
                continue
            source.records_read += 1
            for piece in pieces:
                if isinstance(piece, Nothing):
                    source.nothing[piece.reason] += 1
                else:
                    yield piece

    return read
