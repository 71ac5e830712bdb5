"""The losses as modules that fix the objective; they have no parameters."""

from __future__ import annotations

import torch

from .loss import linear_pope_loss, pope_loss
from .objective import Objective
from .types import Backend, PopeLossOutput


class PopeLoss(torch.nn.Module):
    """:func:`pope_loss` with its objective fixed; the module has no parameters."""

    def __init__(
        self,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        *,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.backend = backend

    def forward(
        self,
        logits: torch.Tensor,  # [N, V] or [R, L, V]
        labels: torch.Tensor,  # [N] or [R, L]
        logging_logprobs: torch.Tensor,  # [R]
        utility: torch.Tensor,  # [R]
        slate_offsets: torch.Tensor,  # [S + 1]
        *,
        response_offsets: torch.Tensor | None = None,  # [R + 1]
        num_slates: int | None = None,
    ) -> PopeLossOutput:
        """As :func:`pope_loss`: ``[N, V]`` or ``[R, L, V]`` logits to a :class:`PopeLossOutput`; raises the same
        errors.
        """
        return pope_loss(
            logits,
            labels,
            logging_logprobs,
            utility,
            slate_offsets,
            response_offsets=response_offsets,
            objective=self.objective,
            num_slates=num_slates,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return str(self.objective)


class LinearPopeLoss(torch.nn.Module):
    """:func:`linear_pope_loss` with its objective and the form of the logits fixed; the module has no parameters.

    The head's matrix belongs to the model and is an argument of ``forward``.
    """

    def __init__(
        self,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        *,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        chunk_bytes: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.chunk_bytes = chunk_bytes
        self.backend = backend

    def forward(
        self,
        hidden: torch.Tensor,  # [N, D] or [R, L, D]
        lm_head_weight: torch.Tensor,  # [V, D]
        labels: torch.Tensor,  # [N] or [R, L]
        logging_logprobs: torch.Tensor,  # [R]
        utility: torch.Tensor,  # [R]
        slate_offsets: torch.Tensor,  # [S + 1]
        *,
        lm_head_bias: torch.Tensor | None = None,  # [V]
        response_offsets: torch.Tensor | None = None,  # [R + 1]
        num_slates: int | None = None,
    ) -> PopeLossOutput:
        """As :func:`linear_pope_loss`: ``[N, D]`` or ``[R, L, D]`` hidden states to a :class:`PopeLossOutput`; raises
        the same errors."""
        return linear_pope_loss(
            hidden,
            lm_head_weight,
            labels,
            logging_logprobs,
            utility,
            slate_offsets,
            lm_head_bias=lm_head_bias,
            response_offsets=response_offsets,
            objective=self.objective,
            num_slates=num_slates,
            logit_scale=self.logit_scale,
            logit_softcap=self.logit_softcap,
            chunk_bytes=self.chunk_bytes,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return str(self.objective)
