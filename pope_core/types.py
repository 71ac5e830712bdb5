"""What goes into the objective and what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from pope_kernels.values import MAX_LOG_WEIGHT as MAX_LOG_WEIGHT
from pope_kernels.values import ObjectiveOptions

Weighting = Literal["response", "slate", "geometric"]
Normalization = Literal["none", "slate", "batch"]
UtilityForm = Literal["feedback", "log_likelihood"]
DiversityForm = Literal["neg_log_prob", "entropy"]
Backend = Literal["cpu", "cuda", "triton", "reference"]

#: The label of a position that holds no response token (the Hugging Face convention).
IGNORE_INDEX = -100

#: Default budget of the logits buffer of the ``linear_*`` operations, by device. On a CPU it leaves room, under 64 MiB,
#: for the scratch space of the matrix products; on a GPU 2048 rows of a 128k vocabulary keep them compute-bound.
CHUNK_BYTES = {"cpu": 36 << 20, "cuda": 512 << 20}


@dataclass(frozen=True, slots=True)
class Objective:
    """The options of the POPE objective, validated once; every public function spells them out as keywords."""

    diversity_weight: float = 0.1
    weighting: Weighting = "response"
    normalization: Normalization = "none"
    clip: float | None = None
    utility_form: UtilityForm = "feedback"
    diversity_form: DiversityForm = "neg_log_prob"
    num_slates: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("weighting", get_args(Weighting)),
            ("normalization", get_args(Normalization)),
            ("utility_form", get_args(UtilityForm)),
            ("diversity_form", get_args(DiversityForm)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        # Plain comparisons (NaN fails them too): a trace may hold these numbers as symbols.
        if not 0 <= self.diversity_weight < math.inf:
            raise ValueError(f"diversity_weight: expected a finite number >= 0, got {self.diversity_weight!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip: expected None or a finite number > 0, got {self.clip!r}")
        if self.num_slates is not None:
            if self.num_slates < 1:
                raise ValueError(f"num_slates: expected None or an integer >= 1, got {self.num_slates!r}")
            if self.normalization == "batch":
                raise ValueError(
                    "num_slates: has no meaning with normalization='batch', which divides by the sum of the weights "
                    f"and not by a number of slates; got {self.num_slates!r}"
                )

    def options(self, slates_in_call: int) -> ObjectiveOptions:
        """As the kernels take them, with the slates of the call where no number was given."""
        return ObjectiveOptions(*self.flat()[:-1], num_slates=self.num_slates or slates_in_call)

    def flat(self) -> tuple[float, str, str, float | None, str, str, int | None]:
        """The options in the order of the operators' arguments."""
        return (
            self.diversity_weight,
            self.weighting,
            self.normalization,
            self.clip,
            self.utility_form,
            self.diversity_form,
            self.num_slates,
        )


class PopeLossOutput(NamedTuple):
    """The loss and everything worth logging about it; all but ``loss`` are detached from the graph.

    ``log_weights`` are raw (before clipping); ``weights`` are the omega actually used, one per response (a slate's
    responses share theirs unless ``weighting="response"``). ``effective_sample_size`` is ``(sum w)^2 / sum w^2`` of the
    raw weights, counted over responses for ``weighting="response"`` and over slates otherwise; ``clip_fraction`` is the
    share of those same weights above ``clip``.
    """

    loss: torch.Tensor  # [] = -value, differentiable
    value: torch.Tensor  # [] = utility_value + diversity_weight * diversity_value
    utility_value: torch.Tensor  # []
    diversity_value: torch.Tensor  # []
    response_logprobs: torch.Tensor  # [R] nats
    log_weights: torch.Tensor  # [R] nats
    weights: torch.Tensor  # [R]
    effective_sample_size: torch.Tensor  # []
    clip_fraction: torch.Tensor  # []
