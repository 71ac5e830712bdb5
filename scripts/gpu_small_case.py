"""Runs every CUDA kernel once, on shapes with unaligned and long rows, under compute-sanitizer.

``python scripts/gpu_small_case.py [DTYPE ...]``, all three without an argument.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import get_args

import torch

import pope_core
from pope_core import Objective
from pope_core.objective import Normalization, Weighting
from pope_core.testing import Target, make_slates

DTYPES = ("bfloat16", "float16", "float32")
VOCABULARIES = (37, 1031, 40_001)


def objectives() -> Iterator[Objective]:
    """Every weighting with every normalization, which determine the groups of a chunk."""
    for weighting, normalization in itertools.product(get_args(Weighting), get_args(Normalization)):
        yield Objective(clip=2.0, weighting=weighting, normalization=normalization)


def small_case(target: Target, dtype: torch.dtype, vocab: int) -> int:
    """Losses from logits and from hidden states, forward and backward; the number of losses."""
    p = make_slates((3, 1, 2, 5), tokens=(1, 40), vocab=vocab, width=16, dtype=dtype).to(target.device)
    given = {"response_offsets": p.response_offsets, "backend": target.backend}
    logits = p.logits.detach().requires_grad_()
    pope_core.pope_loss(logits, p.labels, *p.log_data, objective=Objective(clip=2.0), **given).loss.backward()
    leaves = [p.hidden.requires_grad_(), p.lm_head_weight.requires_grad_()]
    losses = 1
    for objective in objectives():
        pope_core.linear_pope_loss(
            *leaves,
            p.labels,
            *p.log_data,
            objective=objective,
            logit_softcap=20.0,
            chunk_bytes=32 * vocab * dtype.itemsize,
            **given,
        ).loss.backward()
        losses += 1
    return losses


def main() -> None:
    names = sys.argv[1:] or DTYPES
    for name, vocab in itertools.product(names, VOCABULARIES):
        small_case(Target("cuda"), getattr(torch, name), vocab)
    torch.cuda.synchronize()
    print("every kernel ran:", *names)


if __name__ == "__main__":
    main()
