"""CSR offsets on the host, where chunks are planned, and on the device, where kernels read them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .devices import device_type

# Host copies of device offsets, each with the version of the tensor that it was copied from.
_READ: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Offsets(NamedTuple):
    """The same offsets in both memories."""

    host: torch.Tensor
    device: torch.Tensor


def capturing(device: torch.device) -> bool:
    """Whether a graph of work on ``device`` is being captured, so that nothing may be read back."""
    return device_type(device).capturing()


def both(offsets: torch.Tensor, device: torch.device) -> Offsets:
    """Copies of ``offsets`` on the host and on ``device``.

    Offsets on the CPU need no synchronisation. Offsets on the device are read back once per tensor (and again if it was
    written to), so that repeated calls with the same tensor, as in a CUDA graph, do not synchronise.

    Raises:
        RuntimeError: a CUDA graph is being captured and these offsets were never read.
    """
    if offsets.device.type == "cpu":
        return Offsets(offsets, offsets.to(device, non_blocking=True))
    version = 0 if offsets.is_inference() else offsets._version
    known = _READ.get(offsets)
    if known is None or known[0] != version:
        if capturing(offsets.device):
            raise RuntimeError(
                "offsets: a chunk plan needs their values, which cannot be read while a CUDA graph is captured; call "
                "once with the same offset tensors before the capture"
            )
        known = version, offsets.cpu()
        _READ[offsets] = known
    return Offsets(known[1], offsets)
