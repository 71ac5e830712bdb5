"""The POPE loss on a CPU against the ways PyTorch offers, side by side in one run: time and peak memory.

``pytest benchmarks/bench_cpu.py`` takes about ten minutes on two cores and writes ``results/cpu-*.json``;
``python benchmarks/compare.py`` prints the table. Memory comes from a process of its own for every row (see
``harness.peak_of_child``), less the gradients, which everyone has to write.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import FLOORS, RIVALS, Problem, Shape, check, make_problem, peak_of_child, step

#: SmolLM2-135M, and the vocabulary of Llama 3 with the width of a small model.
SHAPES = [Shape(1024, 49152, 576), Shape(1024, 128256, 1024)]
SMALL = Shape(256, 997, 64)
CASES = [(source, name) for source in RIVALS for name in (FLOORS[source], *RIVALS[source])]

one_problem_at_a_time = functools.lru_cache(maxsize=1)(make_problem)


# From top to bottom, from what varies fastest to what varies slowest: problems are made once.
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("source", "name"), CASES, ids=lambda text: text.replace(" ", "-"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_loss(
    benchmark: Any,
    record: Callable[..., None],
    smoke: bool,
    backward: bool,
    source: str,
    name: str,
    dtype: torch.dtype,
    shape: Shape,
) -> None:
    shape = SMALL if smoke else shape
    benchmark.group = f"from {source}, {shape}, {dtype}, {'forward+backward' if backward else 'forward'}"
    problem: Problem = one_problem_at_a_time(source, shape, dtype)
    if name != FLOORS[source]:
        check(source, name, problem)
    benchmark.pedantic(step(source, name, problem, backward), rounds=5, warmup_rounds=1)
    memory = {}
    if not smoke:
        gradients = sum(leaf.nbytes for leaf in problem.leaves) if backward else 0
        peak = peak_of_child(source, name, shape, dtype, backward) if name != FLOORS[source] else gradients
        memory = {"peak_bytes": peak, "gradient_bytes": gradients}
    record(
        "cpu",
        benchmark,
        source=source,
        name=name,
        shape=shape._asdict(),
        dtype=str(dtype).removeprefix("torch."),
        backward=backward,
        **memory,
    )
