"""Panels of people: PRISM, Overton-style ratings, Polis conversations."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..checks import Place, SlateError, Turn
from ..feedback import group_utility, shrunk_rate
from ..pieces import Piece, Response, rating, text_key
from ..readers import read_records
from ..records import Record
from .base import Format, Nothing, Source, per_record


def prism(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``conversations.jsonl``: at every turn a person rated the models' replies from 1 to 100 and continued with
    one.
    """
    conversation, user = record.name("conversation_id"), record.optional_name("user_id")
    turns: dict[int, list[Record]] = defaultdict(list)
    for entry in record.records("conversation_history"):
        turns[entry.integer("turn")].append(entry)
    history: list[Turn] = []
    pieces = []
    for number, entries in sorted(turns.items()):
        asked = [entry.text("content") for entry in entries if entry.text("role") == "user"]
        replies = [entry for entry in entries if entry.text("role") == "model"]
        if len(asked) != 1:
            raise record.error(f"conversation_history, turn {number}", "one turn of the user", f"{len(asked)}")
        history.append({"role": "user", "content": asked[0]})
        responses = [
            Response(
                [{"role": "assistant", "content": reply.text("content")}],
                reply.number("score"),
                responder=reply.optional_name("model_name"),
                ratings=None if user is None else [rating(user, reply.number("score"))],
            )
            for reply in replies
        ]
        pieces.append(Piece(f"{conversation}#{number}", prompt=[*history], responses=responses, user=user))
        chosen = [reply.text("content") for reply in replies if reply.get("if_chosen")]
        if len(chosen) != 1:
            break  # the conversation cannot continue from here
        history.append({"role": "assistant", "content": chosen[0]})
    return pieces or Nothing("conversation without turns")


#: Columns of OvertonBench, and the names that people give them in tables of their own.
_OVERTONBENCH = {
    "response": "llm_response",
    "rating": "representation_rating",
    "group": "cluster_kmeans",
    "participant": "user",
}


def overton(record: Record, feedback: str) -> Iterable[Piece]:
    """One rating of one response by one participant: ``question``, ``response``, ``rating``, ``model``, ``group``,
    ``participant``.

    OvertonBench calls four of them ``llm_response``, ``representation_rating``, ``cluster_kmeans`` and ``user``.
    """
    columns = {name: theirs if theirs in record else name for name, theirs in _OVERTONBENCH.items()}
    prompt, score = record.text("question"), record.number(columns["rating"])
    group, user = record.optional_name(columns["group"]), record.optional_name(columns["participant"])
    response = Response(
        record.text(columns["response"]),
        score,
        responder=record.optional_name("model"),
        group_scores=None if group is None else {group: score},
        ratings=None if user is None else [rating(user, score, group)],
    )
    return [Piece(text_key(prompt), prompt=prompt, responses=[response])]


def polis(source: Source, feedback: str) -> Iterator[Piece]:
    """Folders of exports: ``summary.csv``, ``comments.csv`` and, for groups, ``participants-votes.csv``.

    The topic is the prompt, statements respond; moderated-out statements (-1) are left out. The score of a statement is
    the shrunk share of its voters that agree, of all of them or aggregated over the opinion groups.
    """
    for folder in source.paths:
        if not folder.is_dir():
            raise ValueError(f"input: expected the folder of a Polis export, got {str(folder)!r}")
        topic = _topic(folder)
        votes = _group_votes(source, folder)
        responses = []
        for record in source.records([folder / "comments.csv"]):
            source.records_read += 1
            try:
                response = _statement(record, feedback, votes)
                if isinstance(response, Nothing):
                    source.nothing[response.reason] += 1
                    continue
                responses += Piece(folder.name, responses=[response]).checked(record.place).responses
            except SlateError as error:
                source.bad(error)
        yield Piece(folder.name, prompt=topic, responses=responses, place=Place(str(folder), 1))


def _topic(folder: Path) -> str:
    """``summary.csv`` has a name and a value on each line; the first line is the topic."""
    path = folder / "summary.csv"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            summary = {row[0]: row[1] for row in csv.reader(file) if len(row) == 2}
    except (UnicodeDecodeError, csv.Error) as error:
        raise SlateError(str(path), None, "file", "CSV in UTF-8", str(error)) from None
    if not summary.get("topic"):
        raise SlateError(str(folder / "summary.csv"), None, "topic", "a value (it is required)", "nothing")
    return summary["topic"]


#: agree and disagree votes of every group on every statement
GroupVotes = dict[str, dict[str, Counter[str]]]


def _group_votes(source: Source, folder: Path) -> GroupVotes:
    path = folder / "participants-votes.csv"
    votes: GroupVotes = defaultdict(lambda: defaultdict(Counter))
    if not path.exists():
        return votes
    for record in read_records(path):
        if isinstance(record, SlateError):
            source.records_read += 1
            source.bad(record)
        elif "group-id" in record:
            for statement, vote in record.values.items():
                if statement.isdigit() and vote in ("1", "-1"):
                    votes[statement][record.name("group-id")][vote] += 1
    return votes


def _statement(record: Record, feedback: str, votes: GroupVotes) -> Response | Nothing:
    if record.optional_number("moderated") == -1:
        return Nothing("statement that was moderated out")
    agrees, disagrees = record.number("agrees"), record.number("disagrees")
    if agrees + disagrees == 0:
        return Nothing("statement without votes")
    groups = {
        group: float(shrunk_rate(count["1"], count["1"] + count["-1"]))
        for group, count in sorted(votes.get(record.name("comment-id"), {}).items())
    }
    if feedback == "agreement":
        score = float(shrunk_rate(agrees, agrees + disagrees))
    elif not groups:
        return Nothing("statement that no group voted on")
    else:
        score = float(group_utility([[rate] for rate in groups.values()], feedback)[0])  # type: ignore[arg-type]
    return Response(
        record.text("comment-body").strip(),
        score,
        user=record.optional_name("author-id"),
        timestamp=_seconds(record),
        group_scores=groups or None,
    )


def _seconds(record: Record) -> float | None:
    milliseconds = record.optional_number("timestamp")
    return None if milliseconds is None else milliseconds / 1000


PRISM = Format(
    "prism",
    "PRISM conversations.jsonl: replies rated by the person who asked",
    ("score",),
    per_record(prism),
    scattered=False,
    marks=("conversation_id conversation_history",),
)
OVERTON = Format(
    "overton",
    "OvertonBench (question, llm_response, representation_rating, model, cluster_kmeans) and ratings of that kind",
    ("rating",),
    per_record(overton),
    scattered=True,
    repeats="mean",
    marks=("question response rating", "question llm_response representation_rating"),
)
POLIS = Format(
    "polis",
    "Polis exports, a folder each: statements voted on by opinion groups",
    ("agreement", "utilitarian", "maximin", "nash"),
    polis,
    scattered=False,
    by_people=True,
)
