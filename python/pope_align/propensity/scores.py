"""What scoring any model gives: totals, token counts, and where they came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ..data.schema import Slate
from ..data.tokenize import EncodedSlate, encode_slates, tokenizer_fingerprint
from ..models.rope import length_rule
from ..training.objective_file import read_training_objective
from .scoring import OnProgress, model_fingerprint, score_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelScores:
    """Log-probabilities of logged responses under one model, be it a policy to evaluate or the logging policy.

    Attributes:
        totals: ``[S][k]`` total log-probability of every response, in nats.
        tokens: ``[S][k]`` tokens that each total sums over, in the model's own tokenizer.
        provenance: which model, tokenizer and options made them; see `model_provenance`. What the model is to the log
            is not part of it: only `logging_policy.score_slates` knows that.
    """

    totals: list[list[float]]
    tokens: list[list[int]]
    provenance: Mapping[str, Any]

    @property
    def nats_per_token(self) -> float:
        """Cross-entropy: minus the sum of all totals, per token; ``exp`` of it is the perplexity."""
        return -sum(map(sum, self.totals)) / sum(map(sum, self.tokens))


def score_model(
    slates: Sequence[Slate] | Sequence[EncodedSlate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    progress: OnProgress | None = None,
) -> ModelScores:
    """Log-probability of every response of every slate under ``model``, with token counts and provenance.

    The numbers are those of `scoring.score_responses`, which says how they are computed, cached and resumed. Scores and
    log-probabilities that slates carry have no part in it.

    Args:
        slates: the log; or its tokens, as `encode_slates` made them with this tokenizer and ``max_length``, so that a
            caller who needs the tokens too makes them once. A policy's own samples are `EncodedSlate` as well.
        model: any causal language model of transformers, on its device and in its dtype.
        tokenizer: the model's.
        max_length: as in `encode_slate`; what is cut is reported through the log of this module.
        batch_tokens, cache_dir, progress: as in `scoring.score_responses`.
        provenance: of an earlier call with the same weights, tokenizer and ``max_length``: saves reading every
            parameter for its hash again. The caller answers for the weights being the same.

    Raises:
        ValueError: tokens of another tokenizer; anything that `encode_slate` or `scoring.score_responses` refuse.
    """
    encoded = _encoded(slates, tokenizer, max_length)
    about = dict(provenance) if provenance is not None else model_provenance(model, tokenizer, max_length)
    dates = {slate.template_date for slate in encoded}
    if len(dates) == 1 and None not in dates:
        about["template_date"] = dates.pop()
    totals = score_responses(
        encoded,
        model,
        batch_tokens=batch_tokens,
        cache_dir=cache_dir,
        fingerprint=about["model_fingerprint"],
        progress=progress,
    )
    return ModelScores(totals, [[len(ids) for ids in slate.completion_ids] for slate in encoded], about)


def model_provenance(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """What decides a model's scores, by the names that the table in `propensity.logging_policy` explains."""
    template = tokenizer.chat_template
    rule, training = length_rule(model), read_training_objective(model.name_or_path or os.devnull)
    return {
        "model": model.name_or_path or type(model).__name__,
        "model_fingerprint": model_fingerprint(model),
        "tokenizer": tokenizer.name_or_path or type(tokenizer).__name__,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
        "chat_template": hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16] if template else None,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "max_length": max_length,
        **({} if rule is None else {"rope": str(rule)}),
        **({} if training is None else {"training": training}),
        "versions": {name: _version(name) for name in ("torch", "transformers", "pope-core")},
    }


def encode_log(
    slates: Sequence[Slate],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    template_date: str | None = None,
    name: str = "",
) -> list[EncodedSlate]:
    """`encode_slates`, with what was cut told through the log: a warning, unless nothing was.

    Args:
        name: of the slates, in that report.
    """
    encoded, report = encode_slates(slates, tokenizer, max_length=max_length, template_date=template_date)
    prefix = f"{name}: " if name else ""
    logger.log(logging.WARNING if report.anything_cut else logging.INFO, "%s%s", prefix, report)
    return encoded


def _encoded(
    slates: Sequence[Slate] | Sequence[EncodedSlate], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Sequence[EncodedSlate]:
    if not all(isinstance(slate, EncodedSlate) for slate in slates):
        return encode_log(cast("Sequence[Slate]", slates), tokenizer, max_length=max_length)
    encoded = cast("Sequence[EncodedSlate]", slates)
    expected = tokenizer_fingerprint(tokenizer)
    for number, slate in enumerate(encoded, start=1):
        if slate.tokenizer != expected:
            raise ValueError(
                f"slates: slate {number}: expected tokens of tokenizer {expected}, got those of {slate.tokenizer!r}"
            )
    return encoded


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # running from a source tree
        return None
