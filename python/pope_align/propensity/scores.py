"""Scores any model on logged responses: totals, token counts, provenance."""

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
from .scoring import Elsewhere, OnProgress, model_fingerprint, score_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelScores:
    """Log-probabilities of logged responses under one model, a policy to evaluate or the logging policy.

    Attributes:
        totals: ``[S][k]`` total log-probability of every response, in nats.
        tokens: ``[S][k]`` number of tokens of each response under the model's tokenizer.
        provenance: model, tokenizer and options; see `model_provenance`. The model's relation to the log is not part of
            it; `logging_policy.score_slates` adds it.
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
    elsewhere: Elsewhere | None = None,
    progress: OnProgress | None = None,
) -> ModelScores:
    """Log-probability of every response of every slate under ``model``, with token counts and provenance.

    See `scoring.score_responses` for how scores are computed, cached and resumed. Scores and log-probabilities of the
    slates are not used.

    Args:
        slates: the log; or its tokens (`EncodedSlate`, also of a policy's own samples), made by `encode_slates` with
            this tokenizer and ``max_length``, so that a caller who needs the tokens can tokenise once.
        model: any causal language model of transformers, on its device and in its dtype.
        tokenizer: the model's.
        max_length: as in `encode_slate`; truncation is logged.
        batch_tokens, cache_dir, elsewhere, progress: as in `scoring.score_responses`.
        provenance: from an earlier call with the same weights, tokenizer and ``max_length``, to avoid hashing all
            parameters again. The caller guarantees that the weights are the same.

    Raises:
        ValueError: tokens of another tokenizer; errors of `encode_slate` and `scoring.score_responses`.
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
        elsewhere=elsewhere,
        progress=progress,
    )
    return ModelScores(totals, [[len(ids) for ids in slate.completion_ids] for slate in encoded], about)


def model_provenance(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> dict[str, Any]:
    """Everything that determines a model's scores; the table in `propensity.logging_policy` explains the keys."""
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
    """`encode_slates`, with a warning if something was truncated.

    Args:
        name: the name of the slates in the warning.
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
