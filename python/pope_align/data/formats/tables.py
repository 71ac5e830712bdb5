"""Any table with a column mapping, and the project's own slates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..checks import SlateError
from ..pieces import ORIGIN_LISTS, Piece, Response, rating, spelled, text_key
from ..records import Record
from ..schema import parse_row
from .base import Format, Source, per_record

#: The names that ``--map`` accepts, and their default columns.
COLUMNS = {
    "prompt": "prompt",
    "completion": "completion",
    "score": "score",
    "key": "key",
    "responder": "responder",
    "user": "user",
    "timestamp": "timestamp",
    "group": "group",
    "annotator": "annotator",
    "logging_logprob": "logging_logprob",
    "completion_tokens": "completion_tokens",
    "token_logprobs": "token_logprobs",
}


def table(source: Source, feedback: str) -> Iterator[Piece]:
    """One response per row. ``prompt``, ``completion`` and ``score`` are required; rows with the same ``key`` (or,
    without one, the same prompt) make a slate. A recorded log-probability is a total in ``logging_logprob`` (nats) or a
    list of its tokens' in ``token_logprobs``, which are summed. With ``annotator`` a row is that person's rating, and
    the ratings of a response are averaged.
    """
    columns = {**COLUMNS, **source.mapping}

    def of_record(record: Record, feedback: str) -> list[Piece]:
        for name in ("prompt", "completion", "score"):
            if columns[name] not in record.values:
                raise _no_column(record, name, columns[name])
        prompt = record.place.prompt(columns["prompt"], record.content(columns["prompt"]))
        completion = record.content(columns["completion"])
        score, group = record.feedback(columns["score"]), record.optional_label(columns["group"])
        annotator = record.optional_name(columns["annotator"])
        logprob, tokens = _recorded(record, columns)
        response = Response(
            completion,
            score,
            responder=record.optional_name(columns["responder"]),
            user=record.optional_name(columns["user"]),
            timestamp=record.optional_time(columns["timestamp"]),
            group_scores=None if group is None else {group: score},
            logprob=logprob,
            tokens=tokens,
            ratings=None if annotator is None else [rating(annotator, score, group)],
        )
        key = record.optional_name(columns["key"])
        recorded = None if logprob is None else {"how": "recorded", "model": None}
        return [Piece(key or text_key(spelled(prompt)), prompt, [response], logging_policy=recorded)]

    return per_record(of_record)(source, feedback)


def _recorded(record: Record, columns: dict[str, str]) -> tuple[float | None, int | None]:
    """The response's recorded total and number of tokens, if the log has them."""
    logprob = record.optional_number(columns["logging_logprob"])
    tokens = record.optional_integer(columns["completion_tokens"])
    if columns["token_logprobs"] in record:
        values = record.array(columns["token_logprobs"])
        numbers = [record.as_number(f"{columns['token_logprobs']}[{i}]", value) for i, value in enumerate(values)]
        if not numbers or max(numbers) > 0:
            raise record.error(columns["token_logprobs"], "log-probabilities <= 0, one per token", values)
        logprob, tokens = sum(numbers), len(numbers)
    if logprob is not None and logprob > 0:
        raise record.error(columns["logging_logprob"], "a log-probability <= 0 (nats)", logprob)
    return logprob, tokens


def _no_column(record: Record, name: str, column: str) -> SlateError:
    there = ", ".join(map(str, record.values)) or "none"
    expected = f"a column of this name (columns here: {there:.300}; --map {name}=COLUMN names another)"
    return SlateError(record.source, record.row, column, expected, "none")


def slates(record: Record, feedback: str) -> list[Piece]:
    """The project's own rows, to be filtered, sampled or split again."""
    slate = parse_row(record.source, record.row, record.values)
    k = len(slate.completions)

    def each(values: list[Any] | None) -> list[Any]:
        return [None] * k if values is None else values

    responses = [
        Response(completion, score, responder, None, None, groups, logprob, tokens, rank, finished, ids)
        for completion, score, responder, groups, logprob, tokens, rank, finished, ids in zip(
            slate.completions,
            slate.scores,
            each(slate.responders),
            each(slate.group_scores),
            each(slate.logging_logprobs),
            each(slate.completion_tokens),
            each(slate.ranks),
            each(slate.finished),
            each(slate.completion_ids),
            strict=True,
        )
    ]
    responses = [replace(response, ratings=of) for response, of in zip(responses, each(slate.ratings), strict=True)]
    key = slate.slate_id or text_key(spelled(slate.prompt))
    origin = dict(slate.origin or {})
    for name, field in ORIGIN_LISTS.items():  # of each response, and so to be filtered and sampled with them
        if (values := origin.pop(name, None)) is not None:
            values = record.place.each(f"origin.{name}", values, k, lambda _, value: value)
            responses = [replace(response, **{field: value}) for response, value in zip(responses, values, strict=True)]
    return [Piece(key, slate.prompt, responses, logging_policy=slate.logging_policy, origin=origin or None)]


TABLE = Format(
    "table",
    "One response per row, any columns: --map prompt=question,completion=answer,score=stars",
    ("score",),
    table,
    scattered=True,
    marks=("prompt completion score",),
    any_columns=True,
    maps=tuple(COLUMNS),
)
SLATES = Format(
    "slates",
    "This project's own format, to filter, sample or split again",
    ("score",),
    per_record(slates),
    scattered=False,
    marks=("prompt completions scores",),
    keeps_ratings=True,
)
