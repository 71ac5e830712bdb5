"""Checks that commands make before they import torch or begin anything expensive."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .._files import check_output, check_output_folder, claim_folder, claim_output
from .._paths import address, exists
from .command import until_the_end

T = TypeVar("T")

#: A name that a user gives to a policy or a data set, and that files are named after.
NAME = re.compile(r"[\w][\w.-]*")


def check_log(path: str | os.PathLike[str], argument: str) -> None:
    """Refuse a log that is not there or has an unknown ending; see `pope_align.data.schema.slate_files`.

    Raises:
        ValueError: names the argument.
    """
    from ..data.schema import slate_files

    if not (glob.has_magic(os.fspath(path)) or exists(path)):
        raise ValueError(f"{argument}: expected a file of slates, found none at {address(path)}")
    slate_files(path, argument)


def required(value: T | None, option: str) -> T:
    """The value of a required option.

    Raises:
        ValueError: it is missing.
    """
    if value is None or value == "":
        raise ValueError(f"{option}: expected a value (it is required), got none")
    return value


def pairs(option: str, given: Sequence[str], what: str) -> dict[str, str]:
    """``NAME=VALUE`` options by name, in their order.

    Raises:
        ValueError: one that is no pair, or a name that comes twice.
    """
    named: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option}: expected NAME={what}, got {pair!r}")
        if name in named:
            raise ValueError(f"{option}: expected distinct names, got {name!r} twice")
        named[name] = value
    return named


def check_json(path: str | None, *, overwrite: bool) -> None:
    """Refuse what ``--json`` could not write at the end; ``-`` is standard output.

    Raises:
        ValueError: as `check_output`.
    """
    if path is not None and path != "-":
        check_output(path, overwrite=overwrite, argument="json")


def check_file(path: Path, what: str) -> Path:
    """Refuse a file that does not exist.

    Raises:
        ValueError: no such file, or a folder.
    """
    if not path.exists():
        raise ValueError(f"{what}: expected a file that exists, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{what}: expected a file, got the folder {str(path)!r}")
    return path


def check_input(path: str | os.PathLike[str], what: str) -> None:
    """Refuse an input that is not there: no such file, an empty folder, a glob that fits nothing.

    Raises:
        ValueError: names the argument.
    """
    from ..data.shards import input_files

    input_files(path, argument=what)


def check_cache(path: Path) -> None:
    """Refuse a folder of caches that cannot be made or written, before a model is loaded.

    Raises:
        ValueError: names the folder, and what is wrong with it.
    """
    there = path.absolute()
    while not there.exists() and not there.is_symlink():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"--cache: {path}: expected a folder, got the file {str(there)!r}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"--cache: {path}: expected a folder that can be written, got {str(there)!r}; name another with --cache"
        )


def check_folder(path: Path | None, holds: str, what: str) -> None:
    """Refuse a folder that does not exist or lacks a required file.

    Raises:
        ValueError: no such folder, or no such file in it.
    """
    if path is not None and not (path / holds).is_file():
        raise ValueError(f"{what}: expected a folder with {holds}, got {str(path)!r}")


def check_model(name: str, argument: str = "--model") -> None:
    """Refuse a model that does not exist: not a folder, not a file, and not a name on the hub, which is asked once.

    Raises:
        ValueError: no such model.
    """
    from ..models.places import locate

    try:
        locate(name)
    except FileNotFoundError as error:
        raise ValueError(f"{argument}: {str(error).removeprefix('model: ')}") from error


def check_template_date(day: str | None) -> None:
    """Refuse a day that is none.

    Raises:
        ValueError: by the option's name.
    """
    from ..data.tokenize import check_day

    if day is not None:
        check_day(day)


def check_key(variable: str, base_url: str | None) -> None:
    """Refuse to start without a key for an endpoint that needs one.

    Raises:
        ValueError: no key in the environment, and no ``base_url``.
    """
    if base_url is None and not os.environ.get(variable, "").strip():
        raise ValueError(f"{variable}: expected an API key in the environment, got none; or give --base-url")


def hold_folder(path: str | os.PathLike[str]) -> None:
    """Keep other processes out of a folder of results until the command ends.

    Raises:
        ValueError: another process writes there.
    """
    until_the_end.enter_context(claim_folder(path))


def check_results_folder(path: str | os.PathLike[str], *, overwrite: bool, resume: bool, flag: str) -> None:
    """Refuse a folder with the results of a run, unless that run is to be continued or replaced.

    Args:
        flag: the flag that continues the existing run, such as ``--resume``.

    Raises:
        ValueError: as `check_output_folder`.
    """
    try:
        check_output_folder(path, overwrite=overwrite or resume)
    except ValueError as error:
        if "holds files already" not in str(error):
            raise
        raise ValueError(
            f"out: {path}: holds files already; pass {flag} to continue that run, or --overwrite to "
            "replace it, or name another folder"
        ) from None


def is_main_process() -> bool:
    """Whether this process writes: it is the only one, or rank 0 of those that a launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def claimed_by_main_process(path: Path, *, overwrite: bool, endings: Sequence[str] = ()) -> Iterator[None]:
    """`claim_output` in the process that writes, nothing in the others."""
    if not is_main_process():
        yield
        return
    with claim_output(path, overwrite=overwrite, endings=endings):
        yield


def check_embeddings() -> None:
    """Refuse a run without library or model for embeddings, which only a late stage would notice.

    Raises:
        ValueError: an embedding model that is nowhere.
        ImportError: sentence-transformers is not installed.
    """
    from .._extras import check_installed
    from ..metrics.embeddings import default_model
    from ..models.places import look_up

    check_installed("sentence_transformers", extra="eval", purpose="to embed texts")
    model = default_model()
    if not Path(model).is_dir():
        try:
            look_up(model)
        except FileNotFoundError as error:
            raise ValueError(f"embedding model: {error}") from error
