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
    """The same log with fresh responses of every policy, none of them new to the log: support is checked."""
    owner = np.arange(log.num_slates)
    fresh = {name: FreshScores(owner, np.full(owner.size, -51.0), np.full(owner.size, -50.0)) for name in log.policies}
    return log.with_fresh(fresh)
