"""The slate objective on one backend: for a whole call, and for the groups of a chunk before the rest is computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from pope_kernels.values import ObjectiveOptions

from . import _checks
from ._offsets import Offsets
from ._plan import GroupBatch, all_groups, plan_groups
from .backends import Kernels
from .objective import Objective
from .types import MAX_LOG_WEIGHT

if TYPE_CHECKING:
    from pope_kernels.values import SlateValues


#: What ``SlateValues.valid`` covers.
_CHECKED = (
    "labels, offsets, logits, logging_logprobs or utility (not finite or out of range), clip=None and a log-weight "
    f"above {MAX_LOG_WEIGHT:.0f} nats, or a value that overflows"
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

    Raises for inputs that would make the value NaN or infinite.
    """
    deferred = _checks.deferred(response_logprobs.device)
    if not deferred:
        _checks.finite("response_logprobs", response_logprobs, slate_offsets)
    values = kernels.slate_objective(response_logprobs, logging_logprobs, utility, slate_offsets, options, dtype)
    if deferred:
        assert values.valid is not None, "a GPU backend checks its inputs"
        _checks.later(values.valid & values.value.isfinite(), _CHECKED)
    else:
        _checks.log_weight_bound(float(values.largest_log_weight), int(values.largest_slate), options.clip)
        _checks.finite_value(values.value)
    return values


class GroupCoefficients:
    """``dV / d response_logprobs`` of some groups before the others are computed.

    A group is the set of responses whose coefficients depend on each other: a single response if only the size of its
    slate matters, otherwise a slate; the whole call with ``normalization="batch"``, whose sum runs over the call, and
    with ``together``.
    """

    def __init__(
        self,
        kernels: Kernels,
        logging_logprobs: torch.Tensor,  # [R] float64
        utility: torch.Tensor,  # [R] float64
        slate_offsets: Offsets,  # [S + 1] int64
        objective: Objective,
        options: ObjectiveOptions,
        *,
        together: bool,
    ) -> None:
        self.kernels, self.logging_logprobs, self.utility = kernels, logging_logprobs, utility
        self.options = options
        self.together = together or objective.couples_slates
        self.offsets = slate_offsets  # [groups + 1]
        self.share: torch.Tensor | None = None
        if not self.together and not objective.weighs_slates and not objective.self_normalized:
            # Each response is computed as a slate of one and then multiplied by its share 1/k of its slate's mean.
            sizes, num_responses = slate_offsets.device.diff(), utility.numel()
            self.share = torch.repeat_interleave(sizes.double().reciprocal(), sizes, output_size=num_responses)
            host = torch.arange(num_responses + 1)
            self.offsets = Offsets(host, torch.arange(num_responses + 1, device=utility.device))

    def plan(self, response_offsets: torch.Tensor, rows: int) -> Iterator[GroupBatch]:
        """Batches of groups in chunks of at most ``rows`` tokens; offsets on the host."""
        tokens = response_offsets[self.offsets.host].tolist()
        return plan_groups(tokens, rows) if not self.together else iter([all_groups(tokens, rows)])

    def responses(self, first: int, last: int) -> slice:
        return slice(int(self.offsets.host[first]), int(self.offsets.host[last]))

    def __call__(
        self,
        token_logprobs: torch.Tensor,  # [n] of the batch's responses
        labels: torch.Tensor,  # [n]
        response_offsets: torch.Tensor,  # [r + 1] within them
        batch: GroupBatch,
        mean: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the batch's responses, and one coefficient per token."""
        span = self.responses(batch.first_group, batch.last_group)
        return self.kernels.group_coefficients(
            token_logprobs,
            labels,
            response_offsets,
            self.logging_logprobs[span],
            self.utility[span],
            self.offsets.device[batch.first_group : batch.last_group + 1] - span.start,
            None if self.share is None else self.share[span],
            mean,
            self.options,
        )
