"""Numbers of the host as kernels get them: Triton passes a Python float as float32, so a float64 comes in two parts."""

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
    """The float64 that `split` took apart."""
    return tl.full((), high, tl.float64) + tl.full((), low, tl.float64)


@triton.jit
def number(high, low, DTYPE: tl.constexpr):
    """The number in the dtype of a kernel's arithmetic; the second part is nothing that float32 could hold."""
    if tl.float64 == DTYPE:
        return joined(high, low)
    return tl.full((), high, DTYPE)
