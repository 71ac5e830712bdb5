"""``pope evaluate`` on files with one row per response and the log-probabilities of every policy: in one pass."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checks import pairs

if TYPE_CHECKING:
    from ..ope import Columns


def holds_rows(log: str | os.PathLike[str]) -> bool:
    """Whether a log has one row per response: the first of its Parquet files, on a local disk, is not one of slates."""
    from .._extras import require
    from ..ope.one_pass.shards import parquet_files

    place = Path(log)
    if place.is_dir():
        files = parquet_files(place, required=False)
    else:
        files = [str(place)] if place.is_file() and place.suffix == ".parquet" else []
    if not files:
        return False
    parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
    try:
        return "completions" not in parquet.read_schema(files[0]).names
    except ValueError:  # no Parquet: the reader of slates says so
        return False


def refuse_options(given: Mapping[str, Any], *, rows: bool) -> None:
    """Refuse options of the other kind of log.

    Args:
        given: by option, what is true if it was given.
        rows: whether the log has one row per response.

    Raises:
        ValueError: one that was given.
    """
    for option, value in given.items():
        if value and rows:
            raise ValueError(
                f"{option}: expected none for a log with one row per response, which is read in one pass and has no "
                "text to score or to show; scored slates can be evaluated with it"
            )
        if value:
            more = " and --engine ray" if option == "--workers" else ""
            raise ValueError(f"{option}: expected none for slates; it is for Parquet with one row per response{more}")


def columns_of(given: Sequence[str]) -> Columns:
    """The columns named by ``--columns``.

    Raises:
        ValueError: what is no column of a log.
    """
    from ..ope import Columns

    named = pairs("--columns", given, "COLUMN")
    known = [field.name for field in fields(Columns)]
    if unknown := [name for name in named if name not in known]:
        raise ValueError(f"--columns: expected NAME=COLUMN with a name among {', '.join(known)}, got {unknown[0]!r}")
    return Columns(**named)
