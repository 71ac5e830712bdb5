"""Collects the rows of a run and writes them, with the conditions they were measured under, to ``results/``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import conditions, gpu_conditions, results_file

ROWS: dict[str, list[dict[str, Any]]] = {}


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """With ``--benchmark-disable``, small shapes and no child processes: does everything run and agree?"""
    return bool(request.config.getoption("benchmark_disable"))


@pytest.fixture
def record() -> Callable[..., None]:
    """``record(kind, benchmark, **row)``: keep the times of a finished benchmark under the results of ``kind``."""

    def add(kind: str, benchmark: Any, **row: Any) -> None:
        if benchmark.enabled:
            stats = benchmark.stats.stats
            row |= {"best_ms": stats.min * 1e3, "median_ms": stats.median * 1e3, "rounds": stats.rounds}
            ROWS.setdefault(kind, []).append(row)
            benchmark.extra_info.update(row)

    return add


@pytest.fixture
def record_gpu() -> Callable[..., None]:
    """``record_gpu(**row)``: keep a row that was measured with CUDA events."""
    return lambda **row: ROWS.setdefault("gpu", []).append(row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    for kind, rows in ROWS.items():
        on_gpu = kind == "gpu" or (kind == "training" and torch.cuda.is_available())
        about = gpu_conditions() if on_gpu else conditions()
        file = results_file(kind, about["device"])
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"\nwrote {file}")
