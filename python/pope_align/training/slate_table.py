"""A table of some held-out slates and how training changes their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .._files import write_text
from .._text import in_markdown
from ..data.schema import Turn
from .examples import SlateDataset
from .log_data import measured
from .window import SlateWindow

SLATES_NAME = "slates.md"

#: Maximum characters of a text in the table.
_WIDTH = 160


class SlateTable(TrainerCallback):
    """Writes the first slates of every evaluation set to ``slates.md`` after its evaluations.

    Prompt, responses, utility, and the log-weight at the first evaluation and now.

    Args:
        evaluated: returns the slates that were evaluated last, and the window of their evaluation; None for slates that
            are not of the run's evaluation sets.
        count: slates of each set to show.
    """

    def __init__(self, evaluated: Callable[[], tuple[SlateDataset, SlateWindow] | None], count: int) -> None:
        self.evaluated, self.count = evaluated, count
        # Log-weights of the slates of each set, by its title, at the first evaluation; saved in checkpoints.
        self.before: dict[str, dict[int, list[float]]] = {}
        self.texts: dict[str, str] = {}

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        last = self.evaluated()
        if last is None or not state.is_world_process_zero:
            return
        data, window = last
        now = log_weights(window)
        before = self.before.setdefault(data.title, now)
        tables = (_table(data, index, before, now[index]) for index in sorted(now)[: self.count])
        self.texts[data.title] = "\n\n".join(tables)
        several = len(self.texts) > 1
        text = "\n\n".join(f"## {title}\n\n{text}" if several else text for title, text in self.texts.items())
        path = Path(args.output_dir) / SLATES_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"Step {state.global_step}. Log-weights in nats.\n\n{text}\n")


def log_weights(window: SlateWindow) -> dict[int, list[float]]:
    """Log-weights of every response, by slate, as the objective uses them."""
    log = window.log
    weights = measured(torch.cat(window.policy) - log.logging_logprobs, log, window.objective)
    parts = torch.split(weights, log.slate_offsets.diff().tolist())
    return {slate: part.tolist() for slate, part in zip(torch.cat(window.index).tolist(), parts, strict=True)}


def _table(data: SlateDataset, index: int, before: dict[int, list[float]], now: list[float]) -> str:
    slate, utility = data.slates[index], data.utility(index)
    first = before.get(index, [math.nan] * len(now))  # the first evaluation had other slates
    rows: Any = zip(slate.completions, utility, first, now, strict=True)
    lines = [f"| {_short(text)} | {value:.2f} | {start:+.3f} | {last:+.3f} |" for text, value, start, last in rows]
    head = ["| response | utility | log w before | log w |", "|---|---|---|---|"]
    return "\n".join([f"**{in_markdown(data.name(index))}** {_short(slate.prompt)}", "", *head, *lines])


def _short(text: str | Sequence[Turn]) -> str:
    """A text, or the last of several turns, shortened to one line."""
    last = text if isinstance(text, str) else text[-1]["content"]
    line = " ".join(last.split())
    return in_markdown(line if len(line) <= _WIDTH else line[:_WIDTH] + " ...")
