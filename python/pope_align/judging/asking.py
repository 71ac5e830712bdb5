"""Asks a judge: stores every call, ignores reasoning, and sends a reply without a verdict back with the reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from .._journal import Journal
from .._text import utf8
from ..generation.endpoint import Endpoint
from ..generation.replies import Reply, without_thoughts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AskOptions:
    """Settings for asking a judge."""

    repairs: int = 2  # retries after a reply without a verdict
    temperature: float = 0.0
    max_tokens: int = 512  # of a reply
    json_mode: bool = False  # ask the endpoint to enforce JSON

    def __post_init__(self) -> None:
        for name, least in (("repairs", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {getattr(self, name)}")


class NoVerdict(ValueError):
    """A reply without a verdict, with the reason."""


def open_calls(path: str) -> Journal:
    """The file with all calls. One file can be used for any judges, models and options."""
    return Journal(path, {"calls": "chat completions by the SHA-256 of the request"})


def ask(
    messages: Sequence[dict[str, str]],
    endpoint: Endpoint,
    calls: Journal,
    options: AskOptions,
    *,
    read: Callable[[str], T],
    choices: str,
) -> T:
    """The judge's verdict, parsed by ``read``; asks again up to ``options.repairs`` times.

    Args:
        calls: see `open_calls`; a request in it is not sent again.
        read: parses a reply without its reasoning; raises `NoVerdict`.
        choices: the valid replies, shown to a judge that gave none.

    Raises:
        NoVerdict: for the last reply. A reply that was cut at its token limit gives none, because it may be reasoning.
        EndpointError, EndpointRefused, BudgetExceeded: as `Endpoint.chat`.
    """

    def verdict(reply: Reply) -> T:
        if reply.finish_reason == "length":
            raise NoVerdict(f"the reply was cut after {reply.completion_tokens} tokens, before its end")
        return read(without_thoughts(reply.text))

    asked = list(messages)
    for repair in range(options.repairs + 1):
        reply = _reply(asked, endpoint, calls, options, verdict)
        try:
            return verdict(reply)
        except NoVerdict as error:
            if repair == options.repairs:
                raise
            again = f"That is no verdict: {error}. Reply with one of these and nothing else:\n{choices}"
            asked += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": again}]
    raise AssertionError("unreachable: the last repair returns or raises")


def objects_with(field: str, text: str) -> list[dict[str, Any]]:
    """Every JSON object in a text that has the field, without nested ones.

    Raises:
        NoVerdict: no such object, or JSON nested too deep.
    """
    found, at, decoder = [], 0, json.JSONDecoder()
    while (at := text.find("{", at)) >= 0:
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise NoVerdict("expected a JSON object of two fields, got JSON that is nested too deep") from None
        except ValueError:  # no JSON, or an integer of more digits than Python reads
            at += 1
            continue
        if field in value:
            found.append(value)
    if not found:
        raise NoVerdict(f'expected a JSON object with "{field}", got none')
    return found


def reason_of(verdict: dict[str, Any]) -> str:
    """The reason in a verdict.

    Raises:
        NoVerdict: text that a file cannot contain.
    """
    reason = str(verdict.get("reason", ""))
    if utf8(reason) != reason:
        raise NoVerdict("expected text that UTF-8 can hold, got half of a surrogate pair in the reason")
    return reason


def _reply(
    messages: list[dict[str, str]],
    endpoint: Endpoint,
    calls: Journal,
    options: AskOptions,
    verdict: Callable[[Reply], Any],
) -> Reply:
    parameters: dict[str, Any] = {"temperature": options.temperature, "max_tokens": options.max_tokens}
    if options.json_mode:
        parameters["response_format"] = {"type": "json_object"}
    request = {"model": endpoint.model, "base_url": endpoint.address, "messages": messages, **parameters}
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    if key not in calls:
        reply = endpoint.chat(messages, **parameters)
        with suppress(NoVerdict):  # parsed before it is stored, so that an unreadable reply is not reused by every run
            verdict(reply)
        calls.keep(key, {"request": request, "reply": asdict(reply)})
    return Reply(**calls[key]["reply"])
