"""General abilities before and after training: nats per token of an unrelated text, and a multiple-choice test.

Both are small, to see damage and not to rank models: the questions are 40 of common knowledge, in our own words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...data import Slate
from ...models.limits import limits
from ...propensity.scores import score_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FOLDER = Path(__file__).parent / "abilities_data"

#: Slates: a question, its options, and 1 for the right one; and a text about something else than the training logs.
QUESTIONS, TEXT = _FOLDER / "questions.jsonl", _FOLDER / "tides.txt"


def choices(
    questions: Sequence[Slate], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 512
) -> list[bool]:
    """Whether the model gives the right option of each question the largest probability per token.

    Raises:
        ValueError: a question without exactly one right option.
    """
    for number, question in enumerate(questions, start=1):
        if sorted(question.scores)[-2:] != [0.0, 1.0] or set(question.scores) != {0.0, 1.0}:
            raise ValueError(f"questions: row {number}: scores: expected one 1 and else 0, got {question.scores}")
    scores = score_model(questions, model, tokenizer, max_length=max_length)
    right = []
    for question, totals, tokens in zip(questions, scores.totals, scores.tokens, strict=True):
        means = [total / count for total, count in zip(totals, tokens, strict=True)]
        right.append(max(range(len(means)), key=means.__getitem__) == question.scores.index(1.0))
    return right


def text_nats(
    text: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, window: int = 512
) -> tuple[float, int]:
    """Nats per token of a text without a chat template, in windows that do not overlap, and the number of tokens.

    The first token of a window is given and not scored. ``exp`` of the result is the perplexity.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise ValueError(f"text: expected at least 2 tokens, got {len(ids)}")
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        row = torch.tensor([ids[start : start + window]], device=model.device)
        if row.shape[1] < 2:
            break
        with torch.inference_mode():
            logits = model(row).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum"))
        count += row.shape[1] - 1
    return total / count, count


def abilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Slate], text: str
) -> dict[str, Any]:
    """Both measures, ready for JSON."""
    window = min(512, limits(model).trained or 512)
    nats, tokens = text_nats(text, model, tokenizer, window=window)
    right = choices(questions, model, tokenizer, max_length=window)
    return {
        "model": model.name_or_path,
        "right": right,
        "accuracy": sum(right) / len(right),
        "text_nats_per_token": nats,
        "text_tokens": tokens,
    }
