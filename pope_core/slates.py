"""Ragged layouts: tokens grouped into responses and responses into slates, by CSR offsets (like ``cu_seqlens``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .devices import device_type
from .types import IGNORE_INDEX


class LogData(NamedTuple):
    """The logged data of a batch, one number per response, in the order of the losses' arguments.

    Only ``slate_offsets`` describes the grouping; the sizes of slates are ``slate_offsets.diff()``.
    """

    logging_logprobs: torch.Tensor  # [R] nats, totals under the logging policy
    utility: torch.Tensor  # [R] in [0, 1]
    slate_offsets: torch.Tensor  # [S + 1] int64
    tokens: torch.Tensor  # [R] int64, response tokens of the policy that is trained or evaluated


def offsets_from_lengths(lengths: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Offsets ``[0, l_0, l_0 + l_1, ...]`` of consecutive runs with the given lengths.

    Equivalent: ``F.pad(torch.as_tensor(lengths).cumsum(0), (1, 0))``. Use it for ``slate_offsets`` (responses per
    slate) and ``response_offsets`` (tokens per response).

    Args:
        lengths: ``[n]`` positive integers.

    Returns:
        ``[n + 1]`` int64 on the device of ``lengths``.

    Raises:
        ValueError: ``lengths`` is empty, not one-dimensional, or has elements that are not positive integers (values on
            a GPU are not read here; the operators check offsets).
    """
    try:
        lengths = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"lengths: expected a list of positive integers, got {lengths!r:.80}") from error
    if lengths.ndim != 1 or lengths.numel() == 0:
        raise ValueError(f"lengths: expected a non-empty list of integers, got shape {list(lengths.shape)}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths: expected positive integers, got {lengths.dtype}")
    if not device_type(lengths.device).asynchronous and not torch.compiler.is_compiling() and int(lengths.min()) < 1:
        at = int((lengths < 1).nonzero()[0])
        raise ValueError(f"lengths: expected positive integers, got {int(lengths[at])} at index {at}")
    return F.pad(lengths.long().cumsum(0), (1, 0))


def flatten_padded(
    rows: torch.Tensor,  # [R, L, C] logits or hidden states
    labels: torch.Tensor,  # [R, L], -100 outside the response
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """View a Hugging Face batch as the packed layout: rows ``[R*L, C]``, labels ``[R*L]``, response offsets ``[R+1]``.

    The causal shift is done here: row ``t`` of a response predicts the label at ``t + 1``. Positions without a response
    token keep the label -100 and are skipped by every kernel, so no tensor has a data-dependent shape.
    """
    num_responses, length = labels.shape
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    offsets = torch.arange(num_responses + 1, dtype=torch.int64, device=labels.device) * length
    return rows.reshape(num_responses * length, rows.shape[-1]), shifted.reshape(-1), offsets


def token_counts(labels: torch.Tensor, response_offsets: torch.Tensor) -> torch.Tensor:
    """The number of tokens of each response: how many of its packed ``labels`` ``[N]`` are not -100. ``[R]`` int64."""
    before = F.pad((labels != IGNORE_INDEX).to(torch.int64).cumsum(0), (1, 0))  # [N + 1]
    return before[response_offsets.to(labels.device, torch.int64, non_blocking=True)].diff()


def segment_ids(offsets: torch.Tensor, total: int) -> torch.Tensor:
    """For every element of the runs described by ``offsets`` ``[n + 1]``, the index of its run: ``[total]`` int64."""
    runs = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(runs, offsets.diff(), output_size=total)
