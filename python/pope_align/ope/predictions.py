"""Predictions of a reward model for logged responses and for the policy's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .._arrays import Floats
from .log import LoggedSlates


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted utility of the logged responses and of the target policy, for the direct and doubly robust methods.

    Attributes:
        logged: ``[R]`` prediction for each logged response, by a model that was not fitted to its query.
        target: ``[S]`` mean prediction over fresh responses of the policy to the query of each slate.
        target_diversity: ``[S]`` mean diversity reward over the same fresh responses, in the log-probability unit that
            is evaluated; None if their log-probabilities are not known.
        source: the name of the model, for the result.
        quality: of the predictions on logged responses, e.g. ``{"r2": 0.31}``; shown with the estimate.
    """

    logged: Floats
    target: Floats
    target_diversity: Floats | None = None
    source: str = "given"
    quality: dict[str, float] = field(default_factory=dict)

    def check(self, log: LoggedSlates) -> None:
        """Raises: ValueError: an array that does not match the log, or a number that is not finite."""
        _check("logged", self.logged, log.num_responses, "response", log)
        _check("target", self.target, log.num_slates, "slate", log)
        if self.target_diversity is not None:
            _check("target_diversity", self.target_diversity, log.num_slates, "slate", log)


def _check(name: str, values: Floats, count: int, what: str, log: LoggedSlates) -> None:
    if values.shape != (count,):
        raise ValueError(f"predictions.{name}: expected {count} numbers, one per {what}, got {list(values.shape)}")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        place = log.place(int(bad[0])) if what == "response" else f"slate {bad[0]}"
        raise ValueError(f"predictions.{name}: {place}: expected a finite number, got {values[bad[0]]}")
