"""Read the log of a CUDA build (``-Xptxas=-v``) and fail if a kernel spills: ``check_spills.py build.log``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def main() -> int:
    kernels: dict[str, set[str]] = {}
    spilling: list[str] = []
    kernel, arch = "", ""
    for line in Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace").splitlines():
        if found := KERNEL.search(line):
            kernel, arch = found.groups()
            kernels.setdefault(arch, set()).add(kernel)
        elif (found := SPILLS.search(line)) and any(int(count) for count in found.groups()):
            spilling.append(f"{kernel} for {arch}: {found.group()}")
    if not kernels:
        print("no CUDA kernel in the log")
        return 1
    counts = ", ".join(f"{len(names)} for {arch}" for arch, names in sorted(kernels.items()))
    print(f"CUDA kernels compiled: {counts}; {len(spilling)} spill", *spilling, sep="\n")
    return int(bool(spilling) or len({len(names) for names in kernels.values()}) != 1)


if __name__ == "__main__":
    sys.exit(main())
