"""Baselines on the same log, by TRL: SFT on the best response, DPO on pairs of better and worse responses.

They train on the same tokens as POPE: slates are tokenised by `encode_slates` and passed as token ids.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedModel

from .._extras import require
from ..data.schema import Slate
from ..data.tokenize import EncodedSlate, encode_slates
from ..models.loading import load_model, load_tokenizer
from .options import Pairs
from .sources import SlateSource, as_slates

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

logger = logging.getLogger(__name__)


def sft_rows(slates: Sequence[Slate], encoded: Sequence[EncodedSlate]) -> list[dict[str, list[int]]]:
    """The best-scored response of every slate (the first of equals): ``input_ids``, and ``labels`` that are -100 on the
    prompt.
    """
    rows = []
    for slate, ids in zip(slates, encoded, strict=True):
        response = ids.completion_ids[max(range(len(slate.scores)), key=slate.scores.__getitem__)]
        rows.append({"input_ids": ids.prompt_ids + response, "labels": [-100] * len(ids.prompt_ids) + response})
    return rows


def dpo_rows(
    slates: Sequence[Slate], encoded: Sequence[EncodedSlate], pairs: Pairs = "best-worst"
) -> list[dict[str, list[int]]]:
    """Pairs of every slate: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``.

    Args:
        pairs: "best-worst", one of each slate (the first of equals), or "all" pairs of different scores.

    Raises:
        ValueError: no slate has two different scores.
    """
    rows = []
    for slate, ids in zip(slates, encoded, strict=True):
        for chosen, rejected in _pairs(slate.scores, pairs):
            rows.append(
                {
                    "prompt_ids": ids.prompt_ids,
                    "chosen_ids": ids.completion_ids[chosen],
                    "rejected_ids": ids.completion_ids[rejected],
                }
            )
    if not rows:
        raise ValueError("slates: expected scores that differ within some slate, got equal ones in all: no pairs")
    return rows


def _pairs(scores: Sequence[float], pairs: Pairs) -> Iterator[tuple[int, int]]:
    """Indices of the better and the worse response."""
    everything = range(len(scores))
    candidates: Iterator[tuple[int, int]] = itertools.permutations(everything, 2)
    if pairs == "best-worst":
        candidates = iter([(max(everything, key=scores.__getitem__), min(everything, key=scores.__getitem__))])
    return ((better, worse) for better, worse in candidates if scores[better] > scores[worse])


def make_baseline(
    method: Literal["sft", "dpo"],
    model: str | PreTrainedModel,
    args: TrainingArguments,
    train_data: SlateSource,
    eval_data: SlateSource | None = None,
    *,
    pairs: Pairs = "best-worst",
    processing_class: PreTrainedTokenizerBase | None = None,
    peft_config: PeftConfig | None = None,
) -> Trainer:
    """A TRL trainer for the same slates, which need no ``logging_logprobs`` here.

    Args:
        method: "sft" (`sft_rows`) or "dpo" (`dpo_rows`).
        args: ``trl.SFTConfig`` or ``trl.DPOConfig``; its ``max_length`` is that of `encode_slates`.
        pairs: of "dpo".

    Raises:
        ImportError: TRL is not installed.
        ValueError: invalid slates, or no pairs.
    """
    trl = require("trl", extra="baselines", purpose=f"for method {method!r}")
    datasets = require("datasets", extra="baselines", purpose=f"for method {method!r}")
    name = model if isinstance(model, str) else model.config.name_or_path
    tokenizer = processing_class or load_tokenizer(name)
    max_length: int | None = args.max_length
    if max_length is None:
        raise ValueError("max_length: expected a number of tokens, got None")

    def rows(source: SlateSource) -> Any:
        slates = as_slates(source)
        encoded, report = encode_slates(slates, tokenizer, max_length=max_length)
        logger.log(logging.WARNING if report.anything_cut else logging.INFO, "%s", report)
        return datasets.Dataset.from_list(
            sft_rows(slates, encoded) if method == "sft" else dpo_rows(slates, encoded, pairs)
        )

    train, held_out = rows(train_data), None if eval_data is None else rows(eval_data)
    if isinstance(model, str):
        model = load_model(model)
    shared = {"train_dataset": train, "eval_dataset": held_out, "processing_class": tokenizer}
    if method == "sft":
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        return trl.SFTTrainer(model, args, peft_config=peft_config, **shared)

    class TokenisedDpoTrainer(trl.DPOTrainer):  # type: ignore[name-defined]
        def _prepare_dataset(self, dataset: Any, *rest: Any) -> Any:
            return dataset  # already tokenised

    # TRL would load the reference by the model's name, which a model in memory may not have. With an adapter the
    # reference is the model without it.
    adapted = peft_config is not None or not isinstance(model, PreTrainedModel)
    reference = None if adapted else copy.deepcopy(model)
    return TokenisedDpoTrainer(model, reference, args, peft_config=peft_config, **shared)
