"""Imports point one way: pope_align -> pope_core -> pope_kernels -> _C; the public door needs torch and numpy only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pope_core

ROOT = Path(__file__).parent.parent
LAYERS = {
    "pope_align": ROOT / "python" / "pope_align",
    "pope_core": ROOT / "pope_core",
    "pope_kernels": ROOT / "kernels" / "pope_kernels",
}
#: Layer -> layers it may import.
ALLOWED = {
    "pope_align": {"pope_align", "pope_core"},
    "pope_core": {"pope_core", "pope_kernels"},
    "pope_kernels": {"pope_kernels"},
}
#: What the core may import beyond the standard library; Triton only where its kernels are.
LIBRARIES = {"torch", "numpy"}


def sources(layer: str) -> list[Path]:
    files = sorted(LAYERS[layer].rglob("*.py"))
    assert files, f"no sources in {LAYERS[layer]}"
    return files


def imported_modules(layer: str, file: Path) -> Iterator[str]:
    """Absolute names of everything a file imports, wherever in the file."""
    parents = [layer, *file.relative_to(LAYERS[layer]).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def where(layer: str, file: Path) -> str:
    return str(file.relative_to(LAYERS[layer].parent))


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    wrong = [
        f"{where(layer, file)} imports {module}"
        for file in sources(layer)
        for module in imported_modules(layer, file)
        if (top := module.split(".")[0]) in LAYERS and top not in ALLOWED[layer]
    ]
    assert not wrong


def test_only_native_py_imports_the_extension() -> None:
    importers = {
        where(layer, file)
        for layer in LAYERS
        for file in sources(layer)
        for module in imported_modules(layer, file)
        if module.endswith("._C") and module.split(".")[0] in LAYERS
    }
    assert importers == {"pope_kernels/native.py", "pope_kernels/native_cuda.py"}


@pytest.mark.parametrize("layer", ["pope_core", "pope_kernels"])
def test_the_core_imports_torch_numpy_and_the_standard_library(layer: str) -> None:
    foreign = {
        f"{where(layer, file)} imports {module}"
        for file in sources(layer)
        for module in imported_modules(layer, file)
        if (top := module.split(".")[0]) not in sys.stdlib_module_names | LIBRARIES | set(LAYERS)
        and not (top == "triton" and "triton" in file.relative_to(LAYERS[layer]).parts)
    }
    assert not foreign


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statement`` and did not hold after ``import torch``."""
    code = f"import sys, torch, numpy; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_core_loads_nothing_but_itself() -> None:
    loaded = modules_after("import pope_core; pope_core.backends.kernels('cpu')")
    assert {"pope_core", "pope_kernels"} <= loaded
    assert not loaded - sys.stdlib_module_names - {"pope_core", "pope_kernels", "torch", "numpy"}


def test_importing_the_core_does_not_load_the_compiler() -> None:
    """``torch._dynamo`` takes as long to import as torch itself."""
    code = "import sys, pope_core; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_importing_the_layer_above_loads_no_optional_library() -> None:
    loaded = modules_after("import pope_align")
    assert not loaded & {"transformers", "datasets", "peft", "accelerate", "matplotlib", "gguf", "sentencepiece"}


def test_the_core_works_where_optional_libraries_are_missing() -> None:
    code = """
import sys
for name in ("transformers", "datasets", "peft", "accelerate", "rich", "typer", "triton"):
    sys.modules[name] = None
import torch, pope_core
from pope_core.testing import make_slates
p = make_slates()
hidden = p.hidden.requires_grad_()
loss = pope_core.linear_pope_loss(hidden, p.lm_head_weight, p.labels, *p.log_data, response_offsets=p.response_offsets)
loss.loss.backward()
assert hidden.grad.isfinite().all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_source_roots_are_not_packages() -> None:
    """A top-level package called ``kernels`` would shadow the distribution of that name."""
    for root in ("kernels", "python", "csrc", "tests", "benchmarks"):
        assert not (ROOT / root / "__init__.py").exists()


def test_native_sources_know_neither_torch_nor_python() -> None:
    for file in sorted((ROOT / "csrc").rglob("*.*")):
        if file.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        includes = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#include")]
        assert not [line for line in includes if "torch" in line or "ATen" in line or "c10" in line], file
        if file.name != "bindings.cpp":
            assert not [line for line in includes if "pybind11" in line or "Python.h" in line], file


def test_the_build_needs_no_torch() -> None:
    assert "import torch" not in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_every_public_name_is_there_documented_and_has_its_twin() -> None:
    for name in pope_core.__all__:
        assert hasattr(pope_core, name)
    functions = [name for name in pope_core.__all__ if name.endswith(("logprobs", "objective", "loss"))]
    for name in functions:
        assert getattr(pope_core, name).__doc__
        assert callable(getattr(pope_core.reference, name))
        for section in ("Args:", "Returns:", "Raises:", "Source:", "Equivalent"):
            assert section in getattr(pope_core, name).__doc__, (name, section)


def test_no_export_hides_a_module_of_its_package() -> None:
    """``import pope_align.ope.support`` and ``from pope_align.ope import support`` would be two things."""
    both, exported = set(), 0
    for layer, root in LAYERS.items():
        for init in root.rglob("__init__.py"):
            name = ".".join((layer, *init.parent.relative_to(root).parts))
            names = set(getattr(importlib.import_module(name), "__all__", ()))
            exported += len(names)
            both |= {f"{name}.{file.stem}" for file in init.parent.iterdir() if file.stem in names}
    assert exported > 90
    assert both == {"pope_core.reference"}  # exported as a module


def test_no_two_classes_have_one_name() -> None:
    """Whoever reads two modules need not ask whose `Plan` it is."""
    found: dict[str, list[str]] = {}
    for root in (ROOT / "pope_core", ROOT / "kernels", ROOT / "python"):
        for file in root.rglob("*.py"):
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    assert len(found) > 200
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
