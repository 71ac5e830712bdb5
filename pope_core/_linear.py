"""The ``linear_*`` operations on one backend: chunks of logits that are overwritten by their gradients.

Per row, with ``G = onehot - softmax`` (chained through scale and softcap) and one coefficient ``c`` per response
token::

    d_hidden = c * (G @ W)          d_weight = G.T @ (c * hidden)          d_bias = G.T @ c

so ``G`` itself is never scaled: the coefficient scales rows of ``G @ W`` afterwards and rows of ``hidden`` before
``d_weight``. With a frozen head the coefficients may therefore be computed last (4NDV, any chunks); with a trainable
head they must be known while ``G`` exists, so a chunk contains whole groups (6NDV); see ``_plan.py`` and
``_objective.py``. Rows whose coefficient is exactly zero need no ``G`` at all.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import torch

from pope_kernels.values import accumulation_dtype

from . import _checks
from ._offsets import Offsets, both, capturing
from ._plan import Chunk, front_order, plan_rows
from .backends import ExponentialKernels, Kernels
from .devices import device_type
from .types import IGNORE_INDEX


class Needs(NamedTuple):
    """Which gradients are required."""

    hidden: bool
    weight: bool
    bias: bool

    @property
    def head(self) -> bool:
        return self.weight or self.bias

    @property
    def unit(self) -> bool:
        """Whether only ``G @ W`` is required, which coefficients may scale afterwards."""
        return self.hidden and not self.head


def head_gradient_dtype(weight: torch.Tensor, product: torch.dtype) -> torch.dtype:
    """The dtype in which the forward keeps the gradient of ``weight`` [V, D], for products in ``product``.

    bfloat16 has the range of float32, so the gradient can be rounded before backward scales it; for a float16 head it
    must be multiplied by the loss scale first.
    """
    return product if product == weight.dtype == torch.bfloat16 else accumulation_dtype(product)


#: On a CPU a product of two dtypes copies its operands, so it is done for this many rows at a time.
SCALED_ROWS = 1024


def multiply(rows: torch.Tensor, factor: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """``rows * factor`` (a number, or one for each row: ``[n, 1]``) in the wider dtype, rounded once, into ``out``."""
    if not device_type(rows.device).mixed_product_copies:  # a 0-d factor would be rounded to the rows' dtype
        return torch.mul(rows, factor if factor.ndim else factor.unsqueeze(0), out=out)
    for begin in range(0, rows.shape[0], SCALED_ROWS):
        some = slice(begin, begin + SCALED_ROWS)
        torch.mul(rows[some], factor[some] if factor.ndim else factor, out=out[some])
    return out


class Tokens:
    """The response tokens of a call.

    With ``compact`` the ignored positions of a padded batch are left out, for which the host must count them. Without
    it they are rows like any other, with a zero gradient.
    """

    def __init__(
        self, hidden: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor, compact: bool
    ) -> None:
        self.total = labels.numel()
        self.hidden, self.labels = hidden, labels
        self.index: torch.Tensor | None = None
        if compact:
            if capturing(hidden.device):
                raise RuntimeError("hidden: padded rows cannot be captured in a CUDA graph; pass packed rows [N, D]")
            kept = labels != IGNORE_INDEX
            index = kept.nonzero().squeeze(1)
            if index.numel() < self.total:
                self.index, self.hidden, self.labels = index, hidden[index], labels[index]
                before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.long().cumsum(0)])
                response_offsets = before[response_offsets.to(hidden.device)]
        self.offsets: Offsets = both(response_offsets, hidden.device)

    def scatter(self, values: torch.Tensor) -> torch.Tensor:
        """Rows ``[n, ...]`` of the kept tokens at their original positions ``[N, ...]``, zero elsewhere."""
        if self.index is None:
            return values
        return values.new_zeros(self.total, *values.shape[1:]).index_copy_(0, self.index, values)


class ChunkedHead:
    """Logits of one chunk at a time, in one reused buffer, and the log-probabilities of every token seen so far.

    This is the method "classic"; `ScaledExpHead` is the other.
    """

    def __init__(
        self,
        kernels: Kernels,
        tokens: Tokens,
        weight: torch.Tensor,  # [V, D]
        bias: torch.Tensor | None,  # [V]
        scale: float,
        softcap: float | None,
        rows: int,  # of logits at a time
        gradient_dtype: torch.dtype,  # of the head
    ) -> None:
        self.kernels, self.tokens, self.weight, self.bias = kernels, tokens, weight, bias
        self.scale, self.softcap = scale, softcap
        self.rows, self.gradient_dtype = rows, gradient_dtype
        num_tokens = tokens.labels.numel()
        acc = accumulation_dtype(weight.dtype)
        self.logprobs = torch.empty(num_tokens, dtype=acc, device=weight.device)
        self.lse = torch.empty_like(self.logprobs, dtype=torch.float64)

    @functools.cached_property
    def buffer(self) -> torch.Tensor:
        """``[rows, V]``, allocated when it is first needed."""
        weight = self.weight
        return self.kernels.empty_large(self.rows, weight.shape[0], dtype=weight.dtype, device=weight.device)

    @property
    def whole(self) -> bool:
        """Whether all rows fit in one chunk."""
        return self.rows == self.tokens.labels.numel()

    def release(self) -> None:
        """Free the buffer, which is not needed again."""
        self.__dict__.pop("buffer", None)

    def chunks(self) -> list[Chunk]:
        return list(plan_rows(self.tokens.labels.numel(), self.rows))

    def again(self, chunk: Chunk) -> torch.Tensor:
        """The chunk's logits ``[rows, V]`` in the buffer, before scale and softcap."""
        out = self.buffer[: chunk.stop - chunk.start]
        return self.kernels.project(self.tokens.hidden[chunk.span], self.weight, self.bias, out)

    def forward(self, chunk: Chunk) -> torch.Tensor:
        """Compute the chunk's log-probabilities; returns its logits, still in the buffer."""
        logits = self.again(chunk)
        logprobs, lse = self.kernels.token_logprobs(
            logits, self.tokens.labels[chunk.span], scale=self.scale, softcap=self.softcap
        )
        if not _checks.deferred(lse.device):
            _checks.finite_rows("hidden @ lm_head_weight.T", lse, chunk.start)
        self.logprobs[chunk.span], self.lse[chunk.span] = logprobs, lse
        return logits

    def score(self) -> None:
        """All log-probabilities and nothing else.

        Whole rows of logits are not needed here, and with a buffer of few rows the head would be read again for every
        few tokens. Square tiles of tokens and vocabulary entries read least.
        """
        for chunk in plan_rows(self.tokens.labels.numel(), max(1, math.isqrt(self.buffer.numel()))):
            self._score_by_vocabulary(chunk)

    def _score_by_vocabulary(self, chunk: Chunk) -> None:
        """As `forward`, one block of the vocabulary at a time; only the log-sum-exp of a block is kept."""
        hidden, labels, kernels = self.tokens.hidden[chunk.span], self.tokens.labels[chunk.span], self.kernels
        lse = torch.full(labels.shape, -math.inf, dtype=torch.float64, device=labels.device)
        target = torch.full_like(lse, math.nan)  # stays NaN for a label that is not in the vocabulary
        vocab, memory = self.weight.shape[0], self.buffer.view(-1)
        for begin in range(0, vocab, entries := memory.numel() // labels.numel()):
            block = slice(begin, min(begin + entries, vocab))
            logits = memory[: labels.numel() * (block.stop - begin)].view(labels.numel(), -1)
            kernels.project(hidden, self.weight[block], None if self.bias is None else self.bias[block], logits)
            here = (labels >= begin) & (labels < block.stop)
            logprobs, block_lse = kernels.token_logprobs(
                logits, torch.where(here, labels - begin, 0), scale=self.scale, softcap=self.softcap
            )
            target = torch.where(here, logprobs + block_lse, target)
            lse = torch.logaddexp(lse, block_lse)
        if not _checks.deferred(lse.device):
            _checks.finite_rows("hidden @ lm_head_weight.T", lse, chunk.start)
        ignored = labels == IGNORE_INDEX
        self.logprobs[chunk.span] = (target - lse).masked_fill(ignored, 0.0)
        self.lse[chunk.span] = lse.masked_fill(ignored, 0.0)

    def unit_gradient(self, chunk: Chunk, logits: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
        """Overwrite the chunk's logits with ``G``; ``order``: the rows of the chunk that ``logits`` contains."""
        labels, lse = self.tokens.labels[chunk.span], self.lse[chunk.span]
        if order is not None:
            labels, lse = labels[order], lse[order]
        return self.kernels.logit_gradient(logits, labels, lse, None, logits, scale=self.scale, softcap=self.softcap)

    def row_factors(self, span: slice) -> torch.Tensor | None:
        """``[n]`` factors by which rows of `unit_gradient` must be multiplied to give ``G``; None if they are ``G``."""
        return None

    def with_row_factors(self, coefficients: torch.Tensor, span: slice) -> torch.Tensor:
        """``coefficients`` [n] of the tokens of ``span``, times the row factors of `unit_gradient`."""
        factors = self.row_factors(span)
        return coefficients if factors is None else coefficients * factors

    def span(self, first: int, last: int) -> tuple[slice, torch.Tensor]:
        """The tokens of responses ``[first, last)``, and the offsets of these responses within them."""
        host, device = self.tokens.offsets
        span = slice(int(host[first]), int(host[last]))
        return span, device[first : last + 1] - span.start

    def response_logprobs(self, first: int, last: int, mean: bool) -> torch.Tensor:
        """Log-probabilities of responses ``[first, last)``, all of whose tokens have been computed; float64."""
        span, offsets = self.span(first, last)
        return self.kernels.response_sums(self.logprobs[span].double(), self.tokens.labels[span], offsets, mean)

    def token_coefficients(self, coefficients: torch.Tensor, first: int, last: int, mean: bool) -> torch.Tensor:
        """Spread coefficients of responses ``[first, last)`` over their tokens."""
        span, offsets = self.span(first, last)
        return self.kernels.token_coefficients(
            coefficients.to(self.logprobs.dtype).contiguous(), self.tokens.labels[span], offsets, mean
        )


class ScaledExpHead(ChunkedHead):
    """The method "scaled_exp": exponentials instead of logits. After the product only the two products of the gradients
    read or write tensors of their size (``pope_kernels/triton/exp_product.py``).

    After `forward` the buffer contains E, and ``G = factor * E`` with one factor per row.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.exponentials = cast(ExponentialKernels, self.kernels)
        self.factors = torch.empty_like(self.logprobs)
        #: The number of rows out of range of their reference, which need two more products each: one [] int32 per
        #: chunk.
        self.rescued: list[torch.Tensor] = []

    @functools.cached_property
    def buffer(self) -> torch.Tensor:
        vocab = self.weight.shape[0]
        return self.weight.new_empty(self.rows, self.exponentials.padded_columns(vocab))[:, :vocab]

    def _product(self, chunk: Chunk, out: torch.Tensor | None) -> None:
        found = self.exponentials.scaled_exp(
            self.tokens.hidden[chunk.span],
            self.weight,
            self.bias,
            self.tokens.labels[chunk.span],
            out,
            scale=self.scale,
            softcap=self.softcap,
        )
        if not _checks.deferred(found.lse.device):
            _checks.finite_rows("hidden @ lm_head_weight.T", found.lse, chunk.start)
        self.logprobs[chunk.span], self.lse[chunk.span] = found.logprobs, found.lse
        self.factors[chunk.span] = found.factor
        self.rescued.append(found.rescued)

    def again(self, chunk: Chunk) -> torch.Tensor:
        return self.forward(chunk)

    def forward(self, chunk: Chunk) -> torch.Tensor:
        out = self.buffer[: chunk.stop - chunk.start]
        self._product(chunk, out)
        return out

    def score(self) -> None:
        self._product(Chunk(0, self.tokens.labels.numel()), None)

    def unit_gradient(self, chunk: Chunk, logits: torch.Tensor, order: torch.Tensor | None = None) -> torch.Tensor:
        return logits

    def row_factors(self, span: slice) -> torch.Tensor | None:
        return self.factors[span]


class HeadGradient:
    """Accumulates ``G.T @ (c * hidden)`` and ``G.T @ c`` over chunks, in float32 or better. With a single chunk there
    is no sum, and its product has the gradient's own dtype.
    """

    def __init__(self, head: ChunkedHead, needs: Needs) -> None:
        self.kernels = head.kernels
        dtype, device = accumulation_dtype(head.weight.dtype), head.weight.device
        vocab, width = head.weight.shape
        of_weight = head.gradient_dtype if head.whole else dtype
        self.weight = head.kernels.empty_large(vocab if needs.weight else 0, width, dtype=of_weight, device=device)
        self.bias = torch.empty(vocab if needs.bias else 0, dtype=dtype, device=device)
        self.empty = True
        # Coefficients are about 1 / tokens, where float16 has few digits: a power of two brings them near 1.
        self.factor = 2.0 ** int(math.log2(head.logprobs.numel())) if head.weight.dtype == torch.float16 else 1.0

    def add(self, gradient: torch.Tensor, hidden: torch.Tensor, coefficients: torch.Tensor) -> None:
        each = (coefficients * self.factor if self.factor != 1.0 else coefficients).unsqueeze(1)
        if self.bias.numel():
            self.kernels.add_outer(self.bias.unsqueeze(1), gradient, each.to(gradient.dtype), self.empty)
        if self.weight.numel():
            # One rounding: the error of a rounded coefficient would be shared by all tokens of a response.
            scaled = multiply(hidden, each, torch.empty_like(hidden))
            self.kernels.add_outer(self.weight, gradient, scaled, self.empty)
        self.empty = False

    def totals(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``d_weight`` and ``d_bias``."""
        if self.empty:
            return self.weight.zero_(), self.bias.zero_()
        if self.factor != 1.0:
            self.weight /= self.factor
            self.bias /= self.factor
        return self.weight, self.bias


class Products:
    """Computes ``G @ W`` and the gradients of the head from chunks of logits."""

    def __init__(self, head: ChunkedHead, needs: Needs, may_vanish: bool) -> None:
        hidden = head.tokens.hidden
        self.head, self.need_hidden = head, needs.hidden
        # On a GPU, finding the zero coefficients synchronises, so it is done only if some are likely.
        waits = device_type(hidden.device).asynchronous
        self.skip_zeros = not waits or (may_vanish and not capturing(hidden.device))
        self.unit = torch.empty_like(hidden) if needs.hidden else hidden.new_empty(0, hidden.shape[1])
        self.total = HeadGradient(head, needs) if needs.head else None

    def take(self, chunk: Chunk, logits: torch.Tensor, coefficients: torch.Tensor) -> None:
        """``coefficients`` [n] of the chunk's tokens; ``logits`` are overwritten."""
        head, hidden = self.head, self.head.tokens.hidden[chunk.span]
        of_rows = head.with_row_factors(coefficients, chunk.span)
        order = self._move_front(logits, coefficients) if self.skip_zeros else None
        if order is not None:
            hidden, logits, of_rows = hidden[order], logits[: order.numel()], of_rows[order]
            if self.need_hidden:
                self.unit[chunk.span] = 0
            if order.numel() == 0:
                return
        gradient = head.unit_gradient(chunk, logits, order)
        if self.need_hidden:
            out = self.unit[chunk.span]
            if order is None:
                head.kernels.back_project(gradient, head.weight, out)
            else:
                moved = out.new_empty(order.numel(), out.shape[1])
                out.index_copy_(0, order, head.kernels.back_project(gradient, head.weight, moved))
        if self.total is not None:
            self.total.add(gradient, hidden, of_rows)

    def head_gradient(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``d_weight`` and ``d_bias``, empty if not required."""
        return nothing(self.head) if self.total is None else self.total.totals()

    def _move_front(self, logits: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor | None:
        """Move the rows with a nonzero coefficient to the front; returns their order, or None if all rows have one."""
        nonzero = (coefficients != 0).cpu()
        if bool(nonzero.all()):
            return None
        order, holes, movers = (index.to(logits.device) for index in front_order(nonzero))
        at_a_time = max(1, self.head.rows // 16)  # bounds the size of the copy
        for to, source in zip(holes.split(at_a_time), movers.split(at_a_time)):
            logits.index_copy_(0, to, logits.index_select(0, source))
        return order


def forward(head: ChunkedHead, needs: Needs) -> torch.Tensor:
    """All log-probabilities (into ``head``) and, if only the gradient of the hidden states is required, ``G @ W`` ``[n,
    D]`` up to row factors.

    A backward that recomputes the logits needs the same bits, so `score` is used only if no gradient is required.
    """
    hidden = head.tokens.hidden
    unit = torch.empty_like(hidden) if needs.unit else hidden.new_empty(0, hidden.shape[1])
    if not (needs.hidden or needs.head):
        head.score()
        return unit
    for chunk in head.chunks():
        logits = head.forward(chunk)
        if needs.unit:
            head.kernels.back_project(head.unit_gradient(chunk, logits), head.weight, unit[chunk.span])
    return unit


def recompute_gradients(
    head: ChunkedHead, coefficients: torch.Tensor, needs: Needs
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``d_hidden``, ``d_weight`` and ``d_bias`` for given token coefficients ``[n]`` and ``head.lse``; computes the
    logits again.
    """
    products = Products(head, needs, may_vanish=False)
    for chunk in head.chunks():
        products.take(chunk, head.again(chunk), coefficients[chunk.span])
    head.release()  # before the gradients are scaled and rounded
    if needs.hidden:
        every = slice(0, coefficients.numel())
        multiply(products.unit, head.with_row_factors(coefficients, every).unsqueeze(1), products.unit)
    return products.unit, *products.head_gradient()


def nothing(head: ChunkedHead) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty ``d_weight`` and ``d_bias``, for when neither is required."""
    return head.weight.new_empty(0, head.weight.shape[1], dtype=head.gradient_dtype), head.logprobs.new_empty(0)
