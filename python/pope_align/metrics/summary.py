"""Summarises metrics per model: means with bootstrap intervals over prompts, and paired differences."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .._arrays import Floats, Integers
from .._extras import require
from .._files import replacing, write_text
from .._files import write_json as write_json_file
from .._json import jsonable
from ..stats.bootstrap import resampled_sums
from ..stats.clusters import codes_of
from .evaluate import PromptMetrics
from .pareto import hypervolume
from .registry import BY_NAME


@dataclass(frozen=True, slots=True)
class MeanOverPrompts:
    """A mean over slates. ``low`` and ``high`` are NaN with fewer than two clusters."""

    value: float
    low: float
    high: float
    n: int  # slates where the metric is defined
    undefined: int  # slates where it is not

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ModelDifference:
    """Model ``b`` minus model ``a`` on the slates that both answered."""

    a: str
    b: str
    differences: dict[str, MeanOverPrompts]
    better: dict[str, float]  # share of slates where b is better, of metrics with a better side; ties half


@dataclass(frozen=True)
class MetricsReport:
    """What `pope metrics` shows and writes."""

    tables: list[PromptMetrics]
    estimates: dict[str, dict[str, MeanOverPrompts]]  # model -> metric
    comparisons: list[ModelDifference]  # every later model against the first
    hypervolumes: dict[str, float]  # of (PL-Score, diversity) per slate, above (0, 0)
    level: float
    draws: int
    seed: int
    options: dict[str, Any]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that any model has, in the order of the table."""
        return [name for name in BY_NAME if any(name in of for of in self.estimates.values())]

    def to_json(self) -> dict[str, Any]:
        """JSON object; undefined values are null."""
        content = {
            "options": self.options,
            "interval": {"level": self.level, "draws": self.draws, "seed": self.seed, "unit": "cluster"},
            "models": {
                table.model: {
                    "slates": len(table.keys),
                    "prompts": len(set(table.prompts)),
                    "clusters": len(codes_of(table.drawn)[0]),
                    "answers": table.answers,
                    "empty_answers": table.empty,
                    "unanswered_slates": table.unanswered,
                    "unmatched_generations": table.unmatched,
                    "settings": table.settings,
                    "hypervolume": self.hypervolumes[table.model],
                    "metrics": {name: asdict(estimate) for name, estimate in self.estimates[table.model].items()},
                }
                for table in self.tables
            },
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "readings": {name: BY_NAME[name].to_dict() for name in self.metrics},
        }
        cleaned: dict[str, Any] = jsonable(content)
        return cleaned


def summarize(
    tables: Sequence[PromptMetrics],
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> MetricsReport:
    """Means, percentile-bootstrap intervals and paired differences of one or more models.

    Clusters are drawn, not slates: slates that share a prompt (or the ``cluster`` of `evaluate_generations`) are
    resampled together. Every draw recomputes the mean over the drawn clusters' slates; all models and metrics see
    the same draws.

    Args:
        draws: of the bootstrap.
        level: of the intervals.
        options: written into the report.

    Raises:
        ValueError: no table, two of one name, ``draws`` or ``level`` out of range.
    """
    if not tables:
        raise ValueError("tables: expected at least one model, got none")
    names = [table.model for table in tables]
    if len(set(names)) < len(names):
        raise ValueError(f"tables: expected models of different names, got {', '.join(names)}")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws, level: expected an integer >= 1 and a number in (0, 1), got {draws} and {level}")
    distinct, codes = codes_of([cluster for table in tables for cluster in table.drawn])
    bootstrap = _Bootstrap(len(distinct), draws, level, seed)
    clusters = dict(zip(names, np.split(codes, np.cumsum([len(table.drawn) for table in tables])[:-1]), strict=True))
    return MetricsReport(
        tables=list(tables),
        estimates={table.model: bootstrap.means(table.values, clusters[table.model]) for table in tables},
        comparisons=[_compare(tables[0], table, clusters[table.model], bootstrap) for table in tables[1:]],
        hypervolumes={
            table.model: hypervolume(np.stack([table.values["pl_score"], table.values["diversity"]], axis=1))
            for table in tables
        },
        level=level,
        draws=draws,
        seed=seed,
        options=dict(options or {}),
    )


def write_prompt_metrics(tables: Sequence[PromptMetrics], path: str | os.PathLike[str]) -> None:
    """One row per model and slate, ``.parquet``: model, key, prompt, and a column per metric (null: not defined)."""
    pa = require("pyarrow", extra="train", purpose="to write Parquet files")
    parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
    names = [name for name in BY_NAME if any(name in table.values for table in tables)]
    rows = [
        {
            "model": table.model,
            "key": key,
            "prompt": prompt,
            **{name: jsonable(float(table.values[name][at])) for name in names if name in table.values},
        }
        for table in tables
        for at, (key, prompt) in enumerate(zip(table.keys, table.prompts))
    ]
    kinds = {"model": pa.string(), "key": pa.string(), "prompt": pa.string(), **dict.fromkeys(names, pa.float64())}
    with replacing(path) as partial:
        parquet.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), partial)


def write_covered(tables: Sequence[PromptMetrics], path: str | os.PathLike[str]) -> None:
    """One JSON line per model and slate: model, key, and for every answer the references that it covers, from 0."""
    lines = [
        json.dumps({"model": table.model, "key": key, "covered": covered}) + "\n"
        for table in tables
        for key, covered in zip(table.keys, table.covered, strict=True)
    ]
    write_text(path, "".join(lines))


def write_json(report: MetricsReport, path: str | os.PathLike[str]) -> None:
    """The report as JSON."""
    write_json_file(path, report.to_json(), indent=2)


class _Bootstrap:
    """Clusters are drawn with replacement, the same ones for all models and metrics."""

    def __init__(self, clusters: int, draws: int, level: float, seed: int) -> None:
        self.clusters, self.draws, self.seed = clusters, draws, seed
        self.tails = ((1 - level) / 2, (1 + level) / 2)

    def means(self, values: Mapping[str, Floats], at: Integers) -> dict[str, MeanOverPrompts]:
        """The mean of every column of values; NaN values are left out and counted.

        A draw recomputes each mean over the drawn clusters' slates where the metric is defined.

        Args:
            at: ``[Q]`` the cluster of every slate.
        """
        count = self.clusters
        known = {name: ~np.isnan(column) for name, column in values.items()}
        sums: list[Floats] = [
            np.bincount(at[known[name]], column[known[name]], count).astype(np.float64)
            for name, column in values.items()
        ]
        sizes = [np.bincount(at[mine], minlength=count).astype(np.float64) for mine in known.values()]
        if not values:
            return {}
        drawn = resampled_sums(np.stack([*sums, *sizes], axis=1), "bootstrap", self.draws, self.seed)
        of_column = zip(values, sums, sizes, drawn[:, : len(sums)].T, drawn[:, len(sums) :].T, strict=True)
        return {
            name: self._mean(total, size, drawn_total, drawn_size, int((~known[name]).sum()))
            for name, total, size, drawn_total, drawn_size in of_column
        }

    def _mean(
        self, total: Floats, size: Floats, drawn_total: Floats, drawn_size: Floats, undefined: int
    ) -> MeanOverPrompts:
        n = int(size.sum())
        value = float(total.sum() / n) if n else math.nan
        if (size > 0).sum() < 2:  # fewer than two clusters to draw from
            return MeanOverPrompts(value, math.nan, math.nan, n, undefined)
        some = drawn_size > 0
        low, high = np.quantile(drawn_total[some] / drawn_size[some], self.tails)
        return MeanOverPrompts(value, float(low), float(high), n, undefined)


def _compare(a: PromptMetrics, b: PromptMetrics, clusters: Integers, bootstrap: _Bootstrap) -> ModelDifference:
    place = {key: at for at, key in enumerate(a.keys)}
    pairs = [(place[key], at) for at, key in enumerate(b.keys) if key in place]
    left, right = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    gains = {name: b.values[name][right] - a.values[name][left] for name in a.values if name in b.values}
    better = {}
    for name, difference in gains.items():
        side = BY_NAME[name].better
        if side is None:
            continue
        gain = difference if side == "higher" else -difference
        gain = gain[~np.isnan(gain)]
        better[name] = float(((gain > 0) + 0.5 * (gain == 0)).mean()) if gain.size else math.nan
    return ModelDifference(a.model, b.model, bootstrap.means(gains, clusters[right]), better)
