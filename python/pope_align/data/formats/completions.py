"""Requests and responses of chat completions and completions: OpenAI's API, and the servers of vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..checks import Turn
from ..pieces import Piece
from ..records import Record
from ..requests_log import Answer, Asked, Part, read_requests
from ..token_logprobs import NEUTRAL_SETTINGS, UNLIKELY
from .base import Format, Nothing, Source

#: Fields of a row that hold feedback; the first is for one answer, the second for each.
_FEEDBACK = ("score", "scores")


def inner(record: Record, field: str) -> Record:
    """The object in a field, as a record whose errors name this row."""
    value = record.required(field)
    if not isinstance(value, Mapping):
        raise record.error(field, "an object", value)
    return Record(record.source, record.row, value, f"{record.inside}{field}.")


def openai(source: Source, feedback: str) -> Iterator[Piece]:
    """Rows with ``request``, ``response`` and ``score``; or input and output files of the Batch API, and feedback rows.

    A feedback row has the ``custom_id`` or ``response_id`` that it is on, and ``score``, ``index`` and ``score`` of one
    of several choices, or ``scores`` of all.
    """
    return read_requests(source, lambda record: exchange(record, "openai"))


def exchange(record: Record, engine: str) -> list[Part] | Nothing:
    """What one row says: a request, a response, feedback, or all of them."""
    if "error" in record or ("response" in record and record.get("response") == {}):
        return Nothing("request that failed")
    custom = record.optional_name("custom_id")
    request = _body(record, "request") if "request" in record else _batch_request(record)
    response = _body(record, "response") if "response" in record else None
    if response is not None and "error" in response:
        return Nothing("request that failed")
    own = response.optional_name("id") if response is not None else record.optional_name("response_id")
    key = f"custom {custom}" if custom is not None else f"response {own or f'{record.source}:{record.row}'}"
    asked: Asked | None = None
    if request is not None:
        found = ask(request, engine)
        if isinstance(found, Nothing):
            return found
        asked = found
    answers = None
    if response is not None:
        read = [answer(choice, response, request) for choice in response.records("choices")]
        if reason := next((each for each in read if isinstance(each, Nothing)), None):
            return reason
        answers = [each for each in read if isinstance(each, Answer)]
    given = scores(record, None if answers is None else len(answers))
    if asked is None and answers is None and not given:
        raise record.error("row", "request, response, body, or score with custom_id or response_id", [*record.values])
    if asked is None and answers is None and custom is None and own is None:
        raise record.missing("response_id")
    alias = f"response {own}" if own is not None and custom is not None else None
    return [Part(key, alias, asked=asked, answers=answers, scores=given)]


def scores(record: Record, answers: int | None) -> list[tuple[int | None, float]]:
    """The feedback in a row: of the only answer, of one of several, or of each; null for an answer without any."""
    one, each = _FEEDBACK
    if each in record:
        values = record.array(each)
        if answers is not None and len(values) != answers:
            raise record.error(each, f"{answers} numbers or nulls, one for each response", values)
        found = [(i, record.as_feedback(f"{each}[{i}]", value)) for i, value in enumerate(values) if value is not None]
        return [*found]
    if one not in record:
        return []
    index = record.optional_integer("index")
    if index is not None and index < 0:
        raise record.error("index", "an integer >= 0", index)
    return [(index, record.feedback(one))]


def ask(request: Record, engine: str) -> Asked | Nothing:
    """A request to chat completions (``messages``) or to completions (``prompt``)."""
    prompt: str | list[Turn] | Nothing
    if "messages" in request:
        prompt = turns(request, "messages")
    elif "prompt" in request and isinstance(request.get("prompt"), str):
        prompt = request.text("prompt")
    elif "prompt" in request:
        return Nothing("prompt of token ids, or several prompts in one request")
    else:
        return Nothing("request to another endpoint than chat completions and completions")
    if isinstance(prompt, Nothing):
        return prompt
    settings = {name: request.get(name) for name in NEUTRAL_SETTINGS if request.get(name) is not None}
    for name in ("temperature", "top_p", "top_k", "min_p"):
        if name in settings:
            settings[name] = request.number(name)
    return Asked(prompt, settings, request.optional_name("model"), request.optional_name("user"), engine)


def turns(record: Record, field: str) -> list[Turn] | Nothing:
    """The turns of a conversation, if all of it is text."""
    found: list[Turn] = []
    for message in record.records(field):
        if "tool_calls" in message or message.get("role") in ("tool", "function"):
            return Nothing("conversation with tool calls")
        content = _content(message)
        if content is None:
            return Nothing("conversation with parts that are not text")
        found.append({"role": message.name("role"), "content": content})
    return found


def answer(choice: Record, response: Record, request: Record | None) -> Answer | Nothing:
    """A choice of a response, with the log-probabilities of its tokens if they are those of its text."""
    model, created = response.optional_name("model"), response.optional_number("created")
    finished = _finished(choice)
    if "message" in choice:
        message = inner(choice, "message")
        if "tool_calls" in message or "function_call" in message:
            return Nothing("response that calls a tool")
        text = _content(message)
        if text is None:
            return Nothing("response without text")
        completion: str | list[Turn] = [{"role": "assistant", "content": text}]
        hidden = any(name in message for name in ("reasoning_content", "reasoning"))
    else:
        text, hidden = choice.text("text"), False
        completion = text
    tokens, logprobs = token_logprobs(choice)
    if logprobs is None:
        return Answer(completion, finished, model, created)
    ends, unusable = covers(text, [_spelled(token) for token in tokens or []], logprobs, finished)
    if hidden and unusable is None:
        unusable = "reasoning that is no part of the response was sampled before it"
    if unusable is not None:
        return Answer(completion, finished, model, created, unusable=unusable)
    ids = choice.get("token_ids")
    sampled = ids if isinstance(ids, list) and len(ids) == len(logprobs) else [_text(token) for token in tokens or []]
    return Answer(completion, finished, model, created, sampled, logprobs, ends)


def token_logprobs(choice: Record) -> tuple[list[Any] | None, list[float] | None]:
    """The tokens of a choice and their log-probabilities, in either endpoint's form."""
    if "logprobs" not in choice:
        return None, None
    given = inner(choice, "logprobs")
    if "content" in given:
        entries = given.records("content")
        return [dict(entry.values) for entry in entries], [number(entry, "logprob") for entry in entries]
    if "token_logprobs" in given:
        values, tokens = given.array("token_logprobs"), given.array("tokens")
        if len(values) != len(tokens):
            raise given.error("token_logprobs", f"{len(tokens)} numbers, one for each token", values)
        return tokens, [as_logprob(given, f"token_logprobs[{i}]", value) for i, value in enumerate(values)]
    return None, None


def number(record: Record, field: str) -> float:
    return as_logprob(record, field, record.required(field))


def as_logprob(record: Record, field: str, value: Any) -> float:
    found = record.as_number(field, value)
    if found > 0:
        raise record.error(field, "a log-probability <= 0 (nats)", value)
    return found


def covers(
    text: str, tokens: Sequence[bytes], logprobs: Sequence[float], finished: bool | None
) -> tuple[bool, str | None]:
    """Whether the last token is the end of the turn; and why the tokens are not those of the text, if they are not."""
    if any(value <= UNLIKELY for value in logprobs):
        return False, "a token so unlikely that its log-probability was not given"
    if not tokens:
        return False, "no token log-probabilities in the log"
    written = text.encode("utf-8", "surrogatepass")
    if b"".join(tokens) == written:
        return False, None
    if finished and b"".join(tokens[:-1]) == written:
        return True, None
    return False, "token log-probabilities of other text than the response"


def is_native(values: Mapping[str, Any]) -> bool:
    """Whether the response is one of SGLang's ``/generate``, or a list of such."""
    response = values.get("response")
    first = response[0] if isinstance(response, list) and response else response
    return isinstance(first, Mapping) and "meta_info" in first


def server(values: Mapping[str, Any]) -> str:
    """The engine whose server wrote a response, by the fields that only its choices have."""
    if is_native(values):
        return "sglang"
    response = values.get("response")
    body = response.get("body", response) if isinstance(response, Mapping) else None
    choices = body.get("choices") if isinstance(body, Mapping) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, Mapping):
        return "openai"
    return "sglang" if "matched_stop" in first else "vllm" if "stop_reason" in first else "openai"


def _spelled(token: Any) -> bytes:
    """The bytes of a token; half a letter has no text of its own."""
    if isinstance(token, Mapping):
        given = token.get("bytes")
        if isinstance(given, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in given):
            return bytes(given)
    return _text(token).encode("utf-8", "surrogatepass")


def _text(token: Any) -> str:
    return str(token.get("token", "")) if isinstance(token, Mapping) else str(token)


def _finished(choice: Record) -> bool | None:
    reason = choice.optional_name("finish_reason")
    return None if reason is None else reason not in ("length", "max_tokens", "content_filter", "abort")


def _content(message: Record) -> str | None:
    """The text of a message; None if it has other parts, or no content."""
    if "content" not in message:
        return None
    if isinstance(message.get("content"), str):
        return message.text("content")
    parts = message.records("content")
    if any(part.get("type") not in ("text", "output_text", "input_text") for part in parts):
        return None
    return "".join(part.text("text") for part in parts)


def _body(record: Record, field: str) -> Record:
    """A request or response, perhaps inside an HTTP message (``body``)."""
    found = inner(record, field)
    return inner(found, "body") if "body" in found else found


def _batch_request(record: Record) -> Record | None:
    """The request in a row of the Batch API's input file."""
    return inner(record, "body") if "body" in record and "custom_id" in record else None


OPENAI = Format(
    "openai",
    "OpenAI requests and responses with score: one row each, or the Batch API's files",
    ("score",),
    openai,
    scattered=True,
    repeats="mean",
    marks=("request response", "custom_id method url body", "custom_id response"),
    looks=lambda values: server(values) == "openai",
)
