"""The sums over a cluster that estimates are made of: the formulas of the estimators in memory, batch by batch."""

from __future__ import annotations

import numpy as np

from ..._arrays import Floats
from ...stats.ratios import Ratios
from ..direction import rank_scores
from ..estimators import METHODS, correction_of
from ..log import LoggedSlates
from ..placebo import rank_sums
from ..pope import reward_parts, weighted_ratios
from ..weights import log_weights
from .request import OnePass
from .weight_sums import units

#: A column: what it is, and of which policy, estimator or weights.
Name = tuple[str, ...]


class ClusterColumns:
    """Columns ``[C]`` by name, each in units of ``exp(scale)``."""

    def __init__(self) -> None:
        self.values: dict[Name, Floats] = {}
        self.scales: list[float] = []

    def add(self, name: Name, values: Floats, scale: float = 0.0) -> None:
        self.values[name] = values
        self.scales.append(scale)

    def add_ratio(self, name: Name, ratio: Ratios, scale: float) -> None:
        """Numerators ("utility", "diversity") and denominator of a ratio whose weights have this scale."""
        for part, column in zip(("utility", "diversity"), ratio.numerators[0].T, strict=False):
            self.add((*name, part), column, scale)
        self.add((*name, "mass"), ratio.denominators[0], scale)


def columns_of(log: LoggedSlates, request: OnePass) -> ClusterColumns:
    """All columns of a batch of whole clusters."""
    columns = ClusterColumns()
    columns.add(("slates",), log.cluster_sums(np.ones(log.num_slates)))
    columns.add(("responses",), log.cluster_sums(log.sizes.astype(np.float64)))
    normalize = request.objective.length_normalize
    with np.errstate(over="ignore", invalid="ignore"):
        for policy in log.policies:
            for weighting in request.weightings:
                log_w = log_weights(log, policy, weighting, length_normalize=normalize)
                top = float(log_w.max())
                shifted = units(log_w, top)
                if weighting == "response":
                    shifted = log.slate_sums(shifted)
                columns.add(("weight", policy, weighting), log.cluster_sums(shifted), top)
            rewards = reward_parts(log, policy, request.objective)
            for estimator in request.every:
                shrunken = (False,) if request.shrink(estimator) is None else (False, True)
                for shrunk in shrunken:
                    ratio, scale = _parts(log, policy, estimator, rewards, request, shrunk=shrunk)
                    columns.add_ratio(("part", policy, estimator, str(shrunk)), ratio, scale)
            if request.columns.tokens is not None:
                log_w = log_weights(log, policy, "response", length_normalize=True)
                index = weighted_ratios(log, log_w, log.utility[:, None], "batch")
                columns.add_ratio(("index", policy), index, float(log_w.max()))
                correlation, told = rank_sums(log, rank_scores(log, policy))
                columns.add(("rank", policy, "utility"), log.cluster_sums(correlation))
                columns.add(("rank", policy, "mass"), log.cluster_sums(told))
    return columns


def _parts(
    log: LoggedSlates, policy: str, estimator: str, rewards: Floats, request: OnePass, *, shrunk: bool
) -> tuple[Ratios, float]:
    """V_CU and V_Div of an estimator, and the logarithm of the unit of its weights."""
    objective = request.objective
    log_w = log_weights(log, policy, request.weighting(estimator), length_normalize=objective.length_normalize)
    shrink = request.shrink(estimator)
    log_w = shrink.log(log_w) if shrunk and shrink is not None else log_w
    top = float(log_w.max())
    if estimator == "pope":
        ratio = weighted_ratios(log, log_w, rewards, objective.normalization)
        scaled = objective.normalization == "batch"
    else:
        ratio = correction_of(log, log_w, rewards, METHODS[estimator])
        scaled = METHODS[estimator].self_normalize
    return ratio, top if scaled else 0.0
