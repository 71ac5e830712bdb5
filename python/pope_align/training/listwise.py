"""List-wise losses as pure functions: the log-probabilities and utilities of slates in, one loss per slate out.

`ListwiseTrainer` takes the mean over the slates of a step. Log-probabilities are totals in nats; arithmetic is in
float64. `methods.LISTWISE` gives the losses their names. They are published methods, for comparison with POPE.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import softplus

#: Log-ratios are ranked in steps of this, in nats. Two forward passes over one text differ by rounding, and before the
#: first step nothing else would rank the responses.
RANK_STEP = 0.05


class ScoredSlates(NamedTuple):
    """The input of a list-wise loss: ``R`` responses of ``S`` slates."""

    response_logprobs: torch.Tensor  # [R] nats, totals under the policy
    reference_logprobs: torch.Tensor | None  # [R] nats, totals under the reference; None: the loss has none
    utility: torch.Tensor  # [R]
    slate_offsets: torch.Tensor  # [S + 1]
    tokens: torch.Tensor  # [R] response tokens

    def log_ratios(self) -> torch.Tensor:
        """``log pi(y) - log pi_ref(y)``, ``[R]`` float64."""
        assert self.reference_logprobs is not None
        return self.response_logprobs.double() - self.reference_logprobs.double()

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """``[S]`` means of ``[R]`` values over the responses of each slate."""
        return torch.segment_reduce(values, "mean", offsets=self.slate_offsets)

    def padded(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """``[S, k]`` values, a slate per row, filled up to the largest slate."""
        sizes = self.slate_offsets.diff()
        columns = torch.arange(int(sizes.max()), device=values.device)
        index = (self.slate_offsets[:-1, None] + columns).clamp(max=values.shape[0] - 1)
        return values[index].masked_fill(columns >= sizes[:, None], fill)


def lipo_lambda(slates: ScoredSlates, *, beta: float) -> torch.Tensor:
    """The lambda loss of list-wise preference optimisation: a logistic loss of pairs, weighted by their effect on DCG.

    ``sum_{i, j: u_i > u_j} |2^u_i - 2^u_j| |1/D_i - 1/D_j| log(1 + exp(-(s_i - s_j)))`` with ``s = beta log(pi /
    pi_ref)`` and ``D_i = log(1 + rank of s_i, from 1)``; weights have no gradient. Equal log-ratios (up to
    `RANK_STEP`), as before the first step, are in random order: the second factor is its expectation, so the order of
    the responses does not matter.

    Source: Liu et al. 2024, arXiv 2402.01878, LiPO-λ; the responses' ranks are those of the policy.
    """
    ratios = slates.log_ratios()
    ranked = slates.padded((ratios.detach() / RANK_STEP).round(), -torch.inf)
    s, u = slates.padded(beta * ratios, -torch.inf), slates.padded(slates.utility.double(), torch.nan)
    better = u[:, :, None] > u[:, None, :]  # False for padding, whose utility is NaN
    gains = (2.0 ** u[:, :, None] - 2.0 ** u[:, None, :]).abs()
    weight = torch.where(better, gains * _discount_gaps(ranked), 0.0)
    margin = torch.where(better, s[:, :, None] - s[:, None, :], 0.0)
    return (weight * softplus(-margin)).sum((1, 2))


def _discount_gaps(scores: torch.Tensor) -> torch.Tensor:
    """``[S, k, k]`` expected ``|1/D_i - 1/D_j|``, with equal scores in random order."""
    k = scores.shape[1]
    discount = 1 / torch.arange(2, k + 2, device=scores.device, dtype=scores.dtype).log()  # by rank from 1
    above = (scores[:, None, :] > scores[:, :, None]).sum(2)
    equal = (scores[:, None, :] == scores[:, :, None]).sum(2)  # itself included
    places = torch.arange(k, device=scores.device)
    taken = ((places >= above[..., None]) & (places < (above + equal)[..., None])).to(scores.dtype)  # [S, k, place]
    mean = taken @ discount / equal
    apart = (discount[:, None] - discount[None, :]).abs()
    pairs = (equal * (equal - 1)).clamp(min=1)
    within = torch.einsum("skp,pq,skq->sk", taken, apart, taken) / pairs
    tied = scores[:, :, None] == scores[:, None, :]
    return torch.where(tied, within[:, :, None], (mean[:, :, None] - mean[:, None, :]).abs())


def optimal_advantage(slates: ScoredSlates, *, beta: float) -> torch.Tensor:
    """The policy's log-ratio regressed on the optimal advantage of KL-regularised reward.

    ``mean_i (beta log(pi / pi_ref)(y_i) - (u_i - V))^2`` with ``V = beta log mean_i exp(u_i / beta)``. It is 0 where
    ``pi = pi_ref exp((u - V) / beta)``, if ``V`` is exact; that needs responses drawn from ``pi_ref``.

    Source: Ritter et al. 2026, arXiv 2602.19362, with one beta for both of its terms.
    """
    u = slates.utility.double()
    peaks = slates.padded(u / beta, -torch.inf).logsumexp(1)
    values = beta * (peaks - slates.slate_offsets.diff().double().log())
    target = u - values.repeat_interleave(slates.slate_offsets.diff())
    return slates.mean((beta * slates.log_ratios() - target).square())


def weighted_sft(slates: ScoredSlates) -> torch.Tensor:
    """The negative log-likelihood per token of all responses, each multiplied by its utility.

    ``-mean_i u_i log pi(y_i) / |y_i|``. Its gradient is that of `pope_core.slate_objective` with ``normalization``
    "none", no diversity and all importance weights 1.

    Source: Peters and Schaal 2007, reward-weighted regression.
    """
    return -slates.mean(slates.utility.double() * slates.response_logprobs.double() / slates.tokens)
