"""`evaluate_shards`: evaluates policies from Parquet shards that are read once and never held."""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np

from pope_core.objective import Objective, Weighting, weighs_slates

from ...stats.intervals import Confidence, Quantity, quantities
from ...stats.moments import Moments
from ...stats.ratio_sums import RatioSums
from ..comparison import compare
from ..diagnostics import Diagnostics, distance_from_one
from ..direction import DirectionIndex, direction_index
from ..estimators import METHODS, weighted_estimate
from ..evaluation import Evaluation
from ..log import SAME_POLICY
from ..logging_policies import LoggingOrigin, LoggingSource, WrittenBy
from ..placebo import Placebo
from ..pope import is_weighted_mean, pope_estimate
from ..result import Estimate
from ..slope import bias_bound_of
from ..utility import UtilityScale, calibration
from .request import OnePass
from .shards import Columns, parquet_files, rows_and_score_range
from .sums import BatchSums, LogSums, read_sums


def evaluate_shards(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    policies: Mapping[str, str],
    *,
    columns: Columns = Columns(),  # noqa: B008 (frozen)
    objective: Objective = Objective.evaluation(),  # noqa: B008 (frozen)
    baseline: str | None = None,
    estimators: Sequence[str] | None = None,
    lam: float | None = None,
    utility_transform: Literal["calibrated", "log1p_calibrated"] = "calibrated",
    score_range: tuple[float, float] | None = None,
    how: LoggingOrigin = "unknown",
    written_by: WrittenBy = "unknown",
    confidence: Confidence = Confidence(),  # noqa: B008 (frozen)
    workers: int = 1,
) -> Evaluation:
    """`evaluate_policies` for a log of any size: Parquet shards with one row per response, read once.

    Memory does not grow with the log. Rows are sorted by query, over all shards; a query may begin in one shard and end
    in the next. Values, standard errors and diagnostics are those of `evaluate_policies` up to rounding; docs/scale.md
    lists what differs.

    Args:
        paths: files, or folders whose ``.parquet`` files are read.
        policies: by name, the column of the policy's total log-probabilities of the responses.
        columns: the names of the other columns.
        objective, baseline, estimators, lam, confidence: as in `evaluate_policies`; without reward models and fresh
            responses, and shrinking estimators need ``lam``.
        utility_transform: one map for the whole log.
        score_range: declared least and greatest score. None: 0 and 1, or those of the log, which the files' footers
            contain (the column is read for them if not).
        how, written_by: as in `LoggedSlates.from_arrays`.
        workers: processes that read shards at the same time.

    Raises:
        ValueError: an invalid argument or number, with file and row; rows that are not sorted; what cannot be done in
            one pass, by name.

    Source: docs/scale.md.
    """
    files = parquet_files(paths)
    if utility_transform not in ("calibrated", "log1p_calibrated"):
        raise ValueError(
            "utility_transform: expected 'calibrated' or 'log1p_calibrated' in one pass, got "
            f"{utility_transform!r}; scale the scores when the files are written"
        )
    if workers < 1:
        raise ValueError(f"workers: expected an integer >= 1, got {workers!r}")
    _, least, most = rows_and_score_range(files, columns.score)
    request = OnePass(
        policies=dict(policies),
        calibration=calibration(score_range, least, most, logarithmic=utility_transform == "log1p_calibrated"),
        columns=columns,
        objective=objective,
        baseline=baseline,
        estimators=None if estimators is None else tuple(estimators),
        lam=lam,
        confidence=confidence,
        how=how,
        written_by=written_by,
    )
    return evaluation_of(reduce(LogSums.merge, _read(files, request, workers)), request)


def _read(files: Sequence[str], request: OnePass, workers: int) -> Iterator[LogSums]:
    if workers == 1 or len(files) == 1:
        yield from (read_sums(file, request) for file in files)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy the locks of other threads
    with ProcessPoolExecutor(min(workers, len(files)), mp_context=fresh) as pool:
        yield from pool.map(read_sums, files, [request] * len(files))


def evaluation_of(sums: LogSums, request: OnePass) -> Evaluation:
    """The evaluation of everything that was read.

    Raises:
        ValueError: shards that overlap, or fewer than two queries.
    """
    total = sums.total(request)
    log = LogSummary(total, request)
    names, every, baseline = list(request.policies), request.every, request.reference
    with np.errstate(over="ignore", invalid="ignore"):
        estimates = {(name, each): _estimate(log, name, each) for name in names for each in every}
        comparisons = [
            compare(
                estimates[name, every[0]],
                estimates[baseline, every[0]],
                placebo=_placebo(log, name, baseline, every[0]),
            )
            for name in names
            if name != baseline
        ]
        indices = [index for name in names if name != baseline for index in _indices(log, name, baseline)]
    return Evaluation(
        estimates=tuple(estimates.values()),
        comparisons=tuple(comparisons),
        indices=tuple(indices),
        baseline=baseline,
        objective=request.objective,
        log=log,
    )


@dataclass(frozen=True, eq=False)
class LogSummary:
    """The facts of a log that was read in one pass (`LogFacts`), with its sums."""

    sums: BatchSums
    request: OnePass

    rescored_gap = None
    in_sample = 0

    @property
    def num_responses(self) -> int:
        return self.sums.responses

    @property
    def num_slates(self) -> int:
        return self.sums.slates

    @property
    def num_clusters(self) -> int:
        return self.sums.moments.count

    @property
    def scale(self) -> UtilityScale:
        return self.request.calibration.scale

    @property
    def utility_range(self) -> tuple[float, float]:
        return self.scale.range

    @property
    def how(self) -> LoggingOrigin:
        return self.request.how

    @property
    def written_by(self) -> WrittenBy:
        return self.request.written_by

    @property
    def sources(self) -> tuple[LoggingSource, ...]:
        return (LoggingSource({"how": self.how}, self.num_slates),)

    @property
    def fresh(self) -> Mapping[str, Any]:
        return {}

    @property
    def logging_provenance(self) -> Mapping[str, Any]:
        return {}

    @property
    def fingerprint(self) -> str:
        return f"{self.sums.log_hash:016x}"

    @property
    def clusters_fingerprint(self) -> str:
        return f"{self.sums.cluster_hash:016x}"

    def provenance(self, policy: str) -> Mapping[str, Any] | None:
        return None

    def provenances(self) -> Mapping[str, Mapping[str, Any]]:
        return {name: {} for name in self.request.policies}

    def utilities_equal(self) -> float | None:
        return self.sums.low if self.sums.low == self.sums.high else None

    def equal_within_slates(self) -> bool:
        raise NotImplementedError("one pass has no utilities relative to their slate")

    def is_logging_policy(self, policy: str) -> bool:
        return self.sums.policies[policy].gap < SAME_POLICY

    def column(self, *name: str) -> int:
        """The index of a column of the moments."""
        return self.sums.names.index(name)

    def ratio(self, *name: str, parts: Sequence[str] = ("utility", "diversity")) -> RatioSums:
        """Numerators over their mass."""
        return RatioSums.of(self.sums.moments, [self.column(*name, part) for part in parts], self.column(*name, "mass"))


def _estimate(log: LogSummary, policy: str, estimator: str) -> Estimate:
    request = log.request
    shrink = request.shrink(estimator)
    parts = log.ratio("part", policy, estimator, str(shrink is not None))
    unshrunk = None if shrink is None else log.ratio("part", policy, estimator, str(False))
    diagnostics = _diagnostics(log, policy, estimator)
    if estimator == "pope":
        return pope_estimate(
            log,
            policy,
            parts,
            diagnostics,
            objective=request.objective,
            confidence=request.confidence,
            unshrunk=unshrunk,
        )
    return weighted_estimate(
        log,
        policy,
        estimator,
        parts,
        diagnostics,
        objective=request.objective,
        confidence=request.confidence,
        lam=request.lam if METHODS[estimator].shrink else None,
        shrink=shrink,
        unshrunk=unshrunk,
        chosen=_chosen(log, policy, estimator),
    )


def _chosen(log: LogSummary, policy: str, estimator: str) -> dict[str, float]:
    shrink, spec = log.request.shrink(estimator), METHODS[estimator]
    if shrink is None:
        return {}
    chosen = {"lam": shrink.lam}
    if spec.plain_mean and spec.weighs == "response":
        weights = log.sums.policies[policy].weights["response"]
        unit = _exp(weights.top)
        removed = float(weights.removed[weights.shrinks.index(shrink)]) * unit / weights.count
        mean_square = weights.second * unit * unit / weights.count
        chosen["utility_bias_bound"] = bias_bound_of(removed, mean_square, unit, weights.count)
    return chosen


def _diagnostics(log: LogSummary, policy: str, estimator: str) -> Diagnostics:
    """`pope_align.ope.diagnose`, from sums."""
    request, of_policy = log.request, log.sums.policies[policy]
    weighting, shrink = request.weighting(estimator), request.shrink(estimator)
    weights, moments = of_policy.weights[weighting], log.sums.moments
    at = log.column("weight", policy, weighting)
    clip = 0.0 if shrink is None else float(weights.touched[weights.shrinks.index(shrink)]) / weights.count
    return Diagnostics(
        weighting=weighting,
        num_weights=weights.count,
        ess=weights.ess,
        response_ess=of_policy.weights["response"].ess,
        slate_ess=of_policy.weights["slate"].ess,
        cluster_ess=float(moments.totals[at] ** 2 / moments.squares[at]),
        max_share=1 / weights.first if weights.first else math.nan,
        top_percent_share=weights.top_percent_share,
        pareto_k=weights.pareto_k,
        mean_weight=_exp(weights.top) * weights.first / weights.count,
        mean_weight_z=math.nan if request.objective.length_normalize else _mean_weight_z(log, at, weighting),
        log_weight_max=weights.top,
        log_weight_max_place=weights.place,
        length_correlation=_correlation(of_policy.lengths),
        target_coverage=of_policy.surprise.coverage,
        clip_fraction=clip,
        sequence_ess=of_policy.sequences.ess,
    )


def _mean_weight_z(log: LogSummary, weights: int, weighting: Weighting) -> float:
    moments = log.sums.moments
    counts = log.column("slates" if weighs_slates(weighting) else "responses")
    mean = RatioSums.of(moments, [weights], counts)
    return distance_from_one(
        float(mean.values()[0]), math.sqrt(float(mean.covariance()[0, 0])), float(moments.scales[weights])
    )


def _correlation(lengths: Moments | None) -> float:
    if lengths is None:
        return math.nan
    second = lengths.covariance(np.eye(2))
    scale = math.sqrt(second[0, 0] * second[1, 1])
    return float(second[0, 1] / scale) if scale > 0 else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _placebo(log: LogSummary, policy: str, baseline: str, estimator: str) -> Placebo | None:
    """Where V_CU is linear in the utilities."""
    objective = log.request.objective
    if not (is_weighted_mean(objective) if estimator == "pope" else METHODS[estimator].weighted_mean):
        return None
    names = list(log.request.policies)
    return log.sums.gains.placebo(names.index(policy), names.index(baseline), of_loss=True)


def _indices(log: LogSummary, policy: str, baseline: str) -> Iterator[DirectionIndex]:
    """The length-normalised index. A tempered one needs its power, which is known after the pass."""
    of_policy, of_baseline = log.sums.policies[policy], log.sums.policies[baseline]
    if of_policy.index is None or log.sums.index_gains is None:
        return
    if -math.inf in (of_policy.sequences.top, of_baseline.sequences.top):  # every weight is 0
        return
    names, confidence = list(log.request.policies), log.request.confidence
    mine, theirs = (log.ratio("index", name, parts=("utility",)) for name in (policy, baseline))
    yield direction_index(
        log,
        policy,
        baseline,
        "length-normalised",
        quantities(mine.minus(theirs), confidence)[0],
        log.sums.index_gains.placebo(names.index(policy), names.index(baseline), of_loss=False),
        ess=of_policy.index.ess,
        sequence_ess=of_policy.sequences.ess,
        ranks=_ranks(log, policy),
    )


def _ranks(log: LogSummary, policy: str) -> Quantity | None:
    if log.sums.moments.totals[log.column("rank", policy, "mass")] == 0:
        return None
    return quantities(log.ratio("rank", policy, parts=("utility",)), log.request.confidence)[0]
