"""What the diagnostics of weights need of a log, in forms that are merged in any order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..._arrays import Floats
from ..diagnostics import pareto_k_of
from ..weights import Shrink


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Of one kind of weights: their powers, the largest of them, and what shrinking changes.

    Attributes:
        count: of weights.
        top: the largest log-weight; weights below are in units of ``exp(top)``.
        first, second: sums of weights and of their squares.
        largest: log-weights, the ``keep`` largest among them.
        floor: of ``keep`` weights that are known, the smallest; others below it need not be kept.
        place: of the largest weight.
        shrinks: ways to shrink these weights.
        touched: ``[J]`` numbers of weights above the limit of each.
        removed: ``[J]`` sums of ``(w - w~) u``.
    """

    count: int
    top: float
    first: float
    second: float
    largest: Floats
    keep: int
    floor: float
    place: str
    shrinks: tuple[Shrink, ...]
    touched: Floats
    removed: Floats

    @classmethod
    def of(
        cls,
        log_w: Floats,
        keep: int,
        place: Callable[[int], str],
        shrinks: tuple[Shrink, ...] = (),
        utility: Floats | None = None,  # of the same shape, for ``removed``
        floor: float = -math.inf,  # already known
    ) -> WeightSums:
        at = int(log_w.argmax())
        top = float(log_w[at])
        w = units(log_w, top)
        shrunk = [units(shrink.log(log_w), top) for shrink in shrinks]
        with np.errstate(over="ignore", invalid="ignore"):
            removed = [0.0 if utility is None else float((w - each) @ utility) for each in shrunk]
        return cls(
            count=log_w.size,
            top=top,
            first=float(w.sum()),
            second=float(w @ w),
            largest=log_w[log_w > floor] if math.isfinite(floor) else log_w[: log_w.size if keep else 0],
            keep=keep,
            floor=floor,
            place=place(at),
            shrinks=shrinks,
            touched=np.array([shrink.touched(log_w) * log_w.size for shrink in shrinks]),
            removed=np.array(removed),
        )._trimmed()

    def merge(self, other: WeightSums) -> WeightSums:
        if other.top > self.top or (other.top == self.top and other.place < self.place):
            return other.merge(self)
        down = factor(other.top, self.top)
        return replace(
            self,
            count=self.count + other.count,
            first=self.first + other.first * down,
            second=self.second + other.second * down * down,
            largest=np.concatenate([self.largest, other.largest]),
            floor=max(self.floor, other.floor),
            touched=self.touched + other.touched,
            removed=self.removed + other.removed * down,
        )._trimmed()

    def _trimmed(self) -> WeightSums:
        """At most twice ``keep`` weights, so that a batch seldom sorts them."""
        if self.largest.size <= 2 * self.keep:
            return self
        largest = np.partition(self.largest, -self.keep)[-self.keep :]
        return replace(self, largest=largest, floor=float(largest[0]))

    @property
    def ess(self) -> float:
        return self.first**2 / self.second if self.top > -math.inf else math.nan

    @property
    def pareto_k(self) -> float:
        return pareto_k_of(self.largest, self.count)

    @property
    def top_percent_share(self) -> float:
        """NaN where more weights would have to be kept."""
        size = max(1, self.count // 100)
        if size > self.largest.size or self.first == 0:
            return math.nan
        return float(units(np.partition(self.largest, -size)[-size:], self.top).sum() / self.first)


def units(log_w: Floats, top: float) -> Floats:
    """Weights in units of ``exp(top)``; 0 where all weights are."""
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(log_w - top) if math.isfinite(top) else np.zeros_like(log_w))


def factor(scale: float, other: float) -> float:
    """From units of ``exp(scale)`` to those of ``exp(other)``, which are not smaller."""
    return 1.0 if scale == other else math.exp(scale - other)


#: Surprises are counted in bins of 2^-12 of their size, from 2^-20 to 2^24 nats.
_LOW, _OCTAVES, _FINE = -20, 44, 12
_BINS = _OCTAVES << _FINE
_SHIFT = 52 - _FINE
_OFFSET = int(np.array(2.0**_LOW).view(np.int64)) >> _SHIFT


@dataclass(frozen=True, eq=False)
class SurpriseSums:
    """How many responses, and how much weight, there are at each surprise ``-log p`` of a policy.

    Attributes:
        top: the weights are in units of ``exp(top)``.
        counts, weights: ``[B]`` by bin.
    """

    top: float
    counts: Floats
    weights: Floats

    @classmethod
    def of(cls, surprise: Floats, log_w: Floats) -> SurpriseSums:
        top = float(log_w.max())
        bits = np.ascontiguousarray(surprise + 0.0).view(np.int64) >> _SHIFT
        bins = np.clip(bits - _OFFSET, 0, _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS).astype(np.float64)
        weights = np.bincount(bins, weights=units(log_w, top), minlength=_BINS)
        return cls(top, counts, weights.astype(np.float64))

    def merge(self, other: SurpriseSums) -> SurpriseSums:
        if other.top > self.top:
            return other.merge(self)
        weights = self.weights + other.weights * factor(other.top, self.top)
        return SurpriseSums(self.top, self.counts + other.counts, weights)

    @property
    def coverage(self) -> float:
        """Share of responses whose surprise is at most the policy's own 90% quantile, to the width of a bin."""
        cumulative = self.weights.cumsum()
        at = int(np.searchsorted(cumulative, 0.9 * cumulative[-1]))
        return float(self.counts[: at + 1].sum() / self.counts.sum())
