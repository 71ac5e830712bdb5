"""Names of the ways from feedback to utility; `feedback` has the formulas. Imports no NumPy, for command lines."""

from __future__ import annotations

from typing import Literal

UtilityTransform = Literal["minmax", "log1p_minmax", "rank", "softmax", "plackett_luce", "none"]
Aggregation = Literal["utilitarian", "maximin", "nash"]
