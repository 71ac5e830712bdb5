"""What offers a loss but no log-probabilities of tokens: the nearest loss it has, of the same states, head and labels.

No objective can be composed on these, so each is checked against its own formula in plain PyTorch, and its rows name
the other loss. They are the fused losses of whole responses, which chunk padded batches, and the mean cross entropy,
which is the least that a loss with a gradient in the head can ask of its products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rivals_gpu import Case, Loss, Rival, gathered_from_hidden

BETA = 0.1
#: A bound of the importance weights that none reaches: the objective does not clip by default.
UNCLIPPED = 1e9


def responses(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states ``[R, T, D]`` and labels ``[R, T]``."""
    if case.length is None:
        raise ValueError("takes padded responses [R, T, D], so only those of equal lengths get the same work")
    hidden, labels = case.problem.leaves[0], case.problem.labels
    return hidden.unflatten(0, (-1, case.length)), labels.unflatten(0, (-1, case.length))


def mean_logprobs(case: Case) -> torch.Tensor:
    """``[R]`` mean log-probability of a token of every response."""
    _, labels = responses(case)
    return gathered_from_hidden(*case.problem.leaves, case.problem.labels).float().view_as(labels).mean(1)


def logged_means(case: Case) -> torch.Tensor:
    """``[R]`` the same under the logging policy."""
    return case.problem.logging_logprobs / case.problem.response_offsets.diff()


def plain_dpo(case: Case) -> torch.Tensor:
    """The first half of the responses is preferred to the second; no reference, as that would be a second forward."""
    chosen, rejected = mean_logprobs(case).chunk(2)
    return -F.logsigmoid(BETA * (chosen - rejected)).mean()


def liger_dpo(pairs: int) -> Loss:
    """``pairs`` of responses to a chunk."""

    def loss(case: Case) -> torch.Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        hidden, labels = responses(case)
        fused = LigerFusedLinearDPOLoss(beta=BETA, use_ref_model=False, average_log_prob=True, chunk_size=pairs)
        return fused(case.problem.leaves[1], hidden, labels)[0]

    return loss


def plain_grpo(case: Case) -> torch.Tensor:
    """One importance weight to a response, times its utility: the POPE value without its diversity and its slates."""
    weights = (mean_logprobs(case) - logged_means(case)).exp()
    return -(weights * case.problem.utility).mean()


def liger_grpo(chunk: int) -> Loss:
    """``chunk`` responses to a chunk."""

    def loss(case: Case) -> torch.Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        hidden, labels = responses(case)
        fused = LigerFusedLinearGRPOLoss(
            beta=0.0,
            use_ref_model=False,
            epsilon_low=UNCLIPPED,
            epsilon_high=UNCLIPPED,
            loss_type="grpo",
            importance_sampling_level="sequence",
            chunk_size=chunk,
        )
        kept = torch.ones_like(labels, dtype=torch.float32)
        logged = logged_means(case).unsqueeze(1).expand_as(kept)
        return fused(hidden, case.problem.leaves[1], labels, kept, case.problem.utility, old_per_token_logps=logged)[0]

    return loss


def plain_mean_cross_entropy(case: Case) -> torch.Tensor:
    return -gathered_from_hidden(*case.problem.leaves, case.problem.labels).float().mean()


def liger_mean_cross_entropy(case: Case) -> torch.Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    return LigerFusedLinearCrossEntropyFunction.apply(*case.problem.leaves, case.problem.labels)[0]


def liger_hopper_mean_cross_entropy(case: Case) -> torch.Tensor:
    # Imported by its path: what Liger takes by itself is its Triton kernel.
    from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import LigerFusedLinearCrossEntropySM90Function

    return LigerFusedLinearCrossEntropySM90Function.apply(*case.problem.leaves, case.problem.labels)


def quack_mean_cross_entropy(case: Case) -> torch.Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(*case.problem.leaves, case.problem.labels, reduction="mean")


# Its trainers' chunk is one pair or one response; 16 responses of 128 tokens are a chunk of ours at 128k vocabulary
# entries.
NEAREST = {
    "Liger fused linear DPO": Rival(liger_dpo(1), plain_dpo, "DPO"),
    "Liger fused linear DPO, 8 pairs a chunk": Rival(liger_dpo(8), plain_dpo, "DPO"),
    "Liger fused linear GRPO": Rival(liger_grpo(1), plain_grpo, "GRPO"),
    "Liger fused linear GRPO, 16 responses a chunk": Rival(liger_grpo(16), plain_grpo, "GRPO"),
    "Liger fused linear cross entropy, mean": Rival(
        liger_mean_cross_entropy, plain_mean_cross_entropy, "mean cross entropy"
    ),
    "Liger fused linear cross entropy for Hopper, mean": Rival(
        liger_hopper_mean_cross_entropy, plain_mean_cross_entropy, "mean cross entropy"
    ),
    "quack chunked linear cross entropy, mean": Rival(
        quack_mean_cross_entropy, plain_mean_cross_entropy, "mean cross entropy"
    ),
}
