"""One door to files: local paths, globs, folders of files, and ``s3://``, ``gs://`` and ``hf://`` through fsspec.

A remote address may be carried in a `pathlib.Path`, which writes ``s3://bucket/log`` as ``s3:/bucket/log``; `address`
gives it back.
"""

from __future__ import annotations

import errno
import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._extras import check_installed, require

StrPath = str | os.PathLike[str]

#: The module that fsspec needs for a scheme, and our extra that installs it.
_MODULES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "hf": ("huggingface_hub", "train")}
_REMOTE = re.compile(rf"({'|'.join(_MODULES)}):/+(.+)", re.DOTALL)
_MAGIC = re.compile(r"[*?[]")


def is_remote(path: StrPath) -> bool:
    """Whether the path is on an object store or the hub."""
    return _REMOTE.fullmatch(os.fspath(path)) is not None


def address(path: StrPath) -> str:
    """The path as text; a remote one as its address, ``s3://bucket/log.parquet``."""
    found = _REMOTE.fullmatch(os.fspath(path))
    return os.fspath(path) if found is None else f"{found[1]}://{found[2]}"


def is_folder(path: StrPath) -> bool:
    """Whether there is a folder, or anything under this prefix of an object store."""
    if not is_remote(path):
        return os.path.isdir(path)
    with _remote(path) as (system, name):
        return bool(system.isdir(name))


def exists(path: StrPath) -> bool:
    """Whether there is a file or folder."""
    if not is_remote(path):
        return os.path.exists(path)
    with _remote(path) as (system, name):
        return bool(system.exists(name))


def size(path: StrPath) -> int:
    """The bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_remote(path):
        return os.stat(path).st_size
    with _remote(path) as (system, name):
        return int(system.size(name))


def identity(path: StrPath) -> str:
    """What changes when a file is written again: its size, with the store's hash of the content or the time."""
    if not is_remote(path):
        found = os.stat(path)
        return f"{found.st_size} {found.st_mtime_ns}"
    with _remote(path) as (system, name):
        about = system.info(name)
    version = next((about[key] for key in ("ETag", "etag", "md5Hash", "blob_id", "mtime") if about.get(key)), "")
    return f"{about['size']} {version}"


def sizes(folder: StrPath) -> dict[str, int]:
    """The files directly in a folder, by name, with their bytes; empty without the folder."""
    if not is_remote(folder):
        if not os.path.isdir(folder):
            return {}
        return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.is_file()}
    with _remote(folder) as (system, name):
        if not system.exists(name):
            return {}
        entries = system.ls(name, detail=True)
    return {os.path.basename(each["name"]): int(each["size"]) for each in entries if each["type"] == "file"}


def open_binary(path: StrPath) -> io.BufferedReader:
    """A file to read, from any position.

    Raises:
        OSError: there is none, or (a remote one) the connection fails for good.
    """
    if not is_remote(path):
        return open(path, "rb")
    with _remote(path) as (system, name):
        return io.BufferedReader(_RemoteFile(system.open(name, "rb"), address(path)), 1 << 20)


def read_bytes(path: StrPath) -> bytes:
    """The content of a file."""
    with open_binary(path) as file:
        return file.read()


def upload(local: StrPath, path: StrPath) -> None:
    """Copy a local file to a remote path, where it appears complete or stays absent."""
    with _remote(path) as (system, name):
        system.put_file(os.fspath(local), name)


def remove(path: StrPath) -> None:
    """Remove a file."""
    if not is_remote(path):
        os.remove(path)
        return
    with _remote(path) as (system, name):
        system.rm_file(name)


def expand(path: StrPath, endings: Sequence[str] = (), argument: str = "input") -> list[Path]:
    """The files that a path stands for, sorted by name: itself; those in a folder; or those that fit a glob.

    In folders, names that begin with ``_`` or ``.`` are left out. A file whose name holds ``*``, ``?`` or ``[`` is
    itself.

    Args:
        endings: of the files that count in a folder, such as ``(".jsonl", ".parquet")``; empty for any.
        argument: the name of the path in errors.

    Raises:
        ValueError: there is no such file.
    """
    text = address(path)
    if is_folder(path):
        names = sorted(name for name in sizes(path) if name[0] not in "_." and name.endswith(tuple(endings) or ""))
        if not names:
            some = ", ".join(endings) or "any"
            raise ValueError(f"{argument}: expected files in the folder {text!r} (endings: {some}), found none")
        return [Path(path, name) for name in names]
    if is_remote(path) and _MAGIC.search(text):
        with _remote(path) as (system, name):
            found = [f"{text.partition('://')[0]}://{each}" for each in system.glob(name)]
    elif _MAGIC.search(text) and not os.path.exists(path):
        found = glob.glob(text, recursive=True)
    else:
        if not exists(path):
            raise ValueError(f"{argument}: expected a file that exists, got {text!r}")
        return [Path(path)]
    if not found:
        raise ValueError(f"{argument}: expected files that fit {text!r}, found none")
    return [Path(each) for each in sorted(found)]


@contextmanager
def _remote(path: StrPath) -> Iterator[tuple[Any, str]]:
    """The file system of a remote path, without a cache of listings, and the path's name in it."""
    where = address(path)
    scheme = where.partition("://")[0]
    module, extra = _MODULES[scheme]
    check_installed(module, extra=extra, purpose=f"for {scheme}:// addresses")
    fsspec = require("fsspec", extra=extra, purpose=f"for {scheme}:// addresses")
    with _one_kind_of_error(where):
        yield fsspec.core.url_to_fs(where, use_listings_cache=False)


@contextmanager
def _one_kind_of_error(where: str) -> Iterator[None]:
    """Errors of the network, which each library has its own of, as OSError with an errno."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", where) from None
    except PermissionError as error:
        raise PermissionError(errno.EACCES, f"access is refused ({error})", where) from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConnectionError(errno.EIO, f"cannot be reached ({reason})", where) from error


class _RemoteFile(io.RawIOBase):
    """A file of fsspec whose errors are OSErrors that name it."""

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where = file, where

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _one_kind_of_error(self.where):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        self.file.close()
        super().close()
