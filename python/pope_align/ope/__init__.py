"""Off-policy evaluation: estimates the value of policies from logged slates, with verdicts on how far to trust them."""

from __future__ import annotations

from ..stats.intervals import Confidence, JointRegion, Quantity
from .asked import DEFAULT_ESTIMATORS
from .bounds import log_value_lower_bound, slate_lower_bounds
from .comparison import Comparison, compare
from .diagnostics import Diagnostics, diagnose, effective_sample_size, pareto_k
from .direction import DirectionIndex, directions
from .estimators import METHODS, estimate
from .evaluate import evaluate_policies
from .evaluation import Evaluation
from .judge_calibration import JudgeCalibration, Judged
from .log import FreshScores, LoggedSlates, PolicyScores
from .log_support import Support, support
from .logging_policies import balanced_logprobs
from .one_pass import Columns, evaluate_shards
from .pope import pope_value
from .predictions import Predictions
from .raters import GroupValue, RaterGroups, values_by_raters
from .result import Estimate
from .reward_model import fit_predictions, predict_with
from .scoring import Scoring
from .sensitivity import SensitivityBounds, sensitivity_bounds
from .sets import set_value
from .slope import bias_bound
from .subgroups import Subgroups, subgroup_values
from .utility import UtilityScale, utilities
from .weights import Shrink, log_weights

__all__ = [
    "DEFAULT_ESTIMATORS",
    "METHODS",
    "Columns",
    "Comparison",
    "Confidence",
    "Diagnostics",
    "DirectionIndex",
    "Estimate",
    "Evaluation",
    "FreshScores",
    "GroupValue",
    "JointRegion",
    "JudgeCalibration",
    "Judged",
    "LoggedSlates",
    "PolicyScores",
    "Predictions",
    "Quantity",
    "RaterGroups",
    "Scoring",
    "SensitivityBounds",
    "Shrink",
    "Subgroups",
    "Support",
    "UtilityScale",
    "balanced_logprobs",
    "bias_bound",
    "compare",
    "diagnose",
    "directions",
    "effective_sample_size",
    "estimate",
    "evaluate_policies",
    "evaluate_shards",
    "fit_predictions",
    "log_value_lower_bound",
    "log_weights",
    "pareto_k",
    "pope_value",
    "predict_with",
    "sensitivity_bounds",
    "set_value",
    "slate_lower_bounds",
    "subgroup_values",
    "support",
    "utilities",
    "values_by_raters",
]
