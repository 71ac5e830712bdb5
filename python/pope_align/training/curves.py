"""The picture of a training run."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .._extras import require
from .._files import replacing
from .callbacks import evaluated_prefix

_Panels = list[tuple[str, dict[str, str]]]

_SETTINGS: _Panels = [
    ("gradient norm", {"grad_norm": "before clipping"}),
    ("learning rate", {"learning_rate": "learning rate"}),
]

#: The panels: title, and metrics with labels.
_PANELS: _Panels = [
    ("value", {"pope/value": "V, as trained", "pope/value_self_normalized": "V, self-normalised"}),
    ("utility V_CU", {"pope/utility": "as trained", "pope/utility_self_normalized": "self-normalised"}),
    ("diversity V_Div (nats)", {"pope/diversity": "as trained", "pope/diversity_self_normalized": "self-normalised"}),
    ("log-probability per token (nats)", {"logps/policy": "policy", "logps/logging": "logging policy"}),
    (
        "log-weights (nats)",
        {"is/log_weight_p95": "95 %", "is/log_weight_p50": "median", "is/log_weight_p05": "5 %"},
    ),
    ("share of weights", {"is/ess_fraction": "effective sample size", "is/clip_fraction": "clipped"}),
]

#: The panel of early stopping, where it was on.
_INDEX: _Panels = [("within held-out slates", {"index/gain": "gain since the start", "index/p_value": "placebo p"})]

#: The panels of list-wise methods.
_LISTWISE_PANELS: _Panels = [
    ("loss", {"loss": "loss"}),
    ("log-probability per token (nats)", {"logps/policy": "policy"}),
    ("responses per slate", {"slate/k_mean": "mean"}),
    ("tokens per second", {"tokens_per_second": "positions computed"}),
    *_SETTINGS,
]

#: The panels of SFT and DPO, by the names that TRL logs; a run has some of them.
_BASELINE_PANELS: _Panels = [
    ("loss", {"loss": "training loss"}),
    ("rewards (DPO)", {"rewards/chosen": "of chosen", "rewards/rejected": "of rejected", "rewards/margins": "margin"}),
    ("accuracy", {"rewards/accuracies": "pairs in order", "mean_token_accuracy": "tokens"}),
    ("log-probability (nats)", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    *_SETTINGS,
]


def plot_training(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw the logged metrics of a run against its steps: training as lines, evaluation as dots. Runs of other
    methods than POPE have panels of their own.

    docs/training.md says how to read each panel.

    Args:
        history: ``trainer.state.log_history``.
        path: a ``.png``, ``.svg`` or ``.pdf`` file.
    """
    require("matplotlib", extra="train", purpose="to draw training curves")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    logged = {name for entry in history for name in entry}
    panels = _PANELS if "pope/value" in logged else _LISTWISE_PANELS if "slate/k_mean" in logged else _BASELINE_PANELS
    panels = [*panels, *(_INDEX if any(name.endswith("_index/gain") for name in logged) else [])]
    prefixes = sorted({prefix for entry in history if (prefix := evaluated_prefix(entry))})
    columns = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(4 * columns, 6.5), layout="constrained")
    places = figure.subplots(2, columns).flat
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, (title, metrics) in zip(places, panels):
        for index, (name, label) in enumerate(metrics.items()):
            color = f"C{index}"
            steps, values = _series(history, name)
            if steps:
                axes.plot(steps, values, color=color, alpha=0.8, linewidth=1.2, label=label)
            for prefix, marker in zip(prefixes, itertools.cycle("osv^D")):
                steps, values = _series(history, prefix + name)
                held_out = " ".join(["held out", *prefix.removeprefix("eval_").split()]).removesuffix("_")
                if steps:
                    axes.plot(steps, values, f"{marker}--", color=color, linewidth=0.8, label=f"{label}, {held_out}")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))  # there is no half step
        axes.ticklabel_format(axis="y", useOffset=False)
        if axes.lines:
            axes.legend(fontsize=7)
        else:
            axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", fontsize=9, color="grey")
    figure.supxlabel("optimizer step", fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=130)


def _series(history: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[name]) for entry in history if name in entry]
    return [step for step, _ in points], [value for _, value in points]
