"""The slate row: the project's one data format, read and validated row by row."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, overload

from .._extras import require

Turn = dict[str, str]  # {"role": ..., "content": ...}


@dataclass(frozen=True, slots=True)
class Slate:
    """One query and the ``k`` rated responses that were logged for it.

    The fields with a ``[k]`` have one entry per response. ``k`` may differ from slate to slate.
    """

    prompt: str | list[Turn]  # text, or the turns of the conversation so far
    completions: list[str] | list[list[Turn]]  # [k] text, or one assistant turn each
    scores: list[float]  # [k] feedback, larger is better: votes, stars, a judge's win rate
    logging_logprobs: list[float] | None = None  # [k] TOTAL log-probability under the logging policy, nats
    completion_tokens: list[int] | None = None  # [k] response tokens the totals were summed over
    ranks: list[int] | None = None  # [k] 1 = best
    slate_id: str | None = None
    responders: list[str] | None = None  # [k] who or what answered
    logging_policy: dict[str, Any] | None = None  # where logging_logprobs came from; see propensity.logging_policy
    group_scores: list[dict[str, float]] | None = None  # [k] feedback by group of raters; a group may have none
    origin: dict[str, Any] | None = None  # what the slate was converted from; see pope_align.data.convert


FIELDS = tuple(field.name for field in fields(Slate))


class SlateError(ValueError):
    """A row that is no slate: which file, row and field, what was expected there, and what came.

    ``row`` counts from 1 (the line number in a JSON-lines file); it is None when the log as a whole is at fault.
    """

    def __init__(self, source: str, row: int | None, field: str, expected: str, got: str) -> None:
        self.source, self.row, self.field, self.expected, self.got = source, row, field, expected, got
        where = source if row is None else f"{source}, row {row}"
        super().__init__(f"{where}: {field}: expected {expected}, got {got}")

    def __reduce__(self) -> tuple[type[SlateError], tuple[str, int | None, str, str, str]]:
        return type(self), (self.source, self.row, self.field, self.expected, self.got)


@dataclass(frozen=True)
class SlateLog(Sequence[Slate]):
    """The slates of one source, and what was left out of it.

    Indexing gives a `Slate`, slicing a list of them.
    """

    slates: tuple[Slate, ...]
    source: str
    skip_reasons: tuple[str, ...] = ()  # the error message of every skipped row
    ignored_fields: tuple[str, ...] = ()  # names of columns that are not part of the slate row

    @property
    def skipped(self) -> int:
        """Number of rows skipped."""
        return len(self.skip_reasons)

    @overload
    def __getitem__(self, index: int) -> Slate: ...
    @overload
    def __getitem__(self, index: slice) -> list[Slate]: ...
    def __getitem__(self, index: int | slice) -> Slate | list[Slate]:
        return list(self.slates[index]) if isinstance(index, slice) else self.slates[index]

    def __len__(self) -> int:
        return len(self.slates)

    def __str__(self) -> str:
        responses = sum(len(slate.completions) for slate in self.slates)
        ignored = f", ignored fields: {', '.join(self.ignored_fields)}" if self.ignored_fields else ""
        return f"{self.source}: {len(self)} slates, {responses} responses, {self.skipped} rows skipped{ignored}"


def read_slates(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], *, skip_bad_rows: bool = False
) -> SlateLog:
    """Read and validate a log of slates, row by row.

    Columns that are not fields of `Slate` are dropped and listed in ``SlateLog.ignored_fields``. A field that is None
    counts as absent.

    Args:
        source: a ``.jsonl`` or ``.json`` file (one JSON object a line), a ``.parquet`` file, or any iterable of
            mappings, such as a ``datasets.Dataset`` or a list of dicts.
        skip_bad_rows: leave bad rows out and keep their error messages in ``SlateLog.skip_reasons``, instead of raising
            at the first.

    Raises:
        SlateError: a row is not a slate, or no row is left.
        ValueError: the file's ending is none of the three.
    """
    name, rows = _open(source)
    slates: list[Slate] = []
    skip_reasons: list[str] = []
    ignored: set[str] = set()
    for number, row in rows:
        place = _Row(name, number)
        try:
            columns = place.columns(row)
            slates.append(place.slate(columns))
            ignored.update(str(column) for column in columns if column not in FIELDS)
        except SlateError as error:
            if not skip_bad_rows:
                raise
            skip_reasons.append(str(error))
    if not slates:
        got = "none" if not skip_reasons else f"{len(skip_reasons)} bad rows, the first: {skip_reasons[0]}"
        raise SlateError(name, None, "log", "at least one slate", got)
    return SlateLog(tuple(slates), name, tuple(skip_reasons), tuple(sorted(ignored)))


def parse_row(source: str, row: int, columns: Mapping[Any, Any]) -> Slate:
    """One slate from the columns of a row; the first two name it in errors.

    Raises:
        SlateError: the row is not a slate.
    """
    return _Row(source, row).slate(columns)


# --- sources: numbered rows -----------------------------------------------------------------------------------------


def _open(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> tuple[str, Iterator[tuple[int, Any]]]:
    """The source's name and its rows, numbered from 1."""
    if isinstance(source, Mapping):
        raise TypeError(f"source: expected a file or rows, got a {type(source).__name__}; pass one of its splits")
    if not isinstance(source, (str, os.PathLike)):
        return type(source).__name__, iter(enumerate(source, start=1))
    path = Path(source)
    readers = {".jsonl": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"source: expected a file ending in .jsonl, .json or .parquet, got {str(path)!r}")
    return str(path), readers[path.suffix](path)


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:  # bytes: lines end at \n alone, and undecodable text is an error of its row
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    number = 0
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row


# --- one row --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Row:
    """The place of a row, and the checks that name it when they fail."""

    source: str
    number: int

    def error(self, field: str, expected: str, got: Any) -> SlateError:
        text = repr(got)
        return SlateError(self.source, self.number, field, expected, text if len(text) <= 80 else text[:77] + "...")

    def columns(self, row: Any) -> Mapping[Any, Any]:
        if isinstance(row, bytes):  # a line of a JSON-lines file
            row = self.json("row", row)
        if not isinstance(row, Mapping):
            raise self.error("row", "an object with the fields of a slate", row)
        return row

    def slate(self, row: Mapping[Any, Any]) -> Slate:
        for name in ("prompt", "completions", "scores"):
            if row.get(name) is None:
                raise SlateError(self.source, self.number, name, "a value (it is required)", "nothing")
        completions = self.completions(row["completions"])
        k = len(completions)

        def per_response(name: str, check: Callable[[str, Any], Any]) -> list[Any] | None:
            value = row.get(name)
            if name == "group_scores" and isinstance(value, str):  # as Parquet stores it
                value = self.json(name, value)
            return None if value is None else self.per_response(name, value, k, check)

        def optional(name: str, check: Callable[[str, Any], Any]) -> Any:
            return None if row.get(name) is None else check(name, row[name])

        return Slate(
            prompt=self.prompt(row["prompt"]),
            completions=completions,
            scores=self.per_response("scores", row["scores"], k, self.finite),
            logging_logprobs=per_response("logging_logprobs", self.logprob),
            completion_tokens=per_response("completion_tokens", self.positive_integer),
            ranks=per_response("ranks", self.positive_integer),
            slate_id=optional("slate_id", self.text),
            responders=per_response("responders", self.text),
            logging_policy=optional("logging_policy", self.provenance),
            group_scores=per_response("group_scores", self.groups),
            origin=optional("origin", self.provenance),
        )

    def prompt(self, value: Any) -> str | list[Turn]:
        if isinstance(value, (list, tuple)):
            if not value:
                raise self.error("prompt", "at least one turn", value)
            return [self.turn(f"prompt[{i}]", turn) for i, turn in enumerate(value)]
        return self.text("prompt", value)

    def completions(self, value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise self.error("completions", "a list of responses", value)
        if not value:
            raise self.error("completions", "at least one response", value)
        conversational = isinstance(value[0], (list, tuple))
        check = self.assistant_turn if conversational else self.written_text
        return [check(f"completions[{i}]", completion) for i, completion in enumerate(value)]

    def per_response(self, field: str, value: Any, k: int, check: Callable[[str, Any], Any]) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise self.error(field, f"a list of {k}, one per completion", value)
        if len(value) != k:
            raise SlateError(
                self.source, self.number, field, f"{k} entries, one per completion", f"{len(value)} entries"
            )
        return [check(f"{field}[{i}]", entry) for i, entry in enumerate(value)]

    def assistant_turn(self, field: str, value: Any) -> list[Turn]:
        """More turns would hold tokens that the model did not choose, which must not count as its response."""
        if not isinstance(value, (list, tuple)) or len(value) != 1:
            raise self.error(field, "a list with one assistant turn", value)
        turn = self.turn(f"{field}[0]", value[0])
        if turn["role"] != "assistant":
            raise self.error(f"{field}[0].role", "'assistant'", turn["role"])
        self.written_text(f"{field}[0].content", turn["content"])
        return [turn]

    def turn(self, field: str, value: Any) -> Turn:
        if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
            raise self.error(field, "a turn {'role': ..., 'content': ...}", value)
        if not isinstance(value["content"], str):  # content may be empty: some templates take an empty system turn
            raise self.error(f"{field}.content", "text", value["content"])
        return {"role": self.text(f"{field}.role", value["role"]), "content": self.unicode(field, value["content"])}

    def written_text(self, field: str, value: Any) -> str:
        if not self.text(field, value).strip():
            raise self.error(field, "a response that is not blank", value)
        return value

    def text(self, field: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self.error(field, "non-empty text", value)
        return self.unicode(field, value)

    def unicode(self, field: str, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and no tokenizer can read
            raise self.error(field, "text that UTF-8 can encode", value) from None
        return value

    def finite(self, field: str, value: Any) -> float:
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.error(field, "a finite number", value)
        return number

    def logprob(self, field: str, value: Any) -> float:
        if (number := self.finite(field, value)) > 0:
            raise self.error(field, "a log-probability <= 0 (nats, the total over the response)", value)
        return number

    def positive_integer(self, field: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise self.error(field, "an integer >= 1", value)
        return int(value)

    def groups(self, field: str, value: Any) -> dict[str, float]:
        if not isinstance(value, Mapping):
            raise self.error(field, "an object with a number for each group", value)
        return {self.text(f"{field} (group)", name): self.finite(f"{field}.{name}", value[name]) for name in value}

    def provenance(self, field: str, value: Any) -> dict[str, Any]:
        if isinstance(value, str):  # as Parquet stores it
            value = self.json(field, value)
        if not isinstance(value, Mapping):
            what = {"logging_policy": "the logging policy", "origin": "where the slate came from"}[field]
            raise self.error(field, f"an object describing {what}", value)
        return dict(value)

    def json(self, field: str, text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.error(field, f"JSON ({error})", text) from None
