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
    """Writes the first slates of ``eval_dataset`` to ``slates.md`` after every evaluation.

    Prompt, responses, utility, and the log-weight at the first evaluation and now.

    Args:
        data: the slates that are evaluated.
        window: returns the window of the last evaluation.
        count: slates to show.
    """

    def __init__(self, data: SlateDataset | None, window: Callable[[], SlateWindow], count: int) -> None:
        self.data, self.window, self.count = data, window, count
        self.before: dict[int, list[float]] = {}  # log-weights at the first evaluation; saved in checkpoints

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if not state.is_world_process_zero:
            return
        now = self.log_weights()
        self.before = self.before or now
        text = "\n\n".join(self.table(index, now[index]) for index in sorted(now)[: self.count])
        path = Path(args.output_dir) / SLATES_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, f"Step {state.global_step}. Log-weights in nats.\n\n{text}\n")

    def log_weights(self) -> dict[int, list[float]]:
        """Log-weights of every response, by slate, as the objective uses them."""
        window = self.window()
        log = window.log
        weights = measured(torch.cat(window.policy) - log.logging_logprobs, log, window.objective)
        parts = torch.split(weights, log.slate_offsets.diff().tolist())
        return {slate: part.tolist() for slate, part in zip(torch.cat(window.index).tolist(), parts, strict=True)}

    def table(self, index: int, now: list[float]) -> str:
        data = self.data
        assert data is not None
        slate, utility = data.slates[index], data.utility(index)
        before = self.before.get(index, [math.nan] * len(now))  # the first evaluation had other slates
        rows: Any = zip(slate.completions, utility, before, now, strict=True)
        lines = [f"| {_short(text)} | {value:.2f} | {first:+.3f} | {last:+.3f} |" for text, value, first, last in rows]
        head = ["| response | utility | log w before | log w |", "|---|---|---|---|"]
        return "\n".join([f"**{in_markdown(data.name(index))}** {_short(slate.prompt)}", "", *head, *lines])


def _short(text: str | Sequence[Turn]) -> str:
    """A text, or the last of several turns, shortened to one line."""
    last = text if isinstance(text, str) else text[-1]["content"]
    line = " ".join(last.split())
    return in_markdown(line if len(line) <= _WIDTH else line[:_WIDTH] + " ...")
