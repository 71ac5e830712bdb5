"""Splits of a log by groups, from a hash of the group's name, so that they do not depend on run, order or machine."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .schema import FIELDS, Slate


def slate_group(slate: Slate) -> str:
    """The default group of a slate.

    It is ``origin["group"]``, which `pope convert --group` writes; or else the ``slate_id`` up to the first ``#``; or
    else the prompt.
    """
    group = (slate.origin or {}).get("group")
    if isinstance(group, str):
        return group
    if slate.slate_id is not None:
        return slate.slate_id.partition("#")[0]
    return slate.prompt if isinstance(slate.prompt, str) else json.dumps(slate.prompt, sort_keys=True)


def written_group(slate: Slate) -> str | None:
    """The group that `pope convert --group` wrote, as a name that no prompt has; None without one.

    Where it is None, intervals take slates of one prompt together, whatever their ``slate_id``: the question is common
    to their feedback.
    """
    group = (slate.origin or {}).get("group")
    return f"group {group}" if isinstance(group, str) else None


def grouping(by: str | None) -> Callable[[Slate], str]:
    """A function that gives a slate's group, from a specification as ``--group`` takes it; None for `slate_group`.

    ==================  ===============================================================================================
    ``column:NAME``     the value of a field; ``origin.user`` is the ``user`` in ``origin``
    ``prefix:SEP``      the ``slate_id`` up to its last ``SEP``: ``prefix:/`` joins ``post/1`` and ``post/2``
    ``regex:PATTERN``   what the regular expression finds in the ``slate_id``: its first bracket, or all of it
    ==================  ===============================================================================================

    Raises:
        ValueError: an invalid specification; the returned function raises for a slate without such a value.
    """
    if by is None:
        return slate_group
    kind, _, rest = by.partition(":")
    if kind == "column" and rest:
        return lambda slate: _found(slate, by, column_text(_columns(slate), rest))
    if kind == "prefix" and rest:
        return lambda slate: _found(slate, by, (slate.slate_id or "").rpartition(rest)[0])
    if kind == "regex" and rest:
        try:
            pattern = re.compile(rest)
        except re.error as error:
            raise ValueError(f"group: expected a regular expression after regex:, got {rest!r} ({error})") from None
        return lambda slate: _found(slate, by, _match(pattern, slate.slate_id or ""))
    raise ValueError(f"group: expected column:NAME, prefix:SEPARATOR or regex:PATTERN, got {by!r}")


def group_column(by: str | None) -> str | None:
    """The column that ``--group`` names, None where it names none."""
    return by.partition(":")[2] if by is not None and by.startswith("column:") else None


def column_text(values: Mapping[str, Any], column: str) -> str | None:
    """The value of a column as text; ``origin.user`` is the user inside the column ``origin``."""
    value: Any = values
    for name in [column] if column in values else column.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _columns(slate: Slate) -> dict[str, Any]:
    return {name: getattr(slate, name) for name in FIELDS}


def _match(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return None if found is None else found.group(1 if pattern.groups else 0)


def _found(slate: Slate, by: str, group: str | None) -> str:
    if not group:
        raise ValueError(f"group: expected a value of {by} for every slate, got none for slate_id {slate.slate_id!r}")
    return group


def group_split(
    slates: Iterable[Slate], key: Callable[[Slate], str], holdout_fraction: float, seed: int
) -> tuple[list[Slate], list[Slate]]:
    """Split slates into train and held-out so that no group is on both sides.

    Groups are ordered by ``sha256("{seed}:{group}")`` and the first ``round(holdout_fraction * groups)`` of them are
    held out, but at least one and never all. So the split depends only on the seed and the set of group names, not on
    the order of rows, a random state or the platform. Slates keep their order.

    Args:
        key: the group of a slate, e.g. its conversation: ``lambda slate: slate.slate_id.partition("#")[0]``.
        holdout_fraction: share of the *groups* held out, in (0, 1).

    Raises:
        ValueError: the fraction is outside (0, 1), or there are fewer than two groups.
    """
    if not 0 < holdout_fraction < 1:
        raise ValueError(f"holdout_fraction: expected a number in (0, 1), got {holdout_fraction!r}")
    keyed = [(key(slate), slate) for slate in slates]
    groups = _ordered({group for group, _ in keyed}, seed)
    if len(groups) < 2:
        raise ValueError(f"key: expected at least two groups, one for each side, got {groups}")
    count = min(max(round(holdout_fraction * len(groups)), 1), len(groups) - 1)
    held = set(groups[:count])
    train = [slate for group, slate in keyed if group not in held]
    heldout = [slate for group, slate in keyed if group in held]
    return train, heldout


def group_folds(slates: Sequence[Slate], key: Callable[[Slate], str], folds: int, seed: int) -> list[int]:
    """The fold, 0 to ``folds - 1``, of every slate; the slates of a group share theirs.

    Groups are ordered as in `group_split` and dealt out in turn, so folds differ by one group at most.

    Raises:
        ValueError: fewer than two folds, or fewer groups than folds.
    """
    if folds < 2:
        raise ValueError(f"folds: expected an integer >= 2, got {folds!r}")
    names = [key(slate) for slate in slates]
    groups = _ordered(set(names), seed)
    if len(groups) < folds:
        raise ValueError(f"key: expected at least {folds} groups, one a fold, got {len(groups)}")
    fold_of = {group: position % folds for position, group in enumerate(groups)}
    return [fold_of[name] for name in names]


def _ordered(groups: set[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
