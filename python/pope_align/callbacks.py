"""What a training run shows while it goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

#: Name, label and format of what a line shows, of the many metrics that are logged.
_SHOWN = [
    ("pope/value", "V", ".3f"),
    ("pope/utility", "V_CU", ".3f"),
    ("pope/diversity", "V_Div", ".3f"),
    ("pope/utility_self_normalized", "V_CU (self-norm.)", ".3f"),
    ("is/ess_fraction", "ESS", ".0%"),
    ("is/clip_fraction", "clipped", ".0%"),
    ("logps/policy", "log p", ".2f"),
    ("tokens_per_second", "tokens/s", ".0f"),
]


class ProgressLines(TrainerCallback):
    """One line for each log: step, time left, value and its parts, overlap.

    Args:
        write: shows a line.
        every_seconds: leave out training lines that follow the last one sooner; evaluations are always shown.
    """

    def __init__(self, write: Callable[[str], None], *, every_seconds: float = 0.0) -> None:
        self.write = write
        self.every_seconds = every_seconds
        self.started = self.shown = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        self.started = time.monotonic()
        self.shown = -self.every_seconds

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        prefix = "eval_" if any(name.startswith("eval_pope/") for name in logs or {}) else ""
        if not logs or f"{prefix}pope/value" not in logs:
            return
        now = time.monotonic()
        last = state.global_step == state.max_steps
        if not prefix and not last and now - self.shown < self.every_seconds:
            return
        self.shown = now
        figures = [f"{label} {logs[prefix + name]:{form}}" for name, label, form in _SHOWN if f"{prefix}{name}" in logs]
        where = "held out" if prefix else f"step {state.global_step} of {state.max_steps}"
        if not prefix and state.global_step:
            left = (now - self.started) / state.global_step * (state.max_steps - state.global_step)
            figures.append(f"{left:.0f} s left")
        self.write(f"{where}: {', '.join(figures)}")
