"""All metrics of a set of generations, prompt by prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .._arrays import Floats
from ..data import Slate
from ..data.split import written_group
from ..generation.generations import (
    Generation,
    GenerationSet,
    completion_text,
    join_slates,
    prompt_key,
    prompt_text,
    slate_keys,
)
from ..propensity.scores import score_model
from ..propensity.scoring import Elsewhere, OnProgress
from .embeddings import Embedder
from .faithfulness import AlignFn, align_scores
from .lexical import words
from .prompt import AnsweredPrompt, MetricOptions
from .registry import BY_NAME, check_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: Returns the policy's ``l_theta`` of the completions of slates, in nats per token.
ReferenceScorer = Callable[[Sequence[Slate]], Sequence[Floats]]


@dataclass(frozen=True)
class PromptMetrics:
    """One model's metrics, one entry per prompt; NaN where a metric is undefined."""

    model: str
    keys: list[str]  # [Q] of the slates
    prompts: list[str]  # [Q] equal for equal prompts
    values: dict[str, Floats]  # name -> [Q]
    answers: int  # in all
    empty: int  # answers without a word: similarity 0 to everything
    unanswered: int  # slates without an answer
    unmatched: int  # generations without a slate
    settings: dict[str, object] = field(default_factory=dict)
    clusters: list[str] | None = None  # [Q] clusters for the bootstrap; None: the prompts
    covered: list[list[list[int]]] = field(default_factory=list)  # [Q][n] references that each answer covers

    def __post_init__(self) -> None:
        check_names(list(self.values))

    @property
    def drawn(self) -> list[str]:
        """``[Q]`` the cluster of every slate."""
        return self.prompts if self.clusters is None else self.clusters


def evaluate_generations(
    generations: GenerationSet,
    references: Sequence[Slate],
    *,
    embedder: Embedder,
    options: MetricOptions | None = None,
    score_references: ReferenceScorer | None = None,
    align_fn: AlignFn | None = None,
    tokenize: Callable[[str], Sequence[str]] = words,
    cluster: Callable[[Slate], str] | None = None,
    progress: OnProgress | None = None,
) -> PromptMetrics:
    """Every metric of `registry.BY_NAME` that the inputs allow, for every prompt with answers and references.

    Generations are joined to slates by key, or by prompt if they come from elsewhere. An answer without a word has
    similarity 0 to every reference and to the prompt, and no sentence for AlignScore; in diversity and energy distance
    it counts as a text.

    Args:
        references: slates; their completions are the references, their scores the votes, their ``group_scores`` (if
            any) the approval of opinion groups.
        embedder: of answers, references and prompts.
        score_references: gives, per slate, the policy's mean log-probability of every completion (see `policy_scores`);
            called once, with the slates that have answers. Without it ``alignment``, ``plackett_luce`` and ``choice``
            are left out.
        align_fn: see `align_scores`; the prompt is the context, as in the paper. Without it, no ``align_score``.
        tokenize: for Distinct-n, EAD and Self-BLEU.
        cluster: a slate's cluster for the bootstrap. None: the group written by `pope convert --group`, or else the
            prompt.
        progress: called with the numbers of distinct texts embedded so far and in total.

    Raises:
        ValueError: no generation belongs to any slate.
    """
    options = options or MetricOptions()
    joined = join_slates(generations, references)
    if not joined:
        raise ValueError(
            f"generations of {generations.model!r}: expected prompts or keys of the references, got none: first key "
            f"{generations.rows[0].key!r}, first reference {slate_keys(references)[0]!r}"
        )
    clusters = [  # first, because a slate may lack its group
        cluster(references[index])
        if cluster is not None
        else written_group(references[index]) or prompt_key(generation.prompt)
        for generation, index in joined
    ]
    vectors = _embed(joined, references, embedder, progress)
    logprobs = score_references([references[index] for _, index in joined]) if score_references is not None else None
    align = _faithfulness(joined, align_fn) if align_fn is not None else None
    rows, covered = [], []
    for at, (generation, index) in enumerate(joined):
        prompt = AnsweredPrompt(
            generation,
            references[index],
            vectors,
            tokenize,
            options,
            logprobs=None if logprobs is None else logprobs[at],
            align=None if align is None else align[at],
        )
        rows.append({each.name: each.compute(prompt) for each in BY_NAME.values() if prompt.has(each.needs)})
        covered.append([np.flatnonzero(row >= options.threshold).tolist() for row in prompt.similarity])
    names = [name for name in BY_NAME if any(name in row for row in rows)]
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
        clusters=clusters,
        covered=covered,
    )


def policy_scores(
    slates: Sequence[Slate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 1024,
    provenance: Mapping[str, Any] | None = None,
    elsewhere: Elsewhere | None = None,
    progress: OnProgress | None = None,
) -> list[Floats]:
    """The policy's ``l_theta(y_j | q)`` of every completion of every slate, in nats per token.

    Args:
        max_length, provenance, elsewhere, progress: as in `score_model`.
    """
    scores = score_model(
        slates,
        model,
        tokenizer,
        max_length=max_length,
        provenance=provenance,
        elsewhere=elsewhere,
        progress=progress,
    )
    return [np.divide(totals, tokens) for totals, tokens in zip(scores.totals, scores.tokens, strict=True)]


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


def _faithfulness(joined: Sequence[tuple[Generation, int]], align_fn: AlignFn) -> list[float]:
    """Mean AlignScore of a prompt's answers with at least one sentence; NaN if there are none."""
    contexts = [prompt_text(generation.prompt) for generation, _ in joined for _ in generation.texts]
    claims = [text for generation, _ in joined for text in generation.texts]
    scores = iter(align_scores(contexts, claims, align_fn))
    means = []
    for generation, _ in joined:
        defined = [score for score in (next(scores) for _ in generation.texts) if score == score]
        means.append(float(np.mean(defined)) if defined else float("nan"))
    return means
