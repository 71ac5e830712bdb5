"""Feedback from an LLM judge that rates answers one by one; a labeller for `pope label --with judge`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from typing import Any

from .._journal import Journal
from ..generation.endpoint import BudgetExceeded, Endpoint, EndpointError
from ..generation.generations import Generation, GenerationSet, prompt_text
from ..generation.labels import OnLabel
from .asking import AskOptions, NoVerdict, ask, objects_with, reason_of

_SYSTEM = (
    "You rate an answer to a question from 1 to 10. A good answer is correct, to the point and helpful to whoever "
    "asks; 1 is useless or harmful, 10 could hardly be better. Its length means nothing.\n"
    'Reply with one JSON object and nothing else: {"reason": "one sentence", "score": 7}'
)
_CHOICES = '{"score": 1} to {"score": 10}'


@dataclass(frozen=True)
class ByJudge:
    """A rating from 1 to 10 for every answer; each is requested once and stored in ``calls``.

    Attributes:
        calls: see `pope_align.judging.asking.open_calls`.
        concurrency: number of concurrent requests.
    """

    endpoint: Endpoint
    calls: Journal
    options: AskOptions = field(default_factory=AskOptions)
    concurrency: int = 4

    @property
    def about(self) -> dict[str, Any]:
        return {
            "labeller": "judge",
            "judge": self.endpoint.model,
            "base_url": self.endpoint.address,
            **asdict(self.options),
        }

    def __call__(self, generations: GenerationSet, progress: OnLabel) -> list[list[float]]:
        """Raises ValueError if an answer has no rating; received ratings are kept for the next run."""
        places = [(row, index) for row in generations.rows for index in range(len(row.texts))]
        ratings: dict[tuple[str, int], float] = {}
        problems: list[str] = []
        progress(0, len(places))
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(self._rate, row, index): (row.key, index) for row, index in places}
            try:
                for future in as_completed(futures):
                    try:
                        ratings[futures[future]] = future.result()
                    except (NoVerdict, EndpointError, BudgetExceeded) as error:
                        problems.append(str(error))
                    progress(len(ratings) + len(problems), len(places))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if problems:
            raise ValueError(
                f"judge: expected a rating of all {len(places)} answers, got none of {len(problems)}, the first: "
                f"{problems[0]}; the same command asks for these again and keeps the others"
            )
        return [[ratings[row.key, index] for index in range(len(row.texts))] for row in generations.rows]

    def _rate(self, row: Generation, index: int) -> float:
        text = row.texts[index].strip() or "(empty)"
        question = f"# Question\n\n{prompt_text(row.prompt)}\n\n# Answer\n\n{text}\n\nReply with the JSON object only."
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        return ask(messages, self.endpoint, self.calls, self.options, read=read_rating, choices=_CHOICES)


def read_rating(text: str) -> float:
    """The score of a judge's reply.

    Raises:
        NoVerdict: no object with a score, scores that disagree, or a score that is not a number from 1 to 10.
    """
    found: Sequence[dict[str, Any]] = objects_with("score", text)
    scores = {str(value["score"]).strip() for value in found}
    if len(scores) > 1:
        raise NoVerdict(f"expected one score, got {len(scores)} different ones")
    (given,) = scores
    try:
        score = float(given)
    except ValueError:
        score = math.nan
    if not 1 <= score <= 10:
        raise NoVerdict(f"expected a score from 1 to 10, got {given!r:.80}")
    reason_of(found[-1])
    return score
