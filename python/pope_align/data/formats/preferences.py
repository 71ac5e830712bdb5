"""Preference sets: TRL's formats, lists of rewards, SHP, HH-RLHF."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..markup import unescaped
from ..pieces import Piece, Response, spelled, text_key
from ..records import Record
from .base import Format, Nothing, per_record


def preference(record: Record, feedback: str) -> Iterable[Piece]:
    """``prompt``, ``chosen`` and ``rejected``, as text or as turns; without ``prompt`` it is their common beginning.

    It is that, too, where whole conversations stand beside a prompt that is text, as TRL reads them.

    The score is ``score_chosen`` or ``score_rejected``, or else 1 or 0: over several pairs, the share that was won.
    """
    chosen, rejected = record.content("chosen"), record.content("rejected")
    prompt: str | list[dict[str, str]]
    whole = all(isinstance(side, list) and len(side) > 1 for side in (chosen, rejected))
    if "prompt" not in record or (whole and isinstance(record.get("prompt"), str)):
        if isinstance(chosen, str) and isinstance(rejected, str):
            prompt, chosen, rejected = _split_text(record, chosen, rejected)
        else:
            prompt, chosen, rejected = _split(record, chosen, rejected)
    else:
        prompt = _prompt(record)
    scored = "score_chosen" in record or "score_rejected" in record
    responses = [
        Response(answer, record.number(f"score_{side}") if scored else won)
        for side, answer, won in (("chosen", chosen, 1.0), ("rejected", rejected, 0.0))
    ]
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=responses)]


def unpaired(record: Record, feedback: str) -> Iterable[Piece]:
    """``prompt``, ``completion`` and ``label``; the score of a response is the share of its labels that are true."""
    prompt = _prompt(record)
    response = Response(record.content("completion"), float(record.truth("label")))
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=[response])]


_REWARDS = (("all_generated_responses", ("all_rm_scores", "all_reward_scores")), ("responses", ("rewards", "scores")))
_NUMBERED = re.compile(r"response_[0-9]{1,6}")


def rewards(record: Record, feedback: str) -> Iterable[Piece]:
    """Lists of responses and rewards, or numbered columns ``response_k`` and ``response_k_reward``."""
    prompt = _prompt(record)
    answers: list[tuple[str, Any, str, Any]] = []
    for texts, names in _REWARDS:
        if texts in record:
            scores = next((name for name in names if name in record), names[0])
            if len(record.array(texts)) != len(record.array(scores)):
                raise record.error(
                    scores, f"{len(record.array(texts))} rewards, one per response", record.array(scores)
                )
            pairs = zip(record.array(texts), record.array(scores), strict=True)
            answers = [(f"{texts}[{i}]", text, f"{scores}[{i}]", score) for i, (text, score) in enumerate(pairs)]
            break
    else:
        columns = [name for name in record.values if _NUMBERED.fullmatch(name)]
        for name in sorted(columns, key=lambda name: int(name.removeprefix("response_"))):
            answers.append((name, record.content(name), f"{name}_reward", record.required(f"{name}_reward")))
    if not answers:
        raise record.error(
            "row", "all_generated_responses, responses, or response_1, response_2, ...", [*record.values]
        )
    responses = [Response(text, record.as_feedback(reward, score)) for _, text, reward, score in answers]
    return [Piece(text_key(spelled(prompt)), prompt=prompt, responses=responses)]


def shp(record: Record, feedback: str) -> Iterable[Piece]:
    """Pairs of comments on a post; a comment that is in several pairs is used once, with its upvotes."""
    responses = [
        Response(unescaped(record.text(f"human_ref_{side}")).strip(), record.number(f"score_{side}"), timestamp=time)
        for side in ("A", "B")
        for time in [record.optional_number(f"created_at_utc_{side}")]
    ]
    return [Piece(record.name("post_id"), prompt=unescaped(record.text("history")).strip(), responses=responses)]


_TURN = re.compile(r"\n\n(Human|Assistant): ?")


def hh_rlhf(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``chosen`` and ``rejected`` dialogues that differ only in the last turn, which is the assistant's."""
    dialogues = {side: _turns(record, side) for side in ("chosen", "rejected")}
    chosen, rejected = dialogues["chosen"], dialogues["rejected"]
    if chosen[:-1] != rejected[:-1]:
        return Nothing("dialogues that part before the last turn")
    if not (chosen[-1]["content"] and rejected[-1]["content"]):
        return Nothing("dialogue with an empty last turn")
    responses = [Response([chosen[-1]], 1.0), Response([rejected[-1]], 0.0)]
    return [Piece(text_key(spelled(chosen[:-1])), prompt=chosen[:-1], responses=responses)]


def _is_dialogue(values: Mapping[str, Any]) -> bool:
    return str(values.get("chosen")).lstrip("\n").startswith("Human:")


def _turns(record: Record, side: str) -> list[dict[str, str]]:
    opening, *parts = _TURN.split("\n\n" + record.text(side).lstrip("\n"))
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[role], "content": text.strip()} for role, text in zip(parts[::2], parts[1::2], strict=True)]
    if opening.strip() or len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise record.error(side, "turns of Human and Assistant, the last by the Assistant", record.text(side))
    return turns


def _prompt(record: Record) -> str | list[dict[str, str]]:
    prompt = record.place.prompt("prompt", record.content("prompt"))
    if not prompt:
        raise record.error("prompt", "text or turns", prompt)
    return prompt


def _split_text(record: Record, chosen: str, rejected: str) -> tuple[str, str, str]:
    """The characters that both texts begin with, and the rest of each; a space before the rest belongs to it, as TRL
    splits them.
    """
    differing = (at for at, (ours, theirs) in enumerate(zip(chosen, rejected)) if ours != theirs)
    at = next(differing, min(len(chosen), len(rejected)))
    at -= chosen[:at].endswith(" ")
    prompt, rests = chosen[:at], (chosen[at:], rejected[at:])
    if not prompt.strip() or not all(rest.strip() for rest in rests):
        got = "one of the two at the beginning of the other" if prompt.strip() else "texts that begin differently"
        expected = "a prompt, or chosen and rejected that share their beginning and end in an answer each"
        raise record.error("prompt", expected, got)
    return prompt, *rests


def _split(record: Record, chosen: Any, rejected: Any) -> tuple[list[dict[str, str]], Any, Any]:
    """The turns that both conversations begin with, and their last turns."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise record.error("rejected", "text or turns, as chosen", rejected)
    chosen = [record.place.turn(f"chosen[{i}]", turn) for i, turn in enumerate(chosen)]
    rejected = [record.place.turn(f"rejected[{i}]", turn) for i, turn in enumerate(rejected)]
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise record.error("rejected", "the turns of chosen but for the last", rejected)
    return chosen[:-1], chosen[-1:], rejected[-1:]


PREFERENCE = Format(
    "preference",
    "TRL preferences: prompt, chosen, rejected; text or turns, with or without prompt",
    ("preference",),
    per_record(preference),
    scattered=True,
    repeats="mean",
    marks=("chosen rejected",),
    looks=lambda values: not _is_dialogue(values),
)
UNPAIRED = Format(
    "unpaired",
    "TRL unpaired preferences: prompt, completion, label, grouped by prompt",
    ("label",),
    per_record(unpaired),
    scattered=True,
    repeats="mean",
    marks=("prompt completion label",),
)
REWARDS = Format(
    "rewards",
    "Lists or numbered columns of responses and rewards",
    ("reward",),
    per_record(rewards),
    scattered=False,
    marks=(
        "prompt all_generated_responses",
        "prompt responses rewards",
        "prompt responses scores",
        "prompt response_0 response_0_reward",
        "prompt response_1 response_1_reward",
    ),
)
SHP = Format(
    "shp",
    "Stanford Human Preferences: history, human_ref_A, score_A, ...",
    ("votes",),
    per_record(shp),
    scattered=True,
    marks=("history human_ref_A human_ref_B",),
    by_people=True,
)
HH_RLHF = Format(
    "hh-rlhf",
    "Anthropic's helpful and harmless dialogues: chosen, rejected",
    ("preference",),
    per_record(hh_rlhf),
    scattered=True,
    repeats="mean",
    marks=("chosen rejected",),
    looks=_is_dialogue,
)
