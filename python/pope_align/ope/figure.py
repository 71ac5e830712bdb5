"""The figure of an evaluation: values with intervals, paired differences, weights, and the effect of slate size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .._arrays import Floats
from .._extras import require
from .._text import in_figure
from .comparison import Comparison
from .diagnostics import effective_sample_size
from .log import LoggedSlates
from .result import Estimate
from .weights import log_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours that colour-blind readers can distinguish (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_FILL = {"reliable": "full", "caution": "left", "index": "bottom", "refuse": "none"}


class _Row(NamedTuple):
    """One interval of a panel."""

    name: str
    value: float
    low: float
    high: float
    verdict: str
    colour: str


def evaluation_figure(
    estimates: Sequence[Estimate], log: LoggedSlates, comparisons: Sequence[Comparison] = ()
) -> Figure:
    """Panels about the estimates of one evaluation and, where policies are compared, what decides: their differences.

    Does not use pyplot.
    """
    figure_module = require("matplotlib.figure", extra="train", purpose="to draw figures")
    rows, pairs = len(estimates), len(comparisons)
    heights = [1 + 0.08 * rows, *([0.4 + 0.08 * pairs] if pairs else []), 1.2]
    height = 6 + 0.16 * rows + (1.2 + 0.16 * pairs if pairs else 0)
    figure: Figure = figure_module.Figure(figsize=(11, height), layout="constrained")
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    policies = dict.fromkeys(each.policy for each in estimates)
    colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(policies)}
    length_normalize = bool(estimates[0].options.get("length_normalize"))
    _values(figure.add_subplot(grid[0, :]), estimates, colours)
    if comparisons:
        _differences(figure.add_subplot(grid[1, :]), comparisons, colours)
    histogram, tail, sizes = (figure.add_subplot(grid[-1, column]) for column in range(3))
    weights = {name: log_weights(log, name, "response", length_normalize=length_normalize) for name in colours}
    _histogram(histogram, weights, colours)
    _tail(tail, weights, colours)
    _slate_sizes(sizes, log, weights, colours)
    return figure


def _values(axes: Axes, estimates: Sequence[Estimate], colours: dict[str, str]) -> None:
    """One row per estimate."""
    rows = [
        _Row(f"{each.policy}  {each.estimator}", each.value, each.low, each.high, each.verdict, colours[each.policy])
        for each in estimates
    ]
    _intervals(axes, rows)
    level = estimates[0].confidence.level
    axes.set_xlabel(
        f"value V with {level:.0%} interval        ● reliable   ◐ caution   ◒ index, not a value   ⊗ refused"
    )
    title = "; ".join([f"Value of each policy, {estimates[0].estimator}", *estimates[0].labels])
    axes.set_title(in_figure(textwrap.fill(title, 110), lines=True), fontsize=10)


def _differences(axes: Axes, comparisons: Sequence[Comparison], colours: dict[str, str]) -> None:
    """One row per policy and estimator: what it gains on the baseline; zero is a line."""
    rows = []
    for each in comparisons:
        gain, name = each.difference, f"{each.policy} - {each.baseline}  {each.estimator}"
        rows.append(_Row(name, gain.value, gain.low, gain.high, each.verdict, colours[each.policy]))
    _intervals(axes, rows, holds=0.0)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("paired difference of V: an interval on one side of zero decides")


def _intervals(axes: Axes, rows: Sequence[_Row], holds: float | None = None) -> None:
    """Refused rows are hollow and struck through, and do not affect the scale.

    Args:
        holds: a value that the scale has in it.
    """
    shown = [each for each in rows if each.verdict != "refuse"] or list(rows)
    ends = np.array([[each.low, each.high] for each in shown])
    ends = ends[np.isfinite(ends).all(1)] if np.isfinite(ends).all(1).any() else np.array([[0.0, 1.0]])
    if holds is not None:
        ends = np.append(ends, holds)
    margin = 0.15 * max(float(np.ptp(ends)), 1e-9)
    left, right = float(ends.min()) - margin, float(ends.max()) + margin
    for at, each in enumerate(rows):
        if not np.isfinite([each.value, each.low, each.high]).all():
            continue
        axes.plot(
            [max(each.low, left), min(each.high, right)],
            [at, at],
            color=each.colour,
            linewidth=2,
            alpha=0.3 if each.verdict == "refuse" else 1.0,
        )
        if left <= each.value <= right:
            style: dict[str, Any] = {
                "color": each.colour,
                "fillstyle": _FILL[each.verdict],
                "markerfacecoloralt": "white",
            }
            axes.plot(each.value, at, "o", markersize=8, **style)
            if each.verdict == "refuse":
                axes.plot(each.value, at, "x", markersize=11, color=each.colour)
        else:
            edge = "right" if each.value > right else "left"
            arrow = f"{each.value:.3g} →" if edge == "right" else f"← {each.value:.3g}"
            axes.text(right if edge == "right" else left, at, f" {arrow} ", ha=edge, va="center", color=each.colour)
    axes.set_yticks(range(len(rows)), [_strike(in_figure(each.name), each.verdict) for each in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left, right)
    axes.grid(axis="x", alpha=0.3)


def _strike(text: str, verdict: str) -> str:
    return "".join(letter + "\u0336" for letter in text) if verdict == "refuse" else text


def _histogram(axes: Axes, weights: dict[str, Floats], colours: dict[str, str]) -> None:
    everything = np.concatenate(list(weights.values()))
    everything = everything[np.isfinite(everything)]
    low, high = np.quantile(everything, [0.001, 0.999])
    if low == high:
        low, high = low - 1, high + 1
    bins = np.linspace(low, high, 50)
    for name, log_w in weights.items():
        axes.hist(np.clip(log_w, low, high), bins.tolist(), histtype="step", color=colours[name], label=in_figure(name))
    axes.axvline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("log w of a response (nats)")
    axes.set_ylabel("responses")
    axes.set_title("Weights", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _tail(axes: Axes, weights: dict[str, Floats], colours: dict[str, str]) -> None:
    """Share of all weight in the largest weights; near the top left corner few responses decide everything."""
    for name, log_w in weights.items():
        ordered = np.sort(np.exp(log_w - log_w.max()))[::-1]
        share = np.cumsum(ordered) / ordered.sum()
        axes.plot(np.arange(1, share.size + 1) / share.size, share, color=colours[name])
    axes.plot([1 / share.size, 1], [1 / share.size, 1], ":", color="grey", label="equal weights")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("share of responses, heaviest first")
    axes.set_ylabel("share of all weight")
    axes.set_title("Tail", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _slate_sizes(axes: Axes, log: LoggedSlates, weights: dict[str, Floats], colours: dict[str, str]) -> None:
    """Effective sample size of the product of a slate's first k weights, over the slates with at least k responses."""
    starts, sizes = log.slate_offsets[:-1], log.sizes
    counts = [k for k in range(1, min(int(sizes.max()), 16) + 1) if (sizes >= k).sum() >= 2]
    for name, log_w in weights.items():
        cumulative = np.concatenate([[0.0], np.cumsum(log_w)])
        fractions = []
        for k in counts:
            first = starts[sizes >= k]
            fractions.append(effective_sample_size(cumulative[first + k] - cumulative[first]) / first.size)
        axes.plot(counts, fractions, "o-", markersize=4, color=colours[name])
    axes.set_ylim(0, 1.02)
    axes.set_xticks(counts if len(counts) <= 8 else counts[::3])
    axes.set_xlabel("responses in the product k")
    axes.set_ylabel("effective share of slates")
    axes.set_title("What a joint weight costs", fontsize=10)
    axes.grid(alpha=0.3)
