"""Constants of the layouts, and what the losses give back."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from pope_kernels.values import MAX_LOG_WEIGHT as MAX_LOG_WEIGHT

Reduction = Literal["sum", "mean", "none"]
#: The names in ``pope_core.backends.BACKENDS``, and the reference.
Backend = Literal["cpu", "cuda", "triton", "reference"]

#: The label of a position that holds no response token (the Hugging Face convention).
IGNORE_INDEX = -100


class PopeLossOutput(NamedTuple):
    """The loss and everything worth logging about it; all but ``loss`` are detached from the graph.

    ``response_logprobs`` are totals over the response's tokens. ``log_weights`` are raw (before the maximum is
    applied), per token where the objective is length-normalised; ``weights`` are those actually used, one per response
    (a slate's responses share theirs unless ``weighting="response"``). ``effective_sample_size`` is
    ``(sum w)^2 / sum w^2`` of the raw weights, counted over responses for ``weighting="response"`` and over slates
    otherwise; ``clip_fraction`` is the share of those same weights above ``clip``.
    """

    loss: torch.Tensor  # [] = -value, differentiable
    value: torch.Tensor  # [] = utility_value + diversity_weight * diversity_value
    utility_value: torch.Tensor  # []
    diversity_value: torch.Tensor  # []
    response_logprobs: torch.Tensor  # [R] nats, totals
    log_weights: torch.Tensor  # [R] nats
    weights: torch.Tensor  # [R]
    effective_sample_size: torch.Tensor  # []
    clip_fraction: torch.Tensor  # []
