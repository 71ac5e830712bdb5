"""Win rates as a picture, after the paper's Figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._extras import require
from .._text import in_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS = (("win", "won", "#0072B2"), ("tie", "tied", "#BBBBBB"), ("loss", "lost", "#E69F00"))


def win_rates(summaries: Sequence[dict[str, Any]], *, judge: str) -> Figure:
    """A bar per match, split into won, tied and lost, with the win rate and its interval.

    Args:
        summaries: of `pope_align.judging.match.Match.summary`.
        judge: the judge's name, for the title.
    """
    module = require("matplotlib.figure", extra="train", purpose="to draw figures")
    figure: Figure = module.Figure(figsize=(7.5, 1.5 + 0.6 * len(summaries)), layout="constrained")
    axis = figure.subplots()
    for row, match in enumerate(summaries):
        left = 0.0
        for name, label, colour in _PARTS:
            share = match[name]["value"] or 0.0
            axis.barh(row, share, left=left, color=colour, label=label if row == 0 else None, height=0.6)
            if share > 0.06:
                axis.text(left + share / 2, row, f"{match[f'{name}_count']}", ha="center", va="center", fontsize=9)
            left += share
        rate = match["win_rate"]
        note = (
            "nothing judged"
            if rate["value"] is None
            else f"win rate {rate['value']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}]"
        )
        axis.text(1.02, row, note, va="center", fontsize=9)
    axis.set_yticks(
        range(len(summaries)), [in_figure(match["a"]) + "\nagainst " + in_figure(match["b"]) for match in summaries]
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of judged prompts; won and lost: in both orders")
    axis.set_title(f"Judged by {in_figure(judge)}", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure
