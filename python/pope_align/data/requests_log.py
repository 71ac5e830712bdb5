"""Logs of requests to models: a request, its answers and the feedback on them may stand in different rows and files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .checks import Place, SlateError, Turn
from .gather import gather
from .pieces import Piece, Response, spelled, text_key
from .records import Record
from .split import column_text
from .token_logprobs import ENGINES, changed, recorded, sampling

if TYPE_CHECKING:
    from .formats.base import Nothing, Source


@dataclass(frozen=True, slots=True)
class Asked:
    """A request."""

    prompt: str | list[Turn]
    settings: dict[str, Any] = field(default_factory=dict)  # of the sampler
    model: str | None = None
    user: str | None = None
    engine: str | None = None  # a name in ENGINES; None: its log has no log-probabilities
    tokenizer: str | None = None  # fingerprint of the tokenizer of the sampled tokens, where it is known


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a request."""

    completion: str | list[Turn]
    finished: bool | None = None  # False: cut at a limit
    model: str | None = None  # that answered, where the response says so
    timestamp: float | None = None
    tokens: list[Any] | None = None  # sampled: ids, or texts where the log has no ids
    logprobs: list[float] | None = None  # of each of these tokens
    ends: bool = False  # whether the last token is the end of the turn, which is no part of the text
    unusable: str | None = None  # why there are no log-probabilities of exactly this text


@dataclass(frozen=True, slots=True)
class Part:
    """What one row says of one request."""

    key: str  # names the request
    alias: str | None = None  # another name of it, by which feedback may call it
    link: str | None = None  # (only while joining) the key of the request that this key is an alias of
    asked: Asked | None = None
    answers: list[Answer] | None = None
    scores: list[tuple[int | None, float]] = field(default_factory=list)  # number of the answer (None: the only one)
    group: str | None = None
    place: Place | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        value = json.loads(text)
        place, asked, answers = value["place"], value["asked"], value["answers"]
        return cls(
            **{name: value[name] for name in ("key", "alias", "link", "group")},
            asked=None if asked is None else Asked(**asked),
            answers=None if answers is None else [Answer(**answer) for answer in answers],
            scores=[(index, score) for index, score in value["scores"]],
            place=None if place is None else Place(**place),
        )


#: The parts of a record, each perhaps a reason why there is none.
OfRecord = Callable[[Record], "Iterable[Part | Nothing] | Nothing"]


def read_requests(source: Source, of_record: OfRecord) -> Iterator[Piece]:
    """Every answer that has feedback, as a piece of the slate of its prompt; what has none is counted.

    A slate has one logging policy, so answers that were drawn with other settings (or by another model, where the log
    has log-probabilities) make a slate of their own. Requests are joined by `gather`, in constant memory.
    """
    for group in gather(_by_key(_parts(source, of_record)), Part):
        yield from _joined(group, source)


def _parts(source: Source, of_record: OfRecord) -> Iterator[Part]:
    for record in source.records():
        source.records_read += 1
        try:
            source.check(record)
            found = of_record(record)
            parts = [found] if not isinstance(found, Iterable) else list(found)
            parts = [_checked(part, record, source.group_column) if isinstance(part, Part) else part for part in parts]
        except SlateError as error:
            source.bad(error)
            continue
        for part in parts:
            if isinstance(part, Part):
                yield part
            else:
                source.nothing[part.reason] += 1


def _checked(part: Part, record: Record, column: str | None) -> Part:
    """The part with its place; its values are checked now, so that an error names the row that they stand in."""
    responses = [Response(answer.completion, 0.0, timestamp=answer.timestamp) for answer in part.answers or []]
    prompt = None if part.asked is None else part.asked.prompt
    for name in (part.key, part.alias):
        if name is not None:
            record.place.unicode("key", name)
    Piece(part.key, prompt, responses, user=None if part.asked is None else part.asked.user).checked(record.place)
    if part.asked is not None:
        record.place.provenance("logging_policy", {"model": part.asked.model, **sampling(part.asked.settings)})
    return replace(part, place=record.place, group=None if column is None else column_text(record.values, column))


def _by_key(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts, each under the key of its request, also where it names the request by an alias."""

    def with_links() -> Iterator[Part]:
        for part in parts:
            yield part
            if part.alias is not None and part.alias != part.key:
                yield Part(part.alias, link=part.key)

    for group in gather(with_links(), Part):
        link = next((part.link for part in group if part.link is not None), None)
        yield from (replace(part, key=link or part.key) for part in group if part.link is None)


def _joined(parts: list[Part], source: Source) -> Iterator[Piece]:
    """One piece for each answer of a request that has feedback."""
    asked = [part for part in parts if part.asked is not None]
    answered = [part for part in parts if part.answers is not None]
    ratings = [each for part in parts for each in part.scores]
    if not asked or not answered:
        _count(source, "feedback on a request or response that is not in the log", len(ratings))
        _count(source, "request without a response", len(asked))
        _count(source, "response without its request", len(answered))
        return
    _count(source, "request that was logged before", max(len(asked), len(answered)) - 1)
    request, answers = asked[0].asked, answered[0].answers
    assert request is not None
    assert answers is not None
    several = len(answers) > 1
    group = next((part.group for part in parts if part.group is not None), None)
    for index, answer in enumerate(answers):
        given = [score for at, score in ratings if at == index or (at is None and not several)]
        if not given:
            _count(source, "response without feedback", 1)
            continue
        yield _piece(request, answer, sum(given) / len(given), group, answered[0].place, source.without_propensity)
    stray = sum(several if at is None else at >= len(answers) for at, _ in ratings)
    _count(source, "feedback that does not say on which of several responses it is", stray)


def _count(source: Source, reason: str, number: int) -> None:
    if number:
        source.nothing[reason] += number


def _piece(
    asked: Asked, answer: Answer, score: float, group: str | None, place: Place | None, without: Counter[str]
) -> Piece:
    response = Response(
        answer.completion,
        score,
        responder=answer.model or asked.model,
        user=asked.user,
        timestamp=answer.timestamp,
        finished=answer.finished,
        place=place,
    )
    engine = ENGINES[asked.engine or "openai"]
    settings, altered = sampling(asked.settings), changed(engine, asked.settings)
    policy = None
    if asked.engine is not None:
        policy = {"how": "recorded", "model": answer.model or asked.model, "engine": engine.name, "sampling": settings}
        if asked.tokenizer is not None:
            policy["tokenizer_fingerprint"] = asked.tokenizer
        response = _with_logprobs(response, answer, asked, without)
    drawn_by = [policy["engine"], policy["model"], altered] if policy else [altered] if altered else []
    drawn = hashlib.sha256(spelled(drawn_by).encode()).hexdigest()[:8] if drawn_by else ""
    key = text_key(spelled(asked.prompt)) + (f"#{drawn}" if drawn else "")
    origin = {"sampled_with": altered} if altered else None  # for a step that may score the model later
    return Piece(key, asked.prompt, [response], asked.user, policy, group, origin, place)


def _with_logprobs(response: Response, answer: Answer, asked: Asked, without: Counter[str]) -> Response:
    """The response with its propensity, or with the model's log-probability where that is no propensity."""
    assert asked.engine is not None
    if answer.logprobs is None:
        without[answer.unusable or "no token log-probabilities in the log"] += 1
        return response
    found = recorded(ENGINES[asked.engine], answer.logprobs, asked.settings)
    tokens = answer.tokens or []
    if all(isinstance(token, int) for token in tokens):
        response = replace(response, tokens=found.tokens, ids=tokens or None)
    else:
        response = replace(response, tokens=found.tokens, sampled=tokens)
    if found.is_propensity:
        return replace(response, logprob=found.total, unended=None if answer.ends else True)
    named = ", ".join(f"{name} {value}" for name, value in found.left_out.items())
    without[f"log-probabilities of {ENGINES[asked.engine].name} that leave out {named:.100}"] += 1
    return replace(response, model_logprob=found.total)
