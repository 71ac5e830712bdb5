"""Stack Exchange: the dumps' ``Posts.xml``, and the preference sets made from them with ``pm_score``."""

from __future__ import annotations

from collections.abc import Iterable

from ..pieces import Piece, Response, html_to_text, unescaped
from ..records import Record
from .base import Format, Nothing, per_record


def post(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """Questions (``PostTypeId`` 1) are prompts, answers (2) respond to their ``ParentId``; bodies are HTML."""
    kind = record.name("PostTypeId")
    if kind == "1":
        prompt = f"{record.text('Title')}\n{html_to_text(record.text('Body'))}"
        return [Piece(record.name("Id"), prompt=prompt.strip(), user=record.optional_name("OwnerUserId"))]
    if kind != "2":
        return Nothing("post that is neither question nor answer")
    response = Response(
        completion=html_to_text(record.text("Body")),
        score=record.number("Score"),
        responder=f"a/{record.name('Id')}",
        user=record.optional_name("OwnerUserId"),
        timestamp=record.date("CreationDate") if "CreationDate" in record else None,
    )
    return [Piece(record.name("ParentId"), responses=[response])]


def question(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``{"qid", "question", "answers": [{"answer_id", "author", "pm_score", "text"}, ...]}``."""
    responses = [
        Response(
            completion=html_to_text(answer.text("text")),
            score=answer.number("pm_score"),
            responder=f"a/{answer.name('answer_id')}" if "answer_id" in answer else None,
            user=answer.optional_name("author"),
        )
        for answer in record.records("answers")
    ]
    return [Piece(record.name("qid"), prompt=unescaped(html_to_text(record.text("question"))), responses=responses)]


STACKEXCHANGE = Format(
    "stackexchange",
    "Stack Exchange dumps: Posts.xml",
    ("votes",),
    per_record(post),
    scattered=True,
)
STACKEXCHANGE_PAIRED = Format(
    "stackexchange-pm",
    "Stack Exchange preferences: questions with answers and their pm_score",
    ("pm_score",),
    per_record(question),
    scattered=False,
)
