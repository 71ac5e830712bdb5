"""The value of a policy to each group of raters, the group that it serves worst, and the gap between groups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .._arrays import Floats, Integers
from .._json import jsonable
from ..data.raters import RatingTable, rating_table
from ..stats.intervals import Quantity, t_interval
from ..stats.two_way import one_way_variance, two_way_variance
from ._checks import cluster_codes
from .log import LoggedSlates, PolicyScores
from .pope import pope_value
from .rules import Verdict
from .subgroups import take_fresh
from .utility import calibration
from .verdict import find, judge
from .weights import log_weights

#: The name of the row of all raters together.
EVERYONE = "everyone"


@dataclass(frozen=True)
class GroupValue:
    """The value of a policy to a group of raters.

    Attributes:
        value: mean utility of the policy's responses to the group.
        gain: the same minus the baseline's, paired; None without a baseline.
        annotators: None if the log has only the groups' means.
        prompts: independent queries with a rating of the group.
        verdict, reasons: of `pope_value` on what the group rated, and of the number of annotators.
    """

    group: str
    value: Quantity
    gain: Quantity | None
    ratings: int
    annotators: int | None
    prompts: int
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RaterGroups:
    """The values of one policy to all groups, with intervals that hold for all of them jointly.

    Attributes:
        everyone: over all ratings; its intervals are not widened for the number of groups.
        groups: in the order of their names.
        worst: the group with the smallest value among those that are not refused; None if all are.
        worst_value: that smallest value; its interval holds whichever group it is.
        gap: greatest minus smallest value among those groups; None with fewer than two.
        too_small: groups with ratings of one query or by one annotator, which cannot be estimated.
        unit: the meaning of a difference of 1.
    """

    policy: str
    baseline: str | None
    everyone: GroupValue
    groups: tuple[GroupValue, ...]
    worst: str | None
    worst_value: Quantity | None
    gap: Quantity | None
    too_small: tuple[str, ...]
    unit: str
    level: float

    def of(self, group: str) -> GroupValue:
        """One group.

        Raises:
            KeyError: there is none of this name that could be estimated.
        """
        return {each.group: each for each in self.groups}[group]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        content: dict[str, Any] = jsonable(asdict(self))
        return content


def values_by_raters(
    log: LoggedSlates,
    policy: str,
    *,
    baseline: str | None = None,
    score_range: tuple[float, float] | None = None,
    level: float = 0.95,
) -> RaterGroups:
    """The value of a policy to every group of raters.

    With ``w`` the weights of whole responses and ``u_ra`` the utility of response ``r`` to annotator ``a``::

        V_g = sum_r c_r w_r mean_{a in g} u_ra / sum_r c_r w_r      # over responses that g rated

    ``c_r`` is 1 over the number of such responses in the slate. Standard errors are clustered by query and by annotator
    (`two_way_variance`): a person rates many prompts, and is not a new person at each. The t quantile has as many
    degrees of freedom as the smaller number of clusters, minus 1. Intervals of groups are widened (Bonferroni), so that
    they hold jointly, also for the worst group and for the gap, which are chosen by their values.

    A group is compared on the prompts that it rated. Two groups that rated different prompts differ by these, too.

    Args:
        log: made from slates with ``ratings`` (`pope convert --keep-users`). With ``group_scores`` alone, standard
            errors are clustered by query, since the log does not say who the groups' means are of.
        policy, baseline: of ``log.policies``.
        score_range: the least and greatest rating; None: 0 and 1 if all are in this range, else those of the log.
        level: coverage.

    Raises:
        ValueError: an unknown policy, no slates, no ratings, utilities relative to their slate.
    """
    table = check_raters(log)
    logarithmic = log.scale.transform == "log1p_calibrated"
    scale = calibration(score_range, float(table.score.min()), float(table.score.max()), logarithmic=logarithmic)
    if score_range is not None and not ((table.score >= score_range[0]) & (table.score <= score_range[1])).all():
        raise ValueError(f"score_range: expected a range of all ratings, got {score_range!r}")
    rated = _Rated(replace(log, scale=scale.scale), table, scale.utilities(table.score))
    policies = [policy] if baseline is None or baseline == policy else [policy, baseline]
    count = max(len(table.groups), 1)
    everyone = rated.value(EVERYONE, np.arange(len(table)), policies, level)
    if everyone is None:
        raise ValueError("log: expected ratings of two queries and by two annotators, got fewer")
    rows = {name: table.of_group(name) for name in table.groups}
    found = {name: rated.value(name, rows[name], policies, 1 - (1 - level) / count) for name in table.groups}
    groups = tuple(each for each in found.values() if each is not None)
    known = [each for each in groups if each.verdict != "refuse"]
    return RaterGroups(
        policy=policy,
        baseline=policies[1] if len(policies) == 2 else None,
        everyone=everyone,
        groups=groups,
        worst=min(known, key=lambda each: each.value.value).group if known else None,
        worst_value=_least([each.value for each in known]) if known else None,
        gap=rated.gap([rows[each.group] for each in known], policy, level) if len(known) > 1 else None,
        too_small=tuple(name for name, each in found.items() if each is None),
        unit=scale.scale.unit,
        level=level,
    )


def check_raters(log: LoggedSlates) -> RatingTable:
    """The ratings of a log.

    Raises:
        ValueError: it has none, or utilities relative to their slate.
    """
    if log.slates is None:
        raise ValueError("log: expected a log made from slates, whose rows have ratings, got one of arrays")
    if log.scale.relative:
        raise ValueError(
            f"utility_transform: expected a calibrated one, so that raters share a scale, got {log.scale.transform!r}"
        )
    table = rating_table(log.slates)
    if not len(table):
        raise ValueError("log: expected ratings, got none")
    return table


def _least(values: Sequence[Quantity]) -> Quantity:
    """The smallest of several values whose intervals hold jointly."""
    least = min(values, key=lambda each: each.value)
    return replace(least, low=min(each.low for each in values), high=min(each.high for each in values))


@dataclass(frozen=True, eq=False)
class _Rated:
    """A log and its ratings on one scale."""

    log: LoggedSlates
    table: RatingTable
    utility: Floats  # [N]

    def value(self, group: str, rows: Integers, policies: Sequence[str], level: float) -> GroupValue | None:
        """The value to those who gave these ratings; None if they are of one query or by one annotator."""
        prompts = self._prompts[rows]
        annotators = None if self.table.annotator is None else np.unique(self.table.annotator[rows]).size
        queries = np.unique(prompts).size
        if min(queries, 2 if annotators is None else annotators) < 2:
            return None
        parts = [self._influence(rows, policy) for policy in policies]
        quantity = self._quantity(*parts[0], rows, level)
        gain = None
        if len(parts) == 2:
            gain = self._quantity(parts[0][0] - parts[1][0], parts[0][1] - parts[1][1], rows, level)
        estimate = pope_value(_rated_part(self.log, self.table.response[rows], self.utility[rows]), policies[0])
        people = [] if annotators is None else [*find("annotators", f"only {annotators} annotators", annotators)]
        verdict, reasons = judge([*estimate.findings, *people])
        return GroupValue(group, quantity, gain, rows.size, annotators, queries, verdict, reasons)

    def gap(self, groups: Sequence[Integers], policy: str, level: float) -> Quantity:
        """Greatest minus smallest value. All differences of two groups have joint intervals; the greatest difference is
        at least any of them, and at most the greatest upper end.
        """
        parts = [self._influence(rows, policy) for rows in groups]
        pairs = list(itertools.combinations(range(len(groups)), 2))
        joint = 1 - (1 - level) / len(pairs)
        differences = []
        for one, other in pairs:
            (a, psi_a), (b, psi_b) = parts[one], parts[other]
            rows = np.concatenate([groups[one], groups[other]])
            difference = self._quantity(a - b, np.concatenate([psi_a, -psi_b]), rows, joint)
            differences += [difference, _negated(difference)]
        widest = max(differences, key=lambda each: each.value)
        low, high = max(each.low for each in differences), max(each.high for each in differences)
        return replace(widest, low=max(low, 0.0), high=high)

    @property
    def _prompts(self) -> Integers:
        """``[N]`` the query of each rating."""
        return self.log.clusters[_slates(self.log)[self.table.response]]

    def _influence(self, rows: Integers, policy: str) -> tuple[float, Floats]:
        """The value, and the first-order contribution of each rating to it."""
        response = self.table.response[rows]
        slate = _slates(self.log)
        per_response = np.bincount(response, minlength=self.log.num_responses)
        per_slate = np.bincount(slate, per_response > 0, self.log.num_slates)
        log_w = log_weights(self.log, policy, "response", length_normalize=False)[response]
        weight = np.exp(log_w - log_w.max()) / (per_response[response] * per_slate[slate[response]])
        total = weight.sum()
        value = float(weight @ self.utility[rows] / total)
        return value, weight * (self.utility[rows] - value) / total

    def _quantity(self, value: float, influence: Floats, rows: Integers, level: float) -> Quantity:
        prompts, people, psi = self._prompts[rows], self.table.annotator, influence[:, None]
        if people is None:
            variance, clusters = one_way_variance(psi, prompts), np.unique(prompts).size
        else:
            variance = two_way_variance(psi, prompts, people[rows])
            clusters = min(np.unique(prompts).size, np.unique(people[rows]).size)
        error = np.sqrt(variance)
        low, high = t_interval(np.array([value]), error, clusters - 1, level)
        return Quantity(value, float(error[0]), float(low[0]), float(high[0]))


def _slates(log: LoggedSlates) -> Integers:
    """``[R]`` the slate of each response."""
    return np.repeat(np.arange(log.num_slates), log.sizes)


def _negated(quantity: Quantity) -> Quantity:
    return Quantity(-quantity.value, quantity.standard_error, -quantity.high, -quantity.low)


def _rated_part(log: LoggedSlates, response: Integers, utility: Floats) -> LoggedSlates:
    """The log of the responses that were rated, each with the mean utility of its ratings."""
    count = np.bincount(response, minlength=log.num_responses)
    rows = np.flatnonzero(count)
    slate = _slates(log)[rows]
    kept, sizes = np.unique(slate, return_counts=True)

    def scores(of: PolicyScores) -> PolicyScores:
        return replace(of, logprobs=of.logprobs[rows], tokens=None if of.tokens is None else of.tokens[rows])

    means = np.bincount(response, utility, log.num_responses)[rows] / count[rows]
    fresh = {name: take_fresh(of, kept) for name, of in log.fresh.items()}
    return replace(
        log,
        utility=np.clip(means, *log.utility_range),
        slate_offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        logging=scores(log.logging),
        policies={name: scores(of) for name, of in log.policies.items()},
        clusters=cluster_codes(log.clusters[kept], kept.size),
        fresh=fresh,
        slates=None,
    )
