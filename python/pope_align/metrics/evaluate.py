"""All metrics of a set of generations, prompt by prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..data import Slate, encode_slates
from ..generation.generations import (
    Generation,
    GenerationSet,
    completion_text,
    prompt_key,
    prompt_text,
    slate_keys,
)
from ..propensity.scoring import OnProgress, score_responses
from .distribution import choice_probability, distributional_alignment, plackett_luce_loglik
from .diversity import diversity, vendi_score
from .embeddings import Embedder
from .faithfulness import AlignFn, align_scores
from .groups import group_coverage, group_weights, worst_group
from .lexical import distinct_n, expectation_adjusted_distinct, self_bleu, words
from .registry import METRICS
from .similarity import Floats, VoteWeights, helpfulness, pl_score, pluralistic_coverage, relevance

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Slates to the policy's ``l_theta`` of their completions, in nats per token.
ReferenceScorer = Callable[[Sequence[Slate]], Sequence[Floats]]


@dataclass(frozen=True, slots=True)
class MetricOptions:
    """The readings of the paper's metrics; see the functions that they name."""

    vote_weights: VoteWeights = "log1p"  # pl_score
    threshold: float = 0.8  # pluralistic_coverage, group_coverage
    coverage_k: int | None = None  # pluralistic_coverage: only the first k answers
    temperature: float = 0.5  # distributional_alignment
    ead_vocabulary: int = 30522  # expectation_adjusted_distinct


@dataclass(frozen=True)
class PromptMetrics:
    """One model's metrics, one entry per prompt; NaN where a metric is not defined there."""

    model: str
    keys: list[str]  # [Q] of the slates
    prompts: list[str]  # [Q] equal for equal prompts: what the bootstrap draws
    values: dict[str, Floats]  # name -> [Q]
    answers: int  # in all
    empty: int  # of them, answers without a word: similarity 0 to everything
    unanswered: int  # slates without an answer
    unmatched: int  # generations without a slate
    settings: dict[str, object] = field(default_factory=dict)


def evaluate_generations(
    generations: GenerationSet,
    references: Sequence[Slate],
    *,
    embedder: Embedder,
    options: MetricOptions | None = None,
    score_references: ReferenceScorer | None = None,
    align_fn: AlignFn | None = None,
    tokenize: Callable[[str], Sequence[str]] = words,
    progress: OnProgress | None = None,
) -> PromptMetrics:
    """Every metric of `registry.METRICS` that the inputs allow, for every prompt with answers and references.

    Generations are joined to slates by key, or by prompt where they come from elsewhere. An answer without a word has
    similarity 0 to every reference and to the prompt, and no sentence that could be supported; in diversity it is a
    text like any other.

    Args:
        references: slates; their completions are the references, their scores the votes, their ``group_scores`` (where
            a slate has them) what the opinion groups approve of.
        embedder: of answers, references and prompts.
        score_references: gives, per slate, the policy's mean log-probability of every completion (see `policy_scores`);
            called once, with the slates that have answers. Without it ``alignment``, ``plackett_luce`` and ``choice``
            are left out.
        align_fn: see `align_scores`; the prompt is the context, as in the paper. Without it, no ``align_score``.
        tokenize: for Distinct-n, EAD and Self-BLEU.
        progress: called with the number of distinct texts embedded so far and in all.

    Raises:
        ValueError: no generation belongs to any slate.
    """
    options = options or MetricOptions()
    joined = _join(generations, references)
    if not joined:
        raise ValueError(
            f"generations of {generations.model!r}: expected prompts or keys of the references, got none: first key "
            f"{generations.rows[0].key!r}, first reference {slate_keys(references)[0]!r}"
        )
    vectors = _embed(joined, references, embedder, progress)
    logprobs = score_references([references[index] for _, index in joined]) if score_references is not None else None
    rows = []
    for at, (generation, index) in enumerate(joined):
        slate = references[index]
        row = _from_vectors(generation, slate, vectors, options)
        row |= _from_words([tokenize(text) for text in generation.texts], options)
        if logprobs is not None:
            row |= _from_policy(logprobs[at], slate, options)
        if slate.group_scores is not None:
            row |= _from_groups(generation, slate, slate.group_scores, vectors, options)
        rows.append(row)
    if align_fn is not None:
        for row, score in zip(rows, _faithfulness(joined, align_fn)):
            row["align_score"] = score
    names = [metric.name for metric in METRICS if any(metric.name in row for row in rows)]
    texts = [text for generation, _ in joined for text in generation.texts]
    return PromptMetrics(
        model=generations.model,
        keys=[generation.key for generation, _ in joined],
        prompts=[prompt_key(generation.prompt) for generation, _ in joined],
        values={name: np.array([row.get(name, np.nan) for row in rows]) for name in names},
        answers=len(texts),
        empty=sum(not text.strip() for text in texts),
        unanswered=len(references) - len({index for _, index in joined}),
        unmatched=len(generations) - len(joined),
        settings=dict(generations.settings),
    )


def policy_scores(
    slates: Sequence[Slate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    progress: OnProgress | None = None,
) -> list[Floats]:
    """The policy's ``l_theta(y_j | q)`` of every completion of every slate: nats per token."""
    encoded, _ = encode_slates(slates, tokenizer, max_length=max_length)
    totals = score_responses(encoded, model, progress=progress)
    return [np.array(of_slate) / [len(ids) for ids in slate.completion_ids] for of_slate, slate in zip(totals, encoded)]


def _join(generations: GenerationSet, references: Sequence[Slate]) -> list[tuple[Generation, int]]:
    """Every generation that belongs to a slate, and the slate's index."""
    by_key = {key: index for index, key in enumerate(slate_keys(references))}
    seen: Counter[str] = Counter()
    for index, slate in enumerate(references):  # how `read_generations` names rows that came without a key
        name = prompt_key(slate.prompt)
        seen[name] += 1
        by_key.setdefault(name if seen[name] == 1 else f"{name}#{seen[name]}", index)
    return [(generation, by_key[generation.key]) for generation in generations.rows if generation.key in by_key]


def _embed(
    joined: Sequence[tuple[Generation, int]],
    references: Sequence[Slate],
    embedder: Embedder,
    progress: OnProgress | None,
) -> dict[str, Floats]:
    """The vector of every text that a metric needs."""
    texts: dict[str, None] = {}
    for generation, index in joined:
        texts.update(dict.fromkeys(generation.texts))
        texts.update(dict.fromkeys(map(completion_text, references[index].completions)))
        texts[prompt_text(generation.prompt)] = None
    return dict(zip(texts, embedder(list(texts), progress=progress)))


def _vectors(texts: Sequence[str], vectors: Mapping[str, Floats]) -> Floats:
    return np.stack([vectors[text] for text in texts])


def _similarity(generation: Generation, slate: Slate, vectors: Mapping[str, Floats]) -> Floats:
    """[n, M] cosines; an answer without a word is like nothing."""
    answers = _worded(generation, vectors)
    return answers @ _vectors([completion_text(completion) for completion in slate.completions], vectors).T


def _worded(generation: Generation, vectors: Mapping[str, Floats]) -> Floats:
    return _vectors(generation.texts, vectors) * np.array([[bool(text.strip())] for text in generation.texts])


def _from_vectors(
    generation: Generation, slate: Slate, vectors: Mapping[str, Floats], options: MetricOptions
) -> dict[str, float]:
    similarity = _similarity(generation, slate, vectors)
    answers = _vectors(generation.texts, vectors)
    return {
        "pl_score": pl_score(similarity, slate.scores, options.vote_weights),
        "coverage": pluralistic_coverage(similarity, options.threshold, options.coverage_k),
        "alignment_similarity": distributional_alignment(similarity.max(0), options.temperature),
        "helpfulness": helpfulness(similarity, slate.scores),
        "relevance": relevance(_worded(generation, vectors), vectors[prompt_text(generation.prompt)]),
        "diversity": diversity(answers),
        "vendi": vendi_score(answers),
    }


def _from_words(tokens: Sequence[Sequence[str]], options: MetricOptions) -> dict[str, float]:
    return {
        "distinct_1": 100 * distinct_n(tokens, 1),
        "distinct_2": 100 * distinct_n(tokens, 2),
        "ead": expectation_adjusted_distinct(tokens, options.ead_vocabulary),
        "self_bleu": self_bleu(tokens),
    }


def _from_policy(logprobs: Floats, slate: Slate, options: MetricOptions) -> dict[str, float]:
    # A rank is better when smaller; people's explicit ranking goes before their votes.
    feedback = [-float(rank) for rank in slate.ranks] if slate.ranks is not None else slate.scores
    loglik = plackett_luce_loglik(logprobs, feedback)
    return {
        "alignment": distributional_alignment(logprobs, options.temperature),
        "plackett_luce": loglik,
        "choice": choice_probability(loglik, feedback),
    }


def _from_groups(
    generation: Generation,
    slate: Slate,
    group_scores: Sequence[Mapping[str, float]],
    vectors: Mapping[str, Floats],
    options: MetricOptions,
) -> dict[str, float]:
    similarity = _similarity(generation, slate, vectors)
    _, weights = group_weights(group_scores)
    return {
        "worst_group": worst_group(group_coverage(similarity, weights, options.threshold)),
        "worst_group_nearness": worst_group(group_coverage(similarity, weights, None)),
    }


def _faithfulness(joined: Sequence[tuple[Generation, int]], align_fn: AlignFn) -> list[float]:
    """Mean AlignScore of a prompt's answers; those without a sentence left out, NaN if none has one."""
    contexts = [prompt_text(generation.prompt) for generation, _ in joined for _ in generation.texts]
    claims = [text for generation, _ in joined for text in generation.texts]
    scores = iter(align_scores(contexts, claims, align_fn))
    means = []
    for generation, _ in joined:
        defined = [score for score in (next(scores) for _ in generation.texts) if score == score]
        means.append(float(np.mean(defined)) if defined else float("nan"))
    return means
