"""Whether Triton kernels run here, found out by compiling and running one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton import knobs


@triton.jit
def increment(x):
    tl.store(x, tl.load(x) + 1)


def probe(device: torch.device) -> str:
    """What runs the kernels on ``device``; raises where nothing does."""
    if device.type == "cpu":
        if not knobs.runtime.interpret:
            raise RuntimeError("Triton serves GPU tensors; set TRITON_INTERPRET=1 to interpret its kernels on the CPU")
        return f"triton {triton.__version__}, interpreted"
    x = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        increment[(1,)](x)
    return f"triton {triton.__version__}, compiled for {torch.cuda.get_device_name(device)}"
