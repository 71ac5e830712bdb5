"""Gradient coefficients of tokens from their log-probabilities, for backends that compute them in three steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .values import ObjectiveOptions, SlateValues

#: ``group_coefficients`` of a backend.
TokensToCoefficients = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def composed(
    response_sums: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor],
    slate_objective: Callable[..., SlateValues],
    token_coefficients: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], torch.Tensor],
) -> TokensToCoefficients:
    """``group_coefficients`` of a backend, composed of its other functions."""

    def group_coefficients(
        token_logprobs: torch.Tensor,  # [n] float32 or float64
        labels: torch.Tensor,  # [n] int64
        response_offsets: torch.Tensor,  # [r + 1] int64
        logging_logprobs: torch.Tensor,  # [r] float64
        utility: torch.Tensor,  # [r] float64
        slate_offsets: torch.Tensor,  # [s + 1] int64
        share: torch.Tensor | None,  # [r] float64, factor of each response's coefficient
        mean: bool,
        options: ObjectiveOptions,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``response_logprobs`` [r] in float64, and ``dV / d token_logprobs`` [n]."""
        logprobs = response_sums(token_logprobs.double(), labels, response_offsets, mean)
        values = slate_objective(logprobs, logging_logprobs, utility, slate_offsets, options, torch.float64)
        coefficients = values.coefficients if share is None else values.coefficients * share
        spread = token_coefficients(coefficients.to(token_logprobs.dtype), labels, response_offsets, mean)
        return logprobs, spread

    return group_coefficients
