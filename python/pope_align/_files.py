"""Atomic writes, and checks of an output path before any work is done for it.

All writers of the project use `replacing`; all commands call `claim_output` before their first expensive step.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from . import _paths

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

_guard = threading.Lock()
_claimed: set[Path] = set()  # files that this process has locked
_writing: set[Path] = set()  # files that a thread of this process is writing


def check_output(
    path: StrPath,
    *,
    overwrite: bool = False,
    endings: Sequence[str] = (),
    argument: str = "out",
    remote: bool = False,
) -> Path:
    """Refuse an output that cannot be written, before anything is computed for it.

    Args:
        path: the file that will be written. Symbolic links are followed.
        overwrite: whether the file may already exist.
        endings: allowed endings, such as ``(".jsonl", ".parquet")``; empty for any.
        argument: the name of the path in errors.
        remote: whether the file may be on an object store.

    Returns:
        ``path`` as a `pathlib.Path`.

    Raises:
        ValueError: another ending; a folder that is missing or not writable; not a regular file; an existing file
            without ``overwrite``.
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise ValueError(f"{argument}: expected a file ending in {_either(endings)}, got {_paths.address(path)!r}")
    if _paths.is_remote(path):
        where = _paths.address(path)
        if not remote:
            raise ValueError(f"{argument}: expected a local file here, got {where!r}")
        if not overwrite and _paths.exists(path):
            raise ValueError(f"{argument}: {where}: exists already; pass --overwrite to replace it, or name another")
        return path
    target = _target(path)
    if not target.parent.is_dir():
        raise ValueError(f"{argument}: {path}: expected a folder that exists, got {str(target.parent)!r}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}: {path}: expected a folder that can be written, got {str(target.parent)!r}")
    if target.exists():
        if not target.is_file():
            kind = "a folder" if target.is_dir() else "something that is no regular file"
            raise ValueError(f"{argument}: {path}: expected a file, got {kind}")
        if not overwrite:
            raise ValueError(f"{argument}: {path}: exists already; pass --overwrite to replace it, or name another")
    return path


def check_output_folder(path: StrPath, *, overwrite: bool = False, argument: str = "out") -> Path:
    """Refuse a folder of results that cannot be created or is not empty; does not create it.

    Raises:
        ValueError: the path is a file or cannot be created; the folder is not empty, without ``overwrite``.
    """
    path = Path(path)
    there = _target(path)
    if there.exists() and not there.is_dir():
        raise ValueError(f"{argument}: {path}: expected a folder, got a file")
    if there.is_dir() and any(there.iterdir()) and not overwrite:
        raise ValueError(f"{argument}: {path}: holds files already; pass --overwrite to replace them, or name another")
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{argument}: {path}: expected a folder that can be written, got {str(there)!r}")
    return path


@contextmanager
def claim_output(
    path: StrPath,
    *,
    overwrite: bool = False,
    endings: Sequence[str] = (),
    argument: str = "out",
    remote: bool = False,
) -> Iterator[Path]:
    """`check_output`, and lock the file against other processes until the block ends; an object store has no locks.

    Raises:
        ValueError: as `check_output`; another process is writing the same output.
    """
    path = check_output(path, overwrite=overwrite, endings=endings, argument=argument, remote=remote)
    if _paths.is_remote(path):
        yield path
        return
    with _lock(_target(path)):
        yield path


@contextmanager
def claim_folder(path: StrPath) -> Iterator[None]:
    """Until the block ends no other process may claim the folder, which need not be there yet.

    Raises:
        ValueError: another process has claimed it.
    """
    target = _target(Path(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        yield


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """Yield a new file to write, which replaces ``path`` when the block ends without an error.

    The new file is in the same folder, has a unique name with the ending of ``path``, and is synced to disk before it
    replaces ``path``, so readers see either the old or the new content. After an error it is removed. A symbolic link
    is kept, and the file that it points to is replaced. A file on an object store is written to a temporary folder and
    uploaded at the end.

    Raises:
        ValueError: another process, or another thread, is writing the same file.
        OSError: the file cannot be written; it is named.
    """
    if _paths.is_remote(path):
        with tempfile.TemporaryDirectory(prefix="pope-upload-") as folder:
            partial = Path(folder, Path(path).name)
            partial.touch()
            yield partial
            _paths.upload(partial, path)
        return
    target = _target(Path(path))
    claimed = target in _claimed
    with _guard:
        if target in _writing:
            raise _busy(target)
        _writing.add(target)
    try:
        if claimed:
            yield from _replacing(target)
        else:
            with _lock(target):
                yield from _replacing(target)
    finally:
        _writing.discard(target)


@contextmanager
def replacing_together(paths: Sequence[StrPath]) -> Iterator[list[Path]]:
    """`replacing` for files that belong together, such as the parts of a split log: no old file stays beside a new one.

    All new files are on the disk before they take their places, in the order of ``paths``; an error then brings the old
    ones back. A process that is killed meanwhile leaves some of the new files and no old one, or at most the first of
    the old ones. On an object store files are replaced one after another.

    Raises:
        as `replacing`.
    """
    with ExitStack() as renaming:
        fresh = [renaming.enter_context(replacing(path)) for path in reversed(paths)][::-1]  # the last one ends first
        yield fresh
        for path, partial in zip(paths, fresh, strict=True):
            with named_writes(path):
                _sync(partial)
        with _set_aside([_target(Path(path)) for path in paths if not _paths.is_remote(path)]):
            renaming.close()


@contextmanager
def _set_aside(targets: Sequence[Path]) -> Iterator[None]:
    """Keep files under other names until the block ends; an error brings them back, and removes what is new.

    The first of them also keeps its name, so that a single file is there at any moment.
    """
    old = {target: _partial(target) for target in targets if target.exists()}
    try:
        for target, aside in old.items():
            if target == targets[0]:
                with suppress(OSError):  # some file systems have no links
                    os.link(target, aside)
                    continue
            os.replace(target, aside)
        yield
    except BaseException:
        for target in targets:
            if target not in old:
                target.unlink(missing_ok=True)
            elif old[target].exists():
                os.replace(old[target], target)
                old[target].unlink(missing_ok=True)  # a link is still there
        raise
    for aside in old.values():
        aside.unlink(missing_ok=True)


#: Errors that only writing has.
_WRITING = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS)


@contextmanager
def named_writes(path: StrPath) -> Iterator[None]:
    """Within the block errors of writing, such as that of a full disk, name what was written.

    Python names a file that cannot be opened, but none that cannot be written to; safetensors and torch give no
    OSError at all.

    Raises:
        OSError: what the system said, with ``path`` as its file name, for errors that name no file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno not in _WRITING:
            raise
        raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    except Exception as error:
        text = str(error)
        if type(error).__name__ == "SafetensorError" and "I/O error: " in text:
            reason = text.partition("I/O error: ")[2]
        elif isinstance(error, RuntimeError) and "inline_container.cc" in text:
            reason = "the file cannot be written; is the disk full?"
        else:
            raise
        raise OSError(errno.EIO, reason, os.fspath(path)) from error


def write_text(path: StrPath, text: str) -> None:
    """Write text as UTF-8, atomically; bytes of file names that are not UTF-8 are escaped."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: StrPath, value: Any, *, indent: int = 1) -> None:
    """Write an indented JSON file, atomically.

    Raises:
        ValueError: a number that JSON does not have, such as NaN.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def report_path(output: StrPath) -> Path:
    """The path of a file's report: ``log.jsonl.report.json`` next to ``log.jsonl``, so that no two files share one."""
    output = Path(output)
    return output.with_name(output.name + ".report.json")


_reading: list[str] = []


def note_reading(path: StrPath | None) -> None:
    """Remember the file that is being read, for the message of unexpected errors; None when it has been read."""
    _reading[:] = [] if path is None else [os.fspath(path)]


def now_reading() -> str | None:
    """The file that is being read."""
    return _reading[0] if _reading else None


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _either(endings: Sequence[str]) -> str:
    return endings[0] if len(endings) == 1 else f"{', '.join(endings[:-1])} or {endings[-1]}"


def _busy(target: Path) -> ValueError:
    return ValueError(f"{target}: another process is writing this file; wait for it, or name another output")


def _partial(target: Path) -> Path:
    """A new name beside a file, which `_lock` removes if its process dies."""
    return target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")


def _replacing(target: Path) -> Iterator[Path]:
    partial = _partial(target)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # with the permissions a new file has
    try:
        with suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(target.stat().st_mode))
        with named_writes(target):
            yield partial
            _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Lock ``.NAME.lock`` next to the file. The system unlocks it when a process dies; temporary files of dead
    processes are removed.
    """
    name = target.with_name(f".{target.name}.lock")
    descriptor = _locked(name, target)
    _claimed.add(target)
    try:
        for left in target.parent.glob(f".{_literal(target.stem)}.????????????.tmp{_literal(target.suffix)}"):
            left.unlink(missing_ok=True)
        yield
    finally:
        _claimed.discard(target)
        name.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(name: Path, target: Path) -> int:
    while True:
        descriptor = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise _busy(target) from None
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s: cannot be locked (%s); see that no other process writes it", target, error)
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        os.close(descriptor)  # its last holder removed the file between our opening and locking it


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
