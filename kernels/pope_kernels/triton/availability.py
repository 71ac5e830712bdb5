"""Checks whether Triton kernels run here, by compiling and running one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs

from ..products import require_wide_product


@triton.jit
def increment(x):
    tl.store(x, tl.load(x) + 1)


def probe(device: torch.device) -> str:
    """A description of what runs the kernels on ``device``; raises RuntimeError with the reason if they cannot run."""
    if device.type == "cpu":
        if not knobs.runtime.interpret:
            raise RuntimeError("Triton serves GPU tensors; set TRITON_INTERPRET=1 to interpret its kernels on the CPU")
        return f"triton {triton.__version__}, interpreted"
    require_wide_product()
    try:
        x = torch.zeros(1, dtype=torch.int32, device=device)
        with torch.cuda.device(device):
            increment[(1,)](x)
    except Exception as error:  # a compiler may fail with any exception
        raise RuntimeError(f"a small kernel did not run ({type(error).__name__}: {error})") from error
    return f"triton {triton.__version__}, compiled for {torch.cuda.get_device_name(device)}"
