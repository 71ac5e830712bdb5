"""Shared by all backends: codes of dtypes and options, and the outputs of the slate objective."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
WEIGHTINGS = {"response": 0, "slate": 1, "geometric": 2}
NORMALIZATIONS = {"none": 0, "slate": 1, "batch": 2}
UTILITY_FORMS = {"feedback": 0, "log_likelihood": 1}
DIVERSITY_FORMS = {"neg_log_prob": 0, "entropy": 1}

#: Without a clip, a log-weight above this bound is an error: exp(80) is 5.5e34, which is never an intended weight.
MAX_LOG_WEIGHT = 80.0


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 inputs, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Codes(NamedTuple):
    """The options that are names, as numbers: those of the enumerations in ``csrc/include/pope/slate_math.h``."""

    weighting: int
    normalization: int
    utility_form: int
    diversity_form: int


class ObjectiveOptions(NamedTuple):
    """``pope_core.objective.Objective`` as the kernels take it: validated, and with the number of slates."""

    diversity_weight: float
    weighting: str
    normalization: str
    clip: float | None
    utility_form: str
    diversity_form: str
    num_slates: int

    @property
    def log_clip(self) -> float:
        return math.inf if self.clip is None else math.log(self.clip)

    @property
    def codes(self) -> Codes:
        """The codes of the options that are names.

        Raises:
            NotImplementedError: a value without a code.
        """
        tables = (WEIGHTINGS, NORMALIZATIONS, UTILITY_FORMS, DIVERSITY_FORMS)
        names = dict(zip(Codes._fields, tables, strict=True))
        for name, codes in names.items():
            if getattr(self, name) not in codes:
                raise NotImplementedError(
                    f"{name}: {getattr(self, name)!r} has no code in kernels/pope_kernels/values.py; CONTRIBUTING.md "
                    "lists what a new value needs"
                )
        return Codes(*(codes[getattr(self, name)] for name, codes in names.items()))

    @property
    def native(self) -> tuple[float, int, int, float, int, int, float]:
        """In the order of ``ObjectiveOptions`` in ``csrc/include/pope/slate_math.h``."""
        weighting, normalization, utility_form, diversity_form = self.codes
        return (
            self.diversity_weight,
            weighting,
            normalization,
            self.log_clip,
            utility_form,
            diversity_form,
            float(self.num_slates),
        )


class SlateValues(NamedTuple):
    """Outputs of the slate objective, on the device of its inputs: no backend copies a result to the host."""

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
    valid: torch.Tensor | None  # [] bool, whether the inputs were valid; None if the host checked them before

    @property
    def reported(self) -> tuple[torch.Tensor, ...]:
        """The seven fields that callers see, in order."""
        return self[:7]


def new_slate_values(like: torch.Tensor, dtype: torch.dtype) -> SlateValues:
    """Empty outputs on the device of ``like`` [R]; separate tensors, because outputs of an operator may not overlap."""
    num_responses, new = like.numel(), like.new_empty
    return SlateValues(
        value=new((), dtype=dtype),
        utility_value=new((), dtype=dtype),
        diversity_value=new((), dtype=dtype),
        log_weights=new(num_responses, dtype=dtype),
        weights=new(num_responses, dtype=dtype),
        effective_sample_size=new((), dtype=dtype),
        clip_fraction=new((), dtype=dtype),
        coefficients=new(num_responses, dtype=torch.float64),
        largest_log_weight=new((), dtype=torch.float64),
        largest_slate=new((), dtype=torch.int64),
        valid=new((), dtype=torch.bool),
    )
