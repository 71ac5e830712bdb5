"""Checks of every row from any source, and the error that names file, row and field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NotRequired, TypedDict

Turn = dict[str, str]  # {"role": ..., "content": ...}


class Rating(TypedDict):
    """What one annotator said of one response."""

    annotator: str  # an id that is the same in all slates
    score: float  # larger is better
    group: NotRequired[str]  # of the annotator, such as a country


#: Numbers in text: ASCII digits, no ``1_000``, no ``1,000``, no ``inf``.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}(?:\.0*)?")  # pandas writes a column of integers with gaps as 3.0


class SlateError(ValueError):
    """An invalid row: file, row and field, what was expected, and what came.

    ``row`` counts from 1 (the line number in a JSON-lines file); it is None if the log as a whole is invalid.
    """

    def __init__(self, source: str, row: int | None, field: str, expected: str, got: str) -> None:
        self.source, self.row, self.field, self.expected, self.got = source, row, field, expected, got
        where = source if row is None else f"{source}, row {row}"
        super().__init__(f"{where}: {field}: expected {expected}, got {got}")

    def __reduce__(self) -> tuple[type[SlateError], tuple[str, int | None, str, str, str]]:
        return type(self), (self.source, self.row, self.field, self.expected, self.got)


def as_number(value: Any) -> float | None:
    """A finite number, or text that spells one; None for anything else, including booleans."""
    try:
        spelled = isinstance(value, str) and _NUMBER.fullmatch(value.strip())
        if not spelled and (isinstance(value, bool) or not isinstance(value, Real)):
            return None
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_integer(value: Any) -> int | None:
    """An integer, or text that spells one (3.0 counts, 2.9 does not); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return None


#: How log-probabilities of the logging policy may have been obtained, best first.
HOW = ("recorded", "behaviour_cloned", "proxy", "unknown")


@dataclass(frozen=True, slots=True)
class Place:
    """The source and number of a row, and checks whose errors name them. Every check returns the value."""

    source: str
    row: int  # from 1; the line of a line-based file

    def error(self, field: str, expected: str, got: Any) -> SlateError:
        text = repr(got)
        return SlateError(self.source, self.row, field, expected, text if len(text) <= 80 else text[:77] + "...")

    def missing(self, field: str) -> SlateError:
        return SlateError(self.source, self.row, field, "a value (it is required)", "nothing")

    def unicode(self, field: str, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can contain but no tokenizer can read
            raise self.error(field, "text that UTF-8 can encode", value) from None
        return value

    def any_text(self, field: str, value: Any) -> str:
        """Text, which may be empty."""
        if not isinstance(value, str):
            raise self.error(field, "text", value)
        return self.unicode(field, value)

    def text(self, field: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self.error(field, "non-empty text", value)
        return self.unicode(field, value)

    def written_text(self, field: str, value: Any) -> str:
        if not self.text(field, value).strip():
            raise self.error(field, "a response that is not blank", value)
        return str(value)

    def turn(self, field: str, value: Any) -> Turn:
        """A turn; keys with null values, as typed columns add them, count as absent."""
        present = {key for key, entry in value.items() if entry is not None} if isinstance(value, Mapping) else set()
        if present != {"role", "content"}:
            raise self.error(field, "a turn {'role': ..., 'content': ...}", value)
        content = self.any_text(f"{field}.content", value["content"])  # some templates accept an empty system turn
        return {"role": self.text(f"{field}.role", value["role"]), "content": content}

    def prompt(self, field: str, value: Any) -> str | list[Turn]:
        """Text, which may be empty, or at least one turn."""
        if isinstance(value, (list, tuple)):
            if not value:
                raise self.error(field, "at least one turn", value)
            return [self.turn(f"{field}[{i}]", turn) for i, turn in enumerate(value)]
        if not isinstance(value, str):
            raise self.error(field, "text or turns", value)
        return self.unicode(field, value)

    def completion(self, field: str, value: Any) -> str | list[Turn]:
        """Text or a list of one assistant turn; either may be blank."""
        if isinstance(value, (list, tuple)):
            return self.assistant_turn(field, value)
        if not isinstance(value, str):
            raise self.error(field, "text or one assistant turn", value)
        return self.unicode(field, value)

    def assistant_turn(self, field: str, value: Any) -> list[Turn]:
        """A list of exactly one turn: further turns would contain tokens that the model did not choose."""
        if not isinstance(value, (list, tuple)) or len(value) != 1:
            raise self.error(field, "a list with one assistant turn", value)
        turn = self.turn(f"{field}[0]", value[0])
        if turn["role"] != "assistant":
            raise self.error(f"{field}[0].role", "'assistant'", turn["role"])
        return [turn]

    def finite(self, field: str, value: Any) -> float:
        number = None if isinstance(value, str) else as_number(value)
        if number is None:
            raise self.error(field, "a finite number", value)
        return number

    def logprob(self, field: str, value: Any) -> float:
        if (number := self.finite(field, value)) > 0:
            raise self.error(field, "a log-probability <= 0 (nats, the total over the response)", value)
        return number

    def mean_logprob(self, field: str, value: Any) -> float:
        if (number := self.finite(field, value)) > 0:
            raise self.error(field, "a log-probability <= 0 (nats per token, the mean over the response)", value)
        return number

    def boolean(self, field: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.error(field, "true or false", value)
        return value

    def positive_integer(self, field: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or not 1 <= int(value) < 2**63:
            raise self.error(field, "an integer >= 1", value)
        return int(value)

    def token_ids(self, field: str, value: Any) -> list[int]:
        ids = [as_integer(each) for each in value] if isinstance(value, (list, tuple)) and value else [None]
        if any(each is None or not 0 <= each < 2**63 for each in ids):
            raise self.error(field, "a list of token ids, integers >= 0 of 64 bits", value)
        return [each for each in ids if each is not None]

    def groups(self, field: str, value: Any) -> dict[str, float]:
        """Feedback by group; groups with null values, as typed columns add them, count as absent."""
        if not isinstance(value, Mapping):
            raise self.error(field, "an object with a number for each group", value)
        numbers = {name: number for name, number in value.items() if number is not None}
        return {self.text(f"{field} (group)", name): self.finite(f"{field}.{name}", numbers[name]) for name in numbers}

    def ratings(self, field: str, value: Any) -> list[Rating]:
        """One rating per annotator; a group that is null, as typed columns have it, counts as absent."""
        if not isinstance(value, (list, tuple)):
            raise self.error(field, "a list of ratings", value)
        ratings = [self.rating(f"{field}[{i}]", each) for i, each in enumerate(value)]
        seen: set[str] = set()
        for i, rating in enumerate(ratings):
            if rating["annotator"] in seen:
                raise self.error(f"{field}[{i}].annotator", "each annotator once for a response", rating["annotator"])
            seen.add(rating["annotator"])
        return ratings

    def rating(self, field: str, value: Any) -> Rating:
        present = {key for key, entry in value.items() if entry is not None} if isinstance(value, Mapping) else set()
        if not {"annotator", "score"} <= present <= {"annotator", "score", "group"}:
            raise self.error(field, "a rating {'annotator': ..., 'score': ..., maybe 'group': ...}", value)
        rating = Rating(
            annotator=self.text(f"{field}.annotator", value["annotator"]),
            score=self.finite(f"{field}.score", value["score"]),
        )
        if "group" in present:
            rating["group"] = self.text(f"{field}.group", value["group"])
        return rating

    def provenance(self, field: str, value: Any) -> dict[str, Any]:
        if isinstance(value, str):  # as Parquet stores it
            value = self.json(field, value)
        if not isinstance(value, Mapping):
            what = {"logging_policy": "the logging policy", "origin": "where the slate came from"}[field]
            raise self.error(field, f"an object describing {what}", value)
        try:
            self.unicode(field, json.dumps(value, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, SlateError):
                raise
            raise self.error(field, f"an object that JSON can hold ({error})", value) from None
        if field == "logging_policy" and value.get("how", "unknown") not in HOW:
            raise self.error(f"{field}.how", f"one of {', '.join(HOW)}", value["how"])
        return dict(value)

    def json(self, field: str, text: str | bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.error(field, f"JSON ({error})", text) from None

    def each(self, field: str, value: Any, k: int, check: Callable[[str, Any], Any]) -> list[Any]:
        """``k`` values, one per response."""
        if not isinstance(value, (list, tuple)):
            raise self.error(field, f"a list of {k}, one per completion", value)
        if len(value) != k:
            raise SlateError(self.source, self.row, field, f"{k} entries, one per completion", f"{len(value)} entries")
        return [check(f"{field}[{i}]", entry) for i, entry in enumerate(value)]
