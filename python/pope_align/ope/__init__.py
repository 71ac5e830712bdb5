"""Off-policy evaluation: what a policy is worth, from logged slates alone, and whether to believe it."""

from __future__ import annotations

from .confidence import Confidence, JointRegion, Quantity
from .diagnostics import Diagnostics, diagnose, effective_sample_size, pareto_k
from .estimate import Comparison, Estimate, compare
from .log import LoggedSlates, PolicyScores
from .pope import pope_value
from .weights import Shrink, log_weights

__all__ = [
    "Comparison",
    "Confidence",
    "Diagnostics",
    "Estimate",
    "JointRegion",
    "LoggedSlates",
    "PolicyScores",
    "Quantity",
    "Shrink",
    "compare",
    "diagnose",
    "effective_sample_size",
    "log_weights",
    "pareto_k",
    "pope_value",
]
