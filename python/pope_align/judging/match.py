"""Compares two models' sets of answers by an LLM judge, in both orders, with ties; all calls are stored.

The paper's protocol (its section 11): per prompt, the judge sees two sets of up to 50 answers and three responses that
people wrote, and says which set is more helpful and more diverse for people with different preferences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Literal

from .._journal import Journal
from .._text import utf8
from ..data import Slate
from ..generation.endpoint import BudgetExceeded, Endpoint, EndpointError
from ..generation.generations import Generation, GenerationSet, completion_text, prompt_text, slate_keys
from .asking import AskOptions, NoVerdict, ask, objects_with, reason_of
from .asking import open_calls as open_calls

#: The result of one judgement for set a; the last three are without a verdict: no valid JSON after all repairs, the
#: endpoint failed, the budget was spent.
Reading = Literal["win", "loss", "tie", "invalid", "failed", "unjudged"]
VERDICTS = ("win", "loss", "tie")
Winner = Literal["1", "2", "tie"]

_SYSTEM = (
    "You compare two sets of answers to the same question. People differ in what they value, so a good set is helpful "
    "to many of them: it is correct and to the point, and it covers the range of views and needs that people have "
    "rather than repeating one. The human responses show what people said and found useful; they are not the only good "
    "answers. Judge the sets as wholes. Their order and their lengths mean nothing.\n"
    'Reply with one JSON object and nothing else: {"reason": "one sentence", "winner": "1"}, where winner is "1" if '
    'set 1 is better, "2" if set 2 is better, or "tie".'
)

_CHOICES = '{"winner": "1"}\n{"winner": "2"}\n{"winner": "tie"}'


@dataclass(frozen=True, slots=True)
class JudgeOptions(AskOptions):
    """The protocol."""

    set_size: int = 50  # maximum answers of a set; both sets have as many as the smaller one
    references: int = 3  # human responses shown, best voted first
    max_characters: int | None = None  # of one answer or response; cuts are counted

    def __post_init__(self) -> None:
        AskOptions.__post_init__(self)
        for name, least in (("set_size", 1), ("references", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Judgement:
    """One prompt: the judgements with set a first and with set b first."""

    key: str
    a_first: Reading
    b_first: Reading
    reasons: tuple[str, str] = ("", "")

    @property
    def outcome(self) -> Reading:
        """A win or loss only if both orders agree; any other two verdicts are a tie.

        If one order has no verdict, that order's result.
        """
        for reading in (self.a_first, self.b_first):
            if reading not in VERDICTS:
                return reading
        return self.a_first if self.a_first == self.b_first else "tie"


@dataclass(frozen=True)
class Match:
    """Set a against set b over all prompts."""

    a: str
    b: str
    verdicts: list[Judgement]
    set_size: int  # largest that was shown
    characters_cut: int  # by ``max_characters``, over answers and responses

    def count(self, outcome: Reading) -> int:
        """Prompts of that outcome."""
        return sum(verdict.outcome == outcome for verdict in self.verdicts)

    @property
    def judged(self) -> int:
        """Prompts with a verdict in both orders."""
        return sum(self.count(outcome) for outcome in ("win", "tie", "loss"))

    def summary(self, level: float = 0.95) -> dict[str, Any]:
        """Counts and shares with Wilson intervals.

        ``win_rate`` counts a tie as half a win (its interval, that of a proportion, is then conservative).
        ``first_shown`` is the share of decided judgements won by the set shown first: 0.5 without position bias.
        ``consistent`` is the share of judged prompts where both orders gave the same verdict.
        """
        wins, ties, losses = (self.count(outcome) for outcome in ("win", "tie", "loss"))
        both = [verdict for verdict in self.verdicts if verdict.outcome in VERDICTS]
        first = sum((v.a_first == "win") + (v.b_first == "loss") for v in both)
        decided = sum((v.a_first != "tie") + (v.b_first != "tie") for v in both)
        consistent = sum(verdict.a_first == verdict.b_first for verdict in both)
        shares = {
            "win_rate": (wins + ties / 2, self.judged),
            "win": (wins, self.judged),
            "tie": (ties, self.judged),
            "loss": (losses, self.judged),
            "first_shown": (first, decided),
            "consistent": (consistent, self.judged),
        }
        return {
            "a": self.a,
            "b": self.b,
            "prompts": len(self.verdicts),
            "judged": self.judged,
            **{f"{name}_count": self.count(name) for name in ("win", "tie", "loss", "invalid", "failed", "unjudged")},
            **{name: dict(zip(("value", "low", "high"), wilson(*share, level))) for name, share in shares.items()},
            "set_size": self.set_size,
            "characters_cut": self.characters_cut,
        }


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float | None, float | None, float | None]:
    """A proportion and its Wilson score interval (Wilson 1927); None three times for ``n = 0``."""
    if n == 0:
        return None, None, None
    from statistics import NormalDist

    z = NormalDist().inv_cdf((1 + level) / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * ((p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5)
    return p, max(centre - reach, 0.0), min(centre + reach, 1.0)


def judge(
    a: GenerationSet,
    b: GenerationSet,
    references: Sequence[Slate],
    endpoint: Endpoint,
    *,
    calls: Journal,
    options: JudgeOptions | None = None,
    concurrency: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Match:
    """Judge every prompt that both models answered, in both orders.

    Every reply is stored in ``calls`` by the hash of its request before it counts, so a repeated run sends no request
    twice, and a run that was killed, ran out of budget or lost its endpoint continues where it stopped.

    Args:
        references: slates, joined by key; a prompt without one is judged without human responses.
        calls: see `asking.open_calls`.
        concurrency: number of concurrent requests.
        progress: called with the numbers of judgements done so far and in total (two per prompt).

    Raises:
        ValueError: no prompt that both answered.
        EndpointRefused: the endpoint refuses all requests.
    """
    options = options or JudgeOptions()
    tasks, characters_cut = _tasks(a, b, references, options)
    report = progress or (lambda done, of: None)
    report(0, len(tasks))
    readings: dict[tuple[str, bool], tuple[Reading, str]] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        futures = {pool.submit(_read, task, endpoint, calls, options): task for task in tasks}
        try:
            for future in as_completed(futures):
                task = futures[future]
                readings[task.key, task.a_first] = future.result()
                report(len(readings), len(tasks))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    verdicts = []
    for key in dict.fromkeys(task.key for task in tasks):
        (one, why), (other, why_other) = readings[key, True], readings[key, False]
        verdicts.append(Judgement(key, one, other, (why, why_other)))
    return Match(a.model, b.model, verdicts, max(task.size for task in tasks), characters_cut)


def plan(a: GenerationSet, b: GenerationSet, references: Sequence[Slate], options: JudgeOptions) -> tuple[int, int]:
    """The minimum numbers of requests and prompt tokens (at four characters each) for judging two models."""
    tasks, _ = _tasks(a, b, references, options)
    return len(tasks), sum(len(message["content"]) for task in tasks for message in task.messages) // 4


def read_verdict(text: str) -> tuple[Winner, str]:
    """Winner and reason of a judge's reply: a JSON object, alone or inside other text.

    Raises:
        NoVerdict: no object with a winner, an unknown winner, objects that disagree, JSON nested too deep, or text that
            UTF-8 cannot encode.
    """
    found = objects_with("winner", text)
    winners = {re.sub(r"^set\s*", "", str(value["winner"]).strip().lower()) for value in found}
    if len(winners) > 1:
        raise NoVerdict(f"expected one winner, got {utf8(', '.join(sorted(winners)))[:80]}")
    (winner,) = winners
    if winner not in ("1", "2", "tie"):
        raise NoVerdict(f'expected a winner that is "1", "2" or "tie", got {utf8(repr(found[0]["winner"])):.80}')
    return winner, reason_of(found[-1])  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Task:
    """One judgement: a prompt in one order."""

    key: str
    a_first: bool
    size: int
    messages: list[dict[str, str]]


def _tasks(
    a: GenerationSet, b: GenerationSet, references: Sequence[Slate], options: JudgeOptions
) -> tuple[list[_Task], int]:
    theirs = {row.key: row for row in b.rows}
    slates = dict(zip(slate_keys(references), references))
    cut = 0

    def short(text: str) -> str:
        nonlocal cut
        limit = options.max_characters
        if limit is None or len(text) <= limit:
            return text
        cut += len(text) - limit
        return text[:limit] + " ..."

    tasks = []
    for row in a.rows:
        other = theirs.get(row.key)
        if other is None:
            continue
        size = min(len(row.texts), len(other.texts), options.set_size)
        set_a, set_b = ([short(text) for text in texts[:size]] for texts in (row.texts, other.texts))
        human = [short(text) for text in _best(slates.get(row.key), options.references)]
        for a_first in (True, False):
            sets = (set_a, set_b) if a_first else (set_b, set_a)
            tasks.append(_Task(row.key, a_first, size, _messages(row, sets, human)))
    if not tasks:
        raise ValueError(
            f"generations: expected prompts that both {a.model!r} and {b.model!r} answered, got none: first keys "
            f"{a.rows[0].key!r} and {b.rows[0].key!r}"
        )
    return tasks, cut


def _best(slate: Slate | None, count: int) -> list[str]:
    """The best voted responses of a slate."""
    if slate is None:
        return []
    order = sorted(range(len(slate.scores)), key=lambda at: -slate.scores[at])
    return [completion_text(slate.completions[at]) for at in order[:count]]


def _messages(row: Generation, sets: tuple[list[str], list[str]], human: list[str]) -> list[dict[str, str]]:
    parts = [f"# Question\n\n{prompt_text(row.prompt)}"]
    if human:
        parts.append("# Human responses\n\n" + _numbered(human))
    for number, texts in enumerate(sets, start=1):
        parts.append(f"# Set {number}\n\n" + _numbered(texts))
    parts.append("# Which set is better for people of differing preferences?\n\nReply with the JSON object only.")
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "\n\n".join(parts)}]


def _numbered(texts: list[str]) -> str:
    return "\n\n".join(f"[{number}] {text.strip() or '(empty)'}" for number, text in enumerate(texts, start=1))


def _read(task: _Task, endpoint: Endpoint, calls: Journal, options: JudgeOptions) -> tuple[Reading, str]:
    """One judgement, with repairs up to the limit."""
    try:
        winner, reason = ask(task.messages, endpoint, calls, options, read=read_verdict, choices=_CHOICES)
    except NoVerdict as error:
        return "invalid", str(error)
    except EndpointError as error:
        return "failed", str(error)
    except BudgetExceeded as error:
        return "unjudged", str(error)
    if winner == "tie":
        return "tie", reason
    return ("win" if (winner == "1") == task.a_first else "loss"), reason
