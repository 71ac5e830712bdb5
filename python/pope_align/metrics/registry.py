"""The metrics of a report in the order of its table: name, label, direction, range, reading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number is called, which way is better, between what it lies, and how to read it."""

    name: str
    label: str
    better: Literal["higher", "lower"]
    low: float
    high: float
    digits: int
    reading: str


_INF = float("inf")

METRICS = (
    Metric("pl_score", "PL-Score", "higher", -1, 1, 3, "nearness of the best answer to each reference, by votes"),
    Metric("coverage", "Coverage", "higher", 0, 1, 3, "share of references that an answer matches"),
    Metric("alignment", "Distr. alignment", "higher", 0, 1, 3, "evenness of the policy's probabilities of references"),
    Metric(
        "alignment_similarity",
        "Distr. alignment (sim.)",
        "higher",
        0,
        1,
        3,
        "evenness of the references' similarity to the answers",
    ),
    Metric("plackett_luce", "PL log-likelihood", "higher", -_INF, 0, 2, "of people's ranking under the policy, nats"),
    Metric("choice", "PL choice probability", "higher", 0, 1, 3, "geometric mean per choice of people's ranking"),
    Metric("worst_group", "Worst group, coverage", "higher", 0, 1, 3, "coverage for the opinion group served worst"),
    Metric(
        "worst_group_nearness",
        "Worst group, nearness",
        "higher",
        -1,
        1,
        3,
        "nearness to what the group served worst approves of",
    ),
    Metric("helpfulness", "Helpfulness", "higher", -100, 100, 2, "likeness of the mean answer to voted references"),
    Metric("relevance", "Relevance", "higher", -100, 100, 2, "likeness of the mean answer to the prompt"),
    Metric("align_score", "AlignScore", "higher", 0, 1, 3, "share of the answer's sentences that the prompt supports"),
    Metric("diversity", "Diversity", "higher", 0, 2, 3, "1 - cosine of two answers, mean over pairs"),
    Metric("vendi", "Vendi score", "higher", 1, _INF, 2, "effective number of different answers"),
    Metric("distinct_1", "Distinct-1", "higher", 0, 100, 2, "different words in 100 words"),
    Metric("distinct_2", "Distinct-2", "higher", 0, 100, 2, "different word pairs in 100 word pairs"),
    Metric("ead", "EAD", "higher", 0, _INF, 3, "different words over those expected of as many uniform draws"),
    Metric("self_bleu", "Self-BLEU-4", "lower", 0, 1, 3, "overlap of an answer with all others"),
)

BY_NAME = {metric.name: metric for metric in METRICS}
