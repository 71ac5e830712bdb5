"""Slates to TRL's preference format, so that pairwise methods train on the same log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._extras import require
from .._files import replacing
from .schema import Slate
from .write import Writer

_ROW_GROUP = 1000


def preference_pair(slate: Slate) -> dict[str, Any] | None:
    """The best-scored response of a slate as ``chosen`` and the worst as ``rejected``, in TRL's preference format.

    The first of equals is taken. ``score_chosen`` and ``score_rejected`` go along. Text stays text; where
    prompt or responses are turns, all become turns, as TRL wants them.

    Returns:
        None for a slate whose scores are all equal: it prefers nothing.
    """
    best = max(range(len(slate.scores)), key=lambda index: slate.scores[index])
    worst = min(range(len(slate.scores)), key=lambda index: slate.scores[index])
    if slate.scores[best] == slate.scores[worst]:
        return None
    prompt, chosen, rejected = slate.prompt, slate.completions[best], slate.completions[worst]
    if not (isinstance(prompt, str) and isinstance(chosen, str)):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chosen, rejected = (
            [{"role": "assistant", "content": side}] if isinstance(side, str) else side for side in (chosen, rejected)
        )
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": slate.scores[best],
        "score_rejected": slate.scores[worst],
    }


@contextmanager
def pair_writer(path: str | os.PathLike[str]) -> Iterator[Writer]:
    """A file of `preference_pair` rows, ``.jsonl`` or ``.parquet``, that takes slates; whole or not there at all."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"path: expected a file ending in .jsonl or .parquet, got {str(path)!r}")
    with replacing(path) as partial:
        writer = _Pairs(partial, parquet=path.suffix == ".parquet")
        try:
            yield writer
            writer.flush()
        finally:
            writer.close()


class _Pairs:
    def __init__(self, path: Path, *, parquet: bool) -> None:
        self.path, self.parquet = path, parquet
        self.rows: list[dict[str, Any]] = []
        self.table: Any = None

    def write(self, slate: Slate) -> None:
        if (pair := preference_pair(slate)) is not None:
            self.rows.append(pair)
            if len(self.rows) == _ROW_GROUP:
                self.flush()

    def flush(self) -> None:
        if not self.parquet:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        elif self.rows:
            pa = require("pyarrow", extra="train", purpose="to write Parquet files")
            parquet = require("pyarrow.parquet", extra="train", purpose="to write Parquet files")
            schema = None if self.table is None else self.table.schema
            table = pa.Table.from_pylist(self.rows, schema=schema)
            self.table = self.table or parquet.ParquetWriter(self.path, table.schema)
            self.table.write_table(table)
        self.rows = []

    def close(self) -> None:
        if self.table is not None:
            self.table.close()
