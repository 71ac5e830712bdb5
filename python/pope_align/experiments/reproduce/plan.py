"""The plan of an experiment: commands of `pope` in order, what each costs, and where the numbers will be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ...compare.stages import Stage
from .methods import Method
from .protocol import Protocol, Sizes

#: Name of the data set that the methods are trained on; others have names of the user's.
SOURCE = "source"

#: Name of the slates on which learning rates are chosen.
VALIDATION = "validation"


@dataclass(frozen=True)
class ReproductionRequest:
    """What was asked for.

    Attributes:
        protocol, sizes, methods, seeds: the experiment; seeds are the number of trainings and of samples.
        model: that is aligned.
        data: the training data; its test part is the data set `SOURCE`.
        tests: other data sets by name.
        folder: of everything between.
        logging_model: that is cloned as the logging policy of a log by people.
        third_model: for fluency; None: no fluency.
        aligner: arguments of ``pope metrics`` for faithfulness; empty: none.
        judge: arguments of ``pope judge``; empty: none.
        abilities: arguments of ``pope step abilities`` beside the model.
    """

    protocol: Protocol
    sizes: Sizes
    methods: tuple[Method, ...]
    seeds: int
    model: str
    data: str
    tests: Mapping[str, str]
    folder: Path
    logging_model: str
    third_model: str | None = None
    aligner: tuple[str, ...] = ()
    judge: tuple[str, ...] = ()
    abilities: tuple[str, ...] = ()

    @property
    def reported(self) -> list[str]:
        """Names of the data sets that are reported."""
        return [*([SOURCE] if self.protocol.source else []), *self.tests]


@dataclass(frozen=True)
class Cost:
    """What a stage takes, as far as it is known before.

    Attributes:
        written, read: tokens, at most and about.
        steps: of an optimizer.
        embedded: texts, at most.
        requests: to a judge.
    """

    written: int = 0
    read: int = 0
    steps: int = 0
    embedded: int = 0
    requests: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.written + other.written,
            self.read + other.read,
            self.steps + other.steps,
            self.embedded + other.embedded,
            self.requests + other.requests,
        )

    def __str__(self) -> str:
        parts = [
            (self.steps, f"{self.steps:,} optimizer steps"),
            (self.written, f"up to {self.written:,} tokens written"),
            (self.read, f"about {self.read:,} tokens read"),
            (self.embedded, f"up to {self.embedded:,} texts embedded"),
            (self.requests, f"{self.requests:,} requests to a judge"),
        ]
        return ", ".join(what for count, what in parts if count) or "no model"


#: Arguments of a command, before they become text.
Arguments = list[str | Path]


class Measured(NamedTuple):
    """A set of answers whose metrics are in a folder, as the model ``name`` of its table."""

    data: str
    method: str
    seed: int
    temperature: float
    name: str
    folder: Path


@dataclass
class ReproductionPlan:
    """The stages, their costs, and where their numbers are."""

    request: ReproductionRequest
    stages: list[Stage] = field(default_factory=list)
    cost: Cost = Cost()
    measured: list[Measured] = field(default_factory=list)
    fluency: dict[tuple[str, str, int], Path] = field(default_factory=dict)  # data set, method, seed
    abilities: dict[tuple[str, int], Path] = field(default_factory=dict)  # method, seed
    values: dict[str, Path] = field(default_factory=dict)  # data set -> evaluation
    judged: dict[str, Path] = field(default_factory=dict)  # data set -> verdicts
    tuning: dict[tuple[str, float], Measured] = field(default_factory=dict)  # method, learning rate
    tuning_stages: int = 0  # the first so many measure `tuning`; the rest depends on what it chooses

    def add(
        self,
        name: str,
        what: str,
        cost: Cost,
        argv: Sequence[str | Path],
        *,
        reads: Sequence[str | Path],
        writes: Path,
        work: Sequence[Path] = (),
        resume: Sequence[str] = (),
    ) -> Path:
        """Append a stage; returns what it writes."""
        inputs, begun = tuple(map(str, reads)), tuple(map(str, work))
        stage = Stage(name, what, str(cost), tuple(map(str, argv)), inputs, (str(writes),), begun, tuple(resume))
        self.stages.append(stage)
        self.cost += cost
        return writes
