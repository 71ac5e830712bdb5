"""The learning rate of every method: the one whose answers to the validation prompts are best."""

from __future__ import annotations

from dataclasses import dataclass

from ...stats.intervals import Quantity
from .plan import VALIDATION, ReproductionPlan
from .results import better_side, read_results


@dataclass(frozen=True)
class Tuning:
    """What one method's learning rates gave.

    Attributes:
        tried: mean of the experiment's first metric, by rate.
        chosen: the best rate; of equal ones, the lowest.
    """

    tried: dict[float, Quantity]
    chosen: float


def tunings(plan: ReproductionPlan) -> dict[str, Tuning]:
    """By method, from the tables that the plan's tuning stages wrote; all methods have the same prompts and seed."""
    if not plan.tuning:
        return {}
    metric = plan.request.protocol.metrics[0]
    results = read_results(plan.tuning.values(), {}, VALIDATION, draws=plan.request.sizes.draws)
    sign = -1 if better_side(metric) == "lower" else 1
    tried: dict[str, dict[float, Quantity]] = {}
    for (method, rate), each in plan.tuning.items():
        tried.setdefault(method, {})[rate] = results.mean((each.method, each.temperature), metric)
    return {method: Tuning(of, max(sorted(of), key=lambda rate: sign * of[rate].value)) for method, of in tried.items()}


def chosen_rates(plan: ReproductionPlan) -> dict[str, float]:
    """By method; empty where one rate was given."""
    return {method: each.chosen for method, each in tunings(plan).items()}
