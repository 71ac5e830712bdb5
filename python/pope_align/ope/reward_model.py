"""Reward models for the direct and doubly robust methods: ridge on embeddings, cross-fitted by query, or your own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from ..data.schema import Slate
from ..generation.generations import completion_text, prompt_text
from .crossfit import FOLDS, Ridge, deal
from .log import LoggedSlates
from .predictions import Predictions

#: Sentence embeddings: ``embed(texts)`` is ``[n, d]``.
Embed = Callable[[list[str]], npt.ArrayLike]

#: ``predict(prompts, responses)`` is ``[n]`` utilities.
Predict = Callable[[list[str], list[str]], npt.ArrayLike]


def fit_predictions(
    log: LoggedSlates,
    samples: Sequence[Sequence[str]],
    embed: Embed | None = None,
    *,
    folds: int = FOLDS,
    seed: int = 0,
    target_diversity: Floats | None = None,
) -> Predictions:
    """Predictions of a ridge regression of utility on the embeddings of prompt and response and the response's length.

    Queries (slates with the same prompt or cluster) are divided into ``folds`` folds; a model that is fitted on the
    other folds predicts the logged responses and fresh samples of each fold. So no model was fitted to feedback on a
    query that it predicts. The penalty of each fit has the least leave-one-out error. ``quality["r2"]`` is the share of
    the variance of logged utilities that the out-of-fold predictions explain; at 0 or below the model has learned
    nothing.

    Args:
        log: made by `LoggedSlates.from_slates`, so that it has text.
        samples: for each slate, fresh responses of the policy to its prompt (one or more).
        embed: sentence embeddings; None: all-MiniLM-L6-v2 (`pope_align.metrics.embeddings`).
        folds: at least 2, at most the number of queries.
        seed: of the folds.
        target_diversity: ``[S]``, passed on to `Predictions`.

    Raises:
        ValueError: a log without text; samples that are missing, with their slate; too few queries for the folds.
    """
    slates = _texts(log, samples)
    if embed is None:
        from ..metrics.embeddings import Embedder

        embed = Embedder()
    fold = deal(queries(slates, log.clusters), folds, seed, what="queries")  # [S]
    logged = _features(slates, [[completion_text(c) for c in slate.completions] for slate in slates], embed)
    fresh = _features(slates, samples, embed)
    owner = np.repeat(np.arange(log.num_slates), [len(of_slate) for of_slate in samples])
    fold_of_response = np.repeat(fold, log.sizes)
    predicted, sampled = np.empty(log.num_responses), np.empty(owner.size)
    for index in range(folds):
        train = fold_of_response != index
        predict = Ridge.fit(logged[train], log.utility[train])
        predicted[~train] = predict(logged[~train])
        sampled[fold[owner] == index] = predict(fresh[fold[owner] == index])
    target = np.bincount(owner, sampled) / np.bincount(owner)
    spread = float(np.square(log.utility - log.utility.mean()).sum())
    r2 = 1 - float(np.square(log.utility - predicted).sum()) / spread if spread > 0 else float("nan")
    return Predictions(predicted, target, target_diversity, "ridge on embeddings, cross-fitted", {"r2": r2})


def predict_with(
    log: LoggedSlates,
    samples: Sequence[Sequence[str]],
    predict: Predict,
    *,
    source: str,
    target_diversity: Floats | None = None,
) -> Predictions:
    """Predictions of your own reward model, which must not have been fitted on this log.

    Args:
        predict: prompts and responses (equally long lists) to utilities.
        source: its name, for the result.
        log, samples, target_diversity: as in `fit_predictions`.
    """
    slates = _texts(log, samples)
    prompts = [prompt_text(slate.prompt) for slate in slates]

    def of(responses: Sequence[Sequence[str]]) -> Floats:
        repeated = [prompt for prompt, texts in zip(prompts, responses, strict=True) for _ in texts]
        return np.asarray(predict(repeated, [text for texts in responses for text in texts]), dtype=np.float64)

    owner = np.repeat(np.arange(log.num_slates), [len(of_slate) for of_slate in samples])
    logged = of([[completion_text(c) for c in slate.completions] for slate in slates])
    target = np.bincount(owner, of(samples)) / np.bincount(owner)
    return Predictions(logged, target, target_diversity, source)


def _texts(log: LoggedSlates, samples: Sequence[Sequence[str]]) -> tuple[Slate, ...]:
    if log.slates is None:
        raise ValueError("log: a reward model reads text, and this log was made from arrays; use from_slates")
    if len(samples) != log.num_slates:
        raise ValueError(f"samples: expected one list per slate ({log.num_slates}), got {len(samples)}")
    for index, of_slate in enumerate(samples):
        if not of_slate:
            raise ValueError(f"samples: slate {index}: expected at least one fresh response, got none")
    return log.slates


def _features(slates: Sequence[Slate], responses: Sequence[Sequence[str]], embed: Embed) -> Floats:
    """``[n, 2 d + 1]``: embedding of the prompt, of the response, and the logarithm of its length."""
    texts = [text for of_slate in responses for text in of_slate]
    prompts = np.asarray(embed([prompt_text(slate.prompt) for slate in slates]), dtype=np.float64)
    prompts = np.repeat(prompts, [len(of_slate) for of_slate in responses], axis=0)
    lengths = np.log1p([len(text) for text in texts])
    return np.column_stack([prompts, np.asarray(embed(texts), dtype=np.float64), lengths])


def queries(slates: Sequence[Slate], clusters: Integers) -> Integers:
    """``[S]`` numbers, from 0, of groups that share neither a prompt nor a cluster."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, prompts = np.unique([json.dumps(slate.prompt) for slate in slates], return_inverse=True)
    count = int(prompts.max()) + 1
    edges = coo_array((np.ones(len(slates)), (prompts, count + clusters)), shape=(count + int(clusters.max()) + 1,) * 2)
    return np.asarray(connected_components(edges, directed=False)[1][prompts], dtype=np.int64)
