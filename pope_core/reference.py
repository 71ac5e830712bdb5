"""The specification in plain float64 PyTorch: slow, obvious, differentiable by autograd.

Every public operation of ``pope_core`` has a float64 version here under the same name and with the same arguments; the
kernels are tested against these. Equation numbers are those of POPE (arXiv 2509.19333), as explained in
``docs/method.md``.
"""

from __future__ import annotations

import torch

from . import _checks
from .objective import Objective, missing_value
from .slates import flatten_padded, segment_ids, token_counts
from .types import IGNORE_INDEX, PopeLossOutput, Reduction


def response_logprobs(
    logits: torch.Tensor,  # [N, V] or [R, L, V]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    response_offsets: torch.Tensor | None = None,  # [R + 1]
    reduction: Reduction = "sum",
) -> torch.Tensor:
    """Eq. (1): ``sum_t log pi(y_t | q, y_<t)`` ``[R]``; "mean" divides it by ``|y|``, "none" returns its terms."""
    given = labels
    if logits.ndim == 3:
        logits, labels, response_offsets = flatten_padded(logits, labels)
    assert response_offsets is not None
    _checks.packed_values(labels, response_offsets, logits.shape[-1])
    kept = labels != IGNORE_INDEX
    _checks.finite_rows("logits", logits.detach().double().logsumexp(-1).where(kept, 0.0))
    log_pi = logits.double().log_softmax(-1)  # [N, V]
    token_logprobs = log_pi.gather(-1, labels.where(kept, 0).unsqueeze(-1)).squeeze(-1)  # [N]
    token_logprobs = token_logprobs.where(kept, 0.0)
    if reduction == "none":
        if given.ndim == 1:
            return token_logprobs
        return torch.nn.functional.pad(token_logprobs.reshape(given.shape)[:, :-1], (1, 0))
    response = segment_ids(response_offsets, labels.numel())
    totals = token_logprobs.new_zeros(response_offsets.numel() - 1).index_add(0, response, token_logprobs)
    return totals / token_counts(labels, response_offsets) if reduction == "mean" else totals


def linear_response_logprobs(
    hidden: torch.Tensor,  # [N, D] or [R, L, D]
    lm_head_weight: torch.Tensor,  # [V, D]
    labels: torch.Tensor,  # [N] or [R, L]
    *,
    lm_head_bias: torch.Tensor | None = None,  # [V]
    response_offsets: torch.Tensor | None = None,
    reduction: Reduction = "sum",
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> torch.Tensor:
    """Eq. (1) on ``logits = softcap * tanh(scale * (hidden @ W.T + b) / softcap)``. ``[R]``."""
    logits = hidden.double() @ lm_head_weight.double().T
    if lm_head_bias is not None:
        logits = logits + lm_head_bias.double()
    logits = logits * logit_scale
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    return response_logprobs(logits, labels, response_offsets=response_offsets, reduction=reduction)


def slate_objective(
    response_logprobs: torch.Tensor,  # [R] totals under the policy
    logging_logprobs: torch.Tensor,  # [R] totals under the logging policy
    utility: torch.Tensor,  # [R] u in [0, 1]
    slate_offsets: torch.Tensor,  # [S + 1]
    *,
    tokens: torch.Tensor | None = None,  # [R]
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
) -> PopeLossOutput:
    """Eqs. (3)-(10): the value of the policy estimated from the log, and ``loss = -value``.

    The gradient, Eqs. (11)-(13), is left to autograd: it flows through the weights and through the reward.
    """
    weighting, normalization, clip = objective.weighting, objective.normalization, objective.clip
    _checks.objective_data(logging_logprobs, utility, slate_offsets, response_logprobs.numel())
    _checks.finite("response_logprobs", response_logprobs, slate_offsets)
    l_theta, l_0, u = response_logprobs.double(), logging_logprobs.double(), utility.double()
    totals = l_theta.detach()
    if objective.length_normalize:  # Eq. (1): divide both by the evaluated policy's |y|
        assert tokens is not None, "totals are divided by the numbers of tokens"
        _checks.positive_tokens(tokens)
        l_theta, l_0 = l_theta / tokens, l_0 / tokens
    slate = segment_ids(slate_offsets, l_theta.numel())
    num = slate_offsets.numel() - 1
    k = slate_offsets.diff().double()  # [S]

    def slate_sum(values: torch.Tensor) -> torch.Tensor:  # [R] -> [S]
        return values.new_zeros(num).index_add(0, slate, values)

    # Eq. (2) and the weights: ratios are computed as differences of log-probabilities.
    log_w = l_theta - l_0  # [R]
    log_slate = slate_sum(log_w)  # [S] log W_q
    if weighting == "response":
        each = log_w  # [R]
    elif weighting == "slate":
        each = log_slate  # [S]
    elif weighting == "geometric":
        each = log_slate / k  # [S]
    else:
        raise missing_value("weighting", weighting)
    log_omega = each[slate] if objective.weighs_slates else each  # [R]
    raw = each.detach()
    worst = int(raw.argmax())
    _checks.log_weight_bound(float(raw[worst]), worst if objective.weighs_slates else int(slate[worst]), clip)
    if clip is not None:
        log_omega = log_omega.clamp(max=torch.tensor(clip, dtype=torch.float64).log().item())
    omega = log_omega.exp()  # [R]

    # Eqs. (3)-(5): the unified reward.
    if objective.utility_form == "feedback":
        cu = u
    elif objective.utility_form == "log_likelihood":
        cu = u * l_theta
    else:
        raise missing_value("utility_form", objective.utility_form)
    if objective.diversity_form == "neg_log_prob":
        dv = -l_theta
    elif objective.diversity_form == "entropy":
        dv = -l_theta.exp() * l_theta
    else:
        raise missing_value("diversity_form", objective.diversity_form)

    # Eqs. (6)-(10): the same weighted sum for both parts. Normalised forms are quotients, so the weights are first
    # shifted in log space: the quotient is the same and never 0/0.
    def estimate(reward: torch.Tensor) -> torch.Tensor:
        if normalization == "none":
            return (slate_sum(omega * reward) / k).sum() / (num_slates or num)
        if normalization == "slate":
            top = log_omega.detach().new_full((num,), -torch.inf).scatter_reduce(0, slate, log_omega.detach(), "amax")
            shifted = (log_omega - top[slate]).exp()
            return (slate_sum(shifted * reward) / slate_sum(shifted)).sum() / (num_slates or num)
        if normalization == "batch":
            shifted = (log_omega - log_omega.detach().max()).exp()
            return (slate_sum(shifted * reward) / k).sum() / (slate_sum(shifted) / k).sum()
        raise missing_value("normalization", normalization)

    utility_value, diversity_value = estimate(cu), estimate(dv)
    value = utility_value + objective.diversity_weight * diversity_value
    scaled = (raw - raw.max()).exp()
    return PopeLossOutput(
        loss=-value,
        value=value.detach(),
        utility_value=utility_value.detach(),
        diversity_value=diversity_value.detach(),
        response_logprobs=totals,
        log_weights=log_w.detach(),
        weights=omega.detach(),
        effective_sample_size=scaled.sum() ** 2 / (scaled**2).sum(),
        clip_fraction=(raw.exp() > clip).double().mean() if clip is not None else raw.new_zeros(()),
    )


def pope_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    *,
    response_offsets: torch.Tensor | None = None,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
) -> PopeLossOutput:
    """Eqs. (1)-(10) from logits."""
    if logits.ndim == 3:
        logits, labels, response_offsets = flatten_padded(logits, labels)
    assert response_offsets is not None
    return slate_objective(
        response_logprobs(logits, labels, response_offsets=response_offsets),
        logging_logprobs,
        utility,
        slate_offsets,
        tokens=token_counts(labels, response_offsets),
        objective=objective,
        num_slates=num_slates,
    )


def linear_pope_loss(
    hidden: torch.Tensor,
    lm_head_weight: torch.Tensor,
    labels: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    *,
    lm_head_bias: torch.Tensor | None = None,
    response_offsets: torch.Tensor | None = None,
    objective: Objective = Objective(),  # noqa: B008 (frozen)
    num_slates: int | None = None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> PopeLossOutput:
    """Eqs. (1)-(10) from hidden states."""
    if hidden.ndim == 3:
        hidden, labels, response_offsets = flatten_padded(hidden, labels)
    assert response_offsets is not None
    return slate_objective(
        linear_response_logprobs(
            hidden,
            lm_head_weight,
            labels,
            lm_head_bias=lm_head_bias,
            response_offsets=response_offsets,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        ),
        logging_logprobs,
        utility,
        slate_offsets,
        tokens=token_counts(labels, response_offsets),
        objective=objective,
        num_slates=num_slates,
    )
