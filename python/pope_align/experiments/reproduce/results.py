"""Results of an experiment on one data set: means over seeds and prompts, intervals, paired differences, fronts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..._arrays import Floats, Integers
from ..._extras import require
from ...metrics.pareto import dominated_volume
from ...metrics.registry import BY_NAME
from ...stats.bootstrap import resampled_sums
from ...stats.clusters import codes_of
from ...stats.intervals import Quantity
from .methods import AGAIN, BASE
from .plan import Measured

#: Of the bootstrap: all methods and experiments have the same draws.
_SEED = 0

#: The goals of the front: all are better when larger.
GOALS = ("pl_score", "coverage", "diversity")

#: Standard errors of the smallest difference that a two-sided test at 5% detects with 80% power.
DETECTABLE = 1.96 + 0.84

#: Fluency is measured by a stage of its own; everything else is a metric of the registry.
FLUENCY = "fluency"

#: One method at one temperature.
Point = tuple[str, float]


@dataclass(frozen=True)
class _Mean:
    """A mean, and its bootstrap draws."""

    value: float
    draws: Floats  # [B]


class Results:
    """The measurements of one data set.

    Intervals are percentiles of a bootstrap that draws prompts (slates of one prompt together) and, where there are
    several, varies the seeds; every method sees the same draws, so differences are paired. With one seed they are over
    prompts only. Resampling three seeds would cover 76% instead of 95%: it knows neither that their spread is
    underestimated nor how badly, so the seeds' weights vary as a t interval requires (`_seeds`).

    Args:
        values: by method and temperature, by metric: ``[S, Q]``, a row per seed; NaN where undefined.
        prompts: ``[Q]`` the cluster of every slate.
        draws: of the bootstrap.
    """

    def __init__(self, values: Mapping[Point, Mapping[str, Floats]], prompts: Sequence[str], *, draws: int) -> None:
        self.values, self.draws = values, draws
        distinct, self.clusters = codes_of(list(prompts))
        self.count = len(distinct)
        self._means: dict[tuple[Point, str], _Mean] = {}

    @property
    def points(self) -> list[Point]:
        """Methods and temperatures, as they were given."""
        return list(self.values)

    def metrics(self, point: Point) -> Mapping[str, Floats]:
        return self.values[point]

    def mean(self, point: Point, metric: str) -> Quantity:
        """The mean of a metric."""
        of = self._mean(point, metric)
        return _quantity(of.value, of.draws)

    def difference(self, point: Point, other: Point, metric: str) -> Quantity:
        """The mean of a metric minus that of another point, on the slates where both are defined."""
        left, right = self.values[point].get(metric), self.values[other].get(metric)
        if left is None or right is None:
            return Quantity(math.nan, math.nan, math.nan, math.nan)
        both = ~np.isnan(left).all(0) & ~np.isnan(right).all(0)
        a, b = (self._of(np.where(both, values, np.nan)) for values in (left, right))
        return _quantity(a.value - b.value, a.draws - b.draws)

    def best_base(self, metric: str) -> Point:
        """The temperature at which the base is best in a metric, on these same prompts: an advantage for the base."""
        sign = -1 if better_side(metric) == "lower" else 1
        base = [point for point in self.points if point[0] == BASE]
        return max(base, key=lambda point: sign * self._mean(point, metric).value)

    def beyond(self, method: str) -> Quantity:
        """The volume of `GOALS` that a method dominates beyond what the base does over all its temperatures.

        Never negative, so noise alone gives some: compare it with that of the base sampled again (`beyond_again`).
        """
        of = self._beyond(method)
        return _quantity(of.value, of.draws)

    def beyond_again(self, method: str) -> Quantity:
        """`beyond`, minus that of a second sample of the base."""
        return self.beyond_other(method, AGAIN)

    def beyond_other(self, method: str, other: str) -> Quantity:
        """`beyond`, minus that of another method."""
        a, b = self._beyond(method), self._beyond(other)
        return _quantity(a.value - b.value, a.draws - b.draws)

    def _beyond(self, method: str) -> _Mean:
        base, more = (self._goals(name) for name in (BASE, method))
        return _Mean(
            float(_gain(base[0], more[0])),
            _gain(base[1], more[1]),
        )

    def _goals(self, method: str) -> tuple[Floats, Floats]:
        """The points of a method in the goals: ``[n, 3]``, and their draws ``[B, n, 3]``."""
        points = [point for point in self.points if point[0] == method]
        means = [[self._mean(point, goal) for goal in GOALS] for point in points]
        values = np.array([[each.value for each in row] for row in means])
        return values, np.stack([np.stack([each.draws for each in row], axis=-1) for row in means], axis=1)

    def _mean(self, point: Point, metric: str) -> _Mean:
        if (point, metric) not in self._means:
            values = self.values[point].get(metric)
            nothing = _Mean(math.nan, np.full(self.draws, np.nan))
            self._means[point, metric] = nothing if values is None else self._of(values)
        return self._means[point, metric]

    def _of(self, values: Floats) -> _Mean:
        known = ~np.isnan(values)
        filled = np.where(known, values, 0.0)
        value = float(filled.sum() / known.sum()) if known.any() else math.nan
        sums, sizes = (_by_cluster(each, self.clusters, self.count) for each in (filled, known.astype(float)))
        totals, counts = (resampled_sums(each, "bootstrap", self.draws, _SEED) for each in (sums, sizes))
        if len(values) > 1:
            chosen = self._seeds(len(values))
            totals, counts = totals * chosen, counts * chosen
        total, count = totals.sum(1), counts.sum(1)
        draws = np.divide(total, count, out=np.full(self.draws, np.nan), where=count > 0)
        return _Mean(value, draws if (sizes.sum(1) > 0).sum() > 1 else np.full(self.draws, np.nan))

    def _seeds(self, count: int) -> Floats:
        """``[B, S]`` weights of the seeds, with sum S, the same for all methods.

        ``1 + f (g_s - mean g)`` with normal ``g`` and ``f = sqrt(S / (S - 1)) t / z``, t and z the 97.5% quantiles of
        t with S - 1 degrees and of the normal distribution: where only seeds vary, the percentiles are a t interval.
        """
        special = require("scipy.special", extra="train", purpose="for intervals over seeds")
        factor = math.sqrt(count / (count - 1)) * float(special.stdtrit(count - 1, 0.975) / special.ndtri(0.975))
        g = np.random.default_rng([_SEED, count]).standard_normal((self.draws, count))
        return np.asarray(1 + factor * (g - g.mean(1, keepdims=True)))


def _quantity(value: float, draws: Floats) -> Quantity:
    """A value with the percentile interval of its draws; one without draws has no interval."""
    known = draws[~np.isnan(draws)]
    if math.isnan(value) or len(known) < 2:
        return Quantity(value, math.nan, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Quantity(value, float(known.std(ddof=1)), float(low), float(high))


def better_side(metric: str) -> str | None:
    """ "higher", "lower", or None."""
    return "lower" if metric == FLUENCY else BY_NAME[metric].better


def column_label(metric: str) -> str:
    """The label of a metric with an arrow to its better side."""
    return "Nats per token of a third model ↓" if metric == FLUENCY else BY_NAME[metric].arrow


def digits(metric: str) -> int:
    """Decimal places of a metric in tables."""
    return 3 if metric == FLUENCY else BY_NAME[metric].digits


def read_results(
    measured: Iterable[Measured], fluency: Mapping[tuple[str, str, int], Path], data: str, *, draws: int
) -> Results:
    """Results of one data set from the tables of ``pope metrics`` and the files of ``pope step fluency``."""
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    mine = [each for each in measured if each.data == data]
    tables = {
        each: [
            row
            for row in parquet.read_table(each.folder / "per_slate.parquet").to_pylist()
            if row["model"] == each.name
        ]
        for each in mine
    }
    prompts = {row["key"]: row["prompt"] for rows in tables.values() for row in rows}
    keys = list(prompts)
    runs: dict[Point, dict[int, dict[str, Floats]]] = {}
    for each, rows in tables.items():
        by_key = {row["key"]: row for row in rows}
        names = [name for name in BY_NAME if name in rows[0]]
        columns = {name: _column([by_key.get(key, {}).get(name) for key in keys]) for name in names}
        path = fluency.get((data, each.method, each.seed))
        if path is not None and each.temperature == 1:
            known = {row["key"]: row["nats_per_token"] for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
            columns[FLUENCY] = _column([known.get(key) for key in keys])
        runs.setdefault((each.method, each.temperature), {})[each.seed] = columns
    values = {
        point: {name: np.stack([seeds[seed][name] for seed in sorted(seeds)]) for name in seeds[min(seeds)]}
        for point, seeds in runs.items()
    }
    return Results(values, [prompts[key] for key in keys], draws=draws)


def _column(values: Sequence[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _by_cluster(values: Floats, clusters: Integers, count: int) -> Floats:
    """``[S, Q] -> [C, S]`` sums."""
    return np.stack([np.bincount(clusters, row, count) for row in values], axis=1)


def _gain(base: Floats, more: Floats) -> Floats:
    """``[..., n, 3], [..., m, 3] -> [...]``: the volume that ``more`` adds."""
    return dominated_volume(np.concatenate([base, more], axis=-2)) - dominated_volume(base)
