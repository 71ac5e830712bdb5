"""One record of a file, with checks whose errors name file, row and field; readers of formats use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .checks import Place, SlateError, as_integer, as_number
from .markup import html_to_text

_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file, with checks whose errors name file, row and field.

    None counts as absent; so does a blank cell of a CSV file, except where text is expected.
    """

    source: str
    row: int  # from 1; the line of a line-based file
    values: Mapping[str, Any]
    inside: str = ""  # of which field this record is a part, e.g. "answers[2]."
    blank_is_absent: bool = False

    def error(self, field: str, expected: str, got: Any) -> SlateError:
        return self.place.error(self.inside + field, expected, got)

    def missing(self, field: str) -> SlateError:
        return self.place.missing(self.inside + field)

    @property
    def place(self) -> Place:
        return Place(self.source, self.row)

    def __contains__(self, field: str) -> bool:
        return self.get(field) is not None

    def get(self, field: str) -> Any:
        """The unchecked value; None if absent."""
        value = self.values.get(field)
        return None if self.blank_is_absent and value == "" else value

    def required(self, field: str) -> Any:
        value = self.get(field)
        if value is None:
            raise self.missing(field)
        return value

    def text(self, field: str) -> str:
        """Text, which may be empty."""
        value = self.values.get(field)
        if value is None:
            raise self.missing(field)
        return self.place.any_text(self.inside + field, value)

    def optional_text(self, field: str) -> str | None:
        return self.text(field) if field in self else None

    def html(self, field: str) -> str:
        """HTML converted to text."""
        markup = self.text(field)
        try:
            return html_to_text(markup)
        except ValueError as error:
            raise self.error(field, f"HTML without {error}", markup) from None

    def content(self, field: str) -> str | list[Any]:
        """Text, which may be empty, or a list of turns."""
        value = self.values.get(field)
        if value is None:
            raise self.missing(field)
        if not isinstance(value, (str, list)):
            raise self.error(field, "text or turns", value)
        return value

    def name(self, field: str) -> str:
        """An identifier: text that is not empty, or an integer."""
        value = self.required(field)
        if isinstance(value, str) and value:
            return self.place.unicode(self.inside + field, value)
        if isinstance(value, str) or (number := as_integer(value)) is None:
            raise self.error(field, "non-empty text or an integer", value)
        return str(number)

    def optional_name(self, field: str) -> str | None:
        return self.name(field) if field in self else None

    def optional_label(self, field: str) -> str | None:
        """A name; true and false count as the names of two groups."""
        value = self.get(field)
        return str(value) if isinstance(value, bool) else self.optional_name(field)

    def number(self, field: str) -> float:
        """A finite number, or text that spells one."""
        return self.as_number(field, self.required(field))

    def optional_number(self, field: str) -> float | None:
        return self.number(field) if field in self else None

    def as_number(self, field: str, value: Any) -> float:
        number = as_number(value)
        if number is None:
            raise self.error(field, "a finite number", value)
        return number

    def integer(self, field: str) -> int:
        """An integer of 64 bits, as files of columns have them, or text that spells one."""
        value = self.required(field)
        number = as_integer(value)
        if number is None or not -(2**63) <= number < 2**63:
            raise self.error(field, "an integer" if number is None else "an integer of 64 bits", value)
        return number

    def optional_integer(self, field: str) -> int | None:
        return self.integer(field) if field in self else None

    def truth(self, field: str) -> bool:
        """True or false, 1 or 0, or text that spells one."""
        value = self.required(field)
        spelled = str(value).strip().lower() if isinstance(value, (bool, int, float, str)) else ""
        if spelled not in _TRUE + _FALSE:
            raise self.error(field, "true or false", value)
        return spelled in _TRUE

    def feedback(self, field: str) -> float:
        """A number, or true or false for a thumb up or down."""
        return self.as_feedback(field, self.required(field))

    def as_feedback(self, field: str, value: Any) -> float:
        if isinstance(value, bool):
            return float(value)
        if isinstance(value, str) and (spelled := value.strip().lower()) in ("true", "false"):
            return float(spelled == "true")
        return self.as_number(field, value)

    def array(self, field: str) -> list[Any]:
        value = self.required(field)
        if not isinstance(value, list):
            raise self.error(field, "a list", value)
        return value

    def records(self, field: str) -> list[Record]:
        """The objects in a list, as records whose errors name this row."""
        entries = []
        for index, value in enumerate(self.array(field)):
            if not isinstance(value, Mapping):
                raise self.error(f"{field}[{index}]", "an object", value)
            entries.append(Record(self.source, self.row, value, f"{self.inside}{field}[{index}]."))
        return entries

    def time(self, field: str) -> float:
        """Seconds since 1970, from a number or an ISO 8601 time (UTC unless it has a zone)."""
        value = self.required(field)
        number = as_number(value)
        if number is not None:
            return number
        try:
            time = datetime.fromisoformat(value if isinstance(value, str) else "")
            return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise self.error(field, "a time such as 2012-05-17T08:30:00, or seconds since 1970", value) from None

    def optional_time(self, field: str) -> float | None:
        return self.time(field) if field in self else None
