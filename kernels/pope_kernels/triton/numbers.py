"""Passing float64 scalars to kernels: Triton passes a Python float as float32, so a float64 is passed as two."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl


def split(x: float) -> tuple[float, float]:
    """``x`` as the sum of two float32 numbers, to about 48 bits; infinite beyond the range of float32."""
    high = float(torch.tensor(x, dtype=torch.float32))
    return high, x - high if math.isfinite(high) else 0.0


@triton.jit
def joined(high, low):
    """The float64 that `split` split."""
    return tl.full((), high, tl.float64) + tl.full((), low, tl.float64)


@triton.jit
def number(high, low, DTYPE: tl.constexpr):
    """The number in the dtype of a kernel's arithmetic; float32 ignores the second part."""
    if tl.float64 == DTYPE:
        return joined(high, low)
    return tl.full((), high, DTYPE)
