"""The objective on response log-probabilities: value, parts, weights and loss."""

from __future__ import annotations

import torch

from pope_kernels.values import accumulation_dtype

from . import _checks, reference
from .backends import select
from .types import Backend, DiversityForm, Normalization, Objective, PopeLossOutput, UtilityForm, Weighting


def check_log_data(
    logging_logprobs: torch.Tensor, utility: torch.Tensor, slate_offsets: torch.Tensor, num_responses: int
) -> None:
    """Shapes of what the log brings."""
    for name, value in (("logging_logprobs", logging_logprobs), ("utility", utility)):
        _checks.per_response(name, value, num_responses)
        _checks.data_only(name, value)
    _checks.offsets("slate_offsets", slate_offsets)


def as_dtype(output: PopeLossOutput, dtype: torch.dtype) -> PopeLossOutput:
    return PopeLossOutput(*(field.to(dtype) for field in output))


def slate_objective(
    response_logprobs: torch.Tensor,  # [R]
    logging_logprobs: torch.Tensor,  # [R]
    utility: torch.Tensor,  # [R]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    diversity_weight: float = 0.1,
    weighting: Weighting = "response",
    normalization: Normalization = "none",
    clip: float | None = None,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    num_slates: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """The POPE value of a policy on logged slates, and the loss ``-value`` that raises it.

    Equivalent, with the defaults::

        weights = (response_logprobs - logging_logprobs).exp()
        rewards = utility - diversity_weight * response_logprobs
        value = torch.segment_reduce(weights * rewards, "mean", offsets=slate_offsets).mean()

    The gradient goes through the weights and through the rewards. Arithmetic is in float64 and in log space.

    Args:
        response_logprobs: ``[R]`` nats under the policy, as :func:`pope_core.response_logprobs` gives them.
        logging_logprobs: ``[R]`` nats under the policy that wrote the log, in the same normalisation.
        utility: ``[R]`` people's feedback, normally in [0, 1].
        slate_offsets: ``[S + 1]``, slate ``q`` being responses ``[offsets[q], offsets[q + 1])``; any mix of sizes.
        diversity_weight: alpha >= 0, the weight of diversity against utility.
        weighting: "response" (decomposed), "slate" (the product over the slate) or "geometric" (its k-th root).
        normalization: "none"; "slate" divides by the slate's sum of weights; "batch" by the call's (SNIPS).
        clip: largest weight, applied in log space; None for no limit, and an error above ``exp(80)``.
        utility_form: reward the utility itself, or "log_likelihood", utility times log-probability.
        diversity_form: "neg_log_prob", -l, or "entropy", -exp(l) l.
        num_slates: denominator in place of the number of slates in the call, so that micro-batches of a larger batch
            add up to it exactly; not with normalization="batch".
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        :class:`PopeLossOutput`; float64 for float64 log-probabilities, else float32.

    Raises:
        ValueError: an option, shape, offset or number that does not fit, with the response and slate it was found in; a
            log-weight above 80 without a clip.
        RuntimeError: the backend cannot run here.

    Source: method.md sections 2-4; POPE (arXiv 2509.19333), Eqs. (3)-(13).
    """
    objective = Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates)
    chosen = select(response_logprobs.device, backend)
    if response_logprobs.ndim != 1 or not response_logprobs.is_floating_point():
        raise ValueError(
            f"response_logprobs: expected a floating-point tensor of shape [R], got {response_logprobs.dtype} "
            f"{list(response_logprobs.shape)}"
        )
    check_log_data(logging_logprobs, utility, slate_offsets, response_logprobs.shape[0])
    _checks.same_device(
        "response_logprobs",
        response_logprobs.device,
        logging_logprobs=logging_logprobs,
        utility=utility,
    )
    _checks.offsets_device("slate_offsets", slate_offsets, response_logprobs.device)
    offsets = slate_offsets.to(response_logprobs.device, torch.int64, non_blocking=True).contiguous()
    if chosen == "reference":
        output = reference.slate_objective(
            response_logprobs,
            logging_logprobs,
            utility,
            offsets,
            diversity_weight=diversity_weight,
            weighting=weighting,
            normalization=normalization,
            clip=clip,
            utility_form=utility_form,
            diversity_form=diversity_form,
            num_slates=num_slates,
        )
        return as_dtype(output, accumulation_dtype(response_logprobs.dtype))
    value, *rest, _ = torch.ops.pope.slate_objective(
        response_logprobs, logging_logprobs, utility, offsets, *objective.flat(), chosen
    )
    return output_of(value, rest, response_logprobs)


def output_of(value: torch.Tensor, rest: list[torch.Tensor], response_logprobs: torch.Tensor) -> PopeLossOutput:
    """Name an operator's outputs; everything but the loss leaves the graph."""
    utility_value, diversity_value, log_weights, weights, effective_sample_size, clip_fraction = rest
    return PopeLossOutput(
        loss=-value,
        value=value.detach(),
        utility_value=utility_value.detach(),
        diversity_value=diversity_value.detach(),
        response_logprobs=response_logprobs.detach(),
        log_weights=log_weights.detach(),
        weights=weights.detach(),
        effective_sample_size=effective_sample_size.detach(),
        clip_fraction=clip_fraction.detach(),
    )
