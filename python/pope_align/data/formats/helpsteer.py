"""HelpSteer2 and HelpSteer3: ratings of single responses, and preferences between two."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..checks import Turn
from ..pieces import Piece, Response, spelled, text_key
from ..records import Record
from .base import Format, per_record

#: In the prompts of HelpSteer2, which are text, this begins a later turn.
_LATER_TURN = re.compile(r"\n<extra_id_1>(User|Assistant)\n")
_ROLES = {"User": "user", "Assistant": "assistant"}


def ratings(record: Record, feedback: str) -> Iterable[Piece]:
    """``prompt``, ``response`` and ratings of five attributes from 0 to 4; rows with the same prompt make a slate."""
    prompt = _turns(record.text("prompt"))
    response = Response(_answer(record.text("response")), record.number(feedback))
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=[response])]


def preferences(record: Record, feedback: str) -> Iterable[Piece]:
    """Two responses and how much the second is preferred, from -3 to 3, which is its score; the first's is minus that.

    HelpSteer3 has ``context`` (turns) and ``overall_preference``, HelpSteer2 ``prompt`` and ``preference_strength``.
    """
    if "overall_preference" in record:
        context = record.place.prompt("context", record.content("context"))
        prompt = _turns(context) if isinstance(context, str) else context
        first, second, preference = "response1", "response2", "overall_preference"
    else:
        prompt = _turns(record.text("prompt"))
        first, second, preference = "response_1", "response_2", "preference_strength"
    strength = record.number(preference)
    if not -3 <= strength <= 3:
        raise record.error(preference, "a number from -3 (the first is much better) to 3", strength)
    responses = [
        Response(_answer(record.text(first)), -strength),
        Response(_answer(record.text(second)), strength),
    ]
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=responses)]


def _turns(text: str) -> list[Turn]:
    """The turns of a prompt."""
    first, *later = _LATER_TURN.split(text)
    turns = [{"role": "user", "content": first}]
    turns += [{"role": _ROLES[who], "content": what} for who, what in zip(later[::2], later[1::2], strict=True)]
    if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""}:  # it ends where the response begins
        turns.pop()
    return turns


def _answer(text: str) -> list[Turn]:
    return [{"role": "assistant", "content": text}]


HELPSTEER2 = Format(
    "helpsteer2",
    "HelpSteer2: prompt, response, helpfulness, correctness, coherence, complexity, verbosity",
    ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
    per_record(ratings),
    scattered=True,
    repeats="mean",
    marks=("prompt response helpfulness correctness",),
)
HELPSTEER_PREFERENCE = Format(
    "helpsteer-preference",
    "HelpSteer3 (response1, response2, overall_preference) and the preferences of HelpSteer2",
    ("preference",),
    per_record(preferences),
    scattered=True,
    repeats="mean",
    marks=("context response1 response2 overall_preference", "prompt response_1 response_2 preference_strength"),
)
