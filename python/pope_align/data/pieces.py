"""Pieces of slates, which readers yield and `gather` joins by their key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .checks import Place, Rating, Turn


@dataclass(frozen=True, slots=True)
class Response:
    """One logged response and its feedback."""

    completion: str | list[Turn]
    score: float
    responder: str | None = None  # the public author: a model, a post
    user: str | None = None  # a person; copied into slates only on request
    timestamp: float | None = None  # seconds since 1970
    group_scores: dict[str, float] | None = None  # feedback by group of raters
    logprob: float | None = None  # total under the logging policy, nats
    tokens: int | None = None
    rank: int | None = None
    finished: bool | None = None  # False: cut at a limit
    ids: list[int] | None = None  # the sampled tokens
    model_logprob: float | None = None  # total of the model without the sampler's settings: no propensity
    sampled: list[str] | None = None  # texts of the sampled tokens, where the log has no ids
    ratings: list[Rating] | None = None  # by annotator; copied into slates only on request
    unended: bool | None = None  # the total under the logging policy lacks the end-of-turn token
    place: Place | None = field(default=None, compare=False)  # the row it was read from


#: Lists in an origin that have one entry for each response, and the field of `Response` that has it.
ORIGIN_LISTS = {"model_logprobs": "model_logprob", "sampled_tokens": "sampled"}

_RESPONSE = tuple(entry.name for entry in fields(Response) if entry.name != "place")


def _present(response: Response) -> dict[str, Any]:
    return {name: value for name in _RESPONSE if (value := getattr(response, name)) is not None}


def rating(annotator: str, score: float, group: str | None = None) -> Rating:
    """One annotator's rating of a response."""
    found: Rating = {"annotator": annotator, "score": score}
    return found if group is None else {**found, "group": group}


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a slate: a prompt, responses, or both. Pieces with the same key make one slate."""

    key: str
    prompt: str | list[Turn] | None = None
    responses: list[Response] = field(default_factory=list)
    user: str | None = None  # who asked
    logging_policy: dict[str, Any] | None = None
    group: str | None = None  # slates that a split keeps together, from a column given for it
    origin: dict[str, Any] | None = None  # of a slate that was converted before
    place: Place | None = field(default=None, compare=False)  # the row it was read from

    def to_json(self) -> str:
        content = [
            self.key,
            self.prompt,
            [_present(response) for response in self.responses],
            {"user": self.user, "logging_policy": self.logging_policy, "group": self.group, "origin": self.origin},
            None if self.place is None else [self.place.source, self.place.row],
        ]
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Piece:
        key, prompt, responses, rest, where = json.loads(text)
        place = None if where is None else Place(*where)
        return cls(key, prompt, [Response(**response, place=place) for response in responses], **rest, place=place)

    def checked(self, place: Place) -> Piece:
        """The piece with ``place`` set and every value checked.

        Raises:
            SlateError: a value that is invalid in a slate.
        """
        k = len(self.responses)
        one_kind = {isinstance(response.completion, str) for response in self.responses}
        if len(one_kind) > 1:
            raise place.error("completions", "all text or all turns", [r.completion for r in self.responses])
        return replace(
            self,
            key=place.text("key", self.key),
            prompt=None if self.prompt is None else place.prompt("prompt", self.prompt),
            responses=[_checked(place, response, i if k > 1 else None) for i, response in enumerate(self.responses)],
            user=_optional(place.text, "user", self.user),
            logging_policy=_optional(place.provenance, "logging_policy", self.logging_policy),
            group=_optional(place.text, "group", self.group),
            place=place,
        )


def _checked(place: Place, response: Response, index: int | None) -> Response:
    def named(field: str) -> str:
        return field if index is None else f"{field}[{index}]"

    return Response(
        completion=place.completion(named("completion"), response.completion),
        score=place.finite(named("score"), response.score),
        responder=_optional(place.text, named("responder"), response.responder),
        user=_optional(place.text, named("user"), response.user),
        timestamp=_optional(place.finite, named("timestamp"), response.timestamp),
        group_scores=_optional(place.groups, named("group_scores"), response.group_scores),
        logprob=_optional(place.logprob, named("logging_logprob"), response.logprob),
        tokens=_optional(place.positive_integer, named("completion_tokens"), response.tokens),
        rank=_optional(place.positive_integer, named("rank"), response.rank),
        finished=_optional(place.boolean, named("finished"), response.finished),
        ids=_optional(place.token_ids, named("completion_ids"), response.ids),
        model_logprob=_optional(place.logprob, named("model_logprob"), response.model_logprob),
        sampled=response.sampled,
        ratings=_optional(place.ratings, named("ratings"), response.ratings),
        unended=response.unended,
        place=place,
    )


def _optional(check: Callable[[str, Any], Any], field: str, value: Any) -> Any:
    return None if value is None else check(field, value)


def spelled(value: Any) -> str:
    """A stable text form of any JSON value."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def text_key(text: str) -> str:
    """A key for records that have none: the same for the same prompt."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
