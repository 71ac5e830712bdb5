"""A placebo to train on: the feedback of every slate, permuted."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from ...data import Slate


def shuffled_votes(slates: Sequence[Slate], seed: int) -> list[Slate]:
    """Slates whose scores are permuted within each of them, so that nothing can be learned from the feedback.

    Ranks and scores of raters and their groups, which would still tell, are removed.
    """
    shuffled = []
    for number, slate in enumerate(slates):
        digest = hashlib.sha256(f"{seed}:{number}:{slate.slate_id}".encode()).digest()
        scores = list(slate.scores)
        random.Random(digest).shuffle(scores)
        origin = {**(slate.origin or {}), "feedback": "shuffled"}
        shuffled.append(replace(slate, scores=scores, ranks=None, group_scores=None, ratings=None, origin=origin))
    return shuffled
