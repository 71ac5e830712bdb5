"""Pareto front of two goals, and the area that it dominates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .._arrays import Floats


def pareto_front(points: Floats) -> npt.NDArray[np.bool_]:
    """Which of the points ``[n, 2]`` are not dominated (another point at least as good in both and better in one).
    Larger is better.

    Equal points are either all on the front or not. A point with NaN is never on it.

    Raises:
        ValueError: another shape.
    """
    p = _points(points)
    front = np.zeros(len(p), dtype=bool)
    defined = np.flatnonzero(~np.isnan(p).any(1))
    best = -np.inf
    order = defined[np.lexsort((-p[defined, 1], -p[defined, 0]))]  # by x falling, then y falling
    last: tuple[float, float] | None = None
    for index in order:
        x, y = p[index]
        if y > best or (x, y) == last:
            front[index] = True
            best, last = y, (x, y)
    return front


def hypervolume(points: Floats, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area that the points ``[n, 2]`` dominate above ``reference``; larger is better, 0 if none is above it.

    Raises:
        ValueError: another shape.
    """
    p = _points(points)
    front = p[pareto_front(p)]
    front = front[(front > np.asarray(reference)).all(1)]
    area, floor = 0.0, reference[1]
    for x, y in front[np.argsort(-front[:, 0], kind="stable")]:
        area += (x - reference[0]) * max(y - floor, 0.0)
        floor = max(floor, y)
    return float(area)


def _points(points: Floats) -> Floats:
    p = np.asarray(points, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"points: expected [n, 2], got {list(p.shape)}")
    return p
