"""The paper's figures: envelopes of PL-Score and diversity, and bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..._extras import require
from ..._text import in_figure
from ...metrics.figures import colour, new_figure, plain
from ...metrics.pareto import distance_to_front, hypervolume, pareto_front
from .methods import BASE
from .page import cloud_of, column, data_label, name_of
from .plan import ReproductionPlan
from .results import Point, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(plan: ReproductionPlan, results: Mapping[str, Results]) -> Figure | None:
    """The picture of an experiment; None for a table."""
    shows = plan.request.protocol.shows
    if shows == "envelopes":
        (only,) = results.values()
        return envelopes(only)
    if shows == "bars":
        return bars(plan, results)
    return None


def envelopes(results: Results) -> Figure:
    """A panel per method at temperature 1: a point per prompt and seed, the Pareto envelope, and how near the points
    lie to it.
    """
    points = [point for point in results.points if point[1] == 1]
    columns = min(len(points), 4)
    rows = -(-len(points) // columns)
    figure = new_figure(3.4 * columns, 3.4 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for at, (axis, point) in enumerate(zip(axes.flat, points)):
        cloud = cloud_of(results, point)
        axis.scatter(cloud[:, 0], cloud[:, 1], s=14, color=colour(at), alpha=0.6, linewidths=0)
        edge = cloud[pareto_front(cloud)]
        edge = edge[np.argsort(edge[:, 0])]
        axis.step(edge[:, 0], edge[:, 1], where="pre", color="black", linewidth=1.2)
        near = float(np.nanmean(distance_to_front(cloud)))
        axis.set_title(f"{in_figure(name_of(point))}\nvolume {hypervolume(cloud):.3f}, distance {near:.3f}", fontsize=9)
        axis.set_xlabel("PL-Score", fontsize=8)
        _plain(axis)
    for axis in axes.flat[len(points) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylabel("Diversity", fontsize=8)
    return figure


def bars(plan: ReproductionPlan, results: Mapping[str, Results]) -> Figure:
    """A panel per data set and metric, a bar per method at temperature 1."""
    metrics = plan.request.protocol.metrics
    figure = new_figure(2.8 * len(metrics), 2.8 * len(results) + 0.8)
    axes = figure.subplots(len(results), len(metrics), squeeze=False)
    names: dict[Point, None] = {}
    for row, (data, of) in zip(axes, results.items()):
        shown = [point for point in of.points if point[1] == 1]
        names.update(dict.fromkeys(shown))
        for axis, metric in zip(row, metrics):
            _panel(axis, of, shown, metric)
            axis.set_title(f"{column(plan, metric)}\n{in_figure(data_label(plan, data))}", fontsize=9)
    patches = require("matplotlib.patches", extra="train", purpose="to draw figures")
    handles = [patches.Patch(color=colour(at), label=in_figure(name_of(point))) for at, point in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8)
    return figure


def _panel(axis: Axes, results: Results, points: list[Point], metric: str) -> None:
    for at, point in enumerate(points):
        mean = results.mean(point, metric)
        if np.isnan(mean.value):
            axis.text(at, 0, "n/a", ha="center", va="bottom", fontsize=7, color="grey")
            continue
        hatch = "//" if point[0] == BASE else None
        axis.bar(at, mean.value, color=colour(at), width=0.7, hatch=hatch)
        if not np.isnan(mean.low):
            reach = [[max(mean.value - mean.low, 0)], [max(mean.high - mean.value, 0)]]
            axis.errorbar(at, mean.value, yerr=reach, color="black", capsize=2, linewidth=1)
    axis.set_xticks([])
    _plain(axis)


def _plain(axis: Axes) -> None:
    plain(axis)
    axis.tick_params(labelsize=8)
