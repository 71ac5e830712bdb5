"""Scores policies that are models: logged responses under each, fresh responses under it and the logging policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from .._arrays import Integers
from ..data.schema import Slate, Turn
from ..generation.sampling import sampled_with
from .log import FreshScores
from .logging_policies import rescoring_gap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data.tokenize import EncodedSlate
    from ..propensity.scores import ModelScores
    from ..scale.pool import Pool, PoolScorer

logger = logging.getLogger(__name__)

#: A policy that can score: a hub name, folder or GGUF file, or a model with its tokenizer.
Model: TypeAlias = "str | os.PathLike[str] | tuple[PreTrainedModel, PreTrainedTokenizerBase]"

#: Called with the policy's name and the numbers of distinct responses scored so far and in total.
OnScored = Callable[[str, int, int], None]

#: Fresh responses of one policy, a list for each slate.
Samples: TypeAlias = Sequence[Sequence[str]]

#: Which of them the policy ended itself, and not a limit of tokens.
Finished: TypeAlias = Sequence[Sequence[bool]]


class FreshTexts(NamedTuple):
    """Fresh responses by policy; a policy that ``finished`` does not name ended all of its own."""

    texts: Mapping[str, Samples] = {}
    finished: Mapping[str, Finished] = {}

    def of(self, policies: Collection[str]) -> FreshTexts:
        """Those of some policies."""
        return FreshTexts(
            {name: each for name, each in self.texts.items() if name in policies},
            {name: each for name, each in self.finished.items() if name in policies},
        )

    def with_tokens(self) -> FreshTexts:
        """Without responses that were cut at a limit before any text: they have no token that could be scored.

        Raises:
            ValueError: as `check_samples`; a slate with no other fresh response.
        """
        texts, finished = dict(self.texts), dict(self.finished)
        for name, ended in self.finished.items():
            _check_finished(self, name)
            kept = [
                [at for at, text in enumerate(of_slate) if text.strip() or done[at]]
                for of_slate, done in zip(self.texts[name], ended, strict=True)
            ]
            texts[name] = [[each[at] for at in ats] for each, ats in zip(self.texts[name], kept, strict=True)]
            finished[name] = [[each[at] for at in ats] for each, ats in zip(ended, kept, strict=True)]
            for index, ats in enumerate(kept):
                if not ats and self.texts[name][index]:
                    raise ValueError(
                        f"samples[{name!r}]: slate {index}: every fresh response was cut at its token limit before any "
                        "text; draw longer ones"
                    )
            if left_out := sum(map(len, self.texts[name])) - sum(map(len, kept)):
                logger.warning("%s: %d fresh responses without text, cut at their limit, are left out", name, left_out)
        return FreshTexts(texts, finished)


@dataclass(frozen=True)
class Scoring:
    """How missing log-probabilities are computed; see `pope_align.propensity.scores.score_model`.

    If None, ``max_length``, ``dtype`` and ``template_date`` are those that the log was scored with, else 1024,
    "float32" and today. With ``pool``, its processes load the policies, which are then names or folders, and score the
    same batches as this one would; this one loads them too, into the memory of the CPU, for their hashes and checks.
    """

    max_length: int | None = None
    dtype: Literal["float32", "bfloat16", "float16", "auto"] | None = None
    batch_tokens: int = 8192
    cache_dir: str | os.PathLike[str] | None = None
    template_date: str | None = None
    pool: Pool | None = None


class PromptAndResponses(NamedTuple):
    """The fields of a slate that tokenising needs, for responses without ratings."""

    prompt: str | list[Turn]
    completions: list[str] | list[list[Turn]]
    logging_policy: dict[str, Any] | None
    slate_id: str | None
    finished: list[bool] | None = None  # unknown: responses are assumed to be finished
    completion_ids: list[list[int]] | None = None


@dataclass
class Scored:
    """The scores of all policies."""

    logged: dict[str, ModelScores] = field(default_factory=dict)
    fresh: dict[str, ModelScores] = field(default_factory=dict)  # each policy's own responses under itself
    under_logging: dict[str, ModelScores] = field(default_factory=dict)  # the same under the logging policy
    rescored_gap: float | None = None  # of the log under its own logging policy; None: it was not scored

    def fresh_scores(self, samples: Mapping[str, Samples]) -> dict[str, FreshScores]:
        """The fresh responses of every policy that was scored on its own."""
        result = {}
        for name, own in self.fresh.items():
            logging = self.under_logging.get(name)
            result[name] = FreshScores(
                owner=owners(samples[name]),
                target=_flat(own.totals),
                logging=None if logging is None else _flat(logging.totals),
                tokens=_flat(own.tokens).astype(np.int64),
            )
        return result


def owners(samples: Samples) -> Integers:
    """``[N]`` the slate of every fresh response."""
    return np.repeat(np.arange(len(samples)), [len(texts) for texts in samples])


def _check_finished(fresh: FreshTexts, name: str) -> None:
    if name not in fresh.texts:
        raise ValueError(f"samples_finished: expected names among {', '.join(fresh.texts)}, got {name}")
    if list(map(len, fresh.finished[name])) != list(map(len, fresh.texts[name])):
        raise ValueError(f"samples_finished[{name!r}]: expected true or false for each of samples[{name!r}]")


def check_samples(slates: Sequence[Slate], fresh: FreshTexts) -> None:
    """Raises: ValueError: samples that are not one list of responses for each slate; other shapes of ``finished``."""
    for name in fresh.finished:
        _check_finished(fresh, name)
    for name, given in fresh.texts.items():
        if len(given) != len(slates):
            raise ValueError(f"samples[{name!r}]: expected one list per slate ({len(slates)}), got {len(given)}")
        for index, texts in enumerate(given):
            if not texts:
                raise ValueError(f"samples[{name!r}]: slate {index}: expected at least one fresh response, got none")


def score_policies(
    slates: Sequence[Slate],
    policies: Mapping[str, Model],
    *,
    fresh: FreshTexts,
    logging_policy: Model | None = None,
    scoring: Scoring = Scoring(),
    report: OnScored | None = None,
) -> Scored:
    """Score the log under every policy, and its fresh responses under itself and under the logging policy.

    Every text is tokenised once per tokenizer; every model is loaded and hashed once.

    Args:
        slates: the log.
        policies: by name; a policy given by path is loaded only while it is scored.
        fresh: optional fresh responses per policy and slate.
        logging_policy: the model that wrote the log. None: the policy with the same weights, if any. Without effect on
            a log that was not sampled from the model itself (a temperature, top-p, top-k): what the model scores is
            then no propensity.
        scoring: how.
        report: called with a policy's name and the responses scored so far and in all.

    Raises:
        ValueError: token counts differ from those of the log although the tokenizer is the same; a model in memory with
            a pool; errors of `pope_align.data.encode_slate`.
    """
    from ..propensity.scores import model_provenance, score_model

    logged: dict[str, Any] = slates[0].logging_policy or {}
    max_length = int(scoring.max_length or logged.get("max_length") or 1024)
    dtype = scoring.dtype or logged.get("dtype") or "float32"
    tokens = _Tokens(slates, max_length, scoring.template_date)
    scored = Scored()
    asked: dict[str, Model] = dict(policies)
    altered = next(filter(None, (sampled_with(slate.logging_policy) for slate in slates)), None)
    if altered:
        spelled = ", ".join(f"{name} {value}" for name, value in altered.items())
        logger.warning("the log was sampled with %s, which no model is scored with: support is not checked", spelled)
    elif logging_policy is not None:
        asked["(logging policy)"] = logging_policy  # last, after the policies' own checks
    fingerprints = {(slate.logging_policy or {}).get("model_fingerprint") for slate in slates}
    for names in _by_model(asked):
        first, own = names[0], [name for name in names if name in policies]
        with _loaded(asked[first], dtype, scoring.pool) as (model, tokenizer):
            provenance = model_provenance(model, tokenizer, max_length)
            elsewhere = _elsewhere(scoring.pool, asked[first], first, dtype, provenance["model_fingerprint"])

            def score(encoded: Sequence[EncodedSlate], name: str) -> ModelScores:
                return score_model(
                    encoded,
                    model,
                    tokenizer,
                    max_length=max_length,
                    batch_tokens=scoring.batch_tokens,
                    cache_dir=scoring.cache_dir,
                    provenance=provenance,  # noqa: B023
                    elsewhere=elsewhere,  # noqa: B023
                    progress=None if report is None else lambda done, of: report(name, done, of),
                )

            encoded = tokens.log(tokenizer, provenance["tokenizer_fingerprint"], first)
            scored.fresh |= {
                name: score(tokens.fresh(tokenizer, name, fresh), name) for name in own if name in fresh.texts
            }
            of_log = score(encoded, first)
            scored.logged |= dict.fromkeys(own, of_log)
            wrote = own != names or (logging_policy is None and fingerprints == {provenance["model_fingerprint"]})
            if wrote and not altered:
                scored.rescored_gap = _gap(slates, of_log)
                scored.under_logging = {
                    name: scored.fresh[name] if name in own else score(tokens.fresh(tokenizer, name, fresh), first)
                    for name in fresh.texts
                }
    return scored


def _by_model(policies: Mapping[str, Model]) -> list[list[str]]:
    """The names of each model: those of one file or folder, hub name, or model in memory belong together."""
    found: dict[object, list[str]] = {}
    for name, policy in policies.items():
        if isinstance(policy, tuple):
            key: object = tuple(map(id, policy))
        else:
            key = os.path.realpath(policy) if os.path.exists(policy) else os.fspath(policy)
        found.setdefault(key, []).append(name)
    return list(found.values())


def _gap(slates: Sequence[Slate], scores: ModelScores) -> float:
    recorded = [total for slate in slates for total in slate.logging_logprobs or []]
    return rescoring_gap(recorded, _flat(scores.totals), _flat(scores.tokens))


class _Tokens:
    """The texts of a log and of samples as tokens, kept by tokenizer."""

    def __init__(self, slates: Sequence[Slate], max_length: int, template_date: str | None) -> None:
        self.slates = slates
        self.options: Any = {"max_length": max_length, "template_date": template_date}
        self.known: dict[tuple[str, str], Sequence[EncodedSlate]] = {}

    def log(self, tokenizer: PreTrainedTokenizerBase, fingerprint: str, policy: str) -> Sequence[EncodedSlate]:
        from ..propensity.logging_policy import check_token_counts
        from ..propensity.scores import encode_log

        key = (fingerprint, "")
        if key not in self.known:
            self.known[key] = encode_log(self.slates, tokenizer, **self.options)
            for index, (slate, ids) in enumerate(zip(self.slates, self.known[key], strict=True)):
                check_token_counts(slate, ids, f"policy {policy!r}: slate {index}")
        return self.known[key]

    def fresh(self, tokenizer: PreTrainedTokenizerBase, name: str, fresh: FreshTexts) -> Sequence[EncodedSlate]:
        from ..data.tokenize import encode_slates, tokenizer_fingerprint

        key = (tokenizer_fingerprint(tokenizer), name)
        if key not in self.known:
            ended: Sequence[Sequence[bool] | None] = fresh.finished.get(name) or [None] * len(self.slates)
            texts = [
                _unrated(slate, list(own), None if whole is None else list(whole))
                for slate, own, whole in zip(self.slates, fresh.texts[name], ended, strict=True)
            ]
            self.known[key] = encode_slates(texts, tokenizer, **self.options)[0]
        return self.known[key]


def _unrated(slate: Slate, texts: list[str], finished: list[bool] | None) -> PromptAndResponses:
    """The slate's prompt with other responses, as text or turns like the log's."""
    as_text = isinstance(slate.completions[0], str)
    completions: Any = texts if as_text else [[{"role": "assistant", "content": text}] for text in texts]
    return PromptAndResponses(slate.prompt, completions, slate.logging_policy, slate.slate_id, finished)


def _flat(values: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([value for of_slate in values for value in of_slate], dtype=np.float64)


@contextmanager
def _loaded(policy: Model, dtype: str, pool: Pool | None) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    if isinstance(policy, tuple):
        yield policy
        return
    from ..models.loading import best_device, load_model, load_tokenizer

    path = os.fspath(policy)
    model = load_model(path, dtype=dtype)
    yield model if pool is not None else model.to(best_device()), load_tokenizer(path)


def _elsewhere(pool: Pool | None, policy: Model, name: str, dtype: str, fingerprint: str) -> PoolScorer | None:
    from ..scale.pool import PoolScorer

    if pool is None:
        return None
    if isinstance(policy, tuple):
        raise ValueError(f"policies[{name!r}]: expected a name or folder, which other processes can load, got a model")
    return PoolScorer(pool, os.fspath(policy), fingerprint, dtype)
