"""Checks of the arrays of a log; errors name array, slate and response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from ..stats.clusters import codes_of


def vector(name: str, values: npt.ArrayLike, length: int | None = None) -> Floats:
    array = np.asarray(values)
    shape = "[R]" if length is None else f"[{length}]"
    if array.ndim != 1 or array.dtype.kind not in "fiub" or array.size == 0:
        raise ValueError(f"{name}: expected numbers of shape {shape}, got {array.dtype} {list(array.shape)}")
    if length is not None and array.size != length:
        raise ValueError(f"{name}: expected {length} numbers, one per response, got {array.size}")
    return array.astype(np.float64)


def offsets_of(values: npt.ArrayLike, count: int) -> Integers:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iu" or array.size < 2:
        raise ValueError(f"slate_offsets: expected integers of shape [S + 1], got {array.dtype} {list(array.shape)}")
    if array[0] != 0 or array[-1] != count:
        raise ValueError(
            f"slate_offsets: expected to run from 0 to the {count} responses, got {array[0]} to {array[-1]}"
        )
    empty = np.flatnonzero(np.diff(array.astype(np.int64)) <= 0)
    if empty.size:
        raise ValueError(f"slate_offsets: expected at least one response per slate, got none in slate {empty[0]}")
    return array.astype(np.int64)


def cluster_codes(ids: Sequence[Any] | npt.ArrayLike | None, count: int) -> Integers:
    codes = np.arange(count) if ids is None else codes_of(ids)[1]
    if codes.shape != (count,):
        raise ValueError(f"clusters: expected {count} ids, one per slate, got shape {list(codes.shape)}")
    if codes.max() == 0:
        raise ValueError(
            "clusters: expected at least two independent queries, got one; how much queries differ cannot be learnt "
            "from one of them, so no interval is possible"
        )
    return codes.astype(np.int64)


@dataclass(frozen=True)
class Places:
    """Checks whose errors name slate and response."""

    slate_offsets: Integers

    def of(self, response: int) -> str:
        slate = int(np.searchsorted(self.slate_offsets, response, side="right")) - 1
        return f"response {response - self.slate_offsets[slate]} of slate {slate}"

    def each(self, name: str, values: npt.NDArray[Any], fine: npt.NDArray[np.bool_], expected: str) -> None:
        if not fine.all():
            at = int(np.argmin(fine))
            self.fail(name, at, expected, values[at])

    def fail(self, name: str, at: int, expected: str, got: Any) -> NoReturn:
        raise ValueError(f"{name}: {self.of(at)}: expected {expected}, got {got}")

    def logprobs(self, name: str, values: npt.ArrayLike, unit: str, *, may_be_zero: bool) -> Floats:
        """Check log-probabilities; -inf (a probability of 0) is allowed if ``may_be_zero``."""
        array = vector(name, values, int(self.slate_offsets[-1]))
        kind = "a log-probability <= 0, -inf for impossible" if may_be_zero else "a finite log-probability <= 0"
        fine = (array <= 0) & (np.isfinite(array) | may_be_zero)  # NaN fails the first
        self.each(name, array, fine, f"{kind} (nats, the {unit} over the response)")
        return array

    def tokens(self, name: str, values: npt.ArrayLike) -> Integers:
        array = vector(name, values, int(self.slate_offsets[-1]))
        self.each(name, array, (array >= 1) & (array == np.floor(array)), "an integer >= 1")
        return array.astype(np.int64)
