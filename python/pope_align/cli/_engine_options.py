"""Options of commands that can run on Ray, and the folder of shards that they write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..data.shards import Manifest
    from ..scale.columns import ColumnStep
    from ..scale.ray_engine import RayEngine
    from ..scale.run import Engine

#: The default of ``--shard-rows``.
SHARD_ROWS = 1024

_RAY, _SHARDS = "Several processes (--engine ray)", "Many rows (--out FOLDER)"


def workers_option() -> Any:
    """``--workers``."""
    return typer.Option(metavar="N", min=1, help="With --engine ray: processes with the model.", rich_help_panel=_RAY)


def gpus_option() -> Any:
    """``--gpus-per-worker``."""
    return typer.Option(metavar="N", min=0, help="With --engine ray: GPUs of each of them.", rich_help_panel=_RAY)


def address_option() -> Any:
    """``--address``."""
    return typer.Option(
        metavar="URL",
        help="With --engine ray: the cluster; auto: the one on this machine; default: Ray is started here.",
        rich_help_panel=_RAY,
    )


def rows_option() -> Any:
    """``--shard-rows``."""
    return typer.Option(
        metavar="N", min=1, help="Slates per shard, the unit that a repeat makes again.", rich_help_panel=_SHARDS
    )


def engine_of(engine: str, workers: int, gpus_per_worker: float, address: str | None) -> Engine:
    """What makes shards; nothing is started yet.

    Raises:
        as `pool_of`.
    """
    from ..scale.run import local_engine

    return pool_of(engine, workers, gpus_per_worker, address) or local_engine


def pool_of(engine: str, workers: int, gpus_per_worker: float, address: str | None) -> RayEngine | None:
    """The processes of ``--engine ray``, None without; nothing is started yet.

    Raises:
        ValueError: an option that has no effect.
        ImportError: Ray is not installed.
    """
    from .._extras import check_installed
    from ..scale.ray_engine import RayEngine

    if engine == "ray":
        check_installed("ray", extra="ray", purpose="for --engine ray")
        return RayEngine(workers, gpus_per_worker, address)
    given = {"--workers": workers != 1, "--gpus-per-worker": gpus_per_worker != 0, "--address": address is not None}
    for option, is_given in given.items():
        if is_given:
            raise ValueError(f"{option}: expected with --engine ray only, got --engine {engine}")
    return None


def is_folder_output(out: Path, engine: str, shard_rows: int) -> bool:
    """Whether shards are to be written: the path has no ending, or is a folder.

    Raises:
        ValueError: a file, with Ray or with a size of shards.
    """
    if out.suffix == "" or out.is_dir():
        return True
    if engine == "ray":
        raise ValueError(f"out: expected a folder with --engine ray, whose workers write shards, got {str(out)!r}")
    if shard_rows != SHARD_ROWS:
        raise ValueError(f"--shard-rows: expected with a folder for --out only, got the file {str(out)!r}")
    return False


def make_shards(
    step: ColumnStep, log: Path, out: Path, what: str, *, engine: Engine, shard_rows: int, overwrite: bool
) -> Manifest:
    """Run a step into a folder of shards, with progress, and say what came of it."""
    from .._paths import address
    from ..scale.run import run_shards
    from .console import err, progress

    with progress(what, "slates") as report:
        manifest = run_shards(
            step, log, out, engine=engine, shard_rows=shard_rows, overwrite=overwrite, progress=report
        )
    rows, errors, cut = (sum(getattr(shard, name) for shard in manifest.shards) for name in ("rows", "errors", "cut"))
    err.print(f"wrote {len(manifest.shards)} shards to {address(out)}: {rows} slates, {errors} with errors, {cut} cut")
    return manifest
