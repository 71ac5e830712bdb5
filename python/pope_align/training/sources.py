"""The data that trainers accept: slates, rows, files, TRL's preference datasets; several evaluation sets by name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from accelerate.logging import get_logger

from ..data.preference_rows import (
    PreferenceLog,
    first_columns,
    preference_file,
    preference_format,
    preference_slates,
)
from ..data.schema import Slate, SlateLog, read_slates
from .config import SlateConfig
from .examples import place_of

logger = get_logger(__name__)  # of the main process alone

#: Types of a log of slates: slates, rows (a list of dicts or a ``datasets.Dataset``), or a file. Rows and files are
#: slates, or preferences in TRL's formats (`pope_align.data.preference_rows`).
SlateSource = Sequence[Slate] | Iterable[Mapping[str, Any]] | str | os.PathLike[str]
#: One log to evaluate on, or several by name.
EvalSource = SlateSource | Mapping[str, SlateSource]

#: A name of an evaluation set, which becomes part of metrics' names.
_NAME = re.compile(r"\w[\w.-]*")


def eval_sources(eval_dataset: EvalSource | None) -> dict[str, SlateSource]:
    """The evaluation sets by name; a single one has the name "".

    Raises:
        ValueError: no set in the mapping, or a name that cannot be part of a metric's.
    """
    if eval_dataset is None:
        return {}
    if not isinstance(eval_dataset, Mapping):
        return {"": eval_dataset}
    if not eval_dataset:
        raise ValueError("eval_dataset: expected at least one evaluation set, got an empty mapping; use None for none")
    for name in eval_dataset:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(
                f"eval_dataset: expected names of letters, digits, '_', '.' and '-' (a metric is eval_NAME_loss), got "
                f"{name!r}"
            )
    return dict(eval_dataset)


def eval_title(name: str) -> str:
    """The evaluation set in errors and reports."""
    return f"eval_dataset[{name!r}]" if name else "eval_dataset"


def slates_for(args: SlateConfig, name: str, source: SlateSource) -> Sequence[Slate]:
    """The slates of ``source``, checked for what the method needs.

    Slates without ``logging_logprobs`` get those of the model before training where ``args.logging_policy`` says so,
    later (`PolicyTrainer.score_start`).

    Raises:
        ValueError: a slate without ``logging_logprobs``, for a method that compares with the logging policy.
    """
    slates = as_slates(source, name)
    if not args.needs_propensities:
        return slates
    unscored = [number for number, slate in enumerate(slates, start=1) if slate.logging_logprobs is None]
    preferences = isinstance(slates, PreferenceLog)
    by_start = args.logging_policy == "start" or (args.logging_policy is None and preferences)
    if by_start and len(unscored) < len(slates):
        scored = next(number for number in range(1, len(slates) + 1) if number not in set(unscored))
        raise ValueError(
            f"{place_of(name, scored, slates[scored - 1])}: logging_logprobs: expected none with "
            "logging_policy='start', which computes them; leave the option out to use the log's own"
        )
    if by_start:
        logger.warning(
            "%s: the log has no log-probabilities of the policy that wrote its responses: the model before training "
            "stands in for it, as the reference of DPO; estimates from such a proxy are never unbiased",
            name,
        )
    elif unscored:
        raise ValueError(
            f"{place_of(name, unscored[0], slates[unscored[0] - 1])}: logging_logprobs: expected one per response, got "
            "none; obtain them with `pope score LOG --model MODEL --how HOW -o SCORED` or pope_align.score_slates, or "
            "take the model before training in the place of the logging policy with logging_policy='start'"
        )
    return slates


def as_slates(source: SlateSource, name: str = "slates") -> Sequence[Slate]:
    """The slates of any `SlateSource`, read and validated unless they are slates already.

    Args:
        name: of the slates, in errors.

    Raises:
        ValueError: rows that are neither slates nor preferences; what `read_slates` and `read_preferences` refuse.
        TypeError: not a log.
    """
    if isinstance(source, SlateLog):
        return source
    if isinstance(source, list) and all(isinstance(row, Slate) for row in source):
        if not source:
            raise ValueError(f"{name}: expected at least one slate, got none")
        return source
    if isinstance(source, (str, os.PathLike)):
        preferences = preference_file(source) if os.path.isfile(source) else None
        return read_slates(source) if preferences is None else preferences
    if isinstance(source, Mapping):
        names = ", ".join(map(str, source))
        raise TypeError(f"{name}: expected a file or rows, got a {type(source).__name__} of {names}; pass one of them")
    if not isinstance(source, Iterable):
        raise TypeError(f"{name}: expected slates, rows or a file, got {type(source).__name__}")
    return _of_rows(cast("Iterable[Mapping[str, Any]]", source), name)


def _of_rows(source: Iterable[Mapping[str, Any]], name: str) -> Sequence[Slate]:
    columns, rows = first_columns(source)
    kind = preference_format(columns)
    if kind is not None:
        return preference_slates(kind, name, rows)
    if columns and "completions" not in columns:
        raise ValueError(
            f"{name}: expected the columns of slates (prompt, completions, scores), of preferences (chosen, rejected, "
            "and prompt unless both begin with it) or of unpaired preferences (prompt, completion, label), got "
            f"{', '.join(map(str, columns))}"
        )
    return read_slates(rows)
