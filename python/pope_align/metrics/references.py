"""References for evaluation: slates, and the approval of opinion groups where the file has it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._extras import require
from ..data import SlateLog, read_slates

GroupScores = list[Mapping[str, float]]


def read_references(path: str | os.PathLike[str]) -> tuple[SlateLog, list[GroupScores | None] | None]:
    """The slates of a file, and per slate its ``group_scores`` column: one mapping per completion, or None.

    The column is not part of the slate row. The second result is None if no slate has it.

    Raises:
        SlateError: a row is not a slate.
        ValueError: a ``group_scores`` that is not one mapping per completion.
    """
    log = read_slates(path)
    column = _column(Path(path), "group_scores")
    if all(entry is None for entry in column):
        return log, None
    groups: list[GroupScores | None] = []
    for number, (entry, slate) in enumerate(zip(column, log, strict=True), start=1):
        if entry is None:
            groups.append(None)
            continue
        if not isinstance(entry, list) or len(entry) != len(slate.completions):
            raise ValueError(
                f"{path}, row {number}: group_scores: expected a list of {len(slate.completions)} objects, "
                f"one per completion, got {entry!r:.80}"
            )
        groups.append(
            [_mapping(scores, f"{path}, row {number}: group_scores[{at}]") for at, scores in enumerate(entry)]
        )
    return log, groups


def _mapping(scores: Any, where: str) -> dict[str, float]:
    if not isinstance(scores, Mapping) or not all(isinstance(v, (int, float, type(None))) for v in scores.values()):
        raise ValueError(f"{where}: expected an object from group to approval, got {scores!r:.80}")
    return {group: float(value) for group, value in scores.items() if value is not None}


def _column(path: Path, name: str) -> list[Any]:
    """One column of a log, row by row, as `read_slates` counts rows."""
    if path.suffix == ".parquet":
        parquet = require("pyarrow.parquet", extra="train", purpose="to read Parquet files")
        with parquet.ParquetFile(path) as file:
            if name not in file.schema_arrow.names:
                return [None] * file.metadata.num_rows
            values: list[Any] = file.read(columns=[name]).column(name).to_pylist()
            return values
    with path.open("rb") as lines:
        return [json.loads(line).get(name) for line in lines if line.strip()]
