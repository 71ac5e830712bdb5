"""The slate objective on one backend: for whole calls, and for the groups of a chunk before the rest is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pope_kernels.values import ObjectiveOptions

from . import _checks
from ._offsets import Offsets
from .backends import Kernels
from .objective import Objective
from .types import MAX_LOG_WEIGHT

if TYPE_CHECKING:
    from pope_kernels.values import SlateValues


#: What ``SlateValues.sound`` covers.
_CHECKED = (
    "labels, offsets, logits, logging_logprobs or utility (not finite or out of range), or clip=None and a log-weight "
    f"above {MAX_LOG_WEIGHT:.0f} nats"
)


def kernel_options(objective: Objective, num_slates: int) -> ObjectiveOptions:
    """The objective as kernels take it: log-probabilities reach them already divided by their tokens."""
    names = (name for name in ObjectiveOptions._fields if name != "num_slates")
    return ObjectiveOptions(**{name: getattr(objective, name) for name in names}, num_slates=num_slates)


def evaluate_checked(
    kernels: Kernels,
    response_logprobs: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    options: ObjectiveOptions,
    dtype: torch.dtype,
) -> SlateValues:
    """The value, its parts, weights and diagnostics in ``dtype``, and ``dV / d response_logprobs``, of a whole call.

    Refuses inputs that would make it NaN or infinite.
    """
    deferred = _checks.deferred(response_logprobs.device)
    if not deferred:
        _checks.finite("response_logprobs", response_logprobs, slate_offsets)
    values = kernels.slate_objective(response_logprobs, logging_logprobs, utility, slate_offsets, options, dtype)
    if deferred:
        assert values.sound is not None, "a GPU backend checks its inputs"
        _checks.later(values.sound, _CHECKED)
    else:
        _checks.log_weight_bound(float(values.largest_log_weight), int(values.largest_slate), options.clip)
    return values


class GroupCoefficients:
    """``dV / d response_logprobs`` of some groups while the others are still unknown; ``together`` where none are.

    A group is one response where nothing but the size of its slate couples it to the others, else one slate. The value
    of ``normalization="batch"`` is a quotient A / B of sums over everything, so apart two coefficients are given, of A
    and of B, and :meth:`combine` joins what was accumulated with them once A / B and B are known.
    """

    def __init__(
        self,
        kernels: Kernels,
        logging_logprobs: torch.Tensor,  # [R] float64
        utility: torch.Tensor,  # [R] float64
        slate_offsets: Offsets,  # [S + 1] int64
        options: ObjectiveOptions,
        *,
        together: bool,
    ) -> None:
        self.kernels, self.logging_logprobs = kernels, logging_logprobs
        sizes, num_responses = slate_offsets.device.diff(), utility.numel()
        by_response = not together and options.weighting == "response" and options.normalization != "slate"
        # A response's share in the mean of its slate. A lone response is a slate of one and gets its share afterwards.
        self.share = torch.repeat_interleave(sizes.double().reciprocal(), sizes, output_size=num_responses)
        self.by_response = by_response
        self.offsets = slate_offsets  # [groups + 1]
        if by_response:
            host = torch.arange(num_responses + 1)
            self.offsets = Offsets(host, torch.arange(num_responses + 1, device=utility.device))
        self.terms = [(options, utility)]
        if options.normalization == "batch" and not together:
            numerator = options._replace(normalization="none", num_slates=1)
            mass = numerator._replace(diversity_weight=0.0, utility_form="feedback")
            self.terms = [(numerator, utility), (mass, torch.ones_like(utility))]

    def responses(self, first_group: int, last_group: int) -> slice:
        return slice(int(self.offsets.host[first_group]), int(self.offsets.host[last_group]))

    def __call__(
        self,
        token_logprobs: torch.Tensor,  # [n] of the groups' responses
        labels: torch.Tensor,  # [n]
        response_offsets: torch.Tensor,  # [r + 1] within them
        first_group: int,
        last_group: int,
        mean: bool,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Log-probabilities of the groups' responses, and one coefficient per token and term."""
        span = self.responses(first_group, last_group)
        offsets = self.offsets.device[first_group : last_group + 1] - span.start
        share = self.share[span] if self.by_response else None
        coefficients = []
        for options, utility in self.terms:
            logprobs, each = self.kernels.group_coefficients(
                token_logprobs,
                labels,
                response_offsets,
                self.logging_logprobs[span],
                utility[span],
                offsets,
                share,
                mean,
                options,
            )
            coefficients.append(each)
        return logprobs, coefficients

    def combine(self, accumulated: Sequence[torch.Tensor], values: SlateValues) -> torch.Tensor:
        """Join one accumulated tensor per term into the gradient of the value (in place, in the first)."""
        if len(accumulated) == 1:
            return accumulated[0]
        numerator, denominator = accumulated
        mass = (values.weights * self.share).sum()
        _checks.weight_mass(mass)
        return numerator.addcmul_(denominator, values.value, value=-1.0).div_(mass)
