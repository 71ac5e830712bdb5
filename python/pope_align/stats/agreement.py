"""Agreement of annotators: Krippendorff's alpha."""

from __future__ import annotations

import math

import numpy as np

from .._arrays import Floats, Integers


def krippendorff_alpha(units: Integers, ratings: Floats) -> float:
    """Krippendorff's alpha with squared differences (interval data): 1 if all agree, 0 if as by chance.

    ``1 - D_o / D_e``, where ``D_o`` is the mean squared difference of two ratings of one unit, each rating weighted
    equally, and ``D_e`` that of any two ratings. Units with one rating do not count.

    Args:
        units: ``[N]`` the code of what was rated.
        ratings: ``[N]``.

    Returns:
        At most 1; NaN if no unit has two ratings, or all ratings are equal.

    Source: Krippendorff, "Computing Krippendorff's alpha-reliability" (2011).
    """
    kept = np.bincount(units)[units] > 1 if units.size else np.zeros(0, dtype=bool)
    if not kept.any():
        return math.nan
    _, codes = np.unique(units[kept], return_inverse=True)
    values = ratings[kept] - ratings[kept].mean()
    counts = np.bincount(codes)
    within = counts * np.bincount(codes, np.square(values)) - np.square(np.bincount(codes, values))
    expected = (values.size * np.square(values).sum() - values.sum() ** 2) / (values.size - 1)
    if expected == 0:
        return math.nan
    return float(1 - (within / (counts - 1)).sum() / expected)
