"""Splits of a log by groups: decided by a hash of the group's name, so that no run, order or machine changes them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence

from .schema import Slate


def slate_group(slate: Slate) -> str:
    """The group of a slate where nothing else is said: its ``slate_id`` up to the first ``#``, or else its prompt."""
    if slate.slate_id is not None:
        return slate.slate_id.partition("#")[0]
    return slate.prompt if isinstance(slate.prompt, str) else json.dumps(slate.prompt, sort_keys=True)


def group_split(
    slates: Iterable[Slate], key: Callable[[Slate], str], holdout_fraction: float, seed: int
) -> tuple[list[Slate], list[Slate]]:
    """Split slates into train and held-out so that no group is on both sides.

    Groups are ordered by ``sha256("{seed}:{group}")`` and the first ``round(holdout_fraction * groups)`` of them are
    held out, but at least one and never all. So the split depends on the seed and the set of group names alone: not on
    the order of the rows, on any random state, or on the platform. Slates keep their order.

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
