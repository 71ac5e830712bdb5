"""Times of CUDA events, and what a number measured on a GPU means nothing without: the device, its rates, versions."""

from __future__ import annotations

import functools
import importlib.metadata
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import torch
from harness import conditions

ROUNDS, WARM_UP = 10, 3
#: Whose versions decide what a GPU's numbers mean; two of the rivals' faster paths need nvidia-cutlass-dsl.
LIBRARIES = ("triton", "trl", "liger-kernel", "cut-cross-entropy", "quack-kernels", "nvidia-cutlass-dsl")


def event_times(work: Callable[[int], object], rounds: int = ROUNDS) -> list[float]:
    """Milliseconds of each round."""
    return interleaved_times(work, rounds=rounds)[0]


def interleaved_times(*works: Callable[[int], object], rounds: int = ROUNDS) -> list[list[float]]:
    """Milliseconds of each round of each work, taken in turns: what heat does to the clock it does to all alike."""
    for i in range(WARM_UP):
        for work in works:
            work(i)
    marks = []
    for i in range(rounds):
        for work in works:
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work(i)
            stop.record()
            marks.append((start, stop))
    torch.cuda.synchronize()
    times = [start.elapsed_time(stop) for start, stop in marks]
    return [times[at :: len(works)] for at in range(len(works))]


def spread(times: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(times, n=4)
    return {"median_ms": median, "quartiles_ms": [low, high], "best_ms": min(times), "rounds": len(times)}


@functools.cache
def device_rates() -> dict[str, float]:
    """TFLOP/s of a bfloat16 product and TB/s of a copy, both on random data, here and now."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = statistics.median(event_times(lambda _: torch.mm(a, b, out=out)))
    source = torch.randn(1 << 29, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    copy = statistics.median(event_times(lambda _: target.copy_(source)))
    return {"gemm_tflops": 2 * 8192**3 / product / 1e9, "copy_tbps": 2 * source.nbytes / copy / 1e9}


@functools.cache
def gpu_conditions() -> dict[str, Any]:
    """`harness.conditions` of the GPU: its driver, the rivals' versions, and the rates that floors are stated in."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    about = conditions()
    return {
        **about,
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "versions": {**about["versions"], "cuda": str(torch.version.cuda)}
        | {name: version(name) for name in LIBRARIES},
        **device_rates(),
    }


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return "unknown"
