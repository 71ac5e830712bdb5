"""What a reader yields: pieces of slates, which `gather` puts together by their key."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass, field, fields
from html.parser import HTMLParser
from typing import Any

from .schema import Turn


@dataclass(frozen=True, slots=True)
class Response:
    """One logged response and its feedback."""

    completion: str | list[Turn]
    score: float
    responder: str | None = None  # who may be named: a model, a public post
    user: str | None = None  # a person; copied into slates only when asked
    timestamp: float | None = None  # seconds since 1970
    group_scores: dict[str, float] | None = None  # feedback by group of raters
    logprob: float | None = None  # total under the logging policy, nats
    tokens: int | None = None
    rank: int | None = None


_RESPONSE = tuple(entry.name for entry in fields(Response))


def _present(response: Response) -> dict[str, Any]:
    return {name: value for name in _RESPONSE if (value := getattr(response, name)) is not None}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a slate: a prompt, responses, or both. Pieces with the same key make one slate."""

    key: str
    prompt: str | list[Turn] | None = None
    responses: list[Response] = field(default_factory=list)
    user: str | None = None  # who asked
    logging_policy: dict[str, Any] | None = None

    def to_json(self) -> str:
        content = [
            self.key,
            self.prompt,
            [_present(response) for response in self.responses],
            {"user": self.user, "logging_policy": self.logging_policy},
        ]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Piece:
        key, prompt, responses, rest = json.loads(text)
        return cls(key, prompt, [Response(**response) for response in responses], **rest)


def assistant(text: str, like: str | list[Turn]) -> str | list[Turn]:
    """A response in the form of its prompt: text to text, one assistant turn to turns."""
    return text if isinstance(like, str) else [{"role": "assistant", "content": text}]


def unescaped(text: str) -> str:
    """Text with HTML entities as the characters they stand for, and line ends as ``\\n``."""
    return html.unescape(text).replace("\r\n", "\n").replace("\r", "\n")


def html_to_text(markup: str) -> str:
    """The text of a post written in HTML: blocks on lines of their own, ``- `` before list items, entities resolved."""
    reader = _Text()
    reader.feed(markup)
    reader.close()
    return _GAP.sub("\n\n", "".join(reader.parts).replace("\r\n", "\n")).strip()


_GAP = re.compile(r"[ \t]*\n[ \t]*\n\s*")
_BLOCKS = {"p", "div", "ul", "ol", "pre", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table"}


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("br", "hr", "tr"):
            self.parts.append("\n")
        elif tag == "li":
            self.parts.append("\n- ")

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def spelled(value: Any) -> str:
    """A stable name for anything JSON holds."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
