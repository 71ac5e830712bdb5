"""Fluency of answers: nats per token under a third model, prompt by prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...data import Slate
from ...generation.generations import GenerationSet
from ...propensity.scores import score_model
from ...propensity.scoring import OnProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fluency(
    generations: GenerationSet,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Nats per token of the answers to every prompt, given the prompt, under a model that wrote none of them.

    Lower is more fluent, but repetition is cheap too: read it beside diversity. Blank answers are counted and left out.

    Returns:
        ``rows``: key, nats per token and tokens of each prompt; ``blank``: the number of blank answers; ``model``.
    """
    rows = [(row, [text for text in row.texts if text.strip()]) for row in generations.rows]
    kept = [(row, texts) for row, texts in rows if texts]
    slates = [Slate(row.prompt, texts, [0.0] * len(texts)) for row, texts in kept]
    scores = score_model(slates, model, tokenizer, max_length=max_length, progress=progress)
    return {
        "model": scores.provenance["model"],
        "blank": sum(len(row.texts) - len(texts) for row, texts in rows),
        "rows": [
            {"key": row.key, "nats_per_token": -sum(totals) / sum(tokens), "tokens": sum(tokens)}
            for (row, _), totals, tokens in zip(kept, scores.totals, scores.tokens, strict=True)
        ],
    }
