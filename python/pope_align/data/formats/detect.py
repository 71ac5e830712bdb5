"""Detects the format of records from their fields."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..checks import SlateError
from ..readers import first_records
from ..records import Record
from .base import Format

#: Number of records of each file that are inspected.
_LOOK = 100


def foreign(kind: Format, formats: Sequence[Format]) -> Callable[[Record], None]:
    """A check that refuses records of another format than ``kind`` and names the right one.

    A record has another format if its fields contain that format's mark, and this mark is a proper superset of
    ``kind``'s.
    """
    if kind.any_columns or not kind.marks:
        return lambda record: None
    known: dict[frozenset[str], list[Format]] = {}

    def check(record: Record) -> None:
        fields = _fields(record)
        if fields not in known:
            if len(known) > 10_000:  # files whose records all have different fields
                known.clear()
            own = kind.mark(fields)
            known[fields] = [other for other in formats if other.mark(fields) > own]
        others = [other for other in known[fields] if other.looks(record.values)]
        if others:
            names = " or ".join(f"--from {other.name}" for other in others)
            got = f"one with {', '.join(sorted(others[0].mark(fields)))}; read it with {names}"
            raise SlateError(record.source, record.row, "row", f"a record of {kind.name}", got)

    return check


def detect(paths: Sequence[Path], formats: Sequence[Format]) -> Format:
    """The format of files, from the first records of each.

    Raises:
        ValueError: no format fits most of them, or several do equally well.
    """
    if paths and all(path.is_dir() for path in paths):
        return next(entry for entry in formats if entry.name == "polis")
    fitting: Counter[str] = Counter()  # records that fit
    weight: Counter[str] = Counter()  # size of the mark
    seen = 0
    for record in first_records(paths, _LOOK):
        seen += 1
        fields = _fields(record)
        for entry in formats:
            mark = entry.mark(fields) if entry.looks(record.values) else frozenset()
            fitting[entry.name] += bool(mark)
            weight[entry.name] += len(mark)
    candidates = [name for name, count in fitting.items() if count > seen / 2]
    best = [name for name in candidates if weight[name] == max(weight[each] for each in candidates)]
    if len(best) == 1:
        return next(entry for entry in formats if entry.name == best[0])
    if not seen:
        raise ValueError(f"from: expected records to tell the format by, got none in {', '.join(map(str, paths))}")
    if best:
        raise ValueError(f"from: expected one format that fits, got {', '.join(best)}; name one of them")
    raise ValueError(
        "from: expected records of a known format (pope convert --list), got others; name the format, or use "
        "--from table with --map prompt=COLUMN,completion=COLUMN,score=COLUMN"
    )


def _fields(record: Record) -> frozenset[str]:
    return frozenset(name for name, value in record.values.items() if value is not None)
