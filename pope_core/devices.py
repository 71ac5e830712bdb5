"""What the code outside the kernels assumes about each type of device.

A backend for another type of device (e.g. ``xpu``) adds a row to `DEVICES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class DeviceType(NamedTuple):
    """The properties of one type of device."""

    #: The ``torch.library`` dispatch key of its tensors.
    dispatch_key: str

    #: Whether the host runs ahead of the device, so that reading a value synchronises. If so, kernels check values
    #: (they report with NaN and ``SlateValues.valid``), and nothing is read back.
    asynchronous: bool

    #: Least default size of the logits buffer of the ``linear_*`` operations, in bytes; see `default_chunk_bytes`.
    chunk_bytes: int

    #: Whether an elementwise product of two dtypes copies its operands, so that it is done for some rows at a time.
    mixed_product_copies: bool

    #: Whether the current stream is being captured in a graph, so that nothing may be read back.
    capturing: Callable[[], bool]


#: By ``torch.device.type``. On a CPU the logits buffer leaves memory, under 64 MiB, for the scratch space of the matrix
#: products; on a GPU 2048 rows of a vocabulary of 128k entries keep the products compute-bound.
DEVICES = {
    "cpu": DeviceType("CPU", False, 36 << 20, True, lambda: False),
    "cuda": DeviceType("CUDA", True, 512 << 20, False, torch.cuda.is_current_stream_capturing),
}

#: Any other type is treated as a GPU without graph capture. Only the reference runs on it.
_OTHER = DEVICES["cuda"]._replace(capturing=lambda: False)


def device_type(device: torch.device) -> DeviceType:
    """The properties of the type of ``device``."""
    return DEVICES.get(device.type, _OTHER)


def default_chunk_bytes(device: torch.device) -> int:
    """The default size of the logits buffer on ``device``, in bytes.

    On a GPU it is 1/32 of the memory if that is more: with 80 GB, the logits of 10,000 tokens of a vocabulary of 128k.
    """
    least = device_type(device).chunk_bytes
    return max(least, torch.cuda.get_device_properties(device).total_memory // 32) if device.type == "cuda" else least
