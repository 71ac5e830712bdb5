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

from pope_kernels.triton import exp_product, exp_rescue, objective, rows, segments

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
        if name == "valid_out":
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
    report(kernel, storage, target, types, constants, {"num_warps": warps})


def report(
    kernel, what: str, target: GPUTarget, types: dict[str, str], constants: dict[str, object], options: dict[str, int]
) -> None:
    """Compile, and print what the assembler says of it."""
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=constants), target=target, options=options
    )
    usage = "compiled"
    if target.backend == "cuda":
        binary = Path(sys.argv[3]) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        dump = subprocess.run([CUOBJDUMP, "-res-usage", binary], check=True, capture_output=True, text=True)
        usage = dump.stdout.strip().splitlines()[-1].strip()
    print(f"{kernel.__name__} {what}: {usage}", flush=True)


TYPES_OF_EXPONENTIALS = {
    **dict.fromkeys(("hidden", "weight", "bias", "out"), "*bf16"),
    **dict.fromkeys(("reference", "others", "logprobs", "factor", "tops", "sums", "own"), "*fp32"),
    **dict.fromkeys(("selected", "count", "flags"), "*i32"),
    **dict.fromkeys(("scale", "softcap", "inner", "outer"), "fp32"),
    "labels": "*i64",
    "lse": "*fp64",
}  # others are numbers, i32


def build_exponentials(kernel, target: GPUTarget, constants: dict[str, object], what: str, **options: int) -> None:
    types = {name: TYPES_OF_EXPONENTIALS.get(name, "i32") for name in kernel.arg_names}
    if kernel is exp_product.product_tma_kernel:
        r, c, d = (constants[name] for name in ("ROWS", "COLS", "DEPTH"))
        types |= {"hidden": f"tensordesc<bf16[{r},{d}]>", "weight": f"tensordesc<bf16[{c},{d}]>"}
        types |= {"out": f"tensordesc<bf16[{r},{c}]>"}
    types |= dict.fromkeys(constants, "constexpr")
    report(kernel, what, target, types, constants, options)


def exponentials(target: GPUTarget) -> None:
    """The products of every configuration, at their most and at their least, and what goes before and after them."""
    hopper = target.backend == "cuda" and target.arch >= 90
    for cap in (False, True):
        optional = {"SOFTCAP": cap, "HAS_BIAS": cap} | ({} if cap else {"bias": None})
        chosen = {
            exp_product.configuration(rows, cap, aligned, hopper) for rows in (8, 8192) for aligned in (True, False)
        }
        for c in sorted(chosen):
            tile = {"ROWS": c.rows, "COLS": c.cols, "DEPTH": c.depth, "GROUP": c.group}
            kernel = exp_product.product_tma_kernel if c.tma else exp_product.product_kernel
            options = {"num_warps": c.warps, "num_stages": c.stages}
            what = f"{c.rows}x{c.cols}x{c.depth}{', softcap and bias' if cap else ''}"
            build_exponentials(kernel, target, {**tile, **optional, "STORE": True}, what, **options)
        numbers = {"OFFSET": 46.0, "SOFTCAP": cap}
        last = {"OWN": 1e-14, "LARGEST_SUM": 1e26, "LN2": 0.69, "STORE": True, "TILES": 512}
        before = {**optional, **numbers, "BLOCK": 1024}
        build_exponentials(exp_product.reference_kernel, target, before, "", num_warps=4)
        build_exponentials(exp_product.finish_rows_kernel, target, {**numbers, **last}, "", num_warps=4)
        tile = {"ROWS": exp_rescue.ROWS, "COLS": exp_rescue.COLS, "DEPTH": exp_rescue.DEPTH}
        for kernel, more in (
            (exp_rescue.rescue_sums_kernel, {"SPLITS": exp_rescue.SPLITS}),
            (exp_rescue.rescue_write_kernel, {}),
        ):
            build_exponentials(kernel, target, {**tile, **optional, **more}, "", num_warps=exp_rescue.WARPS)
    build_exponentials(exp_rescue.select_kernel, target, {"BLOCK": 1024}, "", num_warps=4)
    build_exponentials(exp_rescue.rescue_rows_kernel, target, {"SPLITS": exp_rescue.SPLITS}, "", num_warps=4)


def main() -> None:
    backend, arch = sys.argv[1:3]
    target = GPUTarget(backend, int(arch) if backend == "cuda" else arch, 32 if backend == "cuda" else 64)
    exponentials(target)
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
