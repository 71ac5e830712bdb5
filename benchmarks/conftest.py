"""Writes the rows of a run, with the conditions they were measured under, to ``results/`` one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gpu_timing import gpu_conditions
from harness import add_row, conditions, results_file


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """With ``--benchmark-disable``, small shapes and no child processes: does everything run and agree?"""
    return bool(request.config.getoption("benchmark_disable"))


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record(kind, benchmark, **row)``: write the times of a finished benchmark to the results of ``kind``."""
    timer = str(request.config.getoption("benchmark_timer"))

    def add(kind: str, benchmark: Any, **row: Any) -> None:
        if benchmark.enabled:
            stats = benchmark.stats.stats
            row |= {"best_ms": stats.min * 1e3, "median_ms": stats.median * 1e3, "rounds": stats.rounds}
            row |= {"timer": timer} if "process_time" in timer else {}
            about = gpu_conditions() if row.get("device") == "cuda" else conditions()
            add_row(results_file(kind, about["device"]), about, row)
            benchmark.extra_info.update(row)

    return add


@pytest.fixture
def record_gpu() -> Callable[..., None]:
    """``record_gpu(**row)``: write a row that was measured with CUDA events, at once."""

    def add(**row: Any) -> None:
        about = gpu_conditions()
        add_row(results_file("gpu", about["device"]), about, row)

    return add
