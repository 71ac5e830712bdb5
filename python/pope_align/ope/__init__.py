"""Off-policy evaluation: what a policy is worth, from logged slates alone, and whether to believe it."""

from __future__ import annotations

from ..stats.intervals import Confidence, JointRegion, Quantity
from .bounds import log_value_lower_bound, slate_lower_bounds
from .diagnostics import Diagnostics, diagnose, effective_sample_size, pareto_k
from .estimators import METHODS, estimate
from .evaluate import DEFAULT_ESTIMATORS, Evaluation, evaluate_policies
from .log import LoggedSlates, PolicyScores
from .pope import pope_value
from .predictions import Predictions
from .result import Comparison, Estimate, compare
from .reward_model import fit_predictions, predict_with
from .scoring import Scoring
from .sets import set_value
from .slope import bias_bound
from .weights import Shrink, log_weights

__all__ = [
    "DEFAULT_ESTIMATORS",
    "METHODS",
    "Comparison",
    "Confidence",
    "Diagnostics",
    "Estimate",
    "Evaluation",
    "JointRegion",
    "LoggedSlates",
    "PolicyScores",
    "Predictions",
    "Quantity",
    "Scoring",
    "Shrink",
    "bias_bound",
    "compare",
    "diagnose",
    "effective_sample_size",
    "estimate",
    "evaluate_policies",
    "fit_predictions",
    "log_value_lower_bound",
    "log_weights",
    "pareto_k",
    "pope_value",
    "predict_with",
    "set_value",
    "slate_lower_bounds",
]
