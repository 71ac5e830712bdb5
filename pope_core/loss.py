"""The POPE loss: from logits, from hidden states, and as a module."""

from __future__ import annotations

import torch

from pope_kernels.values import accumulation_dtype

from . import _checks, reference
from .backends import select
from .logprobs import check_head_options, compacts, compute_dtype, packed, response_logprobs, wanted
from .objective import as_dtype, check_log_data, output_of, slate_objective
from .types import Backend, DiversityForm, Normalization, Objective, PopeLossOutput, UtilityForm, Weighting


def pope_loss(
    logits: torch.Tensor,  # [N, V] or [R, L, V]
    labels: torch.Tensor,  # [N] or [R, L]
    logging_logprobs: torch.Tensor,  # [R]
    utility: torch.Tensor,  # [R]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    length_normalize: bool = True,
    diversity_weight: float = 0.1,
    weighting: Weighting = "response",
    normalization: Normalization = "none",
    clip: float | None = None,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    num_slates: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """The POPE loss of a policy on logged slates, from its logits.

    Equivalent, for packed tokens and with the defaults::

        token = logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        response_logprobs = torch.segment_reduce(token, "mean", offsets=response_offsets)
        weights = (response_logprobs - logging_logprobs).exp()
        rewards = utility - diversity_weight * response_logprobs
        loss = -torch.segment_reduce(weights * rewards, "mean", offsets=slate_offsets).mean()

    The logits are read once in the forward and once in backward, which writes their gradient; nothing else of their
    size exists.

    Args:
        logits: ``[N, V]`` aligned with ``labels``, or ``[R, L, V]`` as a causal language model returns them.
        labels: ``[N]``, or ``[R, L]`` with -100 where no response token stands.
        logging_logprobs: ``[R]`` nats, mean per token with ``length_normalize=True``, total otherwise.
        utility: ``[R]`` feedback, normally in [0, 1].
        slate_offsets: ``[S + 1]``, responses per slate as CSR offsets.
        response_offsets: ``[R + 1]``, tokens per response; only with packed logits.
        length_normalize: use mean log-probabilities per token (biased, less variance) instead of totals.
        diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates: the objective, as in
            :func:`slate_objective`.
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        :class:`PopeLossOutput`; call ``.loss.backward()``.

    Raises:
        ValueError: as :func:`response_logprobs` and :func:`slate_objective`.
        RuntimeError: the backend cannot run here.

    Source: method.md sections 1-4; POPE (arXiv 2509.19333).
    """
    return slate_objective(
        response_logprobs(
            logits,
            labels,
            response_offsets=response_offsets,
            length_normalize=length_normalize,
            backend=backend,
        ),
        logging_logprobs,
        utility,
        slate_offsets,
        diversity_weight=diversity_weight,
        weighting=weighting,
        normalization=normalization,
        clip=clip,
        utility_form=utility_form,
        diversity_form=diversity_form,
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
    length_normalize: bool = True,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    diversity_weight: float = 0.1,
    weighting: Weighting = "response",
    normalization: Normalization = "none",
    clip: float | None = None,
    utility_form: UtilityForm = "feedback",
    diversity_form: DiversityForm = "neg_log_prob",
    num_slates: int | None = None,
    chunk_bytes: int | None = None,
    backend: Backend | None = None,
) -> PopeLossOutput:
    """:func:`pope_loss` of ``hidden @ lm_head_weight.T``, with the gradients, in memory that does not grow with N x V.

    Equivalent::

        logits = logit_scale * F.linear(hidden, lm_head_weight, lm_head_bias)
        logits = logit_softcap * torch.tanh(logits / logit_softcap)   # if logit_softcap is given
        pope_loss(logits, labels, logging_logprobs, utility, slate_offsets, ...)

    Every token of a response shares one gradient coefficient, known as soon as the response's (or its slate's)
    log-probabilities are, so each chunk of logits becomes its gradient in place: three matrix products (6NDV) with a
    trainable head, two (4NDV) with a frozen one, against four for a fused per-token log-probability. A slate (with
    weighting="response" and normalization "none" or "batch": a response) that exceeds ``chunk_bytes`` on its own
    computes its logits twice; normalization="batch", over several chunks, forms the product for the head's gradient
    twice. Responses with a gradient of exactly zero (diversity_weight=0) join no product but the first. Only wanted
    gradients are computed, in the forward; backward scales them.

    Args:
        hidden: ``[N, D]`` aligned with ``labels``, or ``[R, L, D]`` as a causal transformer body returns them; its
            ignored positions never reach the product.
        lm_head_weight: ``[V, D]``, in the dtype of ``hidden`` unless autocast is on. Over several chunks
            the gradient of a 16-bit head is summed in float32; one chunk needs one product.
        labels, logging_logprobs, utility, slate_offsets, response_offsets, length_normalize: as in :func:`pope_loss`.
            Offsets on the CPU spare a GPU a wait (docs/kernels.md).
        lm_head_bias: ``[V]``.
        logit_scale: factor of the logits, > 0.
        logit_softcap: bound of the logits, > 0 (Gemma).
        diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates: the objective, as in
            :func:`slate_objective`.
        chunk_bytes: budget of the logits buffer; None for 512 MiB on GPU and 36 MiB on CPU, or for more where the
            float32 sum of a trained bfloat16 head's gradient takes that anyway (docs/kernels.md).
        backend: "cpu", "cuda", "triton", "reference" or None for the best one that runs here.

    Returns:
        :class:`PopeLossOutput`; ``loss`` is differentiable (once) in ``hidden``, ``lm_head_weight`` and
        ``lm_head_bias``.

    Raises:
        ValueError: as :func:`pope_loss`, and for a head that does not fit ``hidden``.
        RuntimeError: the backend cannot run here.

    Source: method.md sections 1-4; POPE (arXiv 2509.19333).
    """
    objective = Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form, num_slates)
    chosen = select(hidden.device, backend)
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
            length_normalize=length_normalize,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
            diversity_weight=diversity_weight,
            weighting=weighting,
            normalization=normalization,
            clip=clip,
            utility_form=utility_form,
            diversity_form=diversity_form,
            num_slates=num_slates,
        )
        return as_dtype(output, accumulation_dtype(dtype))
    value, *rest, logprobs, _, _, _, _ = torch.ops.pope.linear_pope_loss(
        rows,
        lm_head_weight,
        lm_head_bias,
        flat_labels,
        offsets,
        length_normalize,
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
        *objective.flat(),
    )
    return output_of(value, rest, logprobs)


class PopeLoss(torch.nn.Module):
    """:func:`pope_loss` with its options fixed; the module has no parameters.

    Raises:
        ValueError: an option does not fit, at construction.
    """

    def __init__(
        self,
        *,
        length_normalize: bool = True,
        diversity_weight: float = 0.1,
        weighting: Weighting = "response",
        normalization: Normalization = "none",
        clip: float | None = None,
        utility_form: UtilityForm = "feedback",
        diversity_form: DiversityForm = "neg_log_prob",
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.objective = Objective(diversity_weight, weighting, normalization, clip, utility_form, diversity_form)
        self.length_normalize = length_normalize
        self.backend: Backend | None = backend

    def forward(
        self,
        logits: torch.Tensor,  # [N, V] or [R, L, V]
        labels: torch.Tensor,  # [N] or [R, L]
        logging_logprobs: torch.Tensor,  # [R]
        utility: torch.Tensor,  # [R]
        slate_offsets: torch.Tensor,  # [S + 1]
        *,
        response_offsets: torch.Tensor | None = None,  # [R + 1]
        num_slates: int | None = None,
    ) -> PopeLossOutput:
        """As :func:`pope_loss`."""
        return pope_loss(
            logits,
            labels,
            logging_logprobs,
            utility,
            slate_offsets,
            response_offsets=response_offsets,
            length_normalize=self.length_normalize,
            diversity_weight=self.objective.diversity_weight,
            weighting=self.objective.weighting,
            normalization=self.objective.normalization,
            clip=self.objective.clip,
            utility_form=self.objective.utility_form,
            diversity_form=self.objective.diversity_form,
            num_slates=num_slates,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f"length_normalize={self.length_normalize}, {self.objective}"
