"""The slate objective on one backend: for whole calls, and for the groups of a chunk before the rest is known."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from . import _checks
from .backends import Kernels
from .types import Objective

if TYPE_CHECKING:
    from pope_kernels.native import SlateValues


def evaluate(
    kernels: Kernels,
    response_logprobs: torch.Tensor,  # [R] float64
    logging_logprobs: torch.Tensor,  # [R] float64
    utility: torch.Tensor,  # [R] float64
    slate_offsets: torch.Tensor,  # [S + 1] int64
    objective: Objective,
) -> SlateValues:
    """The value, its parts, weights, diagnostics and ``dV / d response_logprobs``."""
    return kernels.slate_objective(
        response_logprobs,
        logging_logprobs,
        utility,
        slate_offsets,
        diversity_weight=objective.diversity_weight,
        weighting=objective.weighting,
        normalization=objective.normalization,
        clip=objective.clip,
        utility_form=objective.utility_form,
        diversity_form=objective.diversity_form,
        num_slates=objective.num_slates or slate_offsets.numel() - 1,
    )


def evaluate_checked(
    kernels: Kernels,
    response_logprobs: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    objective: Objective,
) -> SlateValues:
    """:func:`evaluate` of a whole call, refusing inputs that would make it NaN or infinite."""
    _checks.finite("response_logprobs", response_logprobs, slate_offsets)
    values = evaluate(kernels, response_logprobs, logging_logprobs, utility, slate_offsets, objective)
    _checks.log_weight_bound(values.largest_log_weight, values.largest_slate, objective.clip)
    return values


class GroupCoefficients:
    """``dV / d response_logprobs`` of some groups while the others are still unknown.

    A group is one response where nothing but the size of its slate couples it to the others, else one slate. The value
    of ``normalization="batch"`` is a quotient A / B of sums over everything, so two coefficients are given, of A and
    of B, and :meth:`combine` joins what was accumulated with them once A / B and B are known.
    """

    def __init__(
        self,
        kernels: Kernels,
        logging_logprobs: torch.Tensor,  # [R] float64
        utility: torch.Tensor,  # [R] float64
        slate_offsets: torch.Tensor,  # [S + 1] int64
        objective: Objective,
    ) -> None:
        self.kernels, self.logging_logprobs = kernels, logging_logprobs
        sizes = slate_offsets.diff()
        by_response = objective.weighting == "response" and objective.normalization != "slate"
        # A lone response is a slate of one; its share in the mean of its true slate is put back afterwards.
        self.share = torch.repeat_interleave(sizes.double().reciprocal(), sizes) if by_response else None
        self.offsets = torch.arange(utility.numel() + 1) if by_response else slate_offsets  # [groups + 1]
        if objective.normalization == "batch":
            numerator = replace(objective, normalization="none", num_slates=1)
            mass = replace(numerator, diversity_weight=0.0, utility_form="feedback")
            self.terms = [(numerator, utility), (mass, torch.ones_like(utility))]
        else:
            self.terms = [(replace(objective, num_slates=objective.num_slates or sizes.numel()), utility)]

    def responses(self, first_group: int, last_group: int) -> slice:
        return slice(int(self.offsets[first_group]), int(self.offsets[last_group]))

    def __call__(self, response_logprobs: torch.Tensor, first_group: int, last_group: int) -> list[torch.Tensor]:
        """One coefficient per response of the groups and term; ``response_logprobs`` [R] need be known for
        those only.
        """
        span = self.responses(first_group, last_group)
        offsets = self.offsets[first_group : last_group + 1] - span.start
        coefficients = []
        for objective, utility in self.terms:
            values = evaluate(
                self.kernels,
                response_logprobs[span],
                self.logging_logprobs[span],
                utility[span],
                offsets,
                objective,
            )
            coefficients.append(values.coefficients if self.share is None else values.coefficients * self.share[span])
        return coefficients

    def combine(
        self, accumulated: list[torch.Tensor], values: SlateValues, slate_offsets: torch.Tensor
    ) -> torch.Tensor:
        """Join one accumulated tensor per term into the gradient of the value (in place, in the first)."""
        if len(accumulated) == 1:
            return accumulated[0]
        sizes = slate_offsets.diff()
        mass = float((values.weights * torch.repeat_interleave(sizes.double().reciprocal(), sizes)).sum())
        if mass == 0.0:
            raise ValueError(
                "normalization: 'batch' divides by the sum of the weights, and every weight underflows to 0"
            )
        numerator, denominator = accumulated
        return numerator.sub_(denominator, alpha=values.value).div_(mass)
