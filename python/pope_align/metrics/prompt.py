"""The input of a metric for one prompt: a model's answers, people's references, and optional scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .._arrays import Floats
from ..data import Slate
from ..generation.generations import Generation, completion_text, prompt_text
from .groups import group_weights
from .similarity import VoteWeights


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """Parameters of the metrics; see the functions named beside them."""

    vote_weights: VoteWeights = "log1p"  # pl_score, energy_distance
    threshold: float = 0.8  # pluralistic_coverage, group_coverage
    coverage_k: int | None = None  # pluralistic_coverage: only the first k answers
    temperature: float = 0.5  # distributional_alignment
    ead_vocabulary: int = 30522  # expectation_adjusted_distinct


@dataclass(frozen=True)
class AnsweredPrompt:
    """One prompt with a model's ``n`` answers and people's ``M`` references.

    Attributes:
        vectors: the unit vector of every text of the prompt.
        tokenize: splits texts into words, for lexical metrics.
        logprobs: ``[M]`` the model's mean log-probability of each reference, nats per token; None: not scored.
        align: mean AlignScore of the answers; None: not scored.
    """

    generation: Generation
    slate: Slate
    vectors: Mapping[str, Floats]
    tokenize: Callable[[str], Sequence[str]]
    options: MetricOptions
    logprobs: Floats | None = None
    align: float | None = None

    @cached_property
    def answers(self) -> Floats:
        """``[n, d]`` vectors of the answers."""
        return np.stack([self.vectors[text] for text in self.generation.texts])

    @cached_property
    def answers_with_words(self) -> Floats:
        """``[n, d]`` vectors of the answers; 0 for an answer without a word."""
        return self.answers * np.array([[bool(text.strip())] for text in self.generation.texts])

    @cached_property
    def prompt(self) -> Floats:
        """``[d]`` vector of the prompt."""
        return self.vectors[prompt_text(self.generation.prompt)]

    @cached_property
    def references(self) -> Floats:
        """``[M, d]`` vectors of the references."""
        return np.stack([self.vectors[completion_text(each)] for each in self.slate.completions])

    @cached_property
    def similarity(self) -> Floats:
        """``[n, M]`` cosines of answers and references."""
        return np.asarray(self.answers_with_words @ self.references.T)

    @cached_property
    def words(self) -> list[Sequence[str]]:
        """``[n]`` words of the answers."""
        return [self.tokenize(text) for text in self.generation.texts]

    @cached_property
    def group_weights(self) -> Floats:
        """``[G, M]`` approval of every group for every reference."""
        assert self.slate.group_scores is not None  # the registry asks `has` first
        return group_weights(self.slate.group_scores)[1]

    @property
    def feedback(self) -> list[float]:
        """``[M]`` larger is better: from people's explicit ranking if there is one (rank 1 is best), else their
        votes.
        """
        ranks = self.slate.ranks
        return [-float(rank) for rank in ranks] if ranks is not None else self.slate.scores

    def has(self, needed: str) -> bool:
        """Whether the prompt has what a metric needs: "answers", "policy", "groups" or "align"."""
        there = {
            "answers": True,
            "policy": self.logprobs is not None,
            "groups": self.slate.group_scores is not None,
            "align": self.align is not None,
        }
        return there[needed]
