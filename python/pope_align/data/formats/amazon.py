"""Amazon reviews of the 2014, 2018 and 2023 collections (McAuley Lab): an item is the prompt, its reviews are the
responses.

Reviews and item metadata are given together, in any number of files and any order; each record shows which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..feedback import shrunk_rate
from ..markup import unescaped
from ..pieces import Piece, Response
from ..records import Record
from .base import Format, Nothing, per_record

#: Markup that remains in the collection of 2023.
_BREAK = re.compile(r"<br ?/?>")
#: JavaScript that the collection of 2018 has in titles and descriptions.
_SCRIPT = re.compile(r"<script\b|\bgetTime\(\)|\bfunction ?\(|\bvar \w{1,60} ?=")


def review_2014(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``"helpful": [up, total]``; metadata lines are Python literals with ``title`` and ``description``."""
    if "reviewerID" not in record:
        return item(record, record.name("asin"))
    helpful = record.array("helpful")
    if len(helpful) != 2:
        raise record.error("helpful", "[up, total]", helpful)
    up, total = (record.as_number(f"helpful[{i}]", value) for i, value in enumerate(helpful))
    if not 0 <= up <= total:
        raise record.error("helpful", "0 <= up <= total", helpful)
    score = {
        "votes": lambda: up,
        "shrunk_rate": lambda: float(shrunk_rate(up, total)),
        "stars": lambda: record.number("overall"),
    }[feedback]()
    return review(record, record.name("asin"), "reviewText", "reviewerID", score, "unixReviewTime")


def review_2018(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``"vote": "1,234"``, absent for none; metadata has ``description`` as a list and ``feature``."""
    if "reviewerID" not in record:
        return item(record, record.name("asin"))
    if feedback == "stars":
        score = record.number("overall")
    else:
        vote = record.get("vote")
        spelled = vote.replace(",", "") if isinstance(vote, str) else vote
        score = 0.0 if vote is None else record.as_number("vote", spelled)
    return review(record, record.name("asin"), "reviewText", "reviewerID", score, "unixReviewTime")


def review_2023(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``helpful_vote``; items and reviews are joined on ``parent_asin``; times are in milliseconds."""
    if "user_id" not in record:
        return item(record, record.name("parent_asin"))
    score = record.number("rating" if feedback == "stars" else "helpful_vote")
    return review(record, record.name("parent_asin"), "text", "user_id", score, "timestamp", milliseconds=True)


def review(
    record: Record, key: str, text: str, user: str, score: float, time: str, *, milliseconds: bool = False
) -> list[Piece]:
    seconds = record.optional_number(time)
    response = Response(
        completion=_BREAK.sub("\n", unescaped(record.optional_text(text) or "")),
        score=score,
        user=record.name(user),
        timestamp=seconds / 1000 if seconds is not None and milliseconds else seconds,
    )
    return [Piece(key, responses=[response])]


def item(record: Record, key: str) -> list[Piece] | Nothing:
    """Title, description and features, without JavaScript; an item without any of them gives no prompt."""
    lines = []
    for field in ("title", "description", "features", "feature"):
        value = record.get(field)
        texts = value if isinstance(value, list) else [value] if value is not None else []
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise record.error(f"{field}[{index}]" if isinstance(value, list) else field, "text", text)
            if text.strip() and not _SCRIPT.search(text):
                lines.append(unescaped(text).strip())
    if not lines:
        return Nothing("item without title, description and features")
    return [Piece(key, prompt="\n".join(lines))]


AMAZON_2014 = Format(
    "amazon-2014",
    "Amazon reviews of 2014: helpful [up, total]; metadata as Python literals",
    ("votes", "shrunk_rate", "stars"),
    per_record(review_2014),
    scattered=True,
    marks=("reviewerID asin helpful", "asin title", "asin description", "asin imUrl"),
    by_people=True,
)
AMAZON_2018 = Format(
    "amazon-2018",
    'Amazon reviews of 2018: "vote": "1,234", absent for none',
    ("votes", "stars"),
    per_record(review_2018),
    scattered=True,
    marks=(
        "reviewerID asin vote",
        "reviewerID asin",
        "asin title",
        "asin description",
        "asin feature",
    ),
    by_people=True,
)
AMAZON_2023 = Format(
    "amazon-2023",
    "Amazon reviews of 2023: helpful_vote, joined with items on parent_asin",
    ("votes", "stars"),
    per_record(review_2023),
    scattered=True,
    marks=("user_id parent_asin", "parent_asin title", "parent_asin description", "parent_asin features"),
    by_people=True,
)
