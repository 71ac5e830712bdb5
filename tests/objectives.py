"""What tests of evaluation ask for: `Objective.evaluation` with changes, as keyword arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from pope_align.ope import FreshScores, LoggedSlates

from pope_core import Objective

#: The paper's estimator: length-normalised weights, diversity in the value.
PAPER = {"length_normalize": True, "diversity_weight": 0.1}


def asked(**changes: Any) -> dict[str, Any]:
    """``{"objective": ...}``; without changes, the utility by true weights, self-normalised over the log."""
    return {"objective": replace(Objective.evaluation(), **changes)}


def covered(log: LoggedSlates) -> LoggedSlates:
    """The same log with fresh responses of every policy, none of them new to the log: support is checked.

    They are drawn from the log by their weights, so they are what the weights say.
    """
    random, owner, fresh = np.random.default_rng(0), np.arange(log.num_slates), {}
    for name in log.policies:
        target, logging = log.logprobs(name, length_normalize=False)
        share = np.exp(target - logging - (target - logging).max())
        drawn = random.choice(target.size, owner.size, p=share / share.sum())
        fresh[name] = FreshScores(owner, target[drawn], logging[drawn])
    return log.with_fresh(fresh)
