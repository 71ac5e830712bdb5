"""``python -m pope_core.env``: versions, devices, and the backend that every operation uses here, with the reason."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch

from .backends import availability, explain
from .version import __version__

_COMPANIONS = ("numpy", "transformers", "accelerate", "peft", "datasets", "triton")


def _version_of(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_lines() -> list[tuple[str, str]]:
    """Properties of the native extension, or why it is not usable."""
    usable, reason = availability("cpu", "cpu")
    if not usable:
        return [("native extension", reason)]
    from pope_kernels import native

    devices = native.cuda_devices()
    if devices is None:
        cuda = "not built (POPE_CUDA=OFF, or no nvcc at build time)"
    elif not devices:
        cuda = "built; no usable device or driver on this machine"
    else:
        cuda = "built; " + ", ".join(f"{name} (sm_{capability})" for name, capability in devices)
    return [
        ("native extension", f"built with {native.compiler}, row kernels run as {native.isa()}"),
        ("CUDA in the extension", cuda),
    ]


def report() -> str:
    """The text that ``python -m pope_core.env`` prints; paste it into bug reports."""
    capability = torch.backends.cpu.get_cpu_capability()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = [
        ("pope-core", __version__),
        ("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        ("torch", str(torch.__version__)),
        *((name, _version_of(name)) for name in _COMPANIONS),
        ("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, capability {capability}"),
        ("GPU seen by torch", ", ".join(gpus) or "none"),
        *_native_lines(),
    ]
    lines = [f"{name:24}{value}" for name, value in facts]
    for device in [torch.device("cpu"), *([torch.device("cuda")] if gpus else [])]:
        lines += ["", f"backend=None on {device.type} tensors:"]
        lines += [f"  {op:26}{chosen:12}{reason}" for op, chosen, reason in explain(device)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
