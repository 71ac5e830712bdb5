"""Ragged containers: responses in tokens and slates in responses, both as CSR offsets (as ``cu_seqlens``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .types import IGNORE_INDEX


def offsets_from_lengths(lengths: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """Offsets ``[0, l_0, l_0 + l_1, ...]`` of consecutive runs with the given lengths.

    Equivalent: ``F.pad(torch.as_tensor(lengths).cumsum(0), (1, 0))``. Use it for ``slate_offsets`` (responses per
    slate) and ``response_offsets`` (tokens per response).

    Args:
        lengths: ``[n]`` positive integers.

    Returns:
        ``[n + 1]`` int64 on the device of ``lengths``.

    Raises:
        ValueError: ``lengths`` is empty or not one-dimensional.
    """
    lengths = torch.as_tensor(lengths, dtype=torch.int64)
    if lengths.ndim != 1 or lengths.numel() == 0:
        raise ValueError(f"lengths: expected a non-empty list of integers, got shape {list(lengths.shape)}")
    return F.pad(lengths.cumsum(0), (1, 0))


def flatten_padded(
    rows: torch.Tensor,  # [R, L, C] logits or hidden states
    labels: torch.Tensor,  # [R, L], -100 where no response token stands
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """View a Hugging Face batch as the packed layout: rows ``[R*L, C]``, labels ``[R*L]``, response offsets ``[R+1]``.

    The causal shift is done here: row ``t`` of a response predicts the label at ``t + 1``. Positions without a response
    token keep the label -100 and are skipped by every kernel, so no tensor has a data-dependent shape.
    """
    num_responses, length = labels.shape
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    offsets = torch.arange(num_responses + 1, dtype=torch.int64, device=labels.device) * length
    return rows.reshape(num_responses * length, rows.shape[-1]), shifted.reshape(-1), offsets


def segment_ids(offsets: torch.Tensor, total: int) -> torch.Tensor:
    """For every element of the runs described by ``offsets`` ``[n + 1]``, the index of its run: ``[total]`` int64."""
    runs = torch.arange(offsets.numel() - 1, device=offsets.device)
    return torch.repeat_interleave(runs, offsets.diff(), output_size=total)
