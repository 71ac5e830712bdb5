"""Build of the native extension with CMake and Ninja; everything else is in pyproject.toml. Never imports torch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()

# Source roots: `kernels/` and `python/` are folders of packages, not packages (a top-level `kernels` would shadow the
# distribution of that name).
SOURCE_ROOTS = {"pope_core": ".", "pope_kernels": "kernels", "pope_align": "python"}


class CleanPython(build_py):
    """Python files copied to an empty folder: setuptools would ship what an earlier build left in it."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """`cmake && ninja && install` beside the package; POPE_CUDA=AUTO|ON|OFF comes from the environment."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = os.environ.get("CXX", "c++")
        if shutil.which(compiler) is None and shutil.which("g++") is None and shutil.which("clang++") is None:
            raise SystemExit(
                "pope-core: no C++ compiler found. Install one (Debian/Ubuntu: apt install g++; Fedora: dnf install "
                "gcc-c++; macOS: xcode-select --install) or point CXX at it."
            )
        build_dir = Path(self.build_temp).resolve()
        destination = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DPOPE_CUDA={os.environ.get('POPE_CUDA', 'AUTO')}",
        ]
        forget_other_tools(build_dir, configure)
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        subprocess.run(["cmake", "--install", str(build_dir), "--prefix", str(destination)], check=True)


def forget_other_tools(build_dir: Path, configure: list[str]) -> None:
    """Empty a build folder that other tools made, or that has moved.

    CMake keeps the paths of what it found. Those of an isolated build (pip makes an environment for each) are gone by
    the next, which would then fail; where everything is as it was, the folder is kept and only changed files are built.
    """
    tools = [shutil.which(name) for name in ("cmake", "ninja", os.environ.get("CXX", "c++"), "nvcc")]
    made_by = json.dumps([configure, tools, os.environ.get("CXXFLAGS", "")])
    stamp = build_dir / "made_by.json"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_by:
        shutil.rmtree(build_dir, ignore_errors=True)
        build_dir.mkdir(parents=True)
        stamp.write_text(made_by, encoding="utf-8")


setup(
    packages=[
        package for name, root in SOURCE_ROOTS.items() for package in find_packages(root, include=[name, f"{name}.*"])
    ],
    package_dir={name: name if root == "." else f"{root}/{name}" for name, root in SOURCE_ROOTS.items()},
    ext_modules=[Extension("pope_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "build_py": CleanPython},
)
