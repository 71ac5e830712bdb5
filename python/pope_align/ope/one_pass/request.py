"""`OnePass`: what is asked of an evaluation in one pass, with everything that must be known before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pope_core.objective import Objective, Weighting

from ...stats.intervals import Confidence
from ...stats.keyed_bootstrap import KeyedBootstrap
from ..asked import check_estimators, check_names, wanted
from ..estimators import METHODS
from ..logging_policies import LoggingOrigin, WrittenBy
from ..utility import Calibration
from ..weights import Shrink
from .shards import Columns

#: The methods of intervals that need no more than sums.
INTERVALS = ("t", "bootstrap", "bayesian", "anytime")

#: Weights that are kept, 1 MiB for each policy: enough for the tail index of 1.9 billion.
LARGEST = 2**17


@dataclass(frozen=True)
class OnePass:
    """What to read from every shard; `evaluate_shards` makes and uses one.

    To spread the shards over machines with an engine of your own: ``read_sums(path, request)`` for every shard, in any
    process, ``merge`` the results in any order, and ``evaluation_of(sums, request)``. A request and its sums can be
    pickled.

    Attributes:
        policies: by name, the column of its total log-probabilities.
        calibration: scores to utilities; see `pope_align.ope.utility.calibration`.
        columns: the other columns.
        objective, baseline, estimators, lam, confidence: as in `evaluate_policies`.
        how, written_by: as in `LoggedSlates.from_arrays`.
        largest: number of the largest weights to keep of each policy, for the tail index.
    """

    policies: Mapping[str, str]
    calibration: Calibration
    columns: Columns = Columns()  # noqa: RUF009 (frozen)
    objective: Objective = field(default_factory=Objective.evaluation)
    baseline: str | None = None
    estimators: tuple[str, ...] | None = None
    lam: float | None = None
    confidence: Confidence = Confidence()  # noqa: RUF009 (frozen)
    how: LoggingOrigin = "unknown"
    written_by: WrittenBy = "unknown"
    largest: int = LARGEST

    def __post_init__(self) -> None:
        """Raises: ValueError: what cannot be done in one pass, by name."""
        names = list(self.policies)
        check_names(names, (), (), self.baseline)
        for name in self.every:
            if name == "model_first" or (name in METHODS and METHODS[name].predictions):
                able = ", ".join(["pope", *(name for name, spec in METHODS.items() if not spec.predictions)])
                raise ValueError(
                    f"estimators: {name!r} needs a reward model or fresh responses, which one pass over scores does "
                    f"not have; expected some of {able}. `evaluate_policies` has the others"
                )
        check_estimators(self.every, self.lam, names, ())
        shrinking = [name for name in self.every if name in METHODS and METHODS[name].shrink]
        if shrinking and self.lam is None:
            raise ValueError(
                f"lam: expected a number for {shrinking[0]!r}, got None; choosing it compares estimates of the whole "
                "log, so choose it on a part of the log with `evaluate_policies`"
            )
        if self.confidence.method not in INTERVALS:
            raise ValueError(
                f"confidence: {self.confidence.method!r} needs every cluster in memory; expected a method among "
                f"{', '.join(INTERVALS)} for an evaluation in one pass"
            )
        if self.objective.length_normalize and self.columns.tokens is None:
            raise ValueError("columns: expected the name of the tokens for a length-normalised objective, got None")

    @property
    def every(self) -> list[str]:
        """All estimators."""
        return wanted(self.estimators, self.objective)

    @property
    def reference(self) -> str:
        """The policy that the others are compared with."""
        return self.baseline or next(iter(self.policies))

    @cached_property
    def bootstrap(self) -> KeyedBootstrap | None:
        """The resampling that the intervals need."""
        asked = self.confidence
        if asked.method == "bootstrap" or asked.method == "bayesian":
            return KeyedBootstrap(asked.method, asked.draws, asked.seed)
        return None

    def shrink(self, estimator: str) -> Shrink | None:
        """How an estimator shrinks its weights."""
        if estimator == "pope":
            return None if self.objective.clip is None else Shrink("clip", self.objective.clip)
        kind = METHODS[estimator].shrink
        return None if kind is None or self.lam is None else Shrink(kind, self.lam)

    def weighting(self, estimator: str) -> Weighting:
        """The weights of an estimator."""
        weighs = self.objective.weighting if estimator == "pope" else METHODS[estimator].weighs
        assert weighs is not None  # an estimator without weights needs predictions
        return weighs

    def shrinks(self, weighting: Weighting) -> tuple[Shrink, ...]:
        """All ways to shrink these weights."""
        used = (self.shrink(name) for name in self.every if self.weighting(name) == weighting)
        return tuple(dict.fromkeys(shrink for shrink in used if shrink is not None))

    @property
    def weightings(self) -> list[Weighting]:
        """The kinds of weights that are diagnosed; those of responses and slates always are."""
        others = [self.weighting(name) for name in self.every]
        return list(dict.fromkeys(["response", "slate", *others]))
