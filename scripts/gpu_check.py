"""Build, test, sanitize and measure on a machine with a GPU, which needs no network: ``python scripts/gpu_check.py``.

It needs Python with torch, triton, pybind11, cmake, ninja, setuptools, pytest, pytest-benchmark and hypothesis. Rivals
and anything missing may lie as wheels in ``--wheels`` (fetched elsewhere with ``pip download``). All is installed into
``--target``, nothing into the environment. A phase that fails is reported and the next one runs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("build", "tests", "memcheck", "racecheck", "benchmarks")


def run(*command: str | Path, **environment: str) -> bool:
    print("+", *command, flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}).returncode == 0


def build(target: Path, wheels: Path | None) -> bool:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", target]
    if wheels is not None and not run(*install, "--no-index", *sorted(wheels.glob("*.whl"))):
        return False
    return run(*install, "--no-build-isolation", "--no-index", ROOT, POPE_CUDA="ON")


def gpu_tests() -> list[Path]:
    """The files with tests of a GPU; others may need libraries that are not here."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in files if "TARGETS" in file.read_text() or "mark.gpu" in file.read_text()]


def sanitize(tool: str) -> bool:
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    # torch's allocator hands out parts of large blocks, which would hide accesses beyond a tensor.
    return run(
        sanitizer,
        f"--tool={tool}",
        "--error-exitcode=1",
        sys.executable,
        "scripts/gpu_small_case.py",
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    arguments = parser.parse_args()
    # The target comes first: the source tree beside this file holds no extension.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(arguments.target), os.environ.get("PYTHONPATH", "")])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # its cmake and ninja
    python = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    work = {
        "build": lambda: build(arguments.target, arguments.wheels),
        "tests": lambda: run(*python, "-q", "-m", "gpu", *gpu_tests()),
        "memcheck": lambda: sanitize("memcheck"),
        "racecheck": lambda: sanitize("racecheck"),
        "benchmarks": lambda: run(*python, "-q", "-m", "gpu", "benchmarks/bench_gpu.py"),
    }
    report = []
    for phase in arguments.phases:
        begin = time.monotonic()
        try:
            passed = work[phase]()
        except OSError as error:  # a tool that is not installed
            print(error)
            passed = False
        report.append((phase, passed, time.monotonic() - begin))
    print(
        "\n".join(f"{phase:12}{'passed' if passed else 'FAILED'}{seconds:8.0f} s" for phase, passed, seconds in report)
    )
    return int(not all(passed for _, passed, _ in report))


if __name__ == "__main__":
    sys.exit(main())
