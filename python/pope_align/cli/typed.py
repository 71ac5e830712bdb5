"""Arguments with name, type and help, and strict checks of their values, without torch."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_TRUE, _FALSE = ("true", "yes", "1", "on"), ("false", "no", "0", "off")


@dataclass(frozen=True)
class Option:
    """One argument.

    Attributes:
        name: as a key in a file; the flag has hyphens instead of underscores.
        kind: type of its values; "any" is not checked here.
        optional: whether it may be absent (``none``, or ``null`` in a file).
        choices: its allowed names; empty for any value.
        default: its default, shown by ``--help``.
        required: whether it must be given.
    """

    name: str
    kind: Literal["bool", "int", "float", "str", "list", "any"]
    optional: bool = False
    choices: tuple[str, ...] = ()
    default: Any = None
    help: str = ""
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def _takes_none(self) -> bool:
        """Whether "none" is one of its values instead of meaning no value."""
        return "none" in self.choices or self.default == "none"

    def read(self, value: Any, name: str | None = None) -> Any:
        """The value of a flag's text or a file's entry.

        Args:
            name: the argument's name in errors; None for its own name.

        Raises:
            ValueError: the value is invalid for this argument.
        """
        if value is False and "no" in self.choices:  # YAML reads the word no as False
            value = "no"
        if value is None or (value == "none" and self.optional and not self._takes_none):
            if self.optional or self.kind == "any":
                return None
            raise self._expected(name, value)
        if self.choices:
            if value not in self.choices:
                raise self._expected(name, value)
            return value
        reader = _READERS.get(self.kind)
        if reader is None:
            return value
        read = reader(value)
        if read is None:
            raise self._expected(name, value)
        return read

    def _expected(self, name: str | None, value: Any) -> ValueError:
        what = f"one of {', '.join(self.choices)}" if self.choices else _WORDS.get(self.kind, "a value")
        none = " or none" if self.optional and not self._takes_none else ""
        return ValueError(f"{name or self.name}: expected {what}{none}, got {value!r}")


def options_of(described: type) -> list[Option]:
    """The options of a dataclass, from its fields' types, defaults and ``metadata["help"]``."""
    hints = get_type_hints(described)
    return [
        option_of(
            each.name,
            hints[each.name],
            default=None if each.default is MISSING else each.default,
            text=each.metadata.get("help", ""),
            required=each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(described)
    ]


def option_of(name: str, hint: Any, *, default: Any = None, text: str = "", required: bool = False) -> Option:
    """The option that a type hint describes."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in parts or None in parts
    kinds = [part for part in parts if part not in (None, type(None))]
    named = [part for part in kinds if get_origin(part) is Literal]
    if len(kinds) == 1 and named and all(isinstance(choice, str) for choice in get_args(named[0])):
        return Option(name, "str", optional, get_args(named[0]), default, text, required)
    known: dict[Any, Literal["bool", "int", "float", "str"]] = {bool: "bool", int: "int", float: "float", str: "str"}
    if len(kinds) == 1 and kinds[0] in known:
        return Option(name, known[kinds[0]], optional, (), default, text, required)
    if set(kinds) == {int, float}:
        return Option(name, "float", optional, (), default, text, required)
    if any(get_origin(part) is list or part is list for part in kinds):
        return Option(name, "list", optional, (), default, text, required)
    return Option(name, "any", optional, (), default, text, required)


def _bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    return True if text in _TRUE else False if text in _FALSE else None


def _int(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            return int(value) if "_" not in value else None
        except ValueError:
            return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    """YAML reads ``1e-5`` as text, so text is parsed as a number."""
    if isinstance(value, str):
        try:
            value = float(value) if "_" not in value else None
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or math.isnan(value):
        return None
    return value


def _str(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _list(value: Any) -> list[Any] | str | None:
    return value if isinstance(value, (str, list)) else None


_READERS: dict[str, Any] = {"bool": _bool, "int": _int, "float": _float, "str": _str, "list": _list}
_WORDS = {
    "bool": "true or false",
    "int": "an integer",
    "float": "a number",
    "str": "text",
    "list": "names",
}
