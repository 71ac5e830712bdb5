"""Parses replies of an endpoint: validates chat completions and separates the reasoning of reasoning models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any


class BadReply(Exception):
    """The body is not a chat completion.

    Attributes:
        tokens: tokens of the reply including the prompt, as reported by the endpoint; 0 if not reported.
    """

    def __init__(self, problem: str, tokens: int = 0) -> None:
        super().__init__(problem)
        self.tokens = tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to one request."""

    text: str  # the model's text; empty if all its tokens went into reasoning
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    reasoning: str = ""  # reasoning in a separate field


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a request."""

    reply: Reply
    given: Mapping[str, Any]  # as the endpoint sent it, with the log-probabilities of its tokens if they were asked for


def read_choices(body: bytes, clean: Callable[[str], str]) -> tuple[list[Choice], bool]:
    """The answers in the body of a response, and whether the endpoint counted its tokens.

    If it did not, all counts are 0. The API counts the tokens of all answers together: each gets a share by the length
    of its text, and the first has those of the prompt. Any body gives answers or `BadReply`.

    Args:
        clean: applied to every text.

    Raises:
        BadReply: not JSON, JSON nested too deep, no message, a text or token count of the wrong type.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, an integer of 5,000 digits
        raise BadReply(f"expected JSON, got {_short(body)} ({type(error).__name__})") from None
    counts = _counts(content)
    tokens = sum(counts) if counts else 0
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not choices:
        raise BadReply(f"expected a chat completion with a message, got {_short(body)}", tokens)
    replies = [_reply(choice, clean, body, tokens) for choice in choices]
    if counts is not None:
        shares = _shares(counts[1], [len(reply.text) + len(reply.reasoning) for reply in replies])
        prompts = [counts[0], *[0] * (len(replies) - 1)]
        counted = zip(replies, prompts, shares, strict=True)
        replies = [replace(reply, prompt_tokens=sent, completion_tokens=said) for reply, sent, said in counted]
    return [Choice(reply, choice) for reply, choice in zip(replies, choices, strict=True)], counts is not None


def _reply(choice: Any, clean: Callable[[str], str], body: bytes, tokens: int) -> Reply:
    """One answer, its tokens not counted."""
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadReply(f"expected a chat completion with a message, got {_short(body)}", tokens)
    reasons = message.get("reasoning_content"), message.get("reasoning")
    reasoning = next((reason for reason in reasons if isinstance(reason, str) and reason), "")
    finish = choice.get("finish_reason")
    text = message.get("content")
    if text is None and (reasoning or finish == "length"):
        text = ""  # a reasoning model that was cut during its reasoning
    if not isinstance(text, str):
        raise BadReply(f"expected a message with a text, got {_short(body)}", tokens)
    return Reply(clean(text), 0, 0, clean(str(finish)), clean(reasoning))


def _shares(total: int, lengths: list[int]) -> list[int]:
    """Whole numbers that sum to ``total``, in proportion to ``lengths``."""
    of = max(sum(lengths), 1)
    ends = [total * sum(lengths[: at + 1]) // of for at in range(len(lengths) - 1)] + [total]
    return [end - start for start, end in zip([0, *ends], ends)]


def _counts(content: Any) -> tuple[int, int] | None:
    """Prompt and completion tokens; None where the endpoint sends no ``usage``."""
    usage = content.get("usage") if isinstance(content, dict) else None
    if usage is None:
        return None
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    known = [count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count >= 0]
    if len(known) < 2:
        raise BadReply(f"usage: expected two token counts, got {_short(repr(usage).encode())}", sum(known))
    return known[0], known[1]


def _short(body: bytes) -> str:
    text = body[:200].decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else text[:77] + "...")


#: Names of reasoning tags: <think>, [THINK], <seed:think> etc.
_NAME = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning|analysis|reflection)"
_OPEN = re.compile(rf"[<\[]\s*{_NAME}\s*[>\]]", re.IGNORECASE)
_CLOSE = re.compile(rf"[<\[]\s*/\s*{_NAME}\s*[>\]]", re.IGNORECASE)
#: The end of the reasoning in OpenAI's harmony format.
_FINAL = re.compile(r"<\|channel\|>\s*final\s*(?:<\|constrain\|>\s*\w+\s*)?<\|message\|>")
_HARMONY = re.compile(r"<\|channel\|>\s*(?:analysis|commentary)")


def without_thoughts(text: str) -> str:
    """The reply of a reasoning model without its reasoning.

    Everything up to the last closing tag is reasoning, with or without an opening tag, which many chat templates write
    into the prompt. After an opening tag that is never closed everything is reasoning.

    >>> without_thoughts("<think>yes or no?</think>no")
    'no'
    """
    if finals := list(_FINAL.finditer(text)):
        return text[finals[-1].end() :]
    if harmony := _HARMONY.search(text):
        return text[: harmony.start()]
    start = max((close.end() for close in _CLOSE.finditer(text)), default=0)
    opened = _OPEN.search(text, start)
    return text[start : opened.start() if opened else len(text)]
