"""The logged responses under the policies to evaluate: scored with models, cached, in the tokens of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..data.schema import Slate
from .log import PolicyScores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: A policy that can score: a hub name, folder or GGUF file, or a model with its tokenizer.
Model: TypeAlias = "str | os.PathLike[str] | tuple[PreTrainedModel, PreTrainedTokenizerBase]"

#: Called with the policy's name and the number of distinct responses scored so far and in all.
Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scoring:
    """How missing log-probabilities are computed; see `pope_align.propensity.scoring.score_responses`.

    ``max_length`` and ``dtype`` None: those the log was scored with, else 1024 and "float32".
    """

    max_length: int | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    batch_tokens: int = 8192
    cache_dir: str | os.PathLike[str] | None = None


def score_policy(
    slates: Sequence[Slate],
    name: str,
    policy: Model,
    *,
    samples: Sequence[Sequence[str]] | None = None,
    scoring: Scoring = Scoring(),
    report: Report | None = None,
) -> tuple[PolicyScores, PolicyScores | None]:
    """Totals, tokens and provenance of the logged responses under one policy; and of fresh samples of it.

    Args:
        slates: the log.
        name: of the policy, for progress and messages.
        policy: given by name it is loaded for the time of scoring.
        samples: for each slate, fresh responses of the policy; their scores come one after the other.

    Raises:
        ValueError: tokens that differ from those the log was scored with by the same tokenizer; samples that are
            missing; what `pope_align.data.encode_slate` refuses.
    """
    from ..data.tokenize import encode_slates
    from ..propensity.logging_policy import check_token_counts, score_slates

    logged: dict[str, Any] = slates[0].logging_policy or {}
    max_length = int(scoring.max_length or logged.get("max_length") or 1024)
    with _loaded(policy, scoring.dtype or logged.get("dtype") or "float32") as (model, tokenizer):

        def scores(of: Sequence[Slate]) -> PolicyScores:
            scored = score_slates(
                of,
                model,
                tokenizer,
                how="recorded",
                max_length=max_length,
                batch_tokens=scoring.batch_tokens,
                cache_dir=scoring.cache_dir,
                overwrite=True,
                progress=None if report is None else lambda done, count: report(name, done, count),
            )
            totals = [total for slate in scored for total in slate.logging_logprobs or []]
            tokens = [count for slate in scored for count in slate.completion_tokens or []]
            provenance = {key: value for key, value in (scored[0].logging_policy or {}).items() if key != "how"}
            return PolicyScores(np.array(totals), np.array(tokens), provenance)

        encoded, _ = encode_slates(slates, tokenizer, max_length=max_length)
        for index, (slate, ids) in enumerate(zip(slates, encoded, strict=True)):
            check_token_counts(slate, ids, f"policy {name!r}: slate {index}")
        fresh = None if samples is None else scores(_sampled(slates, samples, name))
        return scores(slates), fresh


def _sampled(slates: Sequence[Slate], samples: Sequence[Sequence[str]], name: str) -> list[Slate]:
    """Slates of the policy's own responses, to be scored like logged ones."""
    if len(samples) != len(slates):
        raise ValueError(f"samples[{name!r}]: expected one list per slate ({len(slates)}), got {len(samples)}")
    return [
        Slate(slate.prompt, _as_logged(slate, texts), [0.0] * len(texts), slate_id=slate.slate_id)
        for slate, texts in zip(slates, samples, strict=True)
    ]


def _as_logged(slate: Slate, texts: Sequence[str]) -> list[Any]:
    if isinstance(slate.completions[0], str):
        return list(texts)
    return [[{"role": "assistant", "content": text}] for text in texts]


@contextmanager
def _loaded(policy: Model, dtype: str) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    if isinstance(policy, tuple):
        yield policy
        return
    from ..model import best_device, load_model, load_tokenizer

    path = os.fspath(policy)
    yield load_model(path, dtype=dtype).to(best_device()), load_tokenizer(path)
