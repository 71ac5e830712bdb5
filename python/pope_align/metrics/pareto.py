"""Pareto front of two goals, the volume that points dominate, and how close points are to their front."""

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
    return float(dominated_volume(_points(points) - np.asarray(reference)))


def dominated_volume(points: Floats) -> Floats:
    """``[..., n, d] -> [...]``: the volume between 0 and the points, for each set of ``n`` points with ``d`` goals.

    Larger is better. A point with NaN, or that is not above 0 in every goal, dominates nothing.
    """
    above = (points > 0).all(-1, keepdims=True)  # false for NaN
    return _volume(np.where(above, points, 0.0))


def _volume(points: Floats) -> Floats:
    """By slices of the last goal: each is as large as the volume that the points above it dominate in the others."""
    if points.shape[-1] == 1:
        return np.asarray(points[..., 0].max(-1))
    order = np.argsort(-points[..., -1], axis=-1, kind="stable")
    points = np.take_along_axis(points, order[..., None], axis=-2)
    heights = points[..., -1]
    thickness = heights - np.concatenate([heights[..., 1:], np.zeros_like(heights[..., :1])], axis=-1)
    slices = [thickness[..., at] * _volume(points[..., : at + 1, :-1]) for at in range(points.shape[-2])]
    return np.asarray(sum(slices))


def distance_to_front(points: Floats) -> Floats:
    """``[n, 2] -> [n]``: what a point lacks in both goals to be undominated by any other; 0 on the front.

    NaN for a point with NaN. It says how closely the points of a model keep to their envelope (the paper's Figure 1).

    Raises:
        ValueError: another shape.
    """
    p = _points(points)
    lacking = (p[None, :, :] - p[:, None, :]).min(-1)  # [n, n]: what a lacks against b in the goal where it lacks less
    lacking[:, np.isnan(p).any(1)] = -np.inf
    return np.where(np.isnan(p).any(1), np.nan, np.maximum(lacking.max(1), 0.0))


def _points(points: Floats) -> Floats:
    p = np.asarray(points, dtype=np.float64)
    if p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"points: expected [n, 2], got {list(p.shape)}")
    return p
