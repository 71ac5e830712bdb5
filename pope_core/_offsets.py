"""CSR offsets on the host and on the device: plans are made of host integers, kernels read device memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .devices import device_type

# Host copies of device offsets that were read before, each with the version of the tensor it was read from.
_READ: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class Offsets(NamedTuple):
    """The same offsets twice."""

    host: torch.Tensor
    device: torch.Tensor


def capturing(device: torch.device) -> bool:
    """Whether a graph of work on ``device`` is being captured, so that nothing may be read back."""
    return device_type(device).capturing()


def both(offsets: torch.Tensor, device: torch.device) -> Offsets:
    """Offsets wherever they are wanted.

    Offsets that arrive on the CPU cost a device nothing to wait for. Offsets on the device are read back once per
    tensor (and again if it was written to), so that repeated calls with the same tensor, as in a CUDA graph, need no
    synchronisation.

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
