"""Configuration and report of a fit of a behaviour-cloned policy, saved with the model and quoted in provenance."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from .._files import write_json
from ..data.tokenize import check_day

#: The file name of the report in the model's folder.
REPORT_NAME = "behaviour_fit.json"


@dataclass(frozen=True, slots=True)
class BehaviourConfig:
    """How a behaviour-cloned policy is fitted.

    Attributes:
        max_length: maximum number of tokens of prompt and response; score with the same.
        epochs: maximum number of passes over the training responses.
        learning_rate: peak, after linear warm-up over the first tenth of the steps; then it decays linearly to 0.
        batch_slates: slates per optimizer step.
        evaluations_per_epoch: how often the held-out responses are scored.
        patience: stop after this many evaluations in a row without a new best.
        lora_rank: fit an adapter of this rank, merged at the end; None fits all weights.
        seed: of the order of responses, dropout and the adapter's initialisation.
        micro_batch_slates: slates per forward pass; ``batch_slates`` is a multiple of it times the number of processes.
        bf16: train under bfloat16 autocast; faster where the hardware has it.
        gradient_checkpointing: recompute activations in backward to save memory.
        template_date: the date (2026-11-28) for chat templates that write today's date; None for the day on which the
            fit begins, which the report records.

    Raises:
        ValueError: a number that is not positive, or an invalid date; the message names it.
    """

    max_length: int = 1024
    epochs: int = 3
    learning_rate: float = 5e-5
    batch_slates: int = 4
    evaluations_per_epoch: int = 2
    patience: int = 2
    lora_rank: int | None = None
    seed: int = 0
    micro_batch_slates: int = 1
    bf16: bool = False
    gradient_checkpointing: bool = False
    template_date: str | None = None

    def __post_init__(self) -> None:
        if self.template_date is not None:
            check_day(self.template_date)
        for name, value in asdict(self).items():
            if name in ("seed", "template_date") or value is None or isinstance(value, bool):
                continue
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a number > 0, got {value!r}")


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """One evaluation on the held-out responses during a fit."""

    step: int
    train_nats_per_token: float | None  # mean over the steps since the last evaluation; None before the first step
    heldout_nats_per_token: float


@dataclass(frozen=True)
class FitReport:
    """The report of a fit; the policy of evaluation ``best`` is kept."""

    train_slates: int
    train_responses: int
    train_tokens: int
    heldout_slates: int
    heldout_responses: int
    heldout_tokens: int
    shared_prompts: int  # held-out slates whose prompt is in the training slates, with other responses
    evaluations: tuple[HeldOutScore, ...]  # the first before any step
    best: int  # index into evaluations
    trained_on: tuple[str, ...]  # `response_key` of every training response, sorted
    config: BehaviourConfig

    @property
    def heldout_nats_per_token(self) -> float:
        return self.evaluations[self.best].heldout_nats_per_token

    @property
    def heldout_nats_per_token_before(self) -> float:
        return self.evaluations[0].heldout_nats_per_token

    @property
    def train_nats_per_token(self) -> float | None:
        """Mean over the steps before the best evaluation; None if no step improved the policy."""
        return self.evaluations[self.best].train_nats_per_token

    def __str__(self) -> str:
        best = self.evaluations[self.best]
        return (
            f"fitted to {self.train_responses} responses ({self.train_tokens} tokens); held-out nats per token "
            f"{self.heldout_nats_per_token_before:.4f} before, {best.heldout_nats_per_token:.4f} after {best.step} of "
            f"{self.evaluations[-1].step} steps ({self.heldout_responses} responses, {self.heldout_tokens} tokens)"
        )

    @cached_property
    def seen(self) -> frozenset[str]:
        """``trained_on``, for look-ups."""
        return frozenset(self.trained_on)

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the report into a model's folder."""
        write_json(Path(folder, REPORT_NAME), asdict(self))

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> FitReport | None:
        """The report that `write` wrote to ``folder``; None if there is none."""
        path = Path(folder, REPORT_NAME)
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(
            **{
                **content,
                "evaluations": tuple(HeldOutScore(**row) for row in content["evaluations"]),
                "trained_on": tuple(content["trained_on"]),
                "config": BehaviourConfig(**content["config"]),
            }
        )


def response_key(prompt: object, completion: object) -> str:
    """A short hash of a response to a prompt, to recognise training responses later."""
    return hashlib.sha256(json.dumps([prompt, completion]).encode()).hexdigest()[:16]
