"""The POPE loss of a policy on logged slates: from log-probabilities, from logits, and from hidden states."""

from __future__ import annotations

import torch

from pope_kernels.values import accumulation_dtype

from . import _checks, _linear_ops, reference  # noqa: F401  (registers torch.ops.pope.*)
from ._ops import flattened
from .backends import select
from .logprobs import check_head_options, compacts, compute_dtype, packed, response_logprobs, wanted
from .objective import Objective
from .slates import token_counts
from .types import Backend, PopeLossOutput


def slate_objective(
    response_logprobs: torch.Tensor,  # [R]
    logging_logprobs: torch.Tensor,  # [R]
    utility: torch.Tensor,  # [R]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    tokens: torch.Tensor | None = None,  # [R]
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """The POPE value of a policy on logged slates, and the loss ``-value`` that raises it.

    Equivalent, with the default objective::

        mean = response_logprobs / tokens
        weights = (mean - logging_logprobs / tokens).exp().clamp(max=5.0)
        rewards = utility - 0.1 * mean.exp() * mean
        slate_sum = lambda x: torch.segment_reduce(x, "sum", offsets=slate_offsets)
        value = (slate_sum(weights * rewards) / slate_sum(weights)).mean()

    The gradient flows through the weights and the rewards. Arithmetic is in float64 and in log space.

    Args:
        response_logprobs: ``[R]`` nats, totals under the policy, as :func:`pope_core.response_logprobs` returns them.
        logging_logprobs: ``[R]`` nats, totals under the logging policy.
        utility: ``[R]`` people's feedback, normally in [0, 1].
        slate_offsets: ``[S + 1]``; slate ``q`` is responses ``[offsets[q], offsets[q + 1])``; any mix of sizes.
        tokens: ``[R]`` number of tokens of each response under the policy's tokenizer; required if the objective is
            length-normalised (the default).
        objective: the options of the value; see :class:`pope_core.Objective`.
        num_slates: denominator instead of the number of slates in the call, so that the losses of micro-batches add up
            exactly to that of the full batch; not with ``normalization="batch"``.
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        :class:`PopeLossOutput`; float64 for float64 log-probabilities, otherwise float32.

    Raises:
        ValueError: an invalid shape, offset or number (the message names the response and slate); missing ``tokens``; a
            log-weight above 80 nats without a maximum weight.
        RuntimeError: the backend cannot run here.

    Source: docs/method.md; POPE (arXiv 2509.19333), Eqs. (3)-(13).
    """
    _checks.tensor("response_logprobs", response_logprobs)
    check_num_slates(objective, num_slates)
    chosen = select(response_logprobs.device, backend)
    if response_logprobs.ndim != 1 or not response_logprobs.is_floating_point():
        raise ValueError(
            f"response_logprobs: expected a floating-point tensor of shape [R], got {response_logprobs.dtype} "
            f"{list(response_logprobs.shape)}"
        )
    check_log_data(logging_logprobs, utility, slate_offsets, response_logprobs.shape[0])
    check_tokens(tokens, objective, response_logprobs.shape[0])
    _checks.same_device(
        "response_logprobs",
        response_logprobs.device,
        logging_logprobs=logging_logprobs,
        utility=utility,
        tokens=tokens,
    )
    _checks.offsets_device("slate_offsets", slate_offsets, response_logprobs.device)
    offsets = slate_offsets.to(response_logprobs.device, torch.int64, non_blocking=True).contiguous()
    if chosen == "reference":
        output = reference.slate_objective(
            response_logprobs,
            logging_logprobs,
            utility,
            offsets,
            tokens=tokens,
            objective=objective,
            num_slates=num_slates,
        )
        return as_dtype(output, accumulation_dtype(response_logprobs.dtype))
    _checks.no_tangent(response_logprobs=response_logprobs)
    value, *rest, _ = torch.ops.pope.slate_objective(
        response_logprobs, logging_logprobs, utility, offsets, tokens, chosen, *flattened(objective, num_slates)
    )
    return output_of(value, rest, response_logprobs)


def pope_loss(
    logits: torch.Tensor,  # [N, V] or [R, L, V]
    labels: torch.Tensor,  # [N] or [R, L]
    logging_logprobs: torch.Tensor,  # [R]
    utility: torch.Tensor,  # [R]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """The POPE loss of a policy on logged slates, from its logits.

    Equivalent, for packed tokens::

        token = logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        totals = torch.segment_reduce(token, "sum", offsets=response_offsets)
        slate_objective(totals, logging_logprobs, utility, slate_offsets, tokens=response_offsets.diff())

    The forward reads the logits once; backward reads them once and writes their gradient. No other tensor of their size
    is allocated. Response tokens are counted here.

    Args:
        logits: ``[N, V]`` aligned with ``labels``, or ``[R, L, V]`` as a causal language model returns them.
        labels: ``[N]``, or ``[R, L]`` with -100 outside the response.
        logging_logprobs, utility, slate_offsets, objective, num_slates, backend: as in :func:`slate_objective`.
        response_offsets: ``[R + 1]``, tokens per response; only with packed logits.

    Returns:
        :class:`PopeLossOutput`; call ``.loss.backward()``.

    Raises:
        ValueError: as :func:`response_logprobs` and :func:`slate_objective`.
        RuntimeError: the backend cannot run here.

    Source: docs/method.md; POPE (arXiv 2509.19333).
    """
    _checks.tensor("logits", logits)
    check_num_slates(objective, num_slates)
    totals = response_logprobs(logits, labels, response_offsets=response_offsets, backend=backend)
    if not objective.length_normalize:
        tokens = None
    elif response_offsets is None:
        tokens = (labels[:, 1:] >= 0).sum(1)
    else:
        tokens = token_counts(labels, response_offsets)
    return slate_objective(
        totals,
        logging_logprobs,
        utility,
        slate_offsets,
        tokens=tokens,
        objective=objective,
        num_slates=num_slates,
        backend=backend,
    )


def linear_pope_loss(
    hidden: torch.Tensor,  # [N, D] or [R, L, D]
    lm_head_weight: torch.Tensor,  # [V, D]
    labels: torch.Tensor,  # [N] or [R, L]
    logging_logprobs: torch.Tensor,  # [R]
    utility: torch.Tensor,  # [R]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    lm_head_bias: torch.Tensor | None = None,  # [V]
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    chunk_bytes: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """:func:`pope_loss` of ``hidden @ lm_head_weight.T``, with the gradients, in memory that does not grow with N x V.

    Equivalent::

        logits = logit_scale * F.linear(hidden, lm_head_weight, lm_head_bias)
        logits = logit_softcap * torch.tanh(logits / logit_softcap)   # if logit_softcap is given
        pope_loss(logits, labels, logging_logprobs, utility, slate_offsets, ...)

    All tokens of a response share one gradient coefficient, which is known as soon as the log-probabilities of the
    response (or of its slate) are. So each chunk of logits is overwritten by its gradient: three matrix products (6NDV)
    with a trainable head, two (4NDV) with a frozen one, against four for a fused per-token log-probability. The logits
    of a slate that alone exceeds ``chunk_bytes`` are computed twice (with weighting="response" and normalization="none"
    this applies to a response, with normalization="batch" to the call). Responses whose gradient is exactly zero
    (diversity_weight=0) take part in the first product only. The forward computes the required gradients; backward
    scales them.

    Args:
        hidden: ``[N, D]`` aligned with ``labels``, or ``[R, L, D]`` as a causal transformer body returns them; ignored
            positions are left out of the product.
        lm_head_weight: ``[V, D]``, in the dtype of ``hidden`` unless autocast is on. The gradient of a 16-bit head is
            summed over chunks in float32; with one chunk there is no sum.
        labels, logging_logprobs, utility, slate_offsets, response_offsets, objective, num_slates: as in
            :func:`pope_loss`. With offsets on the CPU the GPU is not synchronised (docs/kernels.md).
        lm_head_bias: ``[V]``.
        logit_scale: factor of the logits, > 0.
        logit_softcap: bound of the logits, > 0 (Gemma).
        chunk_bytes: size of the logits buffer; None for 36 MiB on CPU and 1/32 of the memory (at least 512 MiB) on GPU,
            or more if the float32 sum of a trained bfloat16 head's gradient needs that memory anyway (docs/kernels.md).
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        :class:`PopeLossOutput`; ``loss`` is differentiable (once) in ``hidden``, ``lm_head_weight`` and
        ``lm_head_bias``.

    Raises:
        ValueError: as :func:`pope_loss`, and if the head's shape or dtype does not match ``hidden``.
        RuntimeError: the backend cannot run here.

    Source: docs/method.md; POPE (arXiv 2509.19333).
    """
    _checks.tensor("hidden", hidden)
    check_num_slates(objective, num_slates)
    rows, flat_labels, offsets = packed("hidden", hidden, labels, response_offsets)
    _checks.head(hidden, lm_head_weight, lm_head_bias)
    check_head_options(logit_scale, logit_softcap, chunk_bytes)
    check_log_data(logging_logprobs, utility, slate_offsets, offsets.shape[0] - 1)
    _checks.same_device(
        "hidden",
        hidden.device,
        lm_head_weight=lm_head_weight,
        lm_head_bias=lm_head_bias,
        logging_logprobs=logging_logprobs,
        utility=utility,
    )
    _checks.offsets_device("slate_offsets", slate_offsets, hidden.device)
    dtype = compute_dtype(hidden, lm_head_weight)
    chosen = select(hidden.device, backend, dtype)
    slates = slate_offsets.long().contiguous()
    if chosen == "reference":
        output = reference.linear_pope_loss(
            rows,
            lm_head_weight,
            flat_labels,
            logging_logprobs,
            utility,
            slates.to(hidden.device),
            lm_head_bias=lm_head_bias,
            response_offsets=offsets.to(hidden.device),
            objective=objective,
            num_slates=num_slates,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        )
        return as_dtype(output, accumulation_dtype(dtype))
    _checks.no_tangent(hidden=hidden, lm_head_weight=lm_head_weight, lm_head_bias=lm_head_bias)
    value, *rest, logprobs, _, _, _, _ = torch.ops.pope.linear_pope_loss(
        rows,
        lm_head_weight,
        lm_head_bias,
        flat_labels,
        offsets,
        logit_scale,
        logit_softcap,
        chunk_bytes,
        chosen,
        compacts(hidden),
        dtype,
        wanted(hidden),
        wanted(lm_head_weight),
        wanted(lm_head_bias),
        logging_logprobs,
        utility,
        slates,
        *flattened(objective, num_slates),
    )
    return output_of(value, rest, logprobs)


def check_num_slates(objective: Objective, num_slates: int | None) -> None:
    if not isinstance(objective, Objective):
        raise ValueError(f"objective: expected a pope_core.Objective, got {type(objective).__name__}")
    if num_slates is None:
        return
    if not _checks.is_integer(num_slates) or num_slates < 1:
        raise ValueError(f"num_slates: expected None or an integer >= 1, got {num_slates!r}")
    if objective.couples_slates:
        raise ValueError(
            "num_slates: has no meaning with normalization='batch', which divides by the sum of the weights "
            f"and not by a number of slates; got {num_slates!r}"
        )


def check_log_data(
    logging_logprobs: torch.Tensor, utility: torch.Tensor, slate_offsets: torch.Tensor, num_responses: int
) -> None:
    """Check the shapes of the logged data."""
    for name, value in (("logging_logprobs", logging_logprobs), ("utility", utility)):
        _checks.per_response(name, value, num_responses)
        _checks.data_only(name, value)
    _checks.offsets("slate_offsets", slate_offsets)


def check_tokens(tokens: torch.Tensor | None, objective: Objective, num_responses: int) -> None:
    if tokens is None:
        if objective.length_normalize:
            raise ValueError(
                f"tokens: expected the response tokens of the policy, shape [{num_responses}], because the objective "
                "is length-normalised; got None. Pass them, or an objective with length_normalize=False"
            )
        return
    _checks.tensor("tokens", tokens)
    if list(tokens.shape) != [num_responses] or tokens.dtype not in _checks.INTEGERS:
        raise ValueError(
            f"tokens: expected integers of shape [{num_responses}], one per response, got {tokens.dtype} "
            f"{list(tokens.shape)}"
        )


def as_dtype(output: PopeLossOutput, dtype: torch.dtype) -> PopeLossOutput:
    output = PopeLossOutput(*(field.to(dtype) for field in output))
    if not _checks.deferred(output.value.device):
        _checks.finite_value(output.value)
    return output


def output_of(value: torch.Tensor, rest: list[torch.Tensor], response_logprobs: torch.Tensor) -> PopeLossOutput:
    """Name an operator's outputs and detach all but the loss."""
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
