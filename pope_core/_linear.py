"""The ``linear_*`` operations on one backend: chunks of the lm_head product that become gradients in place.

Per row, with ``G = onehot - softmax`` (chained through scale and softcap) and one coefficient ``c`` per response
token::

    d_hidden = c * (G @ W)          d_weight = G.T @ (c * hidden)          d_bias = G.T @ c

so the coefficient never touches ``G``: it scales rows of ``d_hidden`` afterwards and rows of ``hidden`` before
``d_weight``. With a frozen head the coefficients may therefore come last (4NDV, any chunking); with a trainable head
they must be known while ``G`` exists, which whole groups per chunk guarantee (6NDV); see ``_plan.py`` and
``_objective.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from . import _checks
from ._objective import GroupCoefficients, evaluate_checked
from ._plan import Batch, Chunk, plan_groups, plan_rows, rows_per_chunk
from .backends import Kernels
from .types import IGNORE_INDEX, Objective

if TYPE_CHECKING:
    from pope_kernels.native import SlateValues


class Needs(NamedTuple):
    """Which gradients are wanted."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def head(self) -> bool:
        return self.weight or self.bias


class Gradients(NamedTuple):
    """Gradients in the dtype of their inputs; an empty tensor where none is wanted."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


class Tokens:
    """The response tokens of a call; the ignored positions of a padded batch never reach the lm_head."""

    def __init__(self, hidden: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor) -> None:
        kept = labels != IGNORE_INDEX
        self.total = labels.numel()
        self.index = None if bool(kept.all()) else kept.nonzero().squeeze(1)
        self.hidden, self.labels, self.offsets = hidden, labels, response_offsets
        if self.index is not None:
            before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.long().cumsum(0)])
            self.hidden, self.labels, self.offsets = hidden[self.index], labels[self.index], before[response_offsets]

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, D]`` of the kept tokens at their original positions ``[N, D]``, zero elsewhere."""
        if self.index is None:
            return values
        return values.new_zeros(self.total, values.shape[1]).index_copy_(0, self.index, values)


class ChunkedHead:
    """Logits of one chunk at a time, in one reused buffer, and the log-probabilities of every token seen so far."""

    def __init__(
        self,
        kernels: Kernels,
        tokens: Tokens,
        weight: torch.Tensor,  # [V, D]
        bias: torch.Tensor | None,  # [V]
        scale: float,
        softcap: float | None,
        chunk_bytes: int,
    ) -> None:
        self.kernels, self.tokens, self.weight, self.bias = kernels, tokens, weight, bias
        self.scale, self.softcap = scale, softcap
        num_tokens, vocab = tokens.labels.numel(), weight.shape[0]
        self.rows = min(num_tokens, rows_per_chunk(chunk_bytes, vocab, weight.element_size()))
        self.buffer = kernels.empty_large(self.rows, vocab, dtype=weight.dtype)
        acc = kernels.accumulation_dtype(weight.dtype)
        self.logprobs = torch.empty(num_tokens, dtype=acc, device=weight.device)
        self.lse = torch.empty_like(self.logprobs, dtype=torch.float64)

    def chunks(self) -> list[Chunk]:
        return list(plan_rows(self.tokens.labels.numel(), self.rows))

    def logits(self, chunk: Chunk) -> torch.Tensor:
        """``[rows, V]`` in the buffer, before scale and softcap."""
        out = self.buffer[: chunk.stop - chunk.start]
        return self.kernels.project(self.tokens.hidden[chunk.span], self.weight, self.bias, out)

    def forward(self, chunk: Chunk) -> torch.Tensor:
        """Compute the chunk's log-probabilities; returns its logits, still in the buffer."""
        logits = self.logits(chunk)
        logprobs, lse = self.kernels.token_logprobs(
            logits, self.tokens.labels[chunk.span], scale=self.scale, softcap=self.softcap
        )
        _checks.finite_rows("hidden @ lm_head_weight.T", lse, chunk.start)
        self.logprobs[chunk.span], self.lse[chunk.span] = logprobs, lse
        return logits

    def unit_gradient(self, chunk: Chunk, logits: torch.Tensor) -> torch.Tensor:
        """Turn the chunk's logits into ``G``, in place."""
        labels, lse = self.tokens.labels[chunk.span], self.lse[chunk.span]
        return self.kernels.logit_gradient(logits, labels, lse, None, logits, scale=self.scale, softcap=self.softcap)

    def response_logprobs(self, first: int, last: int, mean: bool) -> torch.Tensor:
        """Log-probabilities of responses ``[first, last)``, whose tokens have all been seen; float64."""
        offsets = self.tokens.offsets[first : last + 1]
        span = slice(int(offsets[0]), int(offsets[-1]))
        return self.kernels.response_sums(
            self.logprobs[span].double(), self.tokens.labels[span], offsets - span.start, mean
        )

    def token_coefficients(self, coefficients: torch.Tensor, first: int, last: int, mean: bool) -> torch.Tensor:
        """Spread coefficients of responses ``[first, last)`` over their tokens."""
        offsets = self.tokens.offsets[first : last + 1]
        span = slice(int(offsets[0]), int(offsets[-1]))
        return self.kernels.token_coefficients(
            coefficients.to(self.logprobs.dtype).contiguous(), self.tokens.labels[span], offsets - span.start, mean
        )


class HeadGradient:
    """Accumulates ``G.T @ (c * hidden)`` and ``G.T @ c`` over chunks, in float32 or better."""

    def __init__(self, head: ChunkedHead, needs: Needs) -> None:
        self.kernels = head.kernels
        acc = head.kernels.accumulation_dtype(head.weight.dtype)
        vocab, width = head.weight.shape
        self.weight = head.kernels.empty_large(vocab if needs.weight else 0, width, dtype=acc)
        self.bias = head.weight.new_zeros(vocab if needs.bias else 0, dtype=acc)
        self.empty = True

    def add(self, gradient: torch.Tensor, hidden: torch.Tensor, coefficients: torch.Tensor) -> None:
        if self.bias.numel():
            self.bias += torch.mv(gradient.t(), coefficients.to(gradient.dtype))
        if self.weight.numel():
            scaled = hidden * coefficients.unsqueeze(1).to(hidden.dtype)
            self.kernels.add_outer(self.weight, gradient, scaled, self.empty)
        self.empty = False


def forward(head: ChunkedHead, need_unit: bool) -> torch.Tensor:
    """All log-probabilities (into ``head``) and, if wanted, ``G @ W`` of every token ``[n, D]``."""
    hidden = head.tokens.hidden
    unit = torch.empty_like(hidden) if need_unit else hidden.new_empty(0, hidden.shape[1])
    for chunk in head.chunks():
        logits = head.forward(chunk)
        if need_unit:
            torch.mm(head.unit_gradient(chunk, logits), head.weight, out=unit[chunk.span])
    return unit


def recompute_gradients(head: ChunkedHead, coefficients: torch.Tensor, needs: Needs) -> Gradients:
    """Gradients for given token coefficients ``[n]`` and ``head.lse``, at the price of computing the logits again."""
    hidden = head.tokens.hidden
    total = HeadGradient(head, needs)
    d_hidden = torch.empty_like(hidden) if needs.hidden else hidden.new_empty(0, hidden.shape[1])
    for chunk in head.chunks():
        gradient = head.unit_gradient(chunk, head.logits(chunk))
        if needs.hidden:
            torch.mm(gradient, head.weight, out=d_hidden[chunk.span])
        total.add(gradient, hidden[chunk.span], coefficients[chunk.span])
    if needs.hidden:
        d_hidden *= coefficients.unsqueeze(1)
    return Gradients(d_hidden, total.weight, total.bias)


class LossPass:
    """``linear_pope_loss``: the value and its gradients in one go over the tokens."""

    def __init__(
        self,
        head: ChunkedHead,
        logging_logprobs: torch.Tensor,  # [R] float64
        utility: torch.Tensor,  # [R] float64
        slate_offsets: torch.Tensor,  # [S + 1] int64
        objective: Objective,
        length_normalize: bool,
        needs: Needs,
    ) -> None:
        self.head, self.objective, self.mean, self.needs = head, objective, length_normalize, needs
        self.logging_logprobs, self.utility, self.slate_offsets = logging_logprobs, utility, slate_offsets
        self.response_logprobs = torch.empty_like(logging_logprobs)

    def run(self) -> tuple[SlateValues, Gradients]:
        hidden, num_responses = self.head.tokens.hidden, self.utility.numel()
        groups = GroupCoefficients(
            self.head.kernels, self.logging_logprobs, self.utility, self.slate_offsets, self.objective
        )
        totals: list[HeadGradient] = []
        if self.needs.head:
            totals = [HeadGradient(self.head, self.needs) for _ in groups.terms]
            unit = self._grouped(groups, totals)
        else:
            unit = forward(self.head, self.needs.hidden)
            self.response_logprobs = self.head.response_logprobs(0, num_responses, self.mean)
        values = evaluate_checked(
            self.head.kernels,
            self.response_logprobs,
            self.logging_logprobs,
            self.utility,
            self.slate_offsets,
            self.objective,
        )
        if self.needs.hidden:
            unit *= self.head.token_coefficients(values.coefficients, 0, num_responses, self.mean).unsqueeze(1)
        if not totals:
            return values, Gradients(unit, hidden.new_empty(0), hidden.new_empty(0))
        d_weight = groups.combine([total.weight for total in totals], values, self.slate_offsets)
        d_bias = groups.combine([total.bias for total in totals], values, self.slate_offsets)
        return values, Gradients(unit, d_weight, d_bias)

    def _grouped(self, groups: GroupCoefficients, totals: list[HeadGradient]) -> torch.Tensor:
        """Batches of whole groups: log-probabilities, coefficients, gradients, while the logits are in the buffer."""
        head, hidden = self.head, self.head.tokens.hidden
        unit = torch.empty_like(hidden) if self.needs.hidden else hidden.new_empty(0, hidden.shape[1])
        for batch in plan_groups(head.tokens.offsets[groups.offsets].tolist(), head.rows):
            for chunk in batch.chunks:
                logits = head.forward(chunk)
            coefficients = self._batch_coefficients(groups, batch)
            start = batch.chunks[0].start
            # Backwards: the last chunk's logits are still in the buffer; only earlier ones are computed again.
            for chunk in reversed(batch.chunks):
                if chunk is not batch.chunks[-1]:
                    logits = head.logits(chunk)
                gradient = head.unit_gradient(chunk, logits)
                if self.needs.hidden:
                    torch.mm(gradient, head.weight, out=unit[chunk.span])
                for total, coefficient in zip(totals, coefficients, strict=True):
                    here = coefficient[chunk.start - start : chunk.stop - start]
                    total.add(gradient, hidden[chunk.span], here)
        return unit

    def _batch_coefficients(self, groups: GroupCoefficients, batch: Batch) -> list[torch.Tensor]:
        span = groups.responses(batch.first_group, batch.last_group)
        self.response_logprobs[span] = self.head.response_logprobs(span.start, span.stop, self.mean)
        return [
            self.head.token_coefficients(coefficient, span.start, span.stop, self.mean)
            for coefficient in groups(self.response_logprobs, batch.first_group, batch.last_group)
        ]
