"""What a fit of a behaviour-cloned policy was asked to do and did; kept beside the model, quoted in provenance."""

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

#: The report's name, beside the model's files.
REPORT_NAME = "behaviour_fit.json"


@dataclass(frozen=True, slots=True)
class BehaviourConfig:
    """How a behaviour-cloned policy is fitted.

    Attributes:
        max_length: tokens of prompt and response that are kept; score with the same.
        epochs: passes over the training responses, at most.
        learning_rate: highest one, after a linear rise over the first tenth of the steps; it falls linearly to 0.
        batch_slates: slates of an optimizer step.
        evaluations_per_epoch: how often the held-out responses are scored.
        patience: stop after so many evaluations in a row without a new best.
        lora_rank: fit an adapter of this rank, merged at the end; None fits all weights.
        seed: of the order of responses, dropout and the adapter's start.
        micro_batch_slates: slates of a forward pass; ``batch_slates`` is a multiple of it times the processes.
        bf16: train under bfloat16 autocast; faster where the hardware has it.
        gradient_checkpointing: compute activations again in backward, for memory.
        template_date: the day, as 2026-11-28, for a chat template that writes today's date; None for the day on which
            the fit begins, which its report keeps.

    Raises:
        ValueError: a number that is not positive, or a day that is none, by name.
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
    """One look at the held-out responses during a fit."""

    step: int
    train_nats_per_token: float | None  # mean over the steps since the last evaluation; None before the first step
    heldout_nats_per_token: float


@dataclass(frozen=True)
class FitReport:
    """What a fit did; the policy that is kept is the one of ``best``."""

    train_slates: int
    train_responses: int
    train_tokens: int
    heldout_slates: int
    heldout_responses: int
    heldout_tokens: int
    shared_prompts: int  # held-out slates whose prompt was trained on, with other responses
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
        """Mean over the steps before the best evaluation; None when no step made the policy better."""
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
        """The report that `write` left in ``folder``; None where there is none."""
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
    """A short hash of a response to a prompt, which says later whether it was trained on."""
    return hashlib.sha256(json.dumps([prompt, completion]).encode()).hexdigest()[:16]
