"""What a user installs: built without torch, the extension and the types inside, nothing of tests or benchmarks."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import pope_core

ROOT = Path(__file__).parent.parent


class Built(NamedTuple):
    sdist: set[str]
    wheel: set[str]
    requirements: list[str]
    installed: Path  # the wheel, unpacked


def copy_of_the_checkout(where: Path) -> Path:
    """What git tracks, without what builds have left here."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).exists():
            (where / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, where / name)
    return where


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """``python -m build`` of a clean copy: the sdist, and the wheel made from it in an environment of its own."""
    where = tmp_path_factory.mktemp("packaging")
    copy_of_the_checkout(where / "source")
    command = [sys.executable, "-m", "build", "--outdir", str(where / "dist"), str(where / "source")]
    done = subprocess.run(command, env={**os.environ, "POPE_CUDA": "OFF"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (sdist,), (wheel,) = (where / "dist").glob("*.tar.gz"), (where / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(where / "installed")
        metadata = archive.read(f"pope_core-{pope_core.__version__}.dist-info/METADATA").decode().splitlines()
        prefix = "Requires-Dist: "
        requirements = [line.removeprefix(prefix) for line in metadata if line.startswith(prefix)]
        return Built(in_sdist, set(archive.namelist()), requirements, where / "installed")


def sources(package: str, root: str) -> set[str]:
    """Python files of a package as they are named in a wheel."""
    return {str(file.relative_to(ROOT / root)) for file in (ROOT / root / package).rglob("*.py")}


@pytest.mark.slow
def test_the_wheel_holds_every_module_the_types_and_the_extension(built: Built) -> None:
    expected = sources("pope_core", ".") | sources("pope_kernels", "kernels") | sources("pope_align", "python")
    assert {name for name in built.wheel if name.endswith(".py")} == expected
    assert {f"{package}/py.typed" for package in ("pope_core", "pope_kernels", "pope_align")} <= built.wheel
    assert "pope_kernels/_C.pyi" in built.wheel
    (extension,) = (name for name in built.wheel if name.endswith((".so", ".pyd")))
    assert extension.startswith("pope_kernels/_C.")
    assert any(name.endswith("licenses/LICENSE") for name in built.wheel)


def licences() -> list[str]:
    """Patterns of the first table of THIRD_PARTY_LICENSES.md, in its order."""
    page = (ROOT / "THIRD_PARTY_LICENSES.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def row_of(name: str, patterns: list[str]) -> str | None:
    return next((pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)), None)


@pytest.mark.slow
def test_every_file_of_the_wheel_has_a_licence_and_every_row_a_file(built: Built) -> None:
    rows = {name: row_of(name, licences()) for name in built.wheel}
    assert not [name for name, row in rows.items() if row is None]
    assert set(rows.values()) == set(licences())
    assert rows["pope_align/demo_data/polis_slates.jsonl"] == "pope_align/demo_data/*"
    assert any(name.endswith("licenses/THIRD_PARTY_LICENSES.md") for name in built.wheel)


def test_a_file_without_a_licence_is_found() -> None:
    assert row_of("vendored/parser.py", licences()) is None


@pytest.mark.slow
def test_nothing_else_is_installed(built: Built) -> None:
    tops = {name.split("/")[0] for name in built.wheel}
    assert tops == {"pope_core", "pope_kernels", "pope_align", f"pope_core-{pope_core.__version__}.dist-info"}


@pytest.mark.slow
def test_the_sdist_holds_what_the_build_reads_and_no_tests(built: Built) -> None:
    native = {str(f.relative_to(ROOT)) for f in (ROOT / "csrc").rglob("*") if f.is_file()}
    assert native <= built.sdist
    assert {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= built.sdist
    assert not [name for name in built.sdist if name.startswith(("tests", "benchmarks", "docs"))]


@pytest.mark.slow
def test_torch_and_numpy_are_the_only_requirements(built: Built) -> None:
    required = [line for line in built.requirements if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in required) == ["numpy", "torch"]


@pytest.mark.slow
def test_the_installed_wheel_runs_outside_the_repository(built: Built, tmp_path: Path) -> None:
    code = """
import pope_core, pope_kernels.native
from pope_core.testing import make_slates
p = make_slates()
hidden = p.hidden.requires_grad_()
arguments = (p.labels, *p.log_data)
pope_core.linear_pope_loss(hidden, p.lm_head_weight, *arguments, response_offsets=p.response_offsets).loss.backward()
print(pope_core.__file__, pope_kernels.native.isa())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(built.installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(built.installed))


@pytest.mark.release
def test_a_build_does_not_depend_on_the_builds_before_it(tmp_path: Path) -> None:
    """pip builds in the checkout, each time with tools from a new environment; what was left there does no harm.

    CMake used to look for the first environment's ninja, and modules removed since were installed all the same.
    """

    def build(checkout: Path) -> set[str]:
        wheels = tmp_path / "wheels"
        shutil.rmtree(wheels, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(wheels), str(checkout)]
        done = subprocess.run(
            command, env={**os.environ, "POPE_CUDA": "OFF"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return set(archive.namelist())

    checkout = copy_of_the_checkout(tmp_path / "checkout")
    gone = checkout / "pope_core" / "gone.py"
    gone.touch()
    first = build(checkout)
    assert "pope_core/gone.py" in first
    gone.unlink()
    assert build(checkout.rename(tmp_path / "moved")) == first - {"pope_core/gone.py"}


@pytest.mark.release
def test_plain_and_editable_installs_follow_one_another(tmp_path: Path) -> None:
    """An editable install builds in the checkout itself, where a plain one left its files, and the next finds both."""
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {**os.environ, "POPE_CUDA": "OFF"}
    environment.pop("PYTHONPATH", None)
    show = "import pope_core, pope_kernels._C; print(pope_core.__file__)"
    for options in ([], ["--editable"], []):
        command = [str(python), "-m", "pip", "install", "--no-deps", "--force-reinstall", *options, str(checkout)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        found = subprocess.run(
            [str(python), "-c", show], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert found.returncode == 0, found.stderr
        assert Path(found.stdout.strip()).is_relative_to(checkout if options else tmp_path / "venv")


@pytest.mark.slow
def test_without_a_compiler_the_build_says_what_to_install(tmp_path: Path) -> None:
    only_python = tmp_path / "bin"
    only_python.mkdir()
    (only_python / "python").symlink_to(sys.executable)
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "THIRD_PARTY_LICENSES.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "pope_core", tmp_path / "pope_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    shutil.copytree(ROOT / "python", tmp_path / "python", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env={**environment, "PATH": str(only_python)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "no C++ compiler found. Install one (Debian/Ubuntu: apt install g++" in done.stderr
