"""Stack Exchange: the dumps' ``Posts.xml``, and the preference sets made from them with ``pm_score``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..pieces import Piece, Response
from ..records import Record
from .base import Format, Nothing, per_record


def post(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """Questions (``PostTypeId`` 1) are prompts, answers (2) are responses to their ``ParentId``; bodies are HTML.

    The folder of ``Posts.xml`` names the site: every site numbers its posts from 1.
    """
    site = Path(record.source).parent.name
    kind = record.name("PostTypeId")
    if kind == "1":
        prompt = f"{record.text('Title')}\n{record.html('Body')}"
        return [Piece(f"{site}/q/{record.name('Id')}", prompt=prompt.strip(), user=record.optional_name("OwnerUserId"))]
    if kind != "2":
        return Nothing("post that is neither question nor answer")
    response = Response(
        completion=record.html("Body"),
        score=record.number("Score"),
        responder=f"{site}/a/{record.name('Id')}",
        user=record.optional_name("OwnerUserId"),
        timestamp=record.optional_time("CreationDate"),
    )
    return [Piece(f"{site}/q/{record.name('ParentId')}", responses=[response])]


def question(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``qid``, ``question``, ``answers`` with ``pm_score`` and ``text``; the first of ``metadata`` is the URL."""
    links = record.get("metadata")
    key = links[0] if isinstance(links, list) and links and isinstance(links[0], str) else record.name("qid")
    responses = [
        Response(
            completion=answer.html("text"),
            score=answer.number("pm_score"),
            responder=f"a/{answer.name('answer_id')}" if "answer_id" in answer else None,
            user=answer.optional_name("author"),
        )
        for answer in record.records("answers")
    ]
    return [Piece(key, prompt=record.html("question"), responses=responses)]


STACKEXCHANGE = Format(
    "stackexchange",
    "Stack Exchange dumps: Posts.xml",
    ("votes",),
    per_record(post),
    scattered=True,
    marks=("Id PostTypeId",),
    by_people=True,
)
STACKEXCHANGE_PAIRED = Format(
    "stackexchange-pm",
    "Stack Exchange preferences: questions with answers and their pm_score",
    ("pm_score",),
    per_record(question),
    scattered=False,
    marks=("qid question answers", "question answers metadata"),
    by_people=True,
)
