"""Work on more rows than one process can do: steps on columns, folders of shards, and Ray to run them.

A step is a picklable function from a batch of columns to a batch of columns, the same object in a loop in this process,
in Ray Data's ``map_batches`` and in any other engine: `Scorer`, `Generator`, `TextEmbedder`. Nothing here imports torch
or Ray before a step runs.
"""

from __future__ import annotations

from .columns import Columns, ColumnStep
from .embedder import TextEmbedder
from .generator import Generator
from .scorer import Scorer

__all__ = ["ColumnStep", "Columns", "Generator", "Scorer", "TextEmbedder"]
