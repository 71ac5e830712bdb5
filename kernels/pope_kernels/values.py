"""What every backend shares: the codes of the options, and what one evaluation of the objective gives."""

from __future__ import annotations

from typing import NamedTuple

import torch

WEIGHTINGS = {"response": 0, "slate": 1, "geometric": 2}
NORMALIZATIONS = {"none": 0, "slate": 1, "batch": 2}
UTILITY_FORMS = {"feedback": 0, "log_likelihood": 1}
DIVERSITY_FORMS = {"neg_log_prob": 0, "entropy": 1}

#: Without a clip, a log-weight above this bound is an error: exp(80) is 5.5e34, no longer a weight anyone meant.
MAX_LOG_WEIGHT = 80.0


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, float32 for every other."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class SlateValues(NamedTuple):
    """What one evaluation of the objective gives, all on the device of its inputs: no backend reads a result back."""

    value: torch.Tensor  # []
    utility_value: torch.Tensor  # []
    diversity_value: torch.Tensor  # []
    log_weights: torch.Tensor  # [R] raw
    weights: torch.Tensor  # [R] as used
    effective_sample_size: torch.Tensor  # []
    clip_fraction: torch.Tensor  # []
    coefficients: torch.Tensor  # [R] float64, dV / d response_logprobs
    largest_log_weight: torch.Tensor  # [] float64, of the raw weights at the level they act on
    largest_slate: torch.Tensor  # [] int64
    sound: torch.Tensor | None  # [] bool, whether the inputs were; None where the host checked them beforehand

    @property
    def reported(self) -> tuple[torch.Tensor, ...]:
        """The seven fields that a caller sees, in order."""
        return self[:7]
