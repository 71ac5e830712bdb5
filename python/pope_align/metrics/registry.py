"""The metrics of a report, in the order of its table. A new metric is one function here.

The function's name is the metric's key; every report shows its docstring as the explanation. It takes one prompt
(`metrics.prompt.AnsweredPrompt`) and returns a number, NaN if the metric is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from . import distribution, groups, lexical, opinions, similarity
from . import diversity as spread
from .energy import energy_distance
from .prompt import AnsweredPrompt

#: The better side of a metric; None if it only describes, and more is neither better nor worse.
Better = Literal["higher", "lower"] | None

#: What a prompt must have for a metric to be computed.
Need = Literal["answers", "policy", "groups", "align"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: name, label, direction, range, and explanation."""

    name: str
    label: str
    better: Better
    low: float
    high: float
    digits: int
    reading: str
    needs: Need = "answers"
    compute: Callable[[AnsweredPrompt], float] = field(default=lambda of: math.nan, repr=False, compare=False)

    @property
    def arrow(self) -> str:
        """The label, with an arrow to the better side if there is one."""
        if self.better is None:
            return self.label
        return f"{self.label} {'↑' if self.better == 'higher' else '↓'}"

    def to_dict(self) -> dict[str, object]:
        """The description for reports."""
        return {name: getattr(self, name) for name in ("name", "label", "better", "low", "high", "digits", "reading")}


#: By key, in the order of the table.
BY_NAME: dict[str, Metric] = {}


def metric(
    label: str,
    *,
    better: Better = "higher",
    low: float,
    high: float,
    digits: int = 3,
    needs: Need = "answers",
) -> Callable[[Callable[[AnsweredPrompt], float]], Callable[[AnsweredPrompt], float]]:
    """Register a function as a metric; its name is the key and its docstring the explanation.

    Raises:
        ValueError: a key that is taken, or a function without a docstring.
    """

    def enter(compute: Callable[[AnsweredPrompt], float]) -> Callable[[AnsweredPrompt], float]:
        name, reading = compute.__name__, (compute.__doc__ or "").strip()
        if name in BY_NAME or not reading:
            raise ValueError(f"metric {name!r}: expected a new name and a docstring that says how to read it")
        BY_NAME[name] = Metric(name, label, better, low, high, digits, reading, needs, compute)
        return compute

    return enter


def check_names(names: list[str]) -> None:
    """Refuse values of unknown metrics, which no report would show.

    Raises:
        ValueError: an unknown name.
    """
    if unknown := [name for name in names if name not in BY_NAME]:
        raise ValueError(
            f"values: expected metrics of pope_align/metrics/registry.py ({', '.join(BY_NAME)}), "
            f"got {', '.join(unknown)}"
        )


@metric("Energy distance", better="lower", low=-2, high=4)
def energy(of: AnsweredPrompt) -> float:
    """from people's answers, in content and spread; 0: like people"""
    weights = similarity.vote_weights(of.slate.scores, of.options.vote_weights)
    return energy_distance(of.answers, of.references, weights)


@metric("PL-Score", low=-1, high=1)
def pl_score(of: AnsweredPrompt) -> float:
    """nearness of the best answer to each reference, by votes"""
    return similarity.pl_score(of.similarity, of.slate.scores, of.options.vote_weights)


@metric("Coverage", low=0, high=1)
def coverage(of: AnsweredPrompt) -> float:
    """share of references that an answer matches"""
    return similarity.pluralistic_coverage(of.similarity, of.options.threshold, of.options.coverage_k)


@metric("Coverage of opinions", low=0, high=1)
def opinion_coverage(of: AnsweredPrompt) -> float:
    """share of opinions (references alike count as one) that an answer matches"""
    threshold, answers = of.options.threshold, of.similarity[: of.options.coverage_k]
    return opinions.opinion_coverage(answers, opinions.opinions(of.references, threshold), threshold)


@metric("Distr. alignment", low=0, high=1, needs="policy")
def alignment(of: AnsweredPrompt) -> float:
    """evenness of the policy's probabilities of references"""
    assert of.logprobs is not None
    return distribution.distributional_alignment(of.logprobs, of.options.temperature)


@metric("Distr. alignment (sim.)", low=0, high=1)
def alignment_similarity(of: AnsweredPrompt) -> float:
    """evenness of the references' similarity to the answers"""
    return distribution.distributional_alignment(of.similarity.max(0), of.options.temperature)


@metric("PL log-likelihood", low=-math.inf, high=0, digits=2, needs="policy")
def plackett_luce(of: AnsweredPrompt) -> float:
    """of people's ranking under the policy, nats"""
    assert of.logprobs is not None
    return distribution.plackett_luce_loglik(of.logprobs, of.feedback)


@metric("PL choice probability", low=0, high=1, needs="policy")
def choice(of: AnsweredPrompt) -> float:
    """geometric mean per choice of people's ranking"""
    return distribution.choice_probability(plackett_luce(of), of.feedback)


@metric("Worst group, coverage", low=0, high=1, needs="groups")
def worst_group(of: AnsweredPrompt) -> float:
    """coverage for the opinion group served worst"""
    return groups.worst_group(groups.group_coverage(of.similarity, of.group_weights, of.options.threshold))


@metric("Worst group, nearness", low=-1, high=1, needs="groups")
def worst_group_nearness(of: AnsweredPrompt) -> float:
    """nearness to what the group served worst approves of"""
    return groups.worst_group(groups.group_coverage(of.similarity, of.group_weights, None))


@metric("Helpfulness", low=-100, high=100, digits=2)
def helpfulness(of: AnsweredPrompt) -> float:
    """likeness of the mean answer to voted references"""
    return similarity.helpfulness(of.similarity, of.slate.scores)


@metric("Relevance", low=-100, high=100, digits=2)
def relevance(of: AnsweredPrompt) -> float:
    """likeness of the mean answer to the prompt"""
    return similarity.relevance(of.answers_with_words, of.prompt)


@metric("AlignScore", low=0, high=1, needs="align")
def align_score(of: AnsweredPrompt) -> float:
    """share of the answer's sentences that the prompt supports"""
    assert of.align is not None
    return of.align


@metric("Diversity", low=0, high=2)
def diversity(of: AnsweredPrompt) -> float:
    """1 - cosine of two answers, mean over pairs"""
    return spread.diversity(of.answers)


@metric("Vendi score", low=1, high=math.inf, digits=2)
def vendi(of: AnsweredPrompt) -> float:
    """effective number of different answers"""
    return spread.vendi_score(of.answers)


@metric("Distinct-1", low=0, high=100, digits=2)
def distinct_1(of: AnsweredPrompt) -> float:
    """different words in 100 words"""
    return 100 * lexical.distinct_n(of.words, 1)


@metric("Distinct-2", low=0, high=100, digits=2)
def distinct_2(of: AnsweredPrompt) -> float:
    """different word pairs in 100 word pairs"""
    return 100 * lexical.distinct_n(of.words, 2)


@metric("EAD", low=0, high=math.inf)
def ead(of: AnsweredPrompt) -> float:
    """different words over those expected of as many uniform draws"""
    return lexical.expectation_adjusted_distinct(of.words, of.options.ead_vocabulary)


@metric("Self-BLEU-4", better="lower", low=0, high=1)
def self_bleu(of: AnsweredPrompt) -> float:
    """overlap of an answer with all others"""
    return lexical.self_bleu(of.words)
