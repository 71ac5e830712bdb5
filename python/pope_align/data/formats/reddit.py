"""Reddit: submissions with their comments (Pushshift, arctic-shift), and the Reddit-Movie conversations."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

from ..markup import unescaped
from ..pieces import Piece, Response
from ..records import Record
from .base import Format, Nothing, per_record

#: Replacement texts of deleted and removed posts.
_GONE = re.compile(r"\[ ?(deleted|removed)\b[^\]\n]{0,80}\]", re.IGNORECASE)


def thread(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """A submission is the prompt (title and text); the comments that answer it directly are the responses."""
    if "body" not in record:
        return submission(record)
    body = unescaped(record.text("body")).strip()
    if not body or _GONE.fullmatch(body):
        return Nothing("deleted or removed comment")
    post = _post(record)
    if post is None:
        return Nothing("reply to a comment")
    if "score" not in record:
        return Nothing("comment without a score")
    response = Response(
        completion=body,
        score=record.number("score"),
        responder=f"reddit.com/comments/{post}/_/{record.name('id')}",
        user=record.optional_name("author"),
        timestamp=record.optional_number("created_utc"),
    )
    return [Piece(post, responses=[response])]


def _post(record: Record) -> str | None:
    """The post that a comment answers directly; None for a comment that answers another.

    In the dumps of 2023 and later a comment on the post has no ``parent_id``, and one on a comment has its number.
    """
    parent = record.get("parent_id")
    if parent is None:
        return record.name("link_id").removeprefix("t3_")
    if not isinstance(parent, str):
        record.name("parent_id")
        return None
    if record.name("parent_id").startswith("t1_") or ("link_id" in record and parent.isdecimal()):
        return None
    return parent.removeprefix("t3_")


def submission(record: Record) -> Iterable[Piece] | Nothing:
    title = unescaped(record.text("title")).strip()
    text = unescaped(record.optional_text("selftext") or "").strip()
    if _GONE.fullmatch(text) or _GONE.fullmatch(title):
        return Nothing("deleted or removed submission")
    return [Piece(record.name("id"), prompt=f"{title}\n{text}" if text else title, user=record.optional_name("author"))]


def movie_turn(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``context`` (the utterances so far), ``resp`` and ``upvotes``; replies to the same context make one slate."""
    if "upvotes" not in record:
        return Nothing("reply without upvotes")
    context = []
    for index, utterance in enumerate(record.array("context")):
        if not isinstance(utterance, str):
            raise record.error(f"context[{index}]", "text", utterance)
        if utterance.strip():
            context.append(unescaped(utterance).strip())
    if not context:
        return Nothing("reply to no context")
    # The seeker writes the last utterance before the reply, so roles alternate back from there.
    turns = [
        {"role": "user" if (len(context) - index) % 2 else "assistant", "content": text}
        for index, text in enumerate(context)
    ]
    prompt = context[0] if len(context) == 1 else turns
    key = hashlib.sha256(json.dumps(context).encode()).hexdigest()[:16]
    text = unescaped(record.text("resp")).strip()
    response = Response(
        completion=text,
        score=record.number("upvotes"),
        user=record.optional_name("user_id"),
    )
    return [Piece(key, prompt=prompt, responses=[response])]


REDDIT = Format(
    "reddit",
    "Reddit submissions and comments as JSON lines (Pushshift, arctic-shift)",
    ("votes",),
    per_record(thread),
    scattered=True,
    marks=("body link_id", "body parent_id", "id title selftext", "id title subreddit", "id title author"),
    by_people=True,
)
REDDIT_MOVIE = Format(
    "reddit-movie",
    "Reddit-Movie conversations: context, resp, upvotes",
    ("votes",),
    per_record(movie_turn),
    scattered=True,
    marks=("context resp",),
    by_people=True,
)
