"""The held-out index of training: whether probability moves towards the better responses within slates."""

from __future__ import annotations

import numpy as np
import torch

from pope_core.slates import LogData

from ..ope.placebo import Placebo, permutation_test


def held_out_gain(policy: torch.Tensor, start: torch.Tensor, log: LogData) -> Placebo | None:
    """How the policy's change since the start of training moves the utility within slates, with its placebo.

    Mean over slates of ``sum_i p_i u_i - mean_i u_i``, ``p = softmax_i((log pi(y_i) - log pi_start(y_i)) / |y_i|)``. An
    index of direction, not a value. It needs no logging policy, so it is the same for every method, and it does not
    rise if all logged responses become likelier together.

    Args:
        policy, start: ``[R]`` totals under the policy and under the model before training, nats.
        log: the utilities, offsets and tokens of the same responses.

    Returns:
        The gain with its placebo; None if all slates have one response: there is nothing to permute.

    Source: docs/training.md, "What keeps a run safe".
    """
    offsets, utility = log.slate_offsets.cpu().numpy(), log.utility.cpu().numpy()
    first, count = offsets[:-1], np.diff(offsets)
    if count.max() == 1:
        return None
    change = ((policy.double() - start.double()) / log.tokens).cpu().numpy()
    weights = np.exp(change - np.maximum.reduceat(change, first).repeat(count))
    shares = weights / np.add.reduceat(weights, first).repeat(count) - 1 / count.repeat(count)
    return permutation_test(utility, offsets, shares / count.size)
