"""``linear_pope_loss`` on one backend: groups of slates whose coefficients are known while their logits are there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ._linear import ChunkedHead, Needs, Products, forward, nothing
from ._objective import GroupCoefficients, evaluate_checked, kernel_options
from ._offsets import Offsets
from ._plan import GroupBatch
from .objective import Objective

if TYPE_CHECKING:
    from pope_kernels.values import SlateValues


class LossGradients(NamedTuple):
    """What backward multiplies by the upstream gradient; empty tensors for gradients that are not required."""

    unit: torch.Tensor  # [n, D], d_hidden = coefficients * unit; coefficients include row factors
    coefficients: torch.Tensor  # [n]
    weight: torch.Tensor  # [V, D] in `head_gradient_dtype`
    bias: torch.Tensor  # [V] float32 or better


class LossPass:
    """``linear_pope_loss``: the value and its gradients in one pass over the tokens."""

    def __init__(
        self,
        head: ChunkedHead,
        logging_logprobs: torch.Tensor,  # [R] float64
        utility: torch.Tensor,  # [R] float64
        slate_offsets: Offsets,  # [S + 1] int64
        objective: Objective,
        num_slates: int,
        needs: Needs,
    ) -> None:
        self.head, self.objective, self.needs = head, objective, needs
        self.options, self.mean = kernel_options(objective, num_slates), objective.length_normalize
        self.logging_logprobs, self.utility, self.slate_offsets = logging_logprobs, utility, slate_offsets
        self.response_logprobs = torch.empty_like(logging_logprobs)

    def run(self) -> tuple[SlateValues, LossGradients]:
        head, num_responses = self.head, self.utility.numel()
        groups = GroupCoefficients(
            head.kernels,
            self.logging_logprobs,
            self.utility,
            self.slate_offsets,
            self.objective,
            self.options,
            together=head.whole,
        )
        # Without a diversity reward, clipped responses and responses of utility 0 have no gradient.
        may_vanish = self.objective.diversity_weight == 0
        if self.needs.head or (self.needs.hidden and may_vanish):
            products = Products(head, self.needs, may_vanish)
            self._grouped(groups, products)
            unit = products.unit
            head.release()  # before the gradient is rounded
            d_weight, d_bias = products.head_gradient()
        else:
            unit, (d_weight, d_bias) = forward(head, self.needs), nothing(head)
            self.response_logprobs = head.response_logprobs(0, num_responses, self.mean)
        values = evaluate_checked(
            head.kernels,
            self.response_logprobs,
            self.logging_logprobs,
            self.utility,
            self.slate_offsets.device,
            self.options,
            head.logprobs.dtype,
        )
        coefficients = head.logprobs.new_empty(0)
        if self.needs.hidden:
            coefficients = head.token_coefficients(values.coefficients, 0, num_responses, self.mean)
            coefficients = head.with_row_factors(coefficients, slice(0, coefficients.numel()))
        return values, LossGradients(unit, coefficients, d_weight.to(head.gradient_dtype), d_bias)

    def _grouped(self, groups: GroupCoefficients, products: Products) -> None:
        """Batches of whole groups: log-probabilities, coefficients, gradients, while the logits are in the buffer."""
        head = self.head
        plan = list(groups.plan(head.tokens.offsets.host, head.rows))
        head.rows = max(chunk.stop - chunk.start for batch in plan for chunk in batch.chunks)
        for batch in plan:
            for chunk in batch.chunks:
                logits = head.forward(chunk)
            coefficients = self._batch_coefficients(groups, batch)
            start = batch.chunks[0].start
            # In reverse order: the last chunk's logits are still in the buffer; only earlier ones are computed again.
            for chunk in reversed(batch.chunks):
                if chunk is not batch.chunks[-1]:
                    logits = head.again(chunk)
                products.take(chunk, logits, coefficients[chunk.start - start : chunk.stop - start])

    def _batch_coefficients(self, groups: GroupCoefficients, batch: GroupBatch) -> torch.Tensor:
        responses = groups.responses(batch.first_group, batch.last_group)
        tokens, offsets = self.head.span(responses.start, responses.stop)
        self.response_logprobs[responses], coefficients = groups(
            self.head.logprobs[tokens],
            self.head.tokens.labels[tokens],
            offsets,
            batch,
            self.mean,
        )
        return coefficients
