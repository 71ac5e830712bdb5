"""`LoggedSlates`: what every estimator reads, validated once - utilities and log-probabilities in ragged slates."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..data.feedback import UtilityTransform, to_utility
from ..data.schema import Slate
from ._checks import Floats, Integers, Places, cluster_codes, offsets_of, vector

#: How the log-probabilities of the logging policy were obtained; "unknown" when the log does not say.
How = Literal["recorded", "behaviour_cloned", "proxy", "unknown"]


@dataclass(frozen=True)
class PolicyScores:
    """Log-probabilities of the logged responses under one policy."""

    logprobs: Floats  # [R] totals in nats, or means where the log holds means
    tokens: Integers | None = None  # [R] tokens the totals were summed over; None: those of the log
    provenance: Mapping[str, Any] | None = None  # as `pope_align.propensity.logging_policy` writes it


@dataclass(frozen=True, eq=False)
class LoggedSlates:
    """A log of rated slates with its propensities, scored under any number of policies.

    Make one with `from_arrays` or `from_slates`; both check every number. Responses of slate ``q`` are
    ``[slate_offsets[q], slate_offsets[q + 1])`` in every array.
    """

    utility: Floats  # [R]
    slate_offsets: Integers  # [S + 1]
    logging: PolicyScores
    policies: Mapping[str, PolicyScores]
    clusters: Integers  # [S] 0 ... C - 1: slates of one cluster are not independent
    how: How = "unknown"
    unit: Literal["total", "mean"] = "total"  # of the log-probabilities
    utility_range: tuple[float, float] = (0.0, 1.0)
    slates: tuple[Slate, ...] | None = field(default=None, repr=False)  # the rows, where the log came from a file

    @classmethod
    def from_arrays(
        cls,
        utility: npt.ArrayLike,  # [R]
        logging_logprobs: npt.ArrayLike,  # [R]
        policies: Mapping[str, npt.ArrayLike | PolicyScores],  # each [R]
        slate_offsets: npt.ArrayLike | None = None,  # [S + 1]
        *,
        unit: Literal["total", "mean"] = "total",
        tokens: npt.ArrayLike | None = None,  # [R]
        clusters: Sequence[Any] | npt.ArrayLike | None = None,  # [S]
        how: How = "unknown",
        utility_range: tuple[float, float] = (0.0, 1.0),
        provenance: Mapping[str, Any] | None = None,
        slates: Sequence[Slate] | None = None,
    ) -> LoggedSlates:
        """Check and keep the arrays of a log.

        Args:
            utility: ``[R]`` feedback of each response, within ``utility_range``.
            logging_logprobs: ``[R]`` log-probability under the logging policy, nats, at most 0.
            policies: for each policy to evaluate, ``[R]`` log-probabilities of the same responses; `PolicyScores` to
                say their tokens and provenance.
            slate_offsets: ``[S + 1]``; None when every response is a slate of its own.
            unit: whether log-probabilities are totals over the response or means per token.
            tokens: ``[R]`` tokens per response: needed to turn totals into means or back.
            clusters: ``[S]`` ids; slates with equal ids are one unit of resampling. They may be coarser than slates: a
                query, a conversation, a user. None: every slate is its own.
            how: how the logging policy's log-probabilities were obtained.
            utility_range: declared least and greatest utility.
            provenance: of ``logging_logprobs``, as `pope_align.propensity.logging_policy` writes it.
            slates: the rows the arrays came from, for rewards that read text.

        Raises:
            ValueError: a shape or number that does not fit, with the policy, slate and response it was found in; fewer
                than two clusters.
        """
        utility = vector("utility", utility)
        count = utility.size
        offsets = offsets_of(np.arange(count + 1) if slate_offsets is None else slate_offsets, count)
        if how not in get_args(How):
            raise ValueError(f"how: expected one of {', '.join(get_args(How))}, got {how!r}")
        if unit not in ("total", "mean"):
            raise ValueError(f"unit: expected 'total' or 'mean', got {unit!r}")
        if not policies:
            raise ValueError("policies: expected at least one policy, got none")
        place = Places(offsets)
        low, high = utility_range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"utility_range: expected two finite numbers, low < high, got {utility_range!r}")
        place.each("utility", utility, (utility >= low) & (utility <= high), f"a number in [{low:g}, {high:g}]")

        def scores(name: str, given: npt.ArrayLike | PolicyScores) -> PolicyScores:
            if not isinstance(given, PolicyScores):
                given = PolicyScores(np.asarray(given))
            logprobs = place.logprobs(name, given.logprobs, unit)
            own = None if given.tokens is None else place.tokens(f"{name} tokens", given.tokens)
            return PolicyScores(logprobs, own if own is not None else shared, given.provenance)

        shared = None if tokens is None else place.tokens("tokens", tokens)
        return cls(
            utility=utility,
            slate_offsets=offsets,
            logging=scores("logging_logprobs", PolicyScores(np.asarray(logging_logprobs), None, provenance)),
            policies={name: scores(f"policies[{name!r}]", given) for name, given in policies.items()},
            clusters=cluster_codes(clusters, offsets.size - 1),
            how=how,
            unit=unit,
            utility_range=(float(low), float(high)),
            slates=None if slates is None else tuple(slates),
        )

    @classmethod
    def from_slates(
        cls,
        slates: Sequence[Slate],
        policies: Mapping[str, Sequence[Sequence[float]] | PolicyScores],
        *,
        utility_transform: UtilityTransform = "minmax",
        cluster: Callable[[Slate], str] | None = None,
    ) -> LoggedSlates:
        """The log of scored slates (`pope_align.score_slates`) and the totals of every policy, slate by slate.

        Args:
            slates: each with ``logging_logprobs``.
            policies: for each policy, one list of total log-probabilities per slate, or `PolicyScores` over all
                responses.
            utility_transform: scores to utilities; see `pope_align.data.to_utility`.
            cluster: the unit of resampling of a slate. None: its prompt, so that slates of one query stay together.

        Raises:
            ValueError: a slate without propensities, from another logging policy than the rest, or with rows that a
                policy lacks.
        """
        if not slates:
            raise ValueError("slates: expected at least one slate, got none")
        hows = set()
        for index, slate in enumerate(slates):
            if slate.logging_logprobs is None:
                raise ValueError(
                    f"slate {index}{_name(slate)}: logging_logprobs: expected one per response, got none; fill them in "
                    "with `pope score` or pope_align.score_slates"
                )
            hows.add((slate.logging_policy or {}).get("how", "unknown"))
        if len(hows) > 1:
            raise ValueError(f"slates: expected one kind of logging policy, got {', '.join(sorted(hows))}")
        flat = {name: _flatten(name, given, slates) for name, given in policies.items()}
        counted = all(slate.completion_tokens is not None for slate in slates)
        key = cluster or (lambda slate: json.dumps(slate.prompt))
        return cls.from_arrays(
            np.concatenate([to_utility(slate.scores, utility_transform) for slate in slates]),
            [total for slate in slates for total in slate.logging_logprobs or []],
            flat,
            np.cumsum([0] + [len(slate.completions) for slate in slates]),
            tokens=[count for slate in slates for count in slate.completion_tokens or []] if counted else None,
            clusters=[key(slate) for slate in slates],
            how=hows.pop(),
            provenance=slates[0].logging_policy,
            slates=slates,
        )

    def clustered_by(self, clusters: Sequence[Any] | npt.ArrayLike | None) -> LoggedSlates:
        """The same log with another unit of resampling: ``[S]`` ids, or None for every slate by itself."""
        return replace(self, clusters=cluster_codes(clusters, self.num_slates))

    @property
    def num_slates(self) -> int:
        return self.slate_offsets.size - 1

    @property
    def num_responses(self) -> int:
        return self.utility.size

    @property
    def num_clusters(self) -> int:
        return int(self.clusters.max()) + 1

    @property
    def sizes(self) -> Integers:
        """``[S]`` responses per slate."""
        return np.diff(self.slate_offsets)

    def scores(self, policy: str) -> PolicyScores:
        if policy not in self.policies:
            raise ValueError(f"policy: expected one of {', '.join(self.policies)}, got {policy!r}")
        return self.policies[policy]

    def tokens(self, policy: str) -> Integers | None:
        """``[R]`` tokens per response: the policy's own count, else the log's."""
        return self.scores(policy).tokens

    def logprobs(self, policy: str, *, length_normalize: bool) -> tuple[Floats, Floats]:
        """``l_theta`` and ``l_0``, both ``[R]``: totals, or both divided by the policy's number of tokens.

        Raises:
            ValueError: the other unit is asked for and the numbers of tokens are not known.
        """
        target, logging = self.scores(policy).logprobs, self.logging.logprobs
        if length_normalize == (self.unit == "mean"):
            return target, logging
        tokens = self.tokens(policy)
        if tokens is None:
            raise ValueError(
                f"tokens: expected the number of tokens per response for length_normalize={length_normalize} with "
                f"{self.unit} log-probabilities, got none (policy {policy!r})"
            )
        return (target / tokens, logging / tokens) if length_normalize else (target * tokens, logging * tokens)

    def slate_sums(self, values: Floats) -> Floats:
        """``[R, ...] -> [S, ...]``."""
        return np.add.reduceat(values, self.slate_offsets[:-1], axis=0)

    def cluster_sums(self, values: Floats) -> Floats:
        """``[S] -> [C]`` or ``[S, P] -> [C, P]``."""
        if values.ndim == 2:
            return np.stack([self.cluster_sums(column) for column in values.T], axis=1)
        return np.bincount(self.clusters, weights=values, minlength=self.num_clusters).astype(np.float64)

    def per_response(self, values: Floats) -> Floats:
        """``[S] -> [R]``, each slate's value repeated."""
        return np.repeat(values, self.sizes)

    def place(self, response: int) -> str:
        """Where response ``response`` stands, for messages."""
        return Places(self.slate_offsets).of(response)


def _name(slate: Slate) -> str:
    return f" ({slate.slate_id})" if slate.slate_id else ""


def _flatten(
    name: str, given: Sequence[Sequence[float]] | PolicyScores, slates: Sequence[Slate]
) -> PolicyScores | list[float]:
    if isinstance(given, PolicyScores):
        return given
    if len(given) != len(slates):
        raise ValueError(f"policies[{name!r}]: expected {len(slates)} slates, got {len(given)}")
    for index, (slate, totals) in enumerate(zip(slates, given, strict=True)):
        if len(totals) != len(slate.completions):
            raise ValueError(
                f"policies[{name!r}]: slate {index}{_name(slate)}: expected {len(slate.completions)} "
                f"log-probabilities, got {len(totals)}"
            )
    return [total for totals in given for total in totals]
