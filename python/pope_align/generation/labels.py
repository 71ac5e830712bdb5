"""Labellers: feedback for a model's own answers by embeddings, a command, a Python function or a judge.

A labeller gives every answer of a set of generations a number, larger is better; `labelled.labelled_slates` converts
both to slates, with recorded propensities if there are any. The judge is in `pope_align.judging.rating`.
"""

from __future__ import annotations

import importlib
import json
import math
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from .._arrays import Floats
from ..data import Slate
from ..data.feedback import Aggregation, group_utility
from ..data.raters import annotator_scores, group_feedback, group_scores
from ..metrics.energy import energy_reward
from ..metrics.groups import group_weights
from ..metrics.set_utility import marginal_contributions
from ..metrics.similarity import VoteWeights, vote_weights
from .generations import Generation, GenerationSet, completion_text, join_slates

if TYPE_CHECKING:
    from ..metrics.embeddings import Embedder

#: Called with the numbers of answers labelled so far and in total.
OnLabel = Callable[[int, int], None]


class Labeller(Protocol):
    """Gives answers feedback."""

    @property
    def about(self) -> dict[str, Any]:
        """The settings of the feedback, stored in every slate's ``origin``."""
        ...

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """One list per row, one finite number per answer."""
        ...


@dataclass(frozen=True)
class ByReferences:
    """Feedback by comparison with people's responses: ``reward(answers, references, weights)`` on unit vectors.

    Attributes:
        name: of the reward: one of `REFERENCE_REWARDS`.
        references: slates with people's responses and votes, joined to the generations by key or prompt.
        weights: how votes weight the references.
    """

    name: str
    references: Sequence[Slate]
    embedder: Embedder
    weights: VoteWeights = "log1p"

    @property
    def about(self) -> dict[str, Any]:
        return {"labeller": self.name, "embedding_model": self.embedder.report.model, "weights": self.weights}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError for a row without references or with an undefined reward."""
        joined = join_slates(generations, self.references)
        found = {generation.key: self.references[index] for generation, index in joined}
        texts: dict[str, None] = {}
        for number, row in enumerate(generations.rows, start=1):
            if row.key not in found:
                raise ValueError(f"row {number} ({row.key}): expected references with its key or prompt, got none")
            texts.update(dict.fromkeys([*row.texts, *map(completion_text, found[row.key].completions)]))
        vectors = dict(zip(texts, self.embedder(list(texts), progress=progress)))
        return [self._row(number, row, found[row.key], vectors) for number, row in enumerate(generations.rows, 1)]

    def _row(self, number: int, row: Generation, slate: Slate, vectors: dict[str, Floats]) -> list[float]:
        answers = np.stack([vectors[text] for text in row.texts])
        people = np.stack([vectors[completion_text(completion)] for completion in slate.completions])
        rewards = REFERENCE_REWARDS[self.name](answers, people, vote_weights(slate.scores, self.weights))
        if not np.isfinite(rewards).all():
            raise ValueError(
                f"row {number} ({row.key}): {self.name}: expected at least two answers and a reference, got "
                f"{len(row.texts)} and {len(slate.completions)}"
            )
        return rewards.tolist()


def similarity_reward(answers: Floats, references: Floats, weights: Floats) -> Floats:
    """The similarity of each answer to what people wrote: ``sum_j p_j cos(x_i, y_j)``, ``[n]`` in [-1, 1]."""
    return np.asarray((answers @ references.T) @ weights)


def set_utility_reward(answers: Floats, references: Floats, weights: Floats) -> Floats:
    """How much each answer adds for people who each take the answer nearest to their own, ``[n]``."""
    return marginal_contributions(np.maximum(answers @ references.T, 0), weights)


REFERENCE_REWARDS: dict[str, Callable[[Floats, Floats, Floats], Floats]] = {
    "similarity": similarity_reward,
    "energy": energy_reward,
    "set-utility": set_utility_reward,
}


@dataclass(frozen=True)
class ByGroups:
    """How much each logged response adds to ``F(Y) = mean_g max_i u_g(y_i)``, from ratings by groups of people.

    Every group is served by the response that it likes best. Feedback of zero or below serves nobody.

    Attributes:
        slates: with ``group_scores``, one for each row of the generations.
    """

    slates: Sequence[Slate]

    @property
    def about(self) -> dict[str, Any]:
        return {"labeller": "set-utility", "of": "group_scores"}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError for a slate without ``group_scores``."""
        labelled: list[list[float]] = []
        for number, slate in enumerate(self.slates, start=1):
            if slate.group_scores is None:
                raise ValueError(f"slate {number}: group_scores: expected feedback by group, got none; or give --refs")
            labelled.append(marginal_contributions(group_weights(slate.group_scores)[1].T).tolist())
            progress(number, len(self.slates))
        return labelled


@dataclass(frozen=True)
class ByAggregation:
    """One score per logged response from those of opinion groups or annotators, by
    `pope_align.data.feedback.group_utility`.

    They count equally; one who did not rate a response is left out for it.

    Attributes:
        slates: with feedback by groups or annotators, one for each row of the generations.
        voices: whose feedback is combined.
        score_range: feedback that becomes 0 and 1.
    """

    slates: Sequence[Slate]
    aggregation: Aggregation
    voices: Literal["groups", "annotators"] = "groups"
    score_range: tuple[float, float] = (0.0, 1.0)

    @property
    def about(self) -> dict[str, Any]:
        of = "group_scores" if self.voices == "groups" else "ratings"
        scaled = {} if self.score_range == (0.0, 1.0) else {"score_range": list(self.score_range)}
        return {"labeller": self.aggregation, "of": of, **scaled}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError for a response without such feedback, or with some outside of ``score_range``."""
        of_slate = group_scores if self.voices == "groups" else annotator_scores
        labelled: list[list[float]] = []
        for number, slate in enumerate(self.slates, start=1):
            labelled.append([self._score(number, index, scores) for index, scores in enumerate(of_slate(slate))])
            progress(number, len(self.slates))
        return labelled

    def _score(self, number: int, index: int, scores: Sequence[float]) -> float:
        where = f"slate {number}: {self.about['of']}[{index}]"
        if not scores:
            raise ValueError(f"{where}: expected feedback of at least one {self.voices[:-1]}, got none")
        low, high = self.score_range
        try:
            return float(group_utility([[(score - low) / (high - low)] for score in scores], self.aggregation)[0])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


@dataclass(frozen=True)
class ByOneGroup:
    """The mean rating of each logged response by one group of raters.

    Attributes:
        slates: with feedback of the group on every response (see `rated_by`), one for each row of the generations.
        group: as in ``ratings`` or ``group_scores``.
    """

    slates: Sequence[Slate]
    group: str

    @property
    def about(self) -> dict[str, Any]:
        return {"labeller": "group", "group_of_raters": self.group}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError for a response that the group did not rate."""
        labelled: list[list[float]] = []
        for number, slate in enumerate(self.slates, start=1):
            scores = group_feedback(slate, self.group)
            where = f"slate {number}: feedback of {self.group}"
            labelled.append([_finite(score, f"{where}[{index}]") for index, score in enumerate(scores)])
            progress(number, len(self.slates))
        return labelled


def rated_by(slates: Sequence[Slate], group: str) -> list[Slate]:
    """The slates of which a group of raters rated every response.

    Raises:
        ValueError: there is none; the error names the groups of the log.
    """
    rated = [slate for slate in slates if None not in group_feedback(slate, group)]
    if not rated:
        known = {each["group"] for slate in slates for of in slate.ratings or [] for each in of if "group" in each}
        known |= {name for slate in slates for scores in slate.group_scores or [] for name in scores}
        there = ", ".join(sorted(known)) or "none"
        raise ValueError(f"raters: expected a group that rated all responses of a slate ({there:.200}), got {group!r}")
    return rated


@dataclass(frozen=True)
class ByCommand:
    """Feedback by another program, which reads JSON lines and writes one number per line.

    It is started once, without a shell. Every answer is a line ``{"key": ..., "prompt": ..., "completion": ...,
    "index": ...}`` on its standard input; for each it writes a number, or an object with ``score``, in the same order.
    """

    command: str

    @property
    def about(self) -> dict[str, Any]:
        return {"labeller": "command", "command": self.command}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError if the program is not found, fails, or does not write one number per answer."""
        lines = [
            json.dumps({"key": row.key, "prompt": row.prompt, "completion": text, "index": index})
            for row in generations.rows
            for index, text in enumerate(row.texts)
        ]
        progress(0, len(lines))
        try:
            arguments = shlex.split(self.command)
            done = subprocess.run(arguments, input="\n".join(lines) + "\n", capture_output=True, text=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"command: expected a program that can be started, got {self.command!r}: {error}"
            ) from None
        if done.returncode:
            raise ValueError(f"command: {self.command!r} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        replies = done.stdout.split("\n")
        replies = replies[:-1] if replies[-1] == "" else replies
        if len(replies) != len(lines):
            raise ValueError(f"command: expected {len(lines)} lines, one per answer, got {len(replies)}")
        scores = iter([_score(reply, f"command: line {number}") for number, reply in enumerate(replies, start=1)])
        progress(len(lines), len(lines))
        return [[next(scores) for _ in row.texts] for row in generations.rows]


def _score(reply: str, where: str) -> float:
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError):
        value = reply
    return _finite(value.get("score") if isinstance(value, dict) else value, where)


@dataclass(frozen=True)
class ByFunction:
    """Feedback by a Python function: ``function(prompt, completions)`` gives one number per completion.

    Attributes:
        name: ``module:function``; the module may be in the current folder.
    """

    name: str
    function: Callable[[Any, list[str]], Sequence[float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        module, colon, name = self.name.partition(":")
        if not (module and colon and name):
            raise ValueError(f"function: expected module:function, got {self.name!r}")
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            function = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"function: expected a function that can be imported, got {self.name!r}: {error}"
            ) from None
        if not callable(function):
            raise ValueError(f"function: expected a function, got {self.name!r}, a {type(function).__name__}")
        object.__setattr__(self, "function", function)

    @property
    def about(self) -> dict[str, Any]:
        return {"labeller": "python", "function": self.name}

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError if the function does not return one number per completion."""
        of = sum(len(row.texts) for row in generations.rows)
        labelled: list[list[float]] = []
        for number, row in enumerate(generations.rows, start=1):
            scores = list(self.function(row.prompt, list(row.texts)))
            where = f"function: row {number} ({row.key})"
            if len(scores) != len(row.texts):
                raise ValueError(f"{where}: expected {len(row.texts)} numbers, one per completion, got {len(scores)}")
            labelled.append([_finite(score, f"{where}: [{index}]") for index, score in enumerate(scores)])
            progress(sum(map(len, labelled)), of)
        return labelled


def _finite(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, (str, bool)) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: expected a finite number, got {value!r:.80}")
    return number
