"""Community Alignment: four candidates a turn, of which each annotator prefers one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..checks import Turn
from ..pieces import Piece, Response, rating, spelled, text_key
from ..records import Record
from .base import Format, Nothing, Source, per_record

_TURNS = ("first", "second", "third", "fourth")
_CANDIDATES = ("response_a", "response_b", "response_c", "response_d")

#: What the file has in place of a text that is missing.
_NO_TEXT = "EMPTY STRING"
#: What a model's end token left behind some responses.
_END = "<|end_of_text|>"


def community(source: Source, feedback: str) -> Iterator[Piece]:
    """One conversation of one annotator per row: prompts, candidates, and which of them was preferred.

    The score of a candidate is the share of annotators who preferred it among these candidates, which may come in any
    order. Its group scores are such shares in a group of annotators: those of one country, or of the same value in the
    column that ``mapping["group"]`` names.
    """
    column = source.mapping.get("group", "annotator_country")

    def of_record(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
        group, user = record.optional_label(column), record.name("annotator_id")
        history: list[Turn] = []
        pieces: list[Piece] = []
        for turn in _TURNS:
            prompt = _text(record, f"{turn}_turn_prompt")
            preferred = _text(record, f"{turn}_turn_preferred_response")
            if preferred is not None and preferred not in _CANDIDATES:
                raise record.error(f"{turn}_turn_preferred_response", f"one of {', '.join(_CANDIDATES)}", preferred)
            texts = {name: _text(record, f"{turn}_turn_{name}") for name in _CANDIDATES}
            if prompt is None or preferred is None or (chosen := texts.get(preferred)) is None:
                break  # the conversation ends here, or cannot continue
            history.append({"role": "user", "content": prompt})
            pieces.append(_piece([*history], texts, chosen, group, user))
            history.append({"role": "assistant", "content": chosen})
        return pieces or Nothing("conversation without a preference")

    return per_record(of_record)(source, feedback)


def _piece(prompt: list[Turn], texts: dict[str, str | None], chosen: str, group: str | None, user: str) -> Piece:
    """A vote; votes on the same candidates make one slate, whatever the order in which they were shown."""
    candidates = sorted({text for text in texts.values() if text is not None})
    responses = []
    for text in candidates:
        won = float(text == chosen)
        answer = [{"role": "assistant", "content": text}]
        groups = None if group is None else {group: won}
        responses.append(Response(answer, won, group_scores=groups, ratings=[rating(user, won, group)]))
    key = f"{text_key(spelled(prompt))}#{text_key(spelled(candidates))}"
    return Piece(key, prompt=prompt, responses=responses, user=user)


def _text(record: Record, field: str) -> str | None:
    text = (record.optional_text(field) or "").removesuffix(_END).strip()
    return None if text in ("", _NO_TEXT) else text


COMMUNITY_ALIGNMENT = Format(
    "community-alignment",
    "Community Alignment: four candidates a turn, the one each annotator preferred",
    ("preferred",),
    community,
    scattered=True,
    repeats="mean",
    marks=("conversation_id annotator_id first_turn_prompt first_turn_response_a",),
    maps=("group",),
)
