"""Evaluation in one pass: sums of Parquet shards that are merged in any order, in memory that does not grow."""

from .evaluation import evaluate_shards, evaluation_of
from .request import OnePass
from .shards import Columns
from .sums import LogSums, read_sums

__all__ = ["Columns", "LogSums", "OnePass", "evaluate_shards", "evaluation_of", "read_sums"]
