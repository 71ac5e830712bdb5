"""Converts GGUF files once, because reading one takes half a minute of Python and every command loads its models.

The copy has the weights in float32, to which every GGUF format is expanded when read, and the tokenizer, both as saved
by transformers. A model loaded from it is bit-identical to one loaded from the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import transformers
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

_DAY = 86_400.0

#: Larger files are not converted: in float32 they grow up to eightfold.
MOST_BYTES = 512 << 20


def cache_folder() -> Path:
    """The folder of copies: ``POPE_CACHE``, else ``pope-core`` in the user's cache folder. It may be deleted."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pope-core"
    return Path(os.environ.get("POPE_CACHE") or default).expanduser()


def copy_of(gguf: Path) -> Path | None:
    """The folder for the copy of a GGUF file, named by a hash of its content; None if it is too large to be copied."""
    if gguf.stat().st_size > MOST_BYTES:
        return None
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"


def unpack(gguf: Path, save: Callable[[Path], None]) -> Path | None:
    """The folder with the copy of ``gguf``, created with ``save`` if missing; None if the file is not to be copied.

    If a copy cannot be written, a warning is logged and the model is read from ``gguf``, with equal results.
    """
    copy = copy_of(gguf)
    if copy is None or copy.is_dir():
        return copy
    _clean(copy)
    unfinished = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}.partial")
    try:
        unfinished.mkdir(parents=True)
        save(unfinished)
        try:
            unfinished.rename(copy)
        except OSError:
            if not copy.is_dir():  # otherwise another process was first, with an equal copy
                raise
    except (OSError, SafetensorError) as error:
        logger.warning("no unpacked copy of %s was kept (%s); it will be read as slowly next time", gguf.name, error)
        return None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy


def _clean(copy: Path) -> None:
    """Remove copies of the same file for other versions of transformers, and what killed processes left a day ago."""
    same_file = copy.name.rpartition("-transformers-")[0]
    for other in copy.parent.glob("*") if copy.parent.is_dir() else ():
        left = other.suffix == ".partial" and time.time() - other.stat().st_mtime > _DAY
        if left or (other.suffix != ".partial" and other.name.startswith(f"{same_file}-transformers-")):
            shutil.rmtree(other, ignore_errors=True)
