"""`LoggedSlates`: the validated input of every estimator: utilities and log-probabilities in ragged slates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from ..data.schema import Slate
from ..data.split import written_group
from ._checks import Places, cluster_codes, offsets_of, vector
from .logging_policies import LoggingOrigin, LoggingSource, WrittenBy, fit_of, logging_sources, written_by
from .utility import EvaluationTransform, UtilityScale, utilities

if TYPE_CHECKING:
    from ..propensity.scores import ModelScores

#: Two policies are one if their totals differ by less, in nats.
SAME_POLICY = 1e-6


@dataclass(frozen=True)
class PolicyScores:
    """Log-probabilities of the logged responses under one policy, as one column."""

    logprobs: Floats  # [R] totals in nats
    tokens: Integers | None = None  # [R] number of tokens in each total; None: as in the log
    provenance: Mapping[str, Any] | None = None  # as `pope_align.propensity.scores` writes it

    @classmethod
    def of(cls, scores: ModelScores) -> PolicyScores:
        """The scores of a model, slate after slate."""
        totals = np.array([total for of_slate in scores.totals for total in of_slate], dtype=np.float64)
        tokens = np.array([count for of_slate in scores.tokens for count in of_slate], dtype=np.int64)
        return cls(totals, tokens, scores.provenance)


@dataclass(frozen=True, eq=False)
class FreshScores:
    """Fresh responses of a policy, scored under itself and under the logging policy.

    Attributes:
        owner: ``[N]`` slate whose prompt each answers; every slate has one or more.
        target: ``[N]`` total log-probability under the policy itself, nats.
        logging: ``[N]`` under the logging policy, -inf if it cannot write the response; None: not scored.
        tokens: ``[N]``; None: not known.
    """

    owner: Integers
    target: Floats
    logging: Floats | None = None
    tokens: Integers | None = None


@dataclass(frozen=True, eq=False)
class LoggedSlates:
    """A log of rated slates with propensities, scored under any number of policies.

    Create it with `from_arrays` or `from_slates`; both check every number. Responses of slate ``q`` are
    ``[slate_offsets[q], slate_offsets[q + 1])`` in every array. All log-probabilities are totals in nats.

    A log may have several logging policies (``sources``): importance weights need only each response's propensity under
    the policy that wrote it. `balanced_logprobs` gives better weights if all responses were scored under all of them.
    """

    utility: Floats  # [R]
    slate_offsets: Integers  # [S + 1]
    logging: PolicyScores
    policies: Mapping[str, PolicyScores]
    clusters: Integers  # [S] 0 ... C - 1: slates of one cluster are not independent
    how: LoggingOrigin = "unknown"  # the worst of ``sources``
    scale: UtilityScale = UtilityScale()  # noqa: RUF009 (frozen)
    sources: tuple[LoggingSource, ...] = ()
    written_by: WrittenBy = "unknown"
    in_sample: int = 0  # responses scored by a logging policy that was fitted to them
    rescored_gap: float | None = None  # mean |recorded - rescored| log-probability, nats per token; None: not checked
    fresh: Mapping[str, FreshScores] = field(default_factory=dict, repr=False)  # by policy
    slates: tuple[Slate, ...] | None = field(default=None, repr=False)  # the rows, if the log was made from slates

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
        how: LoggingOrigin = "unknown",
        utility_range: tuple[float, float] = (0.0, 1.0),
        scale: UtilityScale | None = None,
        provenance: Mapping[str, Any] | None = None,
        sources: Sequence[LoggingSource] = (),
        written_by: WrittenBy = "unknown",
        in_sample: int = 0,
        rescored_gap: float | None = None,
        fresh: Mapping[str, FreshScores] | None = None,
        slates: Sequence[Slate] | None = None,
    ) -> LoggedSlates:
        """Check and keep the arrays of a log.

        Args:
            utility: ``[R]`` feedback of each response, within ``utility_range``.
            logging_logprobs: ``[R]`` log-probability under the logging policy, nats, at most 0.
            policies: for each policy to evaluate, ``[R]`` log-probabilities of the same responses, -inf if the policy
                cannot write it; `PolicyScores` to give tokens and provenance, too. `with_policies` adds them later.
            slate_offsets: ``[S + 1]``; None if every response is a slate of its own.
            unit: "total"; or "mean" for log-probabilities per token, which are multiplied by ``tokens`` here.
            tokens: ``[R]`` tokens per response: needed for means, and by length-normalised objectives.
            clusters: ``[S]`` ids; slates with equal ids are resampled together, e.g. by query, conversation or user.
                None: every slate is its own cluster.
            how: how the logging policy's log-probabilities were obtained.
            utility_range: declared least and greatest utility.
            scale: the scale of the utilities; None: as given, on ``utility_range``.
            provenance: of ``logging_logprobs``, as `pope_align.propensity.logging_policy` writes it.
            sources: the logging policies, if there are several; empty: ``provenance`` for all slates.
            written_by: who wrote the responses.
            in_sample: responses that were scored by a logging policy which was fitted to them.
            rescored_gap: `rescoring_gap` of recorded and rescored log-probabilities under the logging policy.
            fresh: by policy, fresh responses of its own; see `FreshScores`.
            slates: the rows of the arrays, for rewards that need text.

        Raises:
            ValueError: an invalid shape or number, with its policy, slate and response; fewer than two clusters.
        """
        utility = vector("utility", utility)
        count = utility.size
        offsets = offsets_of(np.arange(count + 1) if slate_offsets is None else slate_offsets, count)
        if how not in get_args(LoggingOrigin):
            raise ValueError(f"how: expected one of {', '.join(get_args(LoggingOrigin))}, got {how!r}")
        if unit not in ("total", "mean"):
            raise ValueError(f"unit: expected 'total' or 'mean', got {unit!r}")
        place = Places(offsets)
        low, high = utility_range if scale is None else scale.range
        if not (np.isfinite([low, high]).all() and low < high):
            raise ValueError(f"utility_range: expected two finite numbers, low < high, got {utility_range!r}")
        place.each("utility", utility, (utility >= low) & (utility <= high), f"a number in [{low:g}, {high:g}]")

        shared = None if tokens is None else place.tokens("tokens", tokens)
        given = PolicyScores(np.asarray(logging_logprobs), None, provenance)
        return cls(
            utility=utility,
            slate_offsets=offsets,
            logging=_checked("logging_logprobs", given, place, shared, unit, may_be_zero=False),
            policies=_checked_policies(policies, place, shared, unit),
            clusters=cluster_codes(clusters, offsets.size - 1),
            how=how,
            scale=scale or UtilityScale(low=float(low), high=float(high)),
            sources=tuple(sources) or (LoggingSource({**(provenance or {}), "how": how}, offsets.size - 1),),
            written_by=written_by,
            in_sample=in_sample,
            rescored_gap=rescored_gap,
            fresh={name: _checked_fresh(name, each, offsets.size - 1) for name, each in (fresh or {}).items()},
            slates=None if slates is None else tuple(slates),
        )

    @classmethod
    def from_slates(
        cls,
        slates: Sequence[Slate],
        policies: Mapping[str, Sequence[Sequence[float]] | ModelScores | PolicyScores],
        *,
        utility_transform: EvaluationTransform = "calibrated",
        score_range: tuple[float, float] | None = None,
        cluster: Callable[[Slate], str] | None = None,
        rescored_gap: float | None = None,
        fresh: Mapping[str, FreshScores] | None = None,
    ) -> LoggedSlates:
        """The log of scored slates (`pope_align.score_slates`) and the totals of every policy, slate by slate.

        Args:
            slates: each with ``logging_logprobs``.
            policies: for each policy, one list of total log-probabilities per slate, or `ModelScores`.
            utility_transform, score_range: scores to utilities; see `pope_align.ope.utility.utilities`.
            cluster: the unit of resampling of a slate. None: the group that `pope convert --group` wrote, or else its
                prompt, so that slates of one query stay together.
            rescored_gap: as in `from_arrays`.
            fresh: by policy, fresh responses of its own.

        Raises:
            ValueError: a slate without propensities, or without scores of a policy.
        """
        if not slates:
            raise ValueError("slates: expected at least one slate, got none")
        for index, slate in enumerate(slates):
            if slate.logging_logprobs is None:
                raise ValueError(
                    f"slate {index}{_name(slate)}: logging_logprobs: expected one per response, got none; fill them in "
                    "with `pope score` or pope_align.score_slates"
                )
        flat = {name: _flatten(name, given, slates) for name, given in policies.items()}
        counted = all(slate.completion_tokens is not None for slate in slates)
        key = cluster or (lambda slate: written_group(slate) or json.dumps(slate.prompt))
        utility, scale = utilities(slates, utility_transform, score_range)
        sources = logging_sources(slates)
        origins = get_args(LoggingOrigin)
        return cls.from_arrays(
            utility,
            [total for slate in slates for total in slate.logging_logprobs or []],
            flat,
            np.cumsum([0] + [len(slate.completions) for slate in slates]),
            tokens=[count for slate in slates for count in slate.completion_tokens or []] if counted else None,
            clusters=[key(slate) for slate in slates],
            how=max((source.how for source in sources), key=origins.index),
            scale=scale,
            provenance=sources[0].provenance,
            sources=sources,
            written_by=written_by(slates),
            in_sample=sum(int(fit_of(slate).get("in_sample") or 0) for slate in slates),
            rescored_gap=rescored_gap,
            fresh=fresh,
            slates=slates,
        )

    def clustered_by(self, clusters: Sequence[Any] | npt.ArrayLike | None) -> LoggedSlates:
        """The same log with other clusters: ``[S]`` ids, or None for each slate on its own."""
        return replace(self, clusters=cluster_codes(clusters, self.num_slates))

    def with_policies(
        self, policies: Mapping[str, npt.ArrayLike | Sequence[Sequence[float]] | ModelScores | PolicyScores]
    ) -> LoggedSlates:
        """The same log with these policies in place of its own.

        Args:
            policies: totals as in `from_slates` if the log was made from slates, else as in `from_arrays`.

        Raises:
            ValueError: an invalid shape or number, with its policy, slate and response.
        """
        given: Mapping[str, Any] = policies
        if self.slates is not None:
            given = {name: _flatten(name, each, self.slates) for name, each in given.items()}
        return replace(
            self, policies=_checked_policies(given, Places(self.slate_offsets), self.logging.tokens, "total")
        )

    def with_fresh(self, fresh: Mapping[str, FreshScores]) -> LoggedSlates:
        """The same log with fresh responses of its policies."""
        checked = {name: _checked_fresh(name, each, self.num_slates) for name, each in fresh.items()}
        return replace(self, fresh={**self.fresh, **checked})

    @cached_property
    def fingerprint(self) -> str:
        """A hash of utilities, slates and propensities; it does not depend on policies and clusters."""
        return _digest(self.utility, self.slate_offsets, self.logging.logprobs)

    @cached_property
    def clusters_fingerprint(self) -> str:
        """A hash of the clusters."""
        return _digest(self.clusters)

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

    @property
    def utility_range(self) -> tuple[float, float]:
        """Smallest and largest possible utility."""
        return self.scale.range

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
            ValueError: length normalisation without known numbers of tokens.
        """
        target, logging = self.scores(policy).logprobs, self.logging.logprobs
        if not length_normalize:
            return target, logging
        tokens = self.tokens(policy)
        if tokens is None:
            raise ValueError(
                "tokens: expected the number of tokens per response for a length-normalised objective, got none "
                f"(policy {policy!r})"
            )
        return target / tokens, logging / tokens

    @property
    def logging_provenance(self) -> Mapping[str, Any]:
        """Of ``logging_logprobs``."""
        return self.logging.provenance or {}

    def provenance(self, policy: str) -> Mapping[str, Any] | None:
        """Of the policy's log-probabilities; None: not known."""
        return self.scores(policy).provenance

    def provenances(self) -> dict[str, Mapping[str, Any]]:
        """Of every policy, in order."""
        return {name: scores.provenance or {} for name, scores in self.policies.items()}

    def utilities_equal(self) -> float | None:
        """The utility of every response, if they have but one."""
        least, most = float(self.utility.min()), float(self.utility.max())
        return least if least == most else None

    def equal_within_slates(self) -> bool:
        """Whether all utilities of a slate are equal, in every slate."""
        starts = self.slate_offsets[:-1]
        return bool((np.maximum.reduceat(self.utility, starts) == np.minimum.reduceat(self.utility, starts)).all())

    def is_logging_policy(self, policy: str) -> bool:
        """Whether the policy gives every logged response the logging policy's own probability, up to rounding."""
        gap = self.scores(policy).logprobs - self.logging.logprobs
        return bool(np.isfinite(gap).all() and np.abs(gap).max() < SAME_POLICY)

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
        """The slate and position of response ``response``, for messages."""
        return Places(self.slate_offsets).of(response)


def _checked(
    name: str,
    given: npt.ArrayLike | PolicyScores,
    place: Places,
    tokens: Integers | None,
    unit: Literal["total", "mean"],
    *,
    may_be_zero: bool,
) -> PolicyScores:
    """Totals, with the log's ``tokens`` unless they have their own."""
    if not isinstance(given, PolicyScores):
        given = PolicyScores(np.asarray(given))
    logprobs = place.logprobs(name, given.logprobs, unit, may_be_zero=may_be_zero)
    own = tokens if given.tokens is None else place.tokens(f"{name} tokens", given.tokens)
    if unit == "mean":
        if own is None:
            raise ValueError(f"tokens: expected one number per response with unit='mean' ({name}), got none")
        logprobs = logprobs * own
    return PolicyScores(logprobs, own, given.provenance)


def _checked_fresh(name: str, given: FreshScores, slates: int) -> FreshScores:
    """Raises: ValueError: other lengths, a slate without fresh responses, numbers that are no log-probabilities."""
    owner = np.asarray(given.owner)
    for what in ("target", "logging", "tokens"):
        values = getattr(given, what)
        if values is not None and len(values) != len(owner):
            raise ValueError(
                f"fresh[{name!r}]: {what}: expected {len(owner)} numbers, one for each owner, got {len(values)}"
            )
    missing = np.flatnonzero(np.bincount(owner, minlength=slates)[:slates] == 0)
    if missing.size or owner.max() >= slates:
        place = f"slate {missing[0]}: expected at least one fresh response, got none" if missing.size else "owner"
        raise ValueError(f"fresh[{name!r}]: {place}; the log has {slates} slates")
    bad = np.flatnonzero(~np.isfinite(given.target))
    if bad.size:
        raise ValueError(
            f"fresh[{name!r}]: target: fresh response {bad[0]}: expected a finite number, because the policy wrote it, "
            f"got {given.target[bad[0]]}"
        )
    if given.logging is not None and (bad := np.flatnonzero(~(given.logging < np.inf))).size:
        raise ValueError(
            f"fresh[{name!r}]: logging: fresh response {bad[0]}: expected a number below infinity, got "
            f"{given.logging[bad[0]]}"
        )
    return given


def _checked_policies(
    policies: Mapping[str, npt.ArrayLike | PolicyScores],
    place: Places,
    tokens: Integers | None,
    unit: Literal["total", "mean"],
) -> dict[str, PolicyScores]:
    return {
        name: _checked(f"policies[{name!r}]", given, place, tokens, unit, may_be_zero=True)
        for name, given in policies.items()
    }


def _digest(*arrays: npt.NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _name(slate: Slate) -> str:
    return f" ({slate.slate_id})" if slate.slate_id else ""


def _flatten(
    name: str, given: Sequence[Sequence[float]] | ModelScores | PolicyScores, slates: Sequence[Slate]
) -> PolicyScores | list[float]:
    if isinstance(given, PolicyScores):
        return given
    scores: Any = given  # `ModelScores` is not imported here: it brings torch
    totals: Sequence[Sequence[float]] = getattr(scores, "totals", scores)
    if len(totals) != len(slates):
        flat = " numbers; write a list for each slate" if len(totals) and np.ndim(totals[0]) == 0 else ""
        raise ValueError(f"policies[{name!r}]: expected {len(slates)} slates, got {len(totals)}{flat}")
    for index, (slate, of_slate) in enumerate(zip(slates, totals, strict=True)):
        if len(of_slate) != len(slate.completions):
            raise ValueError(
                f"policies[{name!r}]: slate {index}{_name(slate)}: expected {len(slate.completions)} "
                f"log-probabilities, got {len(of_slate)}"
            )
    if hasattr(scores, "tokens"):
        return PolicyScores.of(scores)
    return [total for of_slate in totals for total in of_slate]
