"""The picture of the study: error by log and slate size, coverage by verdict, and where the verdicts change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHOWN = {
    "snips": "#0072B2",
    "dr": "#009E73",
    "slate_snips": "#D55E00",
    "slate_ips": "#E69F00",
    "pseudo_inverse": "#CC79A7",
    "clipped_ips": "#56B4E9",
    "snips, length-normalised": "#000000",
}
_VERDICTS = {"reliable": "#009E73", "caution": "#E69F00", "refuse": "#D55E00"}
_NOMINAL = 0.95


def study_figure(summary: dict[str, Any]) -> Figure:
    figure_module = require("matplotlib.figure", extra="train", purpose="to draw figures")
    figure: Figure = figure_module.Figure(figsize=(13, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    cells = summary["cells"]
    _lines(axes[0, 0], cells, "slates", {"target": "tuned 4", "size": 4}, "slates in the log")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    _lines(axes[0, 1], cells, "size", {"target": "tuned 4", "slates": 1000}, "responses in a slate k")
    _coverage(axes[1, 0], summary["estimators"])
    _verdicts(axes[1, 1], summary)
    return figure


def _lines(axes: Axes, cells: list[dict[str, Any]], by: str, fixed: dict[str, Any], label: str) -> None:
    for name, colour in _SHOWN.items():
        mine = [cell for cell in cells if cell["estimator"] == name and all(cell[key] == fixed[key] for key in fixed)]
        style = "--" if "length" in name else "-"
        axes.plot([c[by] for c in mine], [c["rmse"] for c in mine], style, marker="o", ms=4, color=colour, label=name)
    axes.set_xscale("log", base=10 if by == "slates" else 2)
    axes.set_yscale("log")
    ticks = sorted({cell[by] for cell in cells})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("root mean squared error of V")
    axes.set_title(", ".join(f"{key}: {value}" for key, value in fixed.items()), fontsize=10)
    axes.grid(alpha=0.3)


def _coverage(axes: Axes, estimators: dict[str, Any]) -> None:
    """Points of estimators that had the verdict often enough."""
    names = list(estimators)
    for offset, (verdict, colour) in zip((-0.22, 0, 0.22), _VERDICTS.items()):
        rows = [i for i, name in enumerate(names) if estimators[name][verdict]["share"] >= 0.01]
        shown = [estimators[names[i]][verdict]["covered"] for i in rows]
        axes.plot(shown, np.array(rows) + offset, "o", color=colour, label=verdict)
    axes.axvline(_NOMINAL, color="grey", linewidth=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of 95% intervals that hold the truth")
    axes.set_title("Coverage by verdict", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower left")
    axes.grid(axis="x", alpha=0.3)


def _verdicts(axes: Axes, summary: dict[str, Any]) -> None:
    """Logs of 1,000 slates: shares of verdicts by target and slate size."""
    targets = sorted(summary["targets"], key=lambda name: summary["targets"][name]["chi_squared"])
    rows = [("snips", 4)] + [("slate_snips", size) for size in (2, 4, 8)]
    names, left = [], np.zeros(len(targets) * len(rows))
    shares: dict[str, list[float]] = {verdict: [] for verdict in _VERDICTS}
    for target in targets:
        for estimator, size in rows:
            (cell,) = (
                c
                for c in summary["cells"]
                if (c["target"], c["estimator"], c["size"], c["slates"]) == (target, estimator, size, 1000)
            )
            names.append(f"{target}  {estimator} k={size}")
            for verdict in _VERDICTS:
                shares[verdict].append(cell[verdict])
    for verdict, colour in _VERDICTS.items():
        axes.barh(names, shares[verdict], left=left, color=colour)
        left += shares[verdict]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6.5)
    axes.margins(y=0.01)
    axes.set_xlabel("share of logs (green: reliable, yellow: caution, red: refuse)")
    axes.set_title("Verdicts on logs of 1,000 slates, nearest target first", fontsize=10)
