"""Metrics of sets of generations: Self-BLEU against NLTK's loop, the vector metrics, a bootstrap.

    pytest benchmarks/bench_metrics.py

``extra_info`` of ``test_self_bleu_of_200_texts`` has the ratio of NLTK's time to ours, same run, texts and value.
"""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from pope_align.metrics.diversity import diversity, vendi_score
from pope_align.metrics.evaluate import PromptMetrics
from pope_align.metrics.lexical import self_bleu
from pope_align.metrics.similarity import pl_score, pluralistic_coverage
from pope_align.metrics.summary import summarize


def texts(count: int, words: int) -> list[list[str]]:
    """Texts with the word frequencies of language (Zipf), so that n-grams repeat between them."""
    rng = random.Random(0)
    vocabulary = [f"w{rank}" for rank in range(1, 2001)]
    weights = [1 / rank for rank in range(1, 2001)]
    return [rng.choices(vocabulary, weights, k=words) for _ in range(count)]


def nltk_self_bleu(tokens: list[list[str]]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    method1 = SmoothingFunction().method1
    scores = [
        sentence_bleu(tokens[:at] + tokens[at + 1 :], text, smoothing_function=method1)
        for at, text in enumerate(tokens)
    ]
    return float(np.mean(scores))


@pytest.mark.benchmark(group="Self-BLEU-4, 60 words a text")
def test_self_bleu_of_200_texts(benchmark: Any, smoke: bool) -> None:
    tokens = texts(20 if smoke else 200, 60)
    start = time.perf_counter()
    expected = nltk_self_bleu(tokens)
    theirs = time.perf_counter() - start
    value = benchmark.pedantic(self_bleu, args=(tokens,), rounds=1 if smoke else 5)
    assert value == pytest.approx(expected, abs=1e-9)
    if benchmark.enabled:
        ours = benchmark.stats.stats.min
        benchmark.extra_info.update(nltk_s=round(theirs, 3), ours_s=round(ours, 4), ratio=round(theirs / ours, 1))


@pytest.mark.benchmark(group="Self-BLEU-4, 60 words a text")
def test_self_bleu_of_1000_texts(benchmark: Any, smoke: bool) -> None:
    benchmark.pedantic(self_bleu, args=(texts(50 if smoke else 1000, 60),), rounds=1 if smoke else 3)


@pytest.mark.benchmark(group="1,000 prompts, 50 answers, 12 references, 384 dimensions")
def test_vector_metrics(benchmark: Any, smoke: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(62, 384))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answers, references, votes = vectors[:50], vectors[50:], rng.integers(0, 100, 12).astype(float)

    def run() -> None:
        for _ in range(10 if smoke else 1000):
            similarity = answers @ references.T
            pl_score(similarity, votes)
            pluralistic_coverage(similarity)
            diversity(answers)
            vendi_score(answers)

    benchmark.pedantic(run, rounds=1 if smoke else 3)


@pytest.mark.benchmark(group="2,000 bootstrap draws of all metrics, 3 models, 5,000 prompts")
def test_bootstrap(benchmark: Any, smoke: bool) -> None:
    from pope_align.metrics.registry import BY_NAME

    rng = np.random.default_rng(0)
    count = 50 if smoke else 5000
    keys = [str(at) for at in range(count)]
    tables = [
        PromptMetrics(model, keys, keys, {name: rng.normal(size=count) for name in BY_NAME}, count, 0, 0, 0)
        for model in "abc"
    ]
    benchmark.pedantic(summarize, args=(tables,), rounds=1)
