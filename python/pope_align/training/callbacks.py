"""Progress lines and warnings of a training run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from accelerate.logging import get_logger
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..ope.rules import RULES

logger = get_logger(__name__)  # of the main process alone

#: A run gets a warning below this effective share of weights, or above this share of clipped ones.
LOW_ESS, HIGH_CLIP = 0.1, 0.25

#: Name, label and format of the metrics in a progress line.
_SHOWN = [
    ("pope/value", "V", ".3f"),
    ("pope/utility", "V_CU", ".3f"),
    ("pope/diversity", "V_Div", ".3f"),
    ("pope/utility_self_normalized", "V_CU (self-norm.)", ".3f"),
    ("index/gain", "gain", "+.4f"),
    ("index/p_value", "p", ".2g"),
    ("is/ess_fraction", "ESS", ".0%"),
    ("is/clip_fraction", "clipped", ".0%"),
    ("logps/policy", "log p", ".2f"),
    ("tokens_per_second", "tokens/s", ".0f"),
]


class ProgressLines(TrainerCallback):
    """One line for each log: step, time left, value and its parts, overlap.

    Args:
        write: prints a line.
        every_seconds: minimum interval of training lines; evaluations are always shown.
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
        prefix = evaluated_prefix(logs or {})
        if not logs or f"{prefix}loss" not in logs or not state.is_world_process_zero:
            return
        now = time.monotonic()
        last = state.global_step == state.max_steps
        if not prefix and not last and now - self.shown < self.every_seconds:
            return
        self.shown = now
        shown = _SHOWN if f"{prefix}pope/value" in logs else [("loss", "loss", ".4f"), *_SHOWN]
        figures = [f"{label} {logs[prefix + name]:{form}}" for name, label, form in shown if f"{prefix}{name}" in logs]
        name = prefix.removeprefix("eval_").removesuffix("_")
        where = (
            (f"held out, {name}" if name else "held out")
            if prefix
            else f"step {state.global_step} of {state.max_steps}"
        )
        if not prefix and state.global_step:
            left = (now - self.started) / state.global_step * (state.max_steps - state.global_step)
            figures.append(f"{left:.0f} s left")
        self.write(f"{where}: {', '.join(figures)}")


class OverlapWatch(TrainerCallback):
    """Warns once when importance weights degenerate, and stops the run if requested.

    Args:
        stop_if_ess_below: stop below this effective share of weights; None only warns.
    """

    def __init__(self, stop_if_ess_below: float | None = None) -> None:
        self.stop_if_ess_below = stop_if_ess_below
        self.warned: set[str] = set()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        ess, clipped = (logs or {}).get("is/ess_fraction"), (logs or {}).get("is/clip_fraction")
        if ess is None or clipped is None:  # not a training log
            return
        if ess < LOW_ESS:
            self.warn(
                "ess",
                f"step {state.global_step}: the effective sample size is {ess:.1%} of the weights (is/ess_fraction): a "
                "few responses decide the gradient. Lower learning_rate or clip, stop earlier, or score the slates "
                "under a logging policy nearer to them",
            )
        if clipped > HIGH_CLIP:
            self.warn(
                "clip",
                f"step {state.global_step}: {clipped:.0%} of the weights are clipped (is/clip_fraction): these "
                "responses pull through their rewards alone. The policy has left the log: lower learning_rate, or stop "
                "earlier",
            )
        if self.stop_if_ess_below is not None and ess < self.stop_if_ess_below:
            logger.warning(
                "step %d: stopped, because is/ess_fraction %.4f is below stop_if_ess_below %g",
                state.global_step,
                ess,
                self.stop_if_ess_below,
            )
            control.should_training_stop = True

    def warn(self, kind: str, message: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(message)


#: The held-out gain in logs (`held_out_index.held_out_gain`), and what `best_evaluation` adds to the best one.
GAIN, EVALUATIONS, P_OF_BEST = "eval_index/gain", "evaluations", "p_of_best"


def evaluated_prefix(logs: Mapping[str, Any]) -> str:
    """The prefix of the metrics of an evaluation ("eval_", or "eval_NAME_"), from what was logged; else ""."""
    found = [name.removesuffix("loss") for name in logs if name.startswith("eval_") and name.endswith("_loss")]
    return min(found, key=len, default="")


class StopWithPlacebo(EarlyStoppingCallback):
    """Stops when the held-out metric no longer improves, and warns if the best gain is no larger than its placebo.

    Args:
        early_stopping_patience, early_stopping_threshold: as in transformers, which restores the callback of a resumed
            run by these names.
        prefix: of the metrics of the evaluation set that is watched.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0, prefix: str = "eval_"
    ) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.prefix = prefix

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state()
        return {**state, "args": {**state["args"], "prefix": self.prefix}}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **rest: Any,
    ) -> None:
        if evaluated_prefix(metrics) == self.prefix:  # not another set
            super().on_evaluate(args, state, control, metrics, **rest)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        best = best_evaluation(state, self.prefix)
        if GAIN not in best:
            return
        found = best["step"], best[GAIN], best[P_OF_BEST], best[EVALUATIONS]
        if RULES["placebo"].grade(best[P_OF_BEST]):
            logger.warning(
                "step %d is the best, but its held-out gain %+.4f is no larger than its placebo (utilities permuted "
                "within slates reach it with p = %.2g, as the best of %d evaluations): nothing learned shows on these "
                "slates. Train longer, evaluate less often, or hold out more slates",
                *found,
            )
        else:
            logger.info(
                "step %d is the best: held-out gain %+.4f, placebo p = %.2g, as the best of %d evaluations", *found
            )


def best_evaluation(state: TrainerState, prefix: str = "eval_") -> dict[str, Any]:
    """What was logged at the evaluation of the best model; empty if there is none.

    With `GAIN` also `EVALUATIONS`, how many there were, and `P_OF_BEST`: the p-value times that number (Bonferroni),
    because the best of several evaluations was chosen on the same slates.

    Args:
        prefix: of the metrics of the evaluation set that is watched; "eval_" takes its place in the result.
    """
    evaluations = [entry for entry in state.log_history if f"{prefix}loss" in entry]
    best = next((entry for entry in reversed(evaluations) if entry["step"] == state.best_global_step), None)
    if best is None:
        return {}
    best = {f"eval_{name.removeprefix(prefix)}" if name.startswith(prefix) else name: best[name] for name in best}
    if GAIN not in best:
        return best
    count = len({entry["step"] for entry in evaluations})
    return {**best, EVALUATIONS: count, P_OF_BEST: min(1.0, count * best["eval_index/p_value"])}
