"""Checks of arguments that commands share; none of them imports anything heavy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def required(value: T | None, option: str) -> T:
    """An option without which the command cannot start.

    Raises:
        ValueError: it is missing.
    """
    if value is None or value == "":
        raise ValueError(f"{option}: expected a value (it is required), got none")
    return value


def check_file(path: Path, what: str) -> Path:
    """Refuse a file that is not there.

    Raises:
        ValueError: no such file, or a folder.
    """
    if not path.exists():
        raise ValueError(f"{what}: expected a file that exists, got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{what}: expected a file, got the folder {str(path)!r}")
    return path


def check_folder(path: Path | None, holds: str, what: str) -> None:
    """Refuse a folder that is not there or lacks a file that it must hold.

    Raises:
        ValueError: no such folder, or no such file in it.
    """
    if path is not None and not (path / holds).is_file():
        raise ValueError(f"{what}: expected a folder with {holds}, got {str(path)!r}")


def check_model(name: str, what: str = "--model") -> None:
    """Refuse a model that can only be a path and is not there; hub names are looked up when it is loaded.

    Raises:
        ValueError: a path that does not exist.
    """
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".gguf", "/"))
    if looks_like_path and not Path(name).expanduser().exists():
        raise ValueError(f"{what}: expected a hub name, or a folder or file that exists, got {name!r}")


def check_key(variable: str, base_url: str | None) -> None:
    """Refuse to start without a key for an endpoint that needs one.

    Raises:
        ValueError: no key in the environment, and no address of one's own.
    """
    if base_url is None and not os.environ.get(variable, "").strip():
        raise ValueError(f"{variable}: expected an API key in the environment, got none; or give --base-url")


def write_json_to(target: str | None, content: dict[str, Any]) -> None:
    """Write results as JSON for programs: to a file, to standard output for ``-``, nowhere for None."""
    if target is None:
        return
    if target == "-":
        print(json.dumps(content, indent=1, allow_nan=False))
        return
    from .._files import write_json

    write_json(target, content)
