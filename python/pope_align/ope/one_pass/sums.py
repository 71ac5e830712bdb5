"""`LogSums`: everything an evaluation needs of the shards read so far, merged in any order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pope_core.objective import Weighting

from ..._arrays import Floats
from ...stats.keyed_bootstrap import Hashes, hashes_of, mix
from ...stats.moments import Moments
from ..log import LoggedSlates, PolicyScores
from ..weights import log_weights
from .cluster_columns import Name, columns_of
from .edges import Edges
from .placebo_sums import PlaceboSums
from .request import OnePass
from .shards import Rows, read_shard
from .weight_sums import SurpriseSums, WeightSums


@dataclass(frozen=True, eq=False)
class PolicySums:
    """Of one policy's weights.

    Attributes:
        weights: by kind of weight, in the objective's units (per token where it is length-normalised).
        sequences: of the true ratios of whole sequences.
        surprise: at which log-probabilities the responses are.
        lengths: log-weight and tokens of the responses, one row each; None without tokens.
        gap: largest distance of the policy's totals from the logging policy's.
        index: of length-normalised weights; None without tokens.
    """

    weights: Mapping[Weighting, WeightSums]
    sequences: WeightSums
    surprise: SurpriseSums
    lengths: Moments | None
    gap: float
    index: WeightSums | None

    @classmethod
    def of(cls, log: LoggedSlates, policy: str, rows: Rows, request: OnePass, before: PolicySums | None) -> PolicySums:
        normalize = request.objective.length_normalize

        def place(response: int) -> str:
            return rows.place(response)

        def slate(index: int) -> str:
            return f"the slate at {rows.place(int(log.slate_offsets[index]))}"

        weights = {}
        for weighting in request.weightings:
            log_w = log_weights(log, policy, weighting, length_normalize=normalize)
            weights[weighting] = WeightSums.of(
                log_w,
                request.largest,
                place if weighting == "response" else slate,
                request.shrinks(weighting),
                log.utility if weighting == "response" else None,
                floor=-np.inf if before is None else before.weights[weighting].floor,
            )
        target, logging = log.logprobs(policy, length_normalize=False)
        each = log_weights(log, policy, "response", length_normalize=normalize)
        counted = log.tokens(policy)
        surprise = -log.logprobs(policy, length_normalize=counted is not None)[0]
        gap = float(np.abs(target - logging).max())
        lengths = index = None
        if counted is not None:
            fine = np.isfinite(each)
            both = np.stack([each[fine], counted[fine].astype(np.float64)])
            lengths = Moments.of(both, np.zeros(2)) if fine.any() else Moments.nothing(2)
            index = WeightSums.of(log_weights(log, policy, "response", length_normalize=True), 0, place)
        sequences = WeightSums.of(target - logging, 0, place)
        return cls(weights, sequences, SurpriseSums.of(surprise, each), lengths, gap, index)

    def merge(self, other: PolicySums) -> PolicySums:
        lengths = index = None
        if self.lengths is not None and other.lengths is not None:
            lengths = self.lengths.merge(other.lengths)
        if self.index is not None and other.index is not None:
            index = self.index.merge(other.index)
        return PolicySums(
            {kind: each.merge(other.weights[kind]) for kind, each in self.weights.items()},
            self.sequences.merge(other.sequences),
            self.surprise.merge(other.surprise),
            lengths,
            max(self.gap, other.gap),
            index,
        )


@dataclass(frozen=True, eq=False)
class BatchSums:
    """Of whole clusters.

    Attributes:
        responses, slates: how many.
        low, high: least and greatest utility.
        log_hash, cluster_hash: sums of hashes of rows and of clusters, in any order.
        names: of the columns of ``moments``, which has a row per cluster.
        gains, index_gains: for the placebos of the value and of the length-normalised index.
    """

    responses: int
    slates: int
    low: float
    high: float
    log_hash: int
    cluster_hash: int
    names: tuple[Name, ...]
    moments: Moments
    policies: Mapping[str, PolicySums]
    gains: PlaceboSums
    index_gains: PlaceboSums | None

    @classmethod
    def of(cls, rows: Rows, request: OnePass, before: BatchSums | None = None) -> BatchSums:
        log = _log(rows, request)
        keys = hashes_of(rows.clusters)
        columns = columns_of(log, request)
        values = np.stack(list(columns.values.values()))
        moments = Moments.of(values, np.array(columns.scales), request.bootstrap, keys)
        gains = PlaceboSums.of(log, _weights(log, length_normalize=request.objective.length_normalize))
        index_gains = None
        if request.columns.tokens is not None:
            index_gains = PlaceboSums.of(log, _weights(log, length_normalize=True))
        return cls(
            responses=log.num_responses,
            slates=log.num_slates,
            low=float(log.utility.min()),
            high=float(log.utility.max()),
            log_hash=_sum_of_hashes(log.utility, log.logging.logprobs),
            cluster_hash=_sum_of_hashes(keys, columns.values["responses",]),
            names=tuple(columns.values),
            moments=moments,
            policies={
                name: PolicySums.of(log, name, rows, request, None if before is None else before.policies[name])
                for name in log.policies
            },
            gains=gains,
            index_gains=index_gains,
        )

    def merge(self, other: BatchSums) -> BatchSums:
        index_gains = None
        if self.index_gains is not None and other.index_gains is not None:
            index_gains = self.index_gains.merge(other.index_gains)
        return BatchSums(
            responses=self.responses + other.responses,
            slates=self.slates + other.slates,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            log_hash=(self.log_hash + other.log_hash) % 2**64,
            cluster_hash=(self.cluster_hash + other.cluster_hash) % 2**64,
            names=self.names,
            moments=self.moments.merge(other.moments),
            policies={name: each.merge(other.policies[name]) for name, each in self.policies.items()},
            gains=self.gains.merge(other.gains),
            index_gains=index_gains,
        )


@dataclass(frozen=True, eq=False)
class LogSums:
    """Of any number of shards.

    Attributes:
        whole: of the clusters that lie within one shard; None: none.
        edges: the first and last cluster of every shard, which may be parts of one.
    """

    whole: BatchSums | None
    edges: Edges

    def merge(self, other: LogSums) -> LogSums:
        """Of the shards of both."""
        return LogSums(_merged(self.whole, other.whole), self.edges.merge(other.edges))

    def total(self, request: OnePass) -> BatchSums:
        """Of the whole log.

        Raises:
            ValueError: shards that overlap, fewer than two clusters, or no rows.
        """
        edges = self.edges.joined()
        total = _merged(self.whole, None if edges is None else BatchSums.of(edges, request))
        if total is None:
            raise ValueError("paths: expected rows, got none")
        if total.moments.count < 2:
            raise ValueError(
                "clusters: expected at least two independent queries, got one; how much queries differ cannot be "
                "learnt from one of them, so no interval is possible"
            )
        return total


def read_sums(path: str, request: OnePass) -> LogSums:
    """The sums of one shard, which is read once, in batches of about 2^17 rows.

    Raises:
        ValueError: what `pope_align.ope.evaluate_shards` refuses, with file and row.
    """
    whole: BatchSums | None = None
    edges: list[Rows] = []
    for is_edge, rows in read_shard(path, request.columns, request.policies):
        _check_scores(rows, request)
        if is_edge:
            edges.append(rows)
        else:
            whole = _merged(whole, BatchSums.of(rows, request, whole))
    return LogSums(whole, Edges.of_shard(edges))


def _merged(mine: BatchSums | None, theirs: BatchSums | None) -> BatchSums | None:
    if mine is None or theirs is None:
        return theirs if mine is None else mine
    return mine.merge(theirs)


def _check_scores(rows: Rows, request: OnePass) -> None:
    low, high = request.calibration.least, request.calibration.most
    fine = (rows.scores >= low) & (rows.scores <= high)
    if not fine.all():
        at = int(fine.argmin())
        raise ValueError(
            f"{rows.place(at)}: {request.columns.score}: expected a number in the score_range [{low:g}, {high:g}], got "
            f"{rows.scores[at]:g}"
        )


def _log(rows: Rows, request: OnePass) -> LoggedSlates:
    """A batch in the form that the estimators read; its rows are checked."""
    return LoggedSlates(
        utility=request.calibration.utilities(rows.scores),
        slate_offsets=rows.slate_offsets,
        logging=PolicyScores(rows.logging, rows.tokens),
        policies={name: PolicyScores(totals, rows.tokens) for name, totals in rows.policies.items()},
        clusters=rows.slate_clusters,
    )


def _weights(log: LoggedSlates, *, length_normalize: bool) -> list[Floats]:
    return [log_weights(log, name, "response", length_normalize=length_normalize) for name in log.policies]


def _sum_of_hashes(*columns: Any) -> int:
    """A number that names a set of rows, whatever their order."""
    state = np.zeros(columns[0].size, dtype=np.uint64)
    for column in columns:
        bits: Hashes = np.ascontiguousarray(column).view(np.uint64)
        state = mix(state ^ bits)
    with np.errstate(over="ignore"):
        return int(state.sum(dtype=np.uint64))
