"""Every CUDA kernel once, on shapes with unaligned rows and long ones: the program that compute-sanitizer watches.

``python scripts/gpu_small_case.py [DTYPE ...]``, all three without an argument.
"""

from __future__ import annotations

import sys

import torch

import pope_core
from pope_core.testing import make_slates

for dtype in (getattr(torch, name) for name in sys.argv[1:] or ("bfloat16", "float16", "float32")):
    for vocab in (37, 1031, 40_001):
        p = make_slates((3, 1, 2, 5), tokens=(1, 40), vocab=vocab, width=16, dtype=dtype).to("cuda")
        options = {"response_offsets": p.response_offsets, "backend": "cuda", "clip": 2.0}
        logits = p.logits.detach().requires_grad_()
        pope_core.pope_loss(logits, p.labels, *p.log_data, **options).loss.backward()
        leaves = [p.hidden.requires_grad_(), p.lm_head_weight.requires_grad_()]
        for weighting in ("response", "slate"):
            for normalization in ("none", "slate", "batch"):
                pope_core.linear_pope_loss(
                    *leaves,
                    p.labels,
                    *p.log_data,
                    weighting=weighting,
                    normalization=normalization,
                    logit_softcap=20.0,
                    chunk_bytes=32 * vocab * dtype.itemsize,
                    **options,
                ).loss.backward()
torch.cuda.synchronize()
print("every kernel ran:", *(sys.argv[1:] or ["all dtypes"]))
