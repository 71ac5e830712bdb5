"""Runs the tests of the native kernels with AddressSanitizer and UndefinedBehaviorSanitizer, or with ThreadSanitizer.

    python scripts/sanitize.py address|thread [arguments of pytest]

The extension is built with instrumentation in build/sanitize-KIND. Python and torch are not instrumented; the
sanitizer's runtime is loaded before them, so that it sees the memory of tensors and the threads. First the sanitizer
must find a fault that is made on purpose.

gcc, not clang: the extension shares libgomp with torch, and gcc comes with its sanitizers. ThreadSanitizer needs
OpenMP threads that it can see start and end, which tests/native/visible_openmp.cpp provides.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Sanitizer(NamedTuple):
    runtimes: tuple[str, ...]
    options: dict[str, str]
    tests: tuple[str, ...]
    fault: str  # Python that makes one in the extension
    report: str  # what the sanitizer then says
    launcher: tuple[str, ...] = ()


#: Reads 400 log-probabilities of 4.
OVERFLOW = """
import torch
from pope_kernels import native
logprobs, labels = torch.zeros(4), torch.zeros(400, dtype=torch.int64)
native.response_sums(logprobs, labels, torch.tensor([0, 400]), False)
"""
#: Two threads write the same gradient.
RACE = """
import torch, threading
from pope_kernels import native
logits, labels = torch.zeros(64, 4099), torch.zeros(64, dtype=torch.int64)
lse, out = torch.zeros(64, dtype=torch.float64), torch.empty_like(logits)
work = lambda: [native.logit_gradient(logits, labels, lse, None, out) for _ in range(5)]
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""

SANITIZERS = {
    "address": Sanitizer(
        # libstdc++ too: the runtime looks for __cxa_throw at the start, before Python has loaded a library of C++.
        runtimes=("libasan.so", "libubsan.so", "libstdc++.so.6"),
        options={
            # CPython and torch keep objects until the process ends, which is no fault of the kernels.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
        tests=(
            "tests/test_logprobs.py",
            "tests/test_linear.py",
            "tests/test_golden.py",
            "tests/test_objective_properties.py",
            "tests/test_missing_values.py",
            "tests/test_invariances.py",
            "tests/test_errors.py",
            "tests/test_scaled_exp.py",
            "tests/test_threads.py",
        ),
        fault=OVERFLOW,
        report="heap-buffer-overflow",
    ),
    "thread": Sanitizer(
        runtimes=("libtsan.so",),
        options={
            # Calls to memcpy and the like from libraries without instrumentation: torch's own threads are not tested.
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1",
        },
        tests=("tests/test_threads.py", "tests/test_logprobs.py"),
        fault=RACE,
        report="data race",
        # gcc's runtime cannot place its tables where the kernel randomises addresses by more than 28 bits.
        launcher=("setarch", "-R"),
    ),
}


def build(kind: str) -> Path:
    """Build the extension; returns a folder for the import path with it and the Python files around it."""
    import pybind11

    where = ROOT / "build" / f"sanitize-{kind}"
    package = where / "path" / "pope_kernels"
    configure = [
        *("cmake", "-S", ROOT, "-B", where, "-G", "Ninja", f"-DPOPE_SANITIZE={kind}", "-DPOPE_CUDA=OFF"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    subprocess.run(configure, env={**os.environ, "CXX": "g++"}, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", where], check=True)
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "kernels" / "pope_kernels", package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    subprocess.run(["cmake", "--install", where, "--prefix", package], check=True, stdout=subprocess.DEVNULL)
    return package.parent


def environment(sanitizer: Sanitizer, path: Path) -> dict[str, str]:
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in sanitizer.runtimes
    ]
    paths = [str(path), str(ROOT), str(ROOT / "python"), str(ROOT / "tests")]
    return {**os.environ, **sanitizer.options, "LD_PRELOAD": " ".join(found), "PYTHONPATH": os.pathsep.join(paths)}


def must_find_a_fault(sanitizer: Sanitizer, env: dict[str, str]) -> None:
    command = [*sanitizer.launcher, sys.executable, "-c", sanitizer.fault]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode == 0 or sanitizer.report not in done.stderr:
        raise SystemExit(f"the fault made on purpose was not found (exit status {done.returncode}):\n{done.stderr}")
    print(f"the fault made on purpose was found: {sanitizer.report}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=SANITIZERS)
    given, arguments = parser.parse_known_args()
    sanitizer = SANITIZERS[given.kind]
    env = environment(sanitizer, build(given.kind))
    must_find_a_fault(sanitizer, env)
    # Only Python's output is captured, so that a report is seen when it ends the process.
    pytest = ["-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", "-k", "not reference"]
    command = [*sanitizer.launcher, sys.executable, *pytest, *(arguments or sanitizer.tests)]
    raise SystemExit(subprocess.run(command, env=env, cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()
