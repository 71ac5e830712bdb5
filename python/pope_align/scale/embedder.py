"""Sentence embeddings as a step on columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.schema import ERROR
from .columns import ColumnStep, Failed, Row, results_of


class TextEmbedder(ColumnStep):
    """Unit vectors of the texts in a column, in the column ``embedding``.

    Equivalent: `pope_align.metrics.embeddings.embed` of the column.

    Args:
        model: sentence-transformers name or folder; None is all-MiniLM-L6-v2.
        column: with one text per row.
        batch_size: texts in one forward pass.
    """

    adds = ("embedding", ERROR)

    def __init__(self, model: str | None = None, *, column: str = "text", batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected an integer >= 1, got {batch_size}")
        self.model, self.column, self.batch_size = model, column, batch_size

    def settings(self) -> dict[str, Any]:
        """What results depend on."""
        return {"step": "embed", "model": self.model, "column": self.column}

    def process(self, rows: Sequence[Row]) -> list[Row]:
        """The vector of every row."""
        self.load()
        texts: list[str | Failed] = []
        for row in rows:
            text = row.get(self.column)
            bad = None if isinstance(text, str) else f"{self.column}: expected text, got {text!r:.80}"
            texts.append(Failed(str(row.get(ERROR) or bad)) if row.get(ERROR) or bad else str(text))
        return results_of(rows, texts, self._embed, lambda text: {"embedding": None}, {"embedding": None})

    def schema(self, pa: Any, rows: Sequence[Row]) -> dict[str, Any]:
        """The types of the text, its vector and ``error``."""
        return {self.column: pa.string(), "embedding": pa.list_(pa.float64()), ERROR: pa.string()}

    def loaded(self) -> Any:
        """The embedding model of this process."""
        from ..metrics.embeddings import Embedder

        return Embedder(self.model, batch_size=self.batch_size)

    def _embed(self, texts: list[str]) -> list[Row]:
        return [{"embedding": vector} for vector in self._loaded(texts).tolist()]
