"""The loss of a policy on one micro-batch, run inside the hooks of the model's wrapper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

import pope_core
from pope_core.slates import LogData

from ..data.rows import TokenRows
from ..distributed import call_as_forward, gather_ragged
from ..models.causal_lm import LmHead, lm_head, output_layer, response_hidden_states
from .config import PopeConfig, SlateConfig
from .examples import num_slates
from .log_data import gathered, log_of, measured

#: A batch of `IndexedCollator` with a `SlateCollator`: tensors, and a `LogData` as "log".
SlateBatch = Mapping[str, Any]


class ShareOfStep(NamedTuple):
    """The contribution of one micro-batch to the loss of its step."""

    loss: torch.Tensor  # [] to differentiate; in the wrapper's output dtype
    value: torch.Tensor  # [] the same number, detached
    response_logprobs: torch.Tensor  # [R] nats, totals, detached


#: From hidden states and head to the contribution of a micro-batch, to differentiate, and its ``[R]`` totals in nats.
ShareOf = Callable[[torch.Tensor, LmHead], tuple[torch.Tensor, torch.Tensor]]


def policy_loss(model: torch.nn.Module, batch: SlateBatch, accelerator: Accelerator, share_of: ShareOf) -> ShareOfStep:
    """The contribution of one micro-batch to the loss of its step.

    The contributions of all micro-batches of all processes add up to the loss of the step, and so do their gradients.
    The head is called only for its hooks, which gather a sharded matrix once; the loss uses the matrix directly.

    Args:
        model: as the trainer wrapped it.
        batch: of `IndexedCollator`, on the model's device.
        share_of: computes the contribution of the batch.
    """
    policy = cast(PreTrainedModel, accelerator.unwrap_model(model))
    seen: list[torch.Tensor] = []  # not an argument, because hooks may cast arguments

    def head_loss(hidden: torch.Tensor) -> torch.Tensor:
        share, logprobs = share_of(hidden, lm_head(policy))
        if num_slates(batch) == 0:  # a stand-in
            share = 0.0 * share
        seen.extend((share.detach(), logprobs.detach()))
        return share

    def forward() -> torch.Tensor:
        # Not model.forward, which would compute all logits; so autocast is entered here.
        with accelerator.autocast():
            hidden = response_hidden_states(policy, cast(TokenRows, batch)).hidden
            head = output_layer(policy)
            return cast(torch.Tensor, call_as_forward(head, head, head_loss, hidden))

    return ShareOfStep(cast(torch.Tensor, call_as_forward(model, policy, forward)), *seen)


def response_totals(hidden: torch.Tensor, head: LmHead, batch: SlateBatch, args: SlateConfig) -> torch.Tensor:
    """``[R]`` total log-probabilities of the responses, differentiable; no logits are kept."""
    return pope_core.linear_response_logprobs(hidden, head.weight, batch["labels"], **_head_options(head, batch, args))


def pope_share(
    hidden: torch.Tensor,
    head: LmHead,
    batch: SlateBatch,
    args: PopeConfig,
    processes: int,
    slates_of_step: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The POPE loss of one micro-batch as a contribution to that of its step.

    Args:
        processes: their number.
        slates_of_step: number of slates in all micro-batches of all processes; None outside training, for the slates of
            the batch.
    """
    across = args.objective.couples_slates and slates_of_step is not None and processes > 1
    share_of = _coupled_share if across or args.kl_weight > 0 else _fused_share
    return share_of(hidden, head, batch, args, slates_of_step)


def penalty_to_start(log_ratio: torch.Tensor) -> torch.Tensor:
    """``exp(d) - d - 1`` with ``d = -log_ratio``: 0 where policy and start agree, and convex around it.

    On responses drawn from the policy, with total log-probabilities, its mean is an unbiased estimate of the
    Kullback-Leibler divergence from the policy to its start (Schulman's k3). On logged responses it is not: it keeps
    the policy close to its start on the log, in nats per token with length normalisation.

    Args:
        log_ratio: of policy to start, per token if the objective is length-normalised.
    """
    return torch.expm1(-log_ratio) + log_ratio


def _fused_share(
    hidden: torch.Tensor, head: LmHead, batch: SlateBatch, args: PopeConfig, slates_of_step: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One operator from hidden states to loss and gradients."""
    log: LogData = batch["log"]
    own = max(num_slates(batch), 1)
    of_step = slates_of_step or own
    coupled = args.objective.couples_slates  # a ratio of sums over the call: a step averages its micro-batches
    output = pope_core.linear_pope_loss(
        hidden,
        head.weight,
        batch["labels"],
        log.logging_logprobs,
        log.utility,
        log.slate_offsets,
        objective=args.objective,
        num_slates=None if coupled else of_step,
        **_head_options(head, batch, args),
    )
    return output.loss * (own / of_step) if coupled else output.loss, output.response_logprobs


def _coupled_share(
    hidden: torch.Tensor, head: LmHead, batch: SlateBatch, args: PopeConfig, slates_of_step: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """From log-probabilities, for a loss that needs those of other processes or has a KL penalty."""
    totals = response_totals(hidden, head, batch, args)
    log: LogData = batch["log"]
    of_step = slates_of_step or max(num_slates(batch), 1)
    if args.objective.couples_slates:
        share = _share_of_all(totals, batch, args, slates_of_step)
    else:
        share = _objective_loss(totals, log, args, of_step)
    if args.kl_weight > 0:
        penalty = penalty_to_start(measured(totals - batch["start_logprobs"], log, args.objective))
        per_slate = torch.segment_reduce(penalty, "mean", offsets=log.slate_offsets)
        share = share + (args.kl_weight * per_slate.sum() / of_step).to(share.dtype)
    return share, totals


def _head_options(head: LmHead, batch: SlateBatch, args: SlateConfig) -> dict[str, Any]:
    """The common arguments of `pope_core`'s ``linear_*`` functions."""
    return {
        "lm_head_bias": head.bias,
        "response_offsets": batch["response_offsets"],
        "logit_scale": head.logit_scale,
        "logit_softcap": head.logit_softcap,
        "chunk_bytes": args.chunk_bytes,
        "backend": args.backend,
    }


def _share_of_all(
    totals: torch.Tensor, batch: SlateBatch, args: PopeConfig, slates_of_step: int | None
) -> torch.Tensor:
    """The ratio of sums over the micro-batches of all processes, computed completely by every process."""
    if slates_of_step is None:
        return _objective_loss(totals, batch["log"], args, None)
    log = log_of(batch)
    own = totals[: log.utility.shape[0]]  # empty for a stand-in
    pieces = gather_ragged(own)
    everything = gathered(log)
    slates = everything.slate_offsets.shape[0] - 1
    loss = _objective_loss(torch.cat(pieces), everything, args, None) * (slates / slates_of_step)
    # The value is divided among the processes; each gradient is already that of the process's own log-probabilities.
    return loss - loss.detach() * (1 - 1 / len(pieces)) + 0.0 * totals.sum()


def _objective_loss(totals: torch.Tensor, log: LogData, args: PopeConfig, of_step: int | None) -> torch.Tensor:
    return pope_core.slate_objective(
        totals,
        log.logging_logprobs,
        log.utility,
        log.slate_offsets,
        tokens=log.tokens,
        objective=args.objective,
        num_slates=of_step,
        backend=args.backend,
    ).loss
