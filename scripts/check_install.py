"""Builds the sdist and from it the wheel, checks them, and runs the wheel in an empty environment.

    python scripts/check_install.py [--out dist]

The environment sees the torch and the libraries of the one that runs the script, and nothing of the checkout.
auditwheel says which glibc and libraries the wheel needs (it is not repaired here: `make wheels` does that).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SMOKE = """
import pope_core, pope_align, pope_kernels.native as native
from pope_core.testing import make_slates
assert "ENVIRONMENT" in pope_core.__file__, pope_core.__file__
p = make_slates()
hidden = p.hidden.requires_grad_()
losses = []
for backend in ("cpu", "reference"):
    out = pope_core.linear_pope_loss(hidden, p.lm_head_weight, p.labels, *p.log_data,
                                     response_offsets=p.response_offsets, backend=backend)
    losses.append(float(out.loss))
assert abs(losses[0] - losses[1]) < 1e-5, losses
print(pope_core.__version__, native.isa(), native.compiler, losses)
"""


def run(*command: object, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def build(out: Path) -> Path:
    """The sdist, and the wheel that is made from it, in ``out``; returns the wheel."""
    shutil.rmtree(out, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", out, ROOT, env={**os.environ, "POPE_CUDA": "OFF"})
    (wheel,), (_sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel


def check_platform(wheel: Path) -> None:
    """Print what auditwheel says; the only library outside the manylinux policy may be libgomp, which torch brings."""
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    )
    print(done.stdout)
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        file = archive.extract(name, folder)
        needed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    libraries = {line.rpartition("[")[2].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line}
    allowed = ("libgomp.so.1", "libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libc.so.6", "libpthread.so.0")
    others = libraries - set(allowed) - {name for name in libraries if name.startswith("ld-linux")}
    if others:
        raise SystemExit(f"the extension needs libraries that a user may not have: {sorted(others)}")


def try_installed(wheel: Path) -> None:
    """Install the wheel into an empty environment, whose other libraries are ours, and run it."""
    with tempfile.TemporaryDirectory(prefix="ENVIRONMENT-") as folder:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        site = Path(sysconfig.get_path("purelib", "venv", {"base": folder, "platbase": folder}))
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
        (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # after the folder itself
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        python = Path(folder) / "bin" / "python"
        run(python, "-c", SMOKE, cwd=folder, env=env)
        run(python, "-m", "pope_align.cli", "--help", cwd=folder, env=env, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out
    wheel = build(out)
    check_platform(wheel)
    try_installed(wheel)
    print(f"{wheel.name}: built from the sdist, installed and run")


if __name__ == "__main__":
    main()
