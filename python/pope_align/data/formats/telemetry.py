"""OpenTelemetry: spans of requests to models (``gen_ai.*``), and evaluations of their responses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..checks import Turn, as_integer
from ..pieces import Piece
from ..records import Record
from ..requests_log import Answer, Asked, Part, read_requests
from .base import Format, Nothing, Source

_EVALUATION = "gen_ai.evaluation.result"
_DETAILS = "gen_ai.client.inference.operation.details"

#: Operations that ask a model for text; a span of another kind has no response.
_OPERATIONS = ("chat", "generate_content", "text_completion")

#: Settings of a request, and what the sampler calls them.
_SETTINGS = {
    f"gen_ai.request.{name}": name
    for name in ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty")
}
_OTLP = ("resourceSpans", "resourceLogs", "resource_spans", "resource_logs")


def otel(source: Source, feedback: str) -> Iterator[Piece]:
    """Spans and log records in OTLP's JSON encoding, or one a line as the SDKs' console exporters write them.

    A span has messages (``gen_ai.input.messages``, ``gen_ai.output.messages``) in its attributes or in an event of
    ``gen_ai.client.inference.operation.details``. An evaluation is an event of the span, or a log record in the
    span's context, or one that names ``gen_ai.response.id``. ``mapping["score"]`` names the evaluation that is the
    score; without it, all must have the same name.
    """
    names: set[str] = set()

    def of_record(record: Record) -> Iterable[Part | Nothing]:
        found: list[Part | Nothing] = []
        for entry in _entries(record):
            found += _of_entry(entry, names, source.mapping.get("score"))
        return found

    return read_requests(source, of_record)


def _entries(record: Record) -> Iterator[Record]:
    """The spans and log records of a row, with attributes as a plain object."""
    if not any(name in record for name in _OTLP):
        yield record
        return
    for group, scopes, entries in (
        ("resourceSpans", "scopeSpans", "spans"),
        ("resourceLogs", "scopeLogs", "logRecords"),
    ):
        for resource in record.records(group) if group in record else []:
            for scope in resource.records(scopes) if scopes in resource else []:
                for entry in scope.records(entries) if entries in scope else []:
                    yield _plain(entry)


def _plain(entry: Record) -> Record:
    """A span or log record with its attributes, and those of its events, as objects."""
    values = dict(entry.values)
    values["attributes"] = _attributes(entry)
    if "events" in entry:
        values["events"] = [{**event.values, "attributes": _attributes(event)} for event in entry.records("events")]
    return Record(entry.source, entry.row, values, entry.inside)


def _attributes(entry: Record) -> dict[str, Any]:
    if "attributes" not in entry:
        return {}
    found = {}
    for attribute in entry.records("attributes"):
        value = attribute.get("value")
        found[attribute.name("key")] = _value(attribute, {} if value is None else value)
    return found


def _value(at: Record, value: Any) -> Any:
    """An ``AnyValue`` of OTLP as a JSON value."""
    if not isinstance(value, Mapping) or len(value) > 1:
        raise at.error("value", "an object with one of stringValue, intValue, arrayValue, ...", value)
    for kind, given in value.items():
        if kind in ("stringValue", "boolValue", "doubleValue", "bytesValue"):
            return given
        if kind == "intValue":
            number = as_integer(given)
            return given if number is None else number
        values = (given.get("values") or []) if isinstance(given, Mapping) else None
        if kind == "arrayValue" and isinstance(values, list):
            return [_value(at, each) for each in values]
        if kind == "kvlistValue" and isinstance(values, list) and all(isinstance(each, Mapping) for each in values):
            return {str(each.get("key")): _value(at, each.get("value") or {}) for each in values}
        raise at.error("value", "an object with one of stringValue, intValue, arrayValue, ...", value)
    return None


def _of_entry(entry: Record, names: set[str], wanted: str | None) -> list[Part | Nothing]:
    attributes = _object(entry, "attributes")
    if _name(entry) in (_EVALUATION, _DETAILS):  # a log record
        return [_of_event(entry, attributes, names, wanted)]
    events = entry.records("events") if "events" in entry else []
    found: list[Part | Nothing] = []
    details = attributes
    for event in events:
        if _name(event) == _EVALUATION:
            found.append(_evaluation(event, _object(event, "attributes"), _key(entry, attributes), names, wanted))
        elif _name(event) == _DETAILS:
            details = Record(entry.source, entry.row, {**attributes.values, **_object(event, "attributes").values})
    return [*found, _request(entry, details)]


def _of_event(entry: Record, attributes: Record, names: set[str], wanted: str | None) -> Part | Nothing:
    if _name(entry) == _DETAILS:
        return _request(entry, attributes)
    return _evaluation(entry, attributes, _key(entry, attributes), names, wanted)


def _request(entry: Record, attributes: Record) -> Part | Nothing:
    """The request and the response of a span."""
    if attributes.get("gen_ai.operation.name") not in _OPERATIONS:
        return Nothing("span or log record of something else than a request for text")
    if "error.type" in attributes:
        return Nothing("request that failed")
    if "gen_ai.input.messages" not in attributes or "gen_ai.output.messages" not in attributes:
        return Nothing("request whose messages were not captured")
    asked, answers = _turns(attributes, "gen_ai.input.messages"), _turns(attributes, "gen_ai.output.messages")
    system = _system(attributes)
    if asked is None or answers is None or system is None:
        return Nothing("request with parts that are not text (tool calls, reasoning, media)")
    key = _key(entry, attributes)
    if key is None:
        raise entry.error("span_id", "a span, or gen_ai.response.id in the attributes", None)
    model = attributes.optional_name("gen_ai.response.model") or attributes.optional_name("gen_ai.request.model")
    settings = {name: attributes.number(theirs) for theirs, name in _SETTINGS.items() if theirs in attributes}
    user = attributes.optional_name("user.id") or attributes.optional_name("enduser.id")
    said = [
        Answer([turn], None if reason is None else reason not in ("length", "content_filter", "error"), model)
        for turn, reason in answers
    ]
    prompt = [*system, *(turn for turn, _ in asked)]
    if not prompt or not said:
        return Nothing("request whose messages were not captured")
    other = attributes.optional_name("gen_ai.response.id")
    alias = None if other is None else f"response {other}"
    return Part(key, alias, asked=Asked(prompt, settings, model, user), answers=said)


def _evaluation(
    entry: Record, attributes: Record, key: str | None, names: set[str], wanted: str | None
) -> Part | Nothing:
    name = attributes.name("gen_ai.evaluation.name")
    if "gen_ai.evaluation.score.value" not in attributes:
        return Nothing("evaluation without a number")
    value = attributes.number("gen_ai.evaluation.score.value")
    if key is None:
        return Nothing("evaluation of no span and no response")
    names.add(name)
    if wanted is None and len(names) > 1:
        raise ValueError(
            f"mapping: expected score, for the log has several evaluations: {', '.join(sorted(names))}; choose one "
            f"with --map score={sorted(names)[0]}"
        )
    if wanted not in (None, name):
        return Nothing(f"evaluation by another name than {wanted}")
    return Part(key, scores=[(None, value)])


def _turns(attributes: Record, field: str) -> list[tuple[Turn, str | None]] | None:
    """The turns of messages, with their finish reasons; None if any has a part that is not text."""
    messages = _list(attributes, field)
    found = []
    for message in messages:
        text = _text(message.records("parts")) if "parts" in message else None
        if text is None:
            return None
        found.append(({"role": message.name("role"), "content": text}, message.optional_name("finish_reason")))
    return found


def _system(attributes: Record) -> list[Turn] | None:
    """The system turn, if there are instructions; None if they are not text."""
    if "gen_ai.system_instructions" not in attributes:
        return []
    text = _text(_list(attributes, "gen_ai.system_instructions"))
    return None if text is None else [{"role": "system", "content": text}]


def _text(parts: list[Record]) -> str | None:
    if any(part.get("type") != "text" for part in parts):
        return None
    return "\n\n".join(part.text("content") for part in parts)


def _list(attributes: Record, field: str) -> list[Record]:
    """The objects of a list that is structured, or JSON text, which spans without structured attributes have."""
    value = attributes.get(field)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise attributes.error(field, f"JSON ({error})", value) from None
    return Record(attributes.source, attributes.row, {field: value}, attributes.inside).records(field)


def _key(entry: Record, attributes: Record) -> str | None:
    """The name of the span that an entry is, or stands in; or of the response that it is on."""
    context = _object(entry, "context") if "context" in entry else entry
    trace = context.optional_name("traceId") or context.optional_name("trace_id")
    span = context.optional_name("spanId") or context.optional_name("span_id")
    if trace and span and (set(span) - set("0x")):
        return f"span {trace.removeprefix('0x')} {span.removeprefix('0x')}"
    response = attributes.optional_name("gen_ai.response.id")
    return None if response is None else f"response {response}"


def _name(entry: Record) -> str | None:
    """The name of an event or log record; spans have other names."""
    for field in ("eventName", "event_name", "name"):
        if isinstance(entry.get(field), str):
            return str(entry.get(field))
    return None


def _object(entry: Record, field: str) -> Record:
    value = entry.get(field)
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise entry.error(field, "an object", value)
    return Record(entry.source, entry.row, value, f"{entry.inside}{field}.")


OTEL = Format(
    "otel",
    "OpenTelemetry GenAI spans and evaluations: OTLP JSON, or one span a line",
    ("score",),
    otel,
    scattered=True,
    repeats="mean",
    marks=("resourceSpans", "resourceLogs", "attributes context name", "attributes event_name", "attributes trace_id"),
    maps=("score",),
)
