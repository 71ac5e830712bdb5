"""NeMo-RL's preference data: a context and its ranked completions."""

from __future__ import annotations

from collections.abc import Iterable

from ..pieces import Piece, Response, spelled, text_key
from ..records import Record
from .base import Format, Nothing, per_record


def nemo_rl(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``context``, and ``completions`` that have a ``rank`` (0 is best), a ``completion`` and maybe a ``reward``."""
    prompt = record.place.prompt("context", record.array("context"))
    responses = []
    for answer in record.records("completions"):
        rank = answer.integer("rank")
        if rank < 0:
            raise answer.error("rank", "an integer >= 0 (0 is best)", rank)
        turns = answer.array("completion")
        if len(turns) > 1:
            return Nothing("completion of several turns, of which the policy did not write all")
        score = float(-rank) if feedback == "rank" else answer.feedback("reward")
        responses.append(Response(turns, score, rank=rank + 1))
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=responses)]


NEMO_RL = Format(
    "nemo-rl",
    "NeMo-RL: context, completions with rank, completion and reward",
    ("rank", "reward"),
    per_record(nemo_rl),
    scattered=False,
    marks=("context completions",),
)
