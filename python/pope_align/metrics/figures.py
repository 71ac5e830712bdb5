"""The two pictures of a report: metrics with their intervals, and PL-Score against diversity (the paper's Figure 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .._arrays import Floats
from .._extras import require
from .._text import in_figure
from .pareto import pareto_front
from .registry import BY_NAME
from .summary import MetricsReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of models, distinguishable without red-green vision (Okabe & Ito 2008).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def bars(report: MetricsReport) -> Figure:
    """A panel per metric, a bar per model, with the bootstrap interval."""
    names = report.metrics
    columns = min(len(names), 5)
    rows = -(-len(names) // columns)
    figure = new_figure(2.6 * columns, 2.5 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False)
    models = [table.model for table in report.tables]
    for axis, name in zip(axes.flat, names):
        _bar_panel(axis, report, name, models)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    patches = require("matplotlib.patches", extra="train", purpose="to draw figures")
    handles = [patches.Patch(color=colour(at), label=in_figure(model)) for at, model in enumerate(models)]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(models), 4), frameon=False)
    return figure


def pareto(report: MetricsReport) -> Figure:
    """PL-Score against diversity, a point per slate, with the Pareto envelope."""
    count = len(report.tables)
    figure = new_figure(3.8 * count + 0.6, 3.8)
    axes = figure.subplots(1, count, squeeze=False, sharex=True, sharey=True)
    for at, (axis, table) in enumerate(zip(axes.flat, report.tables)):
        points = np.stack([table.values["pl_score"], table.values["diversity"]], axis=1)
        axis.scatter(points[:, 0], points[:, 1], s=16, color=colour(at), alpha=0.6, linewidths=0)
        edge = _staircase(points[pareto_front(points)])
        axis.plot(edge[:, 0], edge[:, 1], color="black", linewidth=1.2, label="Pareto envelope")
        axis.fill_between(edge[:, 0], edge[:, 1], color=colour(at), alpha=0.08, linewidth=0)
        axis.plot(*np.nanmean(points, axis=0), marker="+", markersize=12, color="black", linestyle="", label="mean")
        axis.set_title(f"{in_figure(table.model)}\nhypervolume {report.hypervolumes[table.model]:.3f}", fontsize=10)
        axis.set_xlabel("PL-Score")
        plain(axis)
    _show_points(axes[0, 0], report)
    axes[0, 0].set_ylabel("Diversity")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return figure


def colour(at: int) -> str:
    """The colour of the model with this index."""
    return COLOURS[at % len(COLOURS)]


def new_figure(width: float, height: float) -> Figure:
    """A figure outside of pyplot."""
    module = require("matplotlib.figure", extra="train", purpose="to draw figures")
    figure: Figure = module.Figure(figsize=(width, height), layout="constrained")
    return figure


def _bar_panel(axis: Axes, report: MetricsReport, name: str, models: list[str]) -> None:
    metric = BY_NAME[name]
    for at, model in enumerate(models):
        estimate = report.estimates[model].get(name)
        if estimate is None or np.isnan(estimate.value):
            axis.text(at, 0, "n/a", ha="center", va="bottom", fontsize=8, color="grey")
            continue
        axis.bar(at, estimate.value, color=colour(at), width=0.7)
        if not np.isnan(estimate.low):
            reach = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axis.errorbar(at, estimate.value, yerr=np.maximum(reach, 0), color="black", capsize=3, linewidth=1)
    axis.set_title(metric.arrow, fontsize=9)
    axis.set_xticks([])
    axis.set_xlim(-0.6, len(models) - 0.4)
    axis.axhline(0, color="black", linewidth=0.6)
    if axis.get_ylim()[0] < 0 < axis.get_ylim()[1] and not any(patch.get_extents().height for patch in axis.patches):
        axis.set_ylim(0, 1)  # all zero: matplotlib would centre it
    axis.tick_params(labelsize=8)
    plain(axis)


def _show_points(axis: Axes, report: MetricsReport) -> None:
    """Limits around all points and zero, from which the hypervolume is measured; the panels share them."""
    for name, limits in (("pl_score", axis.set_xlim), ("diversity", axis.set_ylim)):
        values = np.concatenate([table.values[name] for table in report.tables])
        if not np.isnan(values).all():
            low, high = min(0.0, float(np.nanmin(values))), max(0.0, float(np.nanmax(values)))
            margin = 0.05 * (high - low) or 0.05
            limits(low - margin * (low < 0), high + margin)


def _staircase(front: Floats) -> Floats:
    """The corners of the area that the front dominates, from the left axis to the lower one."""
    front = front[np.lexsort((-front[:, 1], front[:, 0]))]
    if not len(front):
        return np.zeros((0, 2))
    corners = [(0.0, front[0, 1])]
    for (x, y), below in zip(front, [*front[1:, 1], 0.0]):
        corners += [(x, y), (x, below)]
    return np.array(corners)


def plain(axis: Axes) -> None:
    """No frame above and to the right."""
    axis.spines[["top", "right"]].set_visible(False)
