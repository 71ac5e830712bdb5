"""What commands check before they import torch or begin anything expensive."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .._files import check_output_folder, claim_output


def check_log(path: str | os.PathLike[str], argument: str) -> None:
    """Refuse a log that is no file, or that no reader of slates takes.

    Raises:
        ValueError: by the argument's name.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{argument}: expected a file of slates, found none at {path}")
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        raise ValueError(f"{argument}: expected a file ending in .jsonl, .json or .parquet, got {path}")


def check_model(name: str, argument: str = "--model") -> None:
    """Refuse a model's path where there is none; a name of the hub is looked up when the model is loaded.

    Raises:
        ValueError: a path that does not exist, or a folder without a model.
    """
    path = Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".gguf") or name.count("/") > 1 or not name
    if not path.exists():
        if looks_like_path:
            raise ValueError(f"{argument}: expected a model, found no file or folder at {name!r}")
        return
    if path.is_dir():
        files = ("config.json", "adapter_config.json")
        if not any((path / file).is_file() for file in files) and len(list(path.glob("*.gguf"))) != 1:
            raise ValueError(f"{argument}: expected {' or '.join(files)} or one GGUF file in {name}, found none")
    elif path.suffix != ".gguf":
        raise ValueError(f"{argument}: expected a folder or a GGUF file, got the file {name}")


def check_results_folder(path: str | os.PathLike[str], *, overwrite: bool, resume: bool, flag: str) -> None:
    """Refuse a folder that holds a run's results already, unless the run is to go on or to be replaced.

    Args:
        flag: what goes on with the run that is there, such as ``--resume``.

    Raises:
        ValueError: as `check_output_folder`.
    """
    try:
        check_output_folder(path, overwrite=overwrite or resume)
    except ValueError as error:
        if "holds files already" not in str(error):
            raise
        raise ValueError(
            f"out: {path}: holds files already; pass {flag} to go on with that run, or --overwrite to "
            "replace it, or name another folder"
        ) from None


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of those that a launcher started: the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def claimed_by_main_process(path: Path, *, overwrite: bool, endings: Sequence[str] = ()) -> Iterator[None]:
    """`claim_output`, by the one process that writes."""
    if not is_main_process():
        yield
        return
    with claim_output(path, overwrite=overwrite, endings=endings):
        yield
