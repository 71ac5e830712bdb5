"""The options and the report of a conversion."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from .._files import write_json
from .feedback import heavy_tail_hint
from .split import grouping

#: "group" keeps groups together (see `grouping`); "item" is its old name.
SplitBy = Literal["slate", "group", "item", "user"]

SPLITS = ("train", "validation", "test")

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z_0-9]*)\}")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """Options of a conversion.

    Attributes:
        feedback: which of the format's kinds of feedback becomes the score; None for its first.
        min_k, max_k: slates with fewer or more responses are dropped.
        sample_k: keep this many responses of larger slates, drawn without replacement; the slate's ``origin`` says how
            many there were.
        fraction: share of the slates to keep, chosen by a hash of their ids.
        seed: of sampling and splits, which use hashes, so that the result does not depend on the order of rows.
        split_by: write train, validation and test files and keep together a "slate", a "group", or a "user" (who
            asked).
        group: the definition of a group, see `grouping`; groups are stored in the slates for later steps.
        splits: shares of the three files; a share of 0 gets no file.
        min_chars, max_chars: responses that are shorter or longer are dropped.
        language: two-letter code; responses in other languages are dropped (detected by py3langid).
        missing_prompt: text, with ``{key}`` for the item's or post's id, that replaces a prompt that is not in the log;
            None drops such slates.
        prompt_template: template of prompts that are text, with ``{prompt}`` for the prompt.
        age_scale_days, as_of: correct votes for the age of their response (`age_corrected`) at the time ``as_of``
            (seconds since 1970).
        keep_users: copy user identifiers: into ``responders`` if the format has no public author, and annotators with
            their ``ratings``.
        mapping: names that the format accepts (``Format.maps``), such as a slate field, to a column or a choice.
        sql: for the table format: a DuckDB query whose rows are read.
        skip_bad_rows: count bad rows instead of stopping at the first.

    Raises:
        ValueError: an option out of range.
    """

    feedback: str | None = None
    min_k: int = 2
    max_k: int | None = None
    sample_k: int | None = None
    fraction: float = 1.0
    seed: int = 0
    split_by: SplitBy | None = None
    group: str | None = None
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    min_chars: int = 1
    max_chars: int | None = None
    language: str | None = None
    missing_prompt: str | None = None
    prompt_template: str = "{prompt}"
    age_scale_days: float | None = None
    as_of: float | None = None
    keep_users: bool = False
    mapping: dict[str, str] = field(default_factory=dict)
    sql: str | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        for name in ("min_k", "max_k", "sample_k", "min_chars", "max_chars"):
            _check(name, getattr(self, name), "an integer > 0", lambda value: _is_integer(value) and value > 0)
        _check("seed", self.seed, "an integer", _is_integer)
        _check("age_scale_days", self.age_scale_days, "a number > 0", lambda value: _is_number(value) and value > 0)
        _check("as_of", self.as_of, "seconds since 1970", _is_number)
        _check("fraction", self.fraction, "a number in (0, 1]", lambda value: _is_number(value) and 0 < value <= 1)
        if self.split_by is not None and self.split_by not in get_args(SplitBy):
            raise ValueError(f"split_by: expected one of {', '.join(get_args(SplitBy))}, got {self.split_by!r}")
        shares = [share for share in self.splits if _is_number(share) and share >= 0]
        if len(self.splits) != 3 or len(shares) != 3 or not abs(sum(shares) - 1) <= 1e-9:
            raise ValueError(f"splits: expected three shares that sum to 1, got {self.splits!r}")
        if self.sample_k is not None and self.sample_k < self.min_k:
            raise ValueError(f"sample_k: expected at least min_k = {self.min_k}, got {self.sample_k}")
        if "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template: expected text with {{prompt}} in it, got {self.prompt_template!r}")
        _check_placeholders("prompt_template", self.prompt_template, "prompt")
        _check_placeholders("missing_prompt", self.missing_prompt or "", "key")
        if (self.age_scale_days is None) != (self.as_of is None):
            raise ValueError("age_scale_days: expected together with as_of, the time of the log; got only one of them")
        grouping(self.group)

    @property
    def files(self) -> tuple[str | None, ...]:
        """The splits that get a file; None stands for a single file."""
        if self.split_by is None:
            return (None,)
        return tuple(name for name, share in zip(SPLITS, self.splits, strict=True) if share > 0)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: Any, expected: str, fine: Callable[[Any], bool]) -> None:
    if value is not None and not fine(value):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")


def _check_placeholders(name: str, text: str, known: str) -> None:
    if unknown := sorted(set(_PLACEHOLDER.findall(text)) - {known}):
        raise ValueError(f"{name}: expected no placeholder but {{{known}}}, got {{{unknown[0]}}}")


@dataclass(slots=True)
class ConvertReport:
    """What was read, kept and dropped; every response is kept or counted once in ``responses_dropped``."""

    format: str
    inputs: list[str]
    feedback: str
    records_read: int = 0
    bad_row_count: int = 0
    bad_rows: list[str] = field(default_factory=list)  # the first messages
    without_response: Counter[str] = field(default_factory=Counter)  # records without a response, by reason
    responses_read: int = 0
    responses_kept: int = 0
    responses_dropped: Counter[str] = field(default_factory=Counter)
    with_propensity: int = 0  # kept responses that have a recorded propensity
    without_propensity: Counter[str] = field(default_factory=Counter)  # of a log of requests: why responses have none
    slates_kept: int = 0
    slates_dropped: Counter[str] = field(default_factory=Counter)
    prompts_missing: int = 0  # replaced by missing_prompt
    slates_sampled: int = 0  # kept slates whose responses are a sample
    constant: int = 0  # kept slates whose scores are all equal
    small_utilities: int = 0  # kept responses whose minmax utility is below .05, without constant slates
    splits: Counter[str] = field(default_factory=Counter)  # slates by file
    outputs: list[str] = field(default_factory=list)  # the files that were written
    options: dict[str, Any] = field(default_factory=dict)

    def drop(self, reason: str, responses: int) -> None:
        """Count a slate that is dropped, with its responses."""
        self.slates_dropped[reason] += 1
        self.responses_dropped[f"of a slate: {reason}"] += responses

    @property
    def hints(self) -> list[str]:
        """Suggestions from the counts."""
        return heavy_tail_hint(self.small_utilities, self.responses_kept)

    def to_dict(self) -> dict[str, Any]:
        """All counts, for JSON."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)} | {"hints": self.hints}

    def write(self, path: Path) -> None:
        write_json(path, self.to_dict())
