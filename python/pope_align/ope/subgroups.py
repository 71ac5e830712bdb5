"""Values of a policy by subgroup of slates, and its worst group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pope_core.objective import Objective

from .._arrays import Integers
from ..stats.clusters import codes_of
from ..stats.intervals import Confidence
from ._checks import cluster_codes
from .log import FreshScores, LoggedSlates, PolicyScores
from .pope import pope_value
from .result import Estimate


@dataclass(frozen=True)
class Subgroups:
    """One estimate per group, with intervals that hold for all groups jointly.

    Attributes:
        groups: by name; each verdict is that of the group's own slates.
        worst: the group with the smallest value among those that are not refused; None if all are.
        too_small: groups of one independent query, which cannot be estimated.
    """

    groups: dict[str, Estimate]
    worst: str | None
    too_small: tuple[str, ...]


def subgroup_values(
    log: LoggedSlates,
    policy: str,
    groups: Sequence[Any],
    *,
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
) -> Subgroups:
    """The value of a policy on every group of slates.

    Intervals are at level ``1 - (1 - level) / G`` (Bonferroni), so all ``G`` of them, including the worst group's, hold
    jointly at the given level.

    Args:
        policy: one of ``log.policies``.
        groups: ``[S]`` the group of each slate: a language, a topic, any column.
        objective: as in `pope_value`.
        confidence: its level is the joint level of all groups.

    Raises:
        ValueError: not one group for each slate.
    """
    if len(groups) != log.num_slates:
        raise ValueError(f"groups: expected one for each of the {log.num_slates} slates, got {len(groups)}")
    ids, codes = codes_of(groups, "groups")
    spelled = Counter(map(str, ids))
    names = [str(group) if spelled[str(group)] == 1 else repr(group) for group in ids]  # 1 and "1" are two groups
    joint = replace(confidence, level=1 - (1 - confidence.level) / len(names))
    values: dict[str, Estimate] = {}
    too_small = []
    for code, name in sorted(enumerate(names), key=lambda each: each[1]):
        slates = np.flatnonzero(codes == code)
        if np.unique(log.clusters[slates]).size < 2:
            too_small.append(name)
        else:
            values[name] = pope_value(take_slates(log, slates), policy, objective=objective, confidence=joint)
    known = [name for name, value in values.items() if value.verdict != "refuse"]
    worst = min(known, key=lambda name: values[name].value) if known else None
    return Subgroups(values, worst, tuple(too_small))


def take_slates(log: LoggedSlates, slates: Integers) -> LoggedSlates:
    """The log of some slates, in the order given."""
    starts, sizes = log.slate_offsets[:-1][slates], log.sizes[slates]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], sizes)

    def scores(of: PolicyScores) -> PolicyScores:
        return replace(of, logprobs=of.logprobs[rows], tokens=None if of.tokens is None else of.tokens[rows])

    return replace(
        log,
        utility=log.utility[rows],
        slate_offsets=offsets.astype(np.int64),
        logging=scores(log.logging),
        policies={name: scores(of) for name, of in log.policies.items()},
        clusters=cluster_codes(log.clusters[slates], slates.size),
        fresh={name: take_fresh(of, slates) for name, of in log.fresh.items()},
        slates=None if log.slates is None else tuple(log.slates[at] for at in slates),
    )


def take_fresh(fresh: FreshScores, slates: Integers) -> FreshScores:
    """The fresh responses to the prompts of some slates, in the order given."""
    mine = [np.flatnonzero(fresh.owner == at) for at in slates]
    rows = np.concatenate(mine)
    return FreshScores(
        owner=np.repeat(np.arange(slates.size), [each.size for each in mine]),
        target=fresh.target[rows],
        logging=None if fresh.logging is None else fresh.logging[rows],
        tokens=None if fresh.tokens is None else fresh.tokens[rows],
    )
