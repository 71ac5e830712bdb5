"""Compile every Triton kernel for a GPU that need not be there: ``compile_triton.py cuda 90`` or ``hip gfx942``.

Prints one line per kernel with what the assembler reports (NVIDIA only). Run by tests/test_triton_compile.py in a
process of its own: in the tests' process the kernels are interpreted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pope_kernels.triton import objective, rows, segments

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARRAYS_OF_INT64 = ("labels", "offsets", "largest_slate_out")
ARRAYS_OF_DOUBLE = ("lse", "logging", "utility", "coefficients_out", "largest_out")
INTEGERS = ("cols", "blocks", "num_slates", "num_responses", "num_tokens")


def signature(names: list[str], constants: dict[str, object], storage: str, acc: str) -> dict[str, str]:
    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in ARRAYS_OF_INT64:
            return "*i64"
        if name in ARRAYS_OF_DOUBLE:
            return "*fp64"
        if name == "sound_out":
            return "*i1"
        if name in INTEGERS:
            return "i32"
        if name.endswith("row_stride"):
            return "i64"
        if name.endswith(("_high", "_low")) or name == "max_log_weight":
            return "fp32"
        return f"*{storage}" if name in ("logits", "out") else f"*{acc}"

    return {name: kind(name) for name in names}


def build(kernel, target: GPUTarget, constants: dict[str, object], warps: int, storage: str, acc: str) -> None:
    types = signature(kernel.arg_names, constants, storage, acc)
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    usage = "compiled"
    if target.backend == "cuda":
        binary = Path(sys.argv[3]) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        dump = subprocess.run([CUOBJDUMP, "-res-usage", binary], check=True, capture_output=True, text=True)
        usage = dump.stdout.strip().splitlines()[-1].strip()
    print(f"{kernel.__name__} {storage}: {usage}", flush=True)


def main() -> None:
    backend, arch = sys.argv[1:3]
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    for storage, acc, itemsize in (("bf16", "fp32", 2), ("fp16", "fp32", 2), ("fp32", "fp32", 4)):
        shape = {"ACC": tl.float32, "BLOCK": rows.BLOCK_BYTES // itemsize}
        for softcap in (False, True):
            forward = {"SOFTCAP": softcap, **shape}
            build(rows.forward_kernel, target, forward, rows.WARPS, storage, acc)
            backward = {**forward, "HAS_COEFFICIENTS": softcap}
            build(rows.backward_kernel, target, backward, rows.WARPS, storage, acc)
    for kernel in (segments.sums_kernel, segments.spread_kernel):
        build(kernel, target, {"MEAN": True, "BLOCK": segments.BLOCK}, 4, "fp32", "fp32")
    names = ("WEIGHTING", "NORMALIZATION", "UTILITY_FORM", "DIVERSITY_FORM", "CLIPPED")
    for options in ((0, 0, 0, 0, False), (1, 1, 1, 1, True), (2, 2, 0, 1, True)):
        constants = {**dict(zip(names, options)), "LANES": objective.LANES}
        build(objective.objective_kernel, target, constants, objective.WARPS, "fp32", "fp32")


if __name__ == "__main__":
    main()
