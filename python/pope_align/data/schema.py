"""The slate row: the project's one data format, read and validated row by row."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

from .._paths import address, is_folder
from .checks import Place, Rating, SlateError, Turn
from .readers import read_records
from .shards import input_files

__all__ = ["FIELDS", "Slate", "SlateError", "SlateLog", "Turn", "parse_row", "read_slates", "text_of"]


@dataclass(frozen=True, slots=True)
class Slate:
    """One query and the ``k`` rated responses that were logged for it.

    The fields with a ``[k]`` have one entry per response. ``k`` may differ from slate to slate.
    """

    prompt: str | list[Turn]  # text, or the turns of the conversation so far
    completions: list[str] | list[list[Turn]]  # [k] text, or one assistant turn each
    scores: list[float]  # [k] feedback, larger is better: votes, stars, a judge's win rate
    logging_logprobs: list[float] | None = None  # [k] TOTAL log-probability under the logging policy, nats
    completion_tokens: list[int] | None = None  # [k] number of response tokens in each total
    ranks: list[int] | None = None  # [k] 1 = best
    slate_id: str | None = None
    responders: list[str] | None = None  # [k] who or what answered
    logging_policy: dict[str, Any] | None = None  # where logging_logprobs came from; see propensity.logging_policy
    group_scores: list[dict[str, float]] | None = None  # [k] feedback by group of raters; a group may have none
    origin: dict[str, Any] | None = None  # what the slate was converted from; see pope_align.data.convert
    finished: list[bool] | None = None  # [k] False: cut at a limit, without an end-of-turn token
    completion_ids: list[list[int]] | None = None  # [k][t] sampled tokens, of logging_policy["tokenizer_fingerprint"]
    ratings: list[list[Rating]] | None = None  # [k] what each annotator said; a response may have none


def text_of(value: str | list[Turn]) -> str:
    """The text of a prompt or response; for turns, their contents joined by newlines."""
    return value if isinstance(value, str) else "\n".join(turn["content"] for turn in value)


FIELDS = tuple(field.name for field in fields(Slate))

#: A column of files that is no field: log-probabilities per token, which become ``logging_logprobs`` when read.
MEANS = "logging_means"

#: Another: why a step could not process the row. Such a row is skipped and counted.
ERROR = "error"

#: Endings of files of slates.
ENDINGS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class SlateLog(Sequence[Slate]):
    """The slates of one source, and a record of what was skipped.

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
    counts as absent. A column ``logging_means`` (nats per token) is multiplied by ``completion_tokens`` and becomes
    ``logging_logprobs``. A row with a text in the column ``error``, which a step on many rows leaves in a row that it
    could not process, is skipped and counted.

    Args:
        source: a ``.jsonl`` or ``.json`` file (one JSON object a line, or an array of them), a ``.parquet`` file, a
            folder of such files, a glob, an address of one of these (``s3://``, ``gs://``, ``hf://``), or any iterable
            of mappings, such as a ``datasets.Dataset`` or a list of dicts.
        skip_bad_rows: skip bad rows and keep their error messages in ``SlateLog.skip_reasons``, instead of raising at
            the first.

    Raises:
        SlateError: a row is not a slate, or no row is left.
        ValueError: the file has another ending.
    """
    name, rows = _open(source)
    slates: list[Slate] = []
    skip_reasons: list[str] = []
    ignored: set[str] = set()
    for file, number, row in rows:
        try:
            if isinstance(row, Mapping) and row.get(ERROR):
                skip_reasons.append(str(row[ERROR]))
                continue
            slates.append(slate_of(file, number, row))
            ignored.update(str(column) for column in row if column not in (*FIELDS, MEANS, ERROR))
        except SlateError as error:
            if not skip_bad_rows:
                raise
            skip_reasons.append(str(error))
    if not slates:
        got = "none" if not skip_reasons else f"{len(skip_reasons)} bad rows, the first: {skip_reasons[0]}"
        raise SlateError(name, None, "log", "at least one slate", got)
    return SlateLog(tuple(slates), name, tuple(skip_reasons), tuple(sorted(ignored)))


def slate_of(source: str, row: int, value: Any) -> Slate:
    """`parse_row` of whatever stands in a row, which may be the error of its reader.

    Raises:
        SlateError: the row is not a slate.
    """
    if isinstance(value, SlateError):
        raise value
    if not isinstance(value, Mapping):
        raise Place(source, row).error("row", "an object with the fields of a slate", value)
    return parse_row(source, row, value)


def parse_row(source: str, row: int, columns: Mapping[Any, Any]) -> Slate:
    """A slate from the columns of a row; ``source`` and ``row`` are for error messages.

    Raises:
        SlateError: the row is not a slate.
    """
    place = Place(source, row)
    missing = [name for name in ("prompt", "completions", "scores") if columns.get(name) is None]
    if sum(name not in columns for name in missing) > 1:  # another log, such as the one `pope convert` was to read
        expected = "a slate, with prompt, completions and scores (`pope convert` makes slates of other logs)"
        raise place.error("row", expected, ", ".join(map(str, columns)) or "no field")
    if missing:
        raise place.missing(missing[0])
    prompt = place.prompt("prompt", columns["prompt"])
    if not prompt:
        raise place.error("prompt", "non-empty text", prompt)
    completions = _completions(place, columns["completions"])

    def each(name: str, check: Any) -> list[Any] | None:
        value = columns.get(name)
        if name in ("group_scores", "ratings") and isinstance(value, str):  # as Parquet stores it
            value = place.json(name, value)
        return None if value is None else place.each(name, value, len(completions), check)

    def optional(name: str, check: Any) -> Any:
        return None if columns.get(name) is None else check(name, columns[name])

    tokens = each("completion_tokens", place.positive_integer)
    totals = each("logging_logprobs", place.logprob)
    if (means := each(MEANS, place.mean_logprob)) is not None:
        if totals is not None:
            raise place.error(MEANS, "totals (logging_logprobs) or means, not both", columns[MEANS])
        if tokens is None:
            raise place.error("completion_tokens", f"the tokens of each response, to multiply {MEANS} by", None)
        totals = [mean * count for mean, count in zip(means, tokens, strict=True)]
    return Slate(
        prompt=prompt,
        completions=completions,
        scores=place.each("scores", columns["scores"], len(completions), place.finite),
        logging_logprobs=totals,
        completion_tokens=tokens,
        ranks=each("ranks", place.positive_integer),
        slate_id=optional("slate_id", place.text),
        responders=each("responders", place.text),
        logging_policy=optional("logging_policy", place.provenance),
        group_scores=each("group_scores", place.groups),
        origin=optional("origin", place.provenance),
        finished=each("finished", place.boolean),
        completion_ids=_sampled(place, each("completion_ids", place.token_ids), tokens),
        ratings=each("ratings", place.ratings),
    )


def _sampled(place: Place, ids: list[list[int]] | None, tokens: list[int] | None) -> list[list[int]] | None:
    """The sampled tokens; a response that was cut for scoring has fewer ``completion_tokens``, none has more."""
    for index, (of_response, count) in enumerate(zip(ids or [], tokens or [])):
        if len(of_response) < count:
            expected = f"the {count} tokens that completion_tokens counts"
            got = f"{len(of_response)} tokens"
            raise SlateError(place.source, place.row, f"completion_ids[{index}]", expected, got)
    return ids


def _completions(place: Place, value: Any) -> list[Any]:
    """Check that responses are all text or all turns, and that none is blank."""
    if not isinstance(value, (list, tuple)):
        raise place.error("completions", "a list of responses", value)
    if not value:
        raise place.error("completions", "at least one response", value)
    if not isinstance(value[0], (list, tuple)):
        return [place.written_text(f"completions[{i}]", completion) for i, completion in enumerate(value)]
    turns = [place.assistant_turn(f"completions[{i}]", completion) for i, completion in enumerate(value)]
    for i, (turn,) in enumerate(turns):
        place.written_text(f"completions[{i}][0].content", turn["content"])
    return turns


def _open(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> tuple[str, Iterator[tuple[str, int, Any]]]:
    """The source's name, and of each row its file, its number from 1 and its columns, or the error of reading it."""
    if isinstance(source, Mapping):
        raise TypeError(f"source: expected a file or rows, got a {type(source).__name__}; pass one of its splits")
    if not isinstance(source, (str, os.PathLike)):
        name = type(source).__name__
        return name, ((name, number, row) for number, row in enumerate(source, start=1))
    return address(source), (row for path in slate_files(source, "source") for row in file_rows(path))


def slate_files(source: str | os.PathLike[str], argument: str) -> list[Path]:
    """The files of slates that a path stands for, see `shards.input_files`.

    Raises:
        ValueError: there is none; one has another ending.
    """
    single = not glob.has_magic(os.fspath(source)) and not is_folder(source)
    paths = [Path(source)] if single else input_files(source, ENDINGS, argument)
    for path in paths:
        if path.suffix not in ENDINGS:
            raise ValueError(
                f"{argument}: expected slates in a file ending in .jsonl, .json or .parquet, got {address(path)!r}; "
                "`pope convert` turns logs of other formats into slates"
            )
    return paths


def file_rows(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Of every row of a file: the file's address, the row's number from 1, its columns or the error of reading it."""
    for record in read_records(path):
        yield address(path), record.row or 0, record if isinstance(record, SlateError) else record.values
