"""Some held-out slates, with what training does to their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.schema import Turn

if TYPE_CHECKING:
    from .trainer import PopeTrainer

SLATES_NAME = "slates.md"

#: Characters of a text that a table shows.
_WIDTH = 160


class SlateTable(TrainerCallback):
    """After every evaluation, the first slates of ``eval_dataset`` in ``slates.md``.

    Prompt, responses, utility, and the log-weight at the first evaluation and now.

    Args:
        count: slates to show.
    """

    def __init__(self, trainer: PopeTrainer, count: int) -> None:
        self.trainer, self.count = trainer, count
        self.before: dict[int, list[float]] = {}  # log-weights at the first evaluation; a checkpoint keeps them

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        if not state.is_world_process_zero:
            return
        now = self.log_weights()
        self.before = self.before or now
        text = "\n\n".join(self.table(index, now[index]) for index in sorted(now)[: self.count])
        path = Path(args.output_dir) / SLATES_NAME
        os.makedirs(path.parent, exist_ok=True)
        path.write_text(f"Step {state.global_step}. Log-weights in nats.\n\n{text}\n", encoding="utf-8")

    def log_weights(self) -> dict[int, list[float]]:
        window = self.trainer.eval_window
        weights = window.logprobs("policy") - window.logprobs("logging")
        parts = torch.split(weights, torch.cat(window.sizes).tolist())
        return {slate: part.tolist() for slate, part in zip(torch.cat(window.index).tolist(), parts, strict=True)}

    def table(self, index: int, now: list[float]) -> str:
        data = self.trainer.eval_dataset
        slate, utility = data.slates[index], data.examples[index]["utility"]
        rows = zip(slate.completions, utility, self.before[index], now, strict=True)
        lines = [
            f"| {_short(text)} | {value:.2f} | {before:+.3f} | {after:+.3f} |" for text, value, before, after in rows
        ]
        head = ["| response | utility | log w before | log w |", "|---|---|---|---|"]
        return "\n".join([f"**{data.name(index)}** {_short(slate.prompt)}", "", *head, *lines])


def _short(text: str | list[Turn]) -> str:
    """One line of a text, or of the last of several turns."""
    last = text if isinstance(text, str) else text[-1]["content"]
    line = " ".join(last.split()).replace("|", "\\|")
    return line if len(line) <= _WIDTH else line[:_WIDTH] + " ..."
