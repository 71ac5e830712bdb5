"""What others offer for the same job on a GPU: log-probabilities of tokens, on which the loss is composed.

A rival gets the logits ``[N, V]``, or the hidden states and the head, and the labels, and gives the log-probability of
every label ``[N]``; what it imports, it imports where it is used. What offers no log-probabilities of tokens, and so
cannot have this job, has its nearest one in `nearest_gpu`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from harness import OBJECTIVE, Problem

import pope_core
from pope_core.backends import LINEAR_VARIABLE
from pope_core.slates import segment_ids


@dataclass
class Case:
    """A ragged problem: responses of their own lengths, slates of their own sizes."""

    problem: Problem
    response: torch.Tensor  # [N] the response of every token
    slate: torch.Tensor  # [R] the slate of every response
    length: int | None  # tokens of every response, if that is one number

    @classmethod
    def of(cls, problem: Problem) -> Case:
        lengths = problem.response_offsets.diff().tolist()
        return cls(
            problem,
            segment_ids(problem.response_offsets, sum(lengths)),
            segment_ids(problem.slate_offsets, len(lengths)),
            lengths[0] if len(set(lengths)) == 1 else None,
        )

    def loss(self, token_logprobs: torch.Tensor) -> torch.Tensor:
        """The rest of the loss in plain PyTorch, float32: response weights, length-normalised."""
        p = self.problem
        lengths, sizes = p.response_offsets.diff(), p.slate_offsets.diff()
        sums = token_logprobs.new_zeros(lengths.numel(), dtype=torch.float32)
        logprobs = sums.index_add(0, self.response, token_logprobs.float()) / lengths
        weights = (logprobs - p.logging_logprobs / lengths).exp()
        each = weights * (p.utility - 0.1 * logprobs) / sizes[self.slate]
        return -each.sum() / sizes.numel()


Loss = Callable[[Case], torch.Tensor]
TokenLogprobs = Callable[..., torch.Tensor]


class Rival(NamedTuple):
    """What is timed, and the plain formula of the same loss, which it is checked against.

    ``job`` names that loss where it is not ours but the nearest that the rival has: its times are of other work.
    """

    run: Loss
    plain: Loss
    job: str = ""


def composed(token_logprobs: TokenLogprobs) -> Loss:
    return lambda case: case.loss(token_logprobs(*case.problem.leaves, case.problem.labels))


def gathered(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, labels.unsqueeze(1)).squeeze(1)


def gathered_from_hidden(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return gathered(F.linear(hidden, weight), labels)


# Without `dynamic=False` the second shape of a run would get code for any shape.
_compiled = torch.compile(gathered, dynamic=False)
_compiled_from_hidden = torch.compile(gathered_from_hidden, dynamic=False)
_tuned_from_hidden = torch.compile(gathered_from_hidden, dynamic=False, mode="max-autotune-no-cudagraphs")


def torch_linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError("F.linear_cross_entropy needs torch >= 2.13")
    return -F.linear_cross_entropy(hidden, weight, labels, reduction="none")


def torch_chunked_linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        raise ImportError("torch.nn.LinearCrossEntropyOptions needs torch >= 2.13")
    options = torch.nn.LinearCrossEntropyOptions()  # without any, all logits are materialised
    return -F.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options)


def trl_selective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from trl.kernels import selective_log_softmax_and_entropy

    # What its `selective_log_softmax` runs on a GPU; the entropy comes along.
    return selective_log_softmax_and_entropy(logits, labels)[0]


def trl_chunked(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from trl.kernels import ChunkedLogProbFunction

    # Its trainers' chunk of the vocabulary; no bias, temperature 1, no softcap, scale 1, no further outputs.
    return ChunkedLogProbFunction.apply(hidden, weight, None, labels, 1.0, 8192, None, 1.0, ())[0]


def liger_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerCrossEntropyFunction

    # It writes the gradient over the logits of the forward; the others leave them as they are.
    return -LigerCrossEntropyFunction.apply(logits.clone(), labels, None, -100, 0.0, 0.0, "none")[0]


def liger_fused_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    arguments = (hidden, weight, labels, None, None, -100, 0.0, 0.0, "none")
    return -LigerFusedLinearCrossEntropyFunction.apply(*arguments)[0]


def liger_scaled(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    result = LigerFusedLinearScaledCrossEntropyFunction.apply(hidden, weight, labels)
    return -(result[0] if isinstance(result, tuple) else result)


def cut_cross_entropy(filter_eps: str | None) -> TokenLogprobs:
    """CCE; ``filter_eps`` is below which probability its backward skips a block: None, or "auto" by the dtype."""

    def token_logprobs(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return -linear_cross_entropy(hidden, weight, labels, reduction="none", filter_eps=filter_eps)

    return token_logprobs


def quack_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    from quack.cross_entropy import cross_entropy

    return -cross_entropy(logits, labels, reduction="none")


def quack_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    # Its chunked loss gives a mean or a sum only; for the losses of tokens its own module does this.
    return quack_cross_entropy(F.linear(hidden, weight), labels)


def pope_from_logits(backend: str) -> Loss:
    def loss(case: Case) -> torch.Tensor:
        p = case.problem
        arguments = (*p.leaves, p.labels, *p.log_data)
        options = {"response_offsets": p.response_offsets, "objective": OBJECTIVE, "backend": backend}
        return pope_core.pope_loss(*arguments, **options).loss

    return loss


def pope_from_hidden(backend: str, method: str | None = None) -> Loss:
    """``method`` of Triton's: "scaled_exp" or "classic"; the one that it takes by itself where None."""

    def loss(case: Case) -> torch.Tensor:
        p = case.problem
        arguments = (*p.leaves, p.labels, *p.log_data)
        options = {"response_offsets": p.response_offsets, "objective": OBJECTIVE, "backend": backend}
        with mock.patch.dict(os.environ, {} if method is None else {LINEAR_VARIABLE: method}):
            return pope_core.linear_pope_loss(*arguments, **options).loss

    return loss


#: The plain composition, against which all others are checked before they are timed.
PLAIN = {"logits": composed(gathered), "hidden": composed(gathered_from_hidden)}

LOSSES: dict[str, dict[str, Loss]] = {
    "logits": {
        "pope_core, cuda": pope_from_logits("cuda"),
        "pope_core, triton": pope_from_logits("triton"),
        "log_softmax + gather": PLAIN["logits"],
        "log_softmax + gather, compiled": composed(_compiled),
        "F.cross_entropy": composed(lambda logits, labels: -F.cross_entropy(logits, labels, reduction="none")),
        "TRL selective_log_softmax": composed(trl_selective),
        "Liger cross entropy": composed(liger_cross_entropy),
        "quack cross entropy": composed(quack_cross_entropy),
    },
    "hidden": {
        "pope_core, cuda": pope_from_hidden("cuda"),
        "pope_core, triton": pope_from_hidden("triton", "classic"),
        "pope_core, triton, exponentials": pope_from_hidden("triton", "scaled_exp"),
        "F.linear, log_softmax + gather": PLAIN["hidden"],
        "F.linear, log_softmax + gather, compiled": composed(_compiled_from_hidden),
        "F.linear, log_softmax + gather, max-autotune": composed(_tuned_from_hidden),
        "F.linear_cross_entropy": composed(torch_linear_cross_entropy),
        "F.linear_cross_entropy, chunked": composed(torch_chunked_linear_cross_entropy),
        "TRL chunked log-probabilities": composed(trl_chunked),
        "Liger fused linear cross entropy": composed(liger_fused_linear),
        "Liger fused linear scaled cross entropy": composed(liger_scaled),
        "CCE, exact": composed(cut_cross_entropy(None)),
        "CCE, filtered": composed(cut_cross_entropy("auto")),
        "F.linear, quack cross entropy": composed(quack_linear),
    },
}

RIVALS = {
    source: {name: Rival(loss, PLAIN[source]) for name, loss in losses.items()} for source, losses in LOSSES.items()
}
