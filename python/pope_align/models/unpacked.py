"""GGUF files unpacked once: reading one takes half a minute of Python, and each command loads its models anew.

The copy holds the weights in float32, which every GGUF format is expanded to when it is read, and the tokenizer, both
as transformers saves them. What is loaded from it equals what is loaded from the file, bit for bit (a test).
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import transformers

logger = logging.getLogger(__name__)

#: Files above this many bytes are read anew each time: unpacked to float32 they grow up to eightfold.
MOST_BYTES = 512 << 20


def cache_folder() -> Path:
    """Where copies are kept: ``POPE_CACHE``, else ``pope-core`` in the user's cache folder. It may be deleted."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pope-core"
    return Path(os.environ.get("POPE_CACHE") or default).expanduser()


def copy_of(gguf: Path) -> Path:
    """The folder that holds, or would hold, the copy of a GGUF file; named by the file's content."""
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}"


def unpack(gguf: Path, save: Callable[[Path], None]) -> Path | None:
    """The folder with the copy of ``gguf``, made by ``save`` if it is not there yet; None where there is to be none.

    A copy that cannot be written is left out with a warning: the model is then read from ``gguf``, with equal results.
    """
    if gguf.stat().st_size > MOST_BYTES:
        return None
    copy = copy_of(gguf)
    if copy.is_dir():
        return copy
    unfinished = copy.with_name(f"{copy.name}.{secrets.token_hex(4)}.partial")
    try:
        unfinished.mkdir(parents=True)
        save(unfinished)
        try:
            unfinished.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another process was first, with an equal copy
                raise
    except OSError as error:
        logger.warning("no unpacked copy of %s was kept (%s); it will be read as slowly next time", gguf.name, error)
        return None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return copy
