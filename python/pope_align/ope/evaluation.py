"""`Evaluation`: the estimates, comparisons and indices of one log, with ranking, requirements, JSON and figure."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pope_core.objective import Objective

from .._files import replacing, write_json
from .._json import jsonable
from .comparison import Comparison
from .direction import DirectionIndex
from .facts import LogFacts
from .figure import evaluation_figure
from .log import LoggedSlates
from .raters import RaterGroups
from .result import Estimate
from .rules import VERDICTS, Verdict
from .undecided import Undecided, undecided


@dataclass(frozen=True)
class Evaluation:
    """Estimates of every policy, paired comparisons with the baseline by the first estimator, and the indices."""

    estimates: tuple[Estimate, ...]
    comparisons: tuple[Comparison, ...]
    indices: tuple[DirectionIndex, ...]
    baseline: str
    objective: Objective
    log: LogFacts = field(repr=False)
    raters: tuple[RaterGroups, ...] = ()  # of every policy, if they were asked for

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(each.policy for each in self.estimates))

    @property
    def estimators(self) -> list[str]:
        return list(dict.fromkeys(each.estimator for each in self.estimates))

    def of(self, policy: str, estimator: str | None = None) -> Estimate:
        """The estimate of one policy; by the first estimator unless another is given.

        Raises:
            KeyError: there is none.
        """
        for each in self.estimates:
            if each.policy == policy and each.estimator == (estimator or self.estimators[0]):
                return each
        raise KeyError(f"no estimate of {policy!r} by {estimator or self.estimators[0]!r}")

    def ranking(self, estimator: str | None = None, *, by: Literal["value", "lower_bound"] = "value") -> list[Estimate]:
        """Policies, best first; refused ones come last whatever their value, and indices are left out.

        Args:
            estimator: None: the first.
            by: "value"; or "lower_bound", the lower end of the interval, which penalises uncertainty.
        """
        name = estimator or self.estimators[0]
        chosen = [each for each in self.estimates if each.estimator == name and not each.is_index]

        def worth(each: Estimate) -> float:
            number = each.value if by == "value" else each.low
            return -math.inf if math.isnan(number) else number

        return sorted(chosen, key=lambda each: (each.verdict == "refuse", -worth(each)))

    def meets(self, required: Verdict) -> bool:
        """Whether the first estimator's verdict on every policy is at least ``required``; an index never is."""
        worst = max(VERDICTS.index(self.of(policy).verdict) for policy in self.policies)
        return worst <= VERDICTS.index(required)

    @property
    def undecided(self) -> tuple[Undecided, ...]:
        """The policies that no estimator orders against the baseline better than chance, with the reasons."""
        return undecided(self.estimates, self.comparisons, self.indices, self.baseline)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON (numbers that are not finite become None)."""
        log = {
            "responses": self.log.num_responses,
            "slates": self.log.num_slates,
            "clusters": self.log.num_clusters,
            "utility": asdict(self.log.scale),
            "written_by": self.log.written_by,
            "logging_policy": {"how": self.log.how, **self.log.logging_provenance},
            "logging_policies": [{"slates": each.slates, **each.provenance} for each in self.log.sources],
        }
        content: dict[str, Any] = jsonable(
            {
                "objective": self.objective.to_dict(),
                "log": log,
                "policies": {name: dict(each) for name, each in self.log.provenances().items()},
                "baseline": self.baseline,
                "ranking": [each.policy for each in self.ranking() if each.verdict != "refuse"],
                "estimates": [each.to_dict() for each in self.estimates],
                "comparisons": [each.to_dict() for each in self.comparisons],
                "indices": [each.to_dict() for each in self.indices],
                "undecided": [each.to_dict() for each in self.undecided],
                "raters": [each.to_dict() for each in self.raters],
            }
        )
        return content

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one JSON file, atomically."""
        write_json(path, self.to_dict(), indent=2)

    def write_figure(self, path: str | os.PathLike[str]) -> None:
        """Draw values with intervals, the weights, their tail, and the effect of slate size. PNG, SVG or PDF by the
        ending.

        Raises:
            ValueError: the log was read in one pass (`evaluate_shards`): the figure draws every weight.
        """
        if not isinstance(self.log, LoggedSlates):
            raise ValueError("figure: it draws every weight of a log, and this log was read in one pass and not kept")
        with replacing(path) as partial:
            evaluation_figure(self.estimates, self.log, self.comparisons).savefig(partial, dpi=150)
