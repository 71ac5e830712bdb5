"""The base of steps on columns: rows in and out, and errors that stay in their rows."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ..data.readers import plain_values
from ..data.schema import ERROR, Slate, SlateError, parse_row
from .lazy import LazyModel

#: A batch: one sequence per column, all equally long (lists, NumPy arrays, pandas or Arrow columns).
Columns = Mapping[str, Any]

#: A column with the place of a row, for error messages and for seeds of prompts without a ``slate_id``.
WHERE = "where"

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Failed:
    """Why an item could not be processed."""

    reason: str


class ColumnStep(LazyModel):
    """A picklable function from a batch of columns to a batch of columns.

    A row that cannot be processed has the reason in the column ``error`` of the result, and the others are not
    affected. A row that already has one keeps it.
    """

    def __call__(self, batch: Columns) -> dict[str, list[Any]]:
        """The batch's result, with the same rows in the same order."""
        rows = rows_of(batch)
        results = self.process(rows)
        names = list(dict.fromkeys(name for row in (*rows, *results) for name in row if name != WHERE))
        wanted = [*names, *(name for name in self.adds if name not in names)]
        full = [{**row, **result} for row, result in zip(rows, results, strict=True)]
        return {name: [row.get(name) for row in full] for name in wanted}

    #: The columns that the step fills in.
    adds: tuple[str, ...] = (ERROR,)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What results depend on, as JSON."""

    @abstractmethod
    def process(self, rows: Sequence[Row]) -> list[Row]:
        """The new columns of every row."""

    @abstractmethod
    def schema(self, pa: Any, rows: Sequence[Row]) -> dict[str, Any]:
        """The types of the result's columns in a Parquet file, given the pyarrow module."""

    def metadata(self) -> dict[str, str]:
        """Metadata of a Parquet file of results."""
        return {}

    @property
    def fingerprint(self) -> str:
        """The hash of the model's weights, once it is loaded."""
        return ""


def rows_of(batch: Columns) -> list[Row]:
    """The rows of a batch, as JSON values."""
    columns = {name: _listed(batch[name]) for name in batch}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"batch: expected columns of the same length, got {lengths}")
    return [plain_values(dict(zip(columns, values))) for values in zip(*columns.values())]


def _listed(values: Any) -> list[Any]:
    if hasattr(values, "to_pylist"):  # Arrow
        return list(values.to_pylist())
    return [_unpacked(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


def _unpacked(value: Any) -> Any:
    """Lists in place of arrays, at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_unpacked(each) for each in value] if isinstance(value, (list, tuple)) else value


def slates_of(rows: Sequence[Row]) -> list[Slate | Failed]:
    """The slate of every row, or what is wrong with it."""
    found: list[Slate | Failed] = []
    for number, row in enumerate(rows, start=1):
        if row.get(ERROR):
            found.append(Failed(str(row[ERROR])))
            continue
        try:
            found.append(parse_row("batch", number, {k: from_json(k, v) for k, v in row.items()}))
        except SlateError as error:
            found.append(Failed(_placed(row, str(error))))
    return found


def from_json(name: str, value: Any) -> Any:
    """Objects that Parquet stores as JSON text."""
    from ..data.write import JSON_COLUMNS

    try:
        return json.loads(value) if name in JSON_COLUMNS and isinstance(value, str) else value
    except ValueError:
        return value  # the row's check says what is wrong


def each_or_failed(rows: Sequence[Row], items: Sequence[T], work: Callable[[list[T]], list[Row]]) -> list[Row | Failed]:
    """The results of ``work`` on all items; if it raises a ValueError, halves are tried, down to the bad items.

    Args:
        rows: the rows of the items, for error messages.
    """
    if not items:
        return []
    try:
        return list(work(list(items)))
    except ValueError as error:
        if len(items) == 1:
            return [Failed(_placed(rows[0], str(error)))]
    half = len(items) // 2
    return [
        *each_or_failed(rows[:half], items[:half], work),
        *each_or_failed(rows[half:], items[half:], work),
    ]


def results_of(
    rows: Sequence[Row],
    found: Sequence[T | Failed],
    work: Callable[[list[T]], list[Row]],
    kept: Callable[[T], Row],
    unreadable: Row,
) -> list[Row]:
    """The new columns of every row.

    Args:
        found: the item of every row, or why it has none.
        work: the new columns of items.
        kept: the columns of an item that ``work`` refuses.
        unreadable: the columns of a row without an item.
    """
    good = [(row, item) for row, item in zip(rows, found, strict=True) if not isinstance(item, Failed)]
    done = iter(each_or_failed([row for row, _ in good], [item for _, item in good], work))
    results: list[Row] = []
    for item in found:
        if isinstance(item, Failed):
            results.append({**unreadable, ERROR: item.reason})
        elif isinstance(result := next(done), Failed):
            results.append({**kept(item), ERROR: result.reason})
        else:
            results.append({**result, ERROR: None})
    return results


_OWN_NUMBER = re.compile(r"^(?:batch, row \d+|(?:slate|prompt) \d+(?: \([^()]*\))?): ")


def _placed(row: Row, message: str) -> str:
    """The message with the row's place in the input in front, in place of its number in the batch."""
    where = row.get(WHERE) or row.get("slate_id") or "row"
    return f"{where}: {_OWN_NUMBER.sub('', message)}"
