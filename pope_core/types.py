"""Shared constants and type names, and the output of the losses."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from pope_kernels.values import MAX_LOG_WEIGHT as MAX_LOG_WEIGHT

Reduction = Literal["sum", "mean", "none"]
#: The keys of ``pope_core.backends.BACKENDS``, and "reference".
Backend = Literal["cpu", "cuda", "triton", "reference"]

#: The label of a position without a response token (the Hugging Face convention).
IGNORE_INDEX = -100


class PopeLossOutput(NamedTuple):
    """The loss and its diagnostics; all fields but ``loss`` are detached from the graph.

    ``response_logprobs`` are totals over the response's tokens. ``log_weights`` are raw (before the maximum is
    applied), and per token if the objective is length-normalised; ``weights`` are the weights used, one per response
    (the responses of a slate share one unless ``weighting="response"``). ``effective_sample_size`` is ``(sum w)^2 / sum
    w^2`` of the raw weights, counted over responses for ``weighting="response"`` and over slates otherwise;
    ``clip_fraction`` is the share of these weights above ``clip``.
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
