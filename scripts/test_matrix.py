"""Runs a selection of the tests with several versions of Python and transformers; its table is in the documentation.

    python scripts/test_matrix.py [--transformers 5.20.0 5.23.0] [--pythons 3.12 3.13]

With this Python, the tests see the libraries of the environment that runs the script, and another transformers in
front of them (installed without its dependencies). Other Pythons get no torch, whose published wheels for Linux are
gigabytes: there the wheel is built and its extension loaded, which needs no torch. The table goes to
docs/tested-versions.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tested-versions.md"
#: What uses transformers in as many ways as possible, in a few minutes.
TESTS = ("tests/test_tokenize.py", "tests/test_prompt_sharing.py", "tests/test_batches.py", "tests/test_logprobs.py")
BEGIN, END = "<!-- table -->\n", "<!-- end -->\n"


def outcome(command: list[str], **options: object) -> str:
    """ "passed" with pytest's last line, or the last line of what failed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    lines = (done.stdout if done.stdout.strip() else done.stderr).strip().splitlines() or [""]
    last = lines[-1].strip("= ").replace("|", "/")[:120]
    return last if done.returncode == 0 else f"failed: {last}"


def with_transformers(version: str) -> tuple[str, ...]:
    """A row: this Python and torch, another transformers."""
    with tempfile.TemporaryDirectory(prefix="pope-matrix-") as folder:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder]
        installed = subprocess.run([*pip, f"transformers=={version}"], capture_output=True, text=True, check=False)
        if installed.returncode:
            result = "not run: " + installed.stderr.strip().splitlines()[-1][:100].replace("|", "/")
        else:
            path = os.pathsep.join([folder, str(ROOT), str(ROOT / "kernels"), str(ROOT / "python")])
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
            result = outcome(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    return platform.python_version(), importlib.metadata.version("torch"), version, result


def with_python(version: str) -> tuple[str, ...]:
    """A row: the wheel built by another Python, its extension loaded."""
    python = shutil.which(f"python{version}")
    if python is None:
        return version, "-", "-", "not run: this Python is not installed"
    with tempfile.TemporaryDirectory(prefix="pope-matrix-") as folder:
        env = {**os.environ, "POPE_CUDA": "OFF"}
        env.pop("PYTHONPATH", None)
        built = outcome([python, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, str(ROOT)], env=env)
        if built.startswith("failed"):
            return version, "-", "-", built
        (wheel,) = Path(folder).glob("*.whl")
        site = Path(folder) / "site"
        subprocess.run([python, "-m", "zipfile", "-e", wheel, site], check=True)
        script = str(ROOT / "scripts" / "try_extension.py")
        loaded = outcome([python, script], env={**env, "PYTHONPATH": str(site)})
    return version, "not installed", "-", f"wheel built, extension: {loaded}"


def rows(transformers: list[str], pythons: list[str]) -> Iterator[tuple[str, ...]]:
    for version in transformers:
        yield with_transformers(version)
    for version in pythons:
        yield with_python(version)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--transformers", nargs="*", default=["5.20.0", importlib.metadata.version("transformers")])
    parser.add_argument("--pythons", nargs="*", default=["3.12", "3.13", "3.14"])
    given = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    called = " ".join(["python", "scripts/test_matrix.py", *sys.argv[1:]])
    measured = f"`{called}`, {sysconfig.get_platform()}, commit {commit.strip()}:\n"
    table = [measured, "| Python | torch | transformers | result |", "| --- | --- | --- | --- |"]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    for row in rows(given.transformers, given.pythons):
        table.append(f"| {' | '.join(row)} |")
        print(table[-1], flush=True)  # and at once to the page: a row takes minutes
        PAGE.write_text(before + BEGIN + "\n".join(table) + "\n" + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
