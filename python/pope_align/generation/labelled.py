"""Converts answers with feedback to slates, including recorded propensities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..data import Slate
from .generations import Generation, GenerationSet
from .sampling import sampled_with

#: Settings of a generation that become provenance of its propensities; see `propensity.logging_policy`.
_PROVENANCE = ("model", "adapter", "model_fingerprint", "tokenizer_fingerprint", "dtype", "template_date", "engine")


#: What an origin says about the scale of scores.
_SCALE = ("rescaled", "utility_transform")


@dataclass(slots=True)
class LabelReport:
    """Counts of the answers of a set of generations."""

    slates: int = 0
    answers: int = 0  # in the slates
    cut: int = 0  # of these, answers that were cut at the limit
    blank: int = 0  # left out: no text
    unrecorded: int = 0  # left out: the endpoint's log-probabilities are of other tokens than the text's
    empty_slates: int = 0  # left out: no answer remained

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        left_out = [
            f"{count} {what}"
            for count, what in (
                (self.blank, "blank answers"),
                (self.unrecorded, "answers whose recorded tokens are not those of their text"),
                (self.empty_slates, "prompts without an answer left"),
            )
            if count
        ]
        cut = f", {self.cut} of them cut at the limit" if self.cut else ""
        return f"{self.slates} slates, {self.answers} answers{cut}; left out: {', '.join(left_out) or 'none'}"


def labelled_slates(
    generations: GenerationSet, scores: Sequence[Sequence[float]], about: dict[str, Any]
) -> tuple[list[Slate], LabelReport]:
    """Slates of a model's answers and their feedback.

    If the generations have propensities, ``logging_logprobs`` are under the sampling distribution,
    ``completion_ids`` are the sampled tokens and ``completion_tokens`` their number, and ``logging_policy`` has
    ``recorded`` and the sampling settings. Blank answers are left out, because slates cannot contain them. Answers cut
    at the limit are kept and marked in ``finished``: their propensity is without an end-of-turn token.

    Args:
        scores: one list per row, one number per answer, larger is better.
        about: the labeller's; kept in ``origin``.
    """
    report = LabelReport()
    slates = []
    for row, of_row in zip(generations.rows, scores, strict=True):
        kept = [index for index, text in enumerate(row.texts) if text.strip()]
        report.blank += len(row.texts) - len(kept)
        if row.recorded is not None:
            usable = [index for index in kept if row.recorded[index] is not None]
            report.unrecorded += len(kept) - len(usable)
            kept = usable
        if not kept:
            report.empty_slates += 1
            continue
        report.slates += 1
        report.answers += len(kept)
        slates.append(_slate(row, kept, of_row, generations, about))
        report.cut += sum(not done for done in slates[-1].finished or [])
    return slates, report


def relabelled(slates: Sequence[Slate], scores: Sequence[Sequence[float]], about: dict[str, Any]) -> list[Slate]:
    """Logged slates with new scores; what describes the old ones is removed (``ranks``, and their scale in ``origin``),
    and all else is kept.
    """
    relabelled = []
    for slate, of_slate in zip(slates, scores, strict=True):
        origin = {name: value for name, value in (slate.origin or {}).items() if name not in _SCALE}
        origin |= {"feedback": about.get("labeller", "none"), **about}
        relabelled.append(replace(slate, scores=list(map(float, of_slate)), ranks=None, origin=origin))
    return relabelled


def rescaled(scores: Sequence[Sequence[float]]) -> tuple[list[list[float]], dict[str, float]]:
    """Scores mapped to [0, 1] by one linear function for the whole log, and the two numbers of its inverse."""
    flat = [score for of_row in scores for score in of_row]
    low, high = min(flat), max(flat)
    width = high - low or 1.0
    return [[(score - low) / width for score in of_row] for of_row in scores], {"low": low, "high": high}


def _slate(
    row: Generation, kept: list[int], scores: Sequence[float], generations: GenerationSet, about: dict[str, Any]
) -> Slate:
    texts = [row.texts[index] for index in kept]
    finished = None if row.finished is None else [row.finished[index] for index in kept]
    origin = {"format": "generations", "feedback": about.get("labeller", "none"), **about}
    if altered := sampled_with(generations.settings):  # for a step that may score the model later
        origin["sampled_with"] = altered
    slate = Slate(
        prompt=row.prompt,
        completions=texts,
        scores=[float(scores[index]) for index in kept],
        slate_id=row.key,
        responders=[generations.model] * len(kept),
        origin=origin,
        finished=None if finished is None or all(finished) else finished,
    )
    given = generations.settings
    if row.recorded is not None:
        totals = [total for index in kept if (total := row.recorded[index]) is not None]
        ended = [total.ends and (finished is None or finished[at]) for at, total in enumerate(totals)]
        policy = {"how": "recorded", "model": generations.model, "engine": given.get("engine")}
        return replace(
            slate,
            logging_logprobs=[total.logprob for total in totals],
            completion_tokens=[total.tokens for total in totals],
            finished=None if all(ended) else ended,  # no policy's total may have the end that this one lacks
            logging_policy={
                **policy,
                "sampling": given.get("sampling"),
                "seed": given.get("seed"),
                "n": given.get("n"),
            },
        )
    if row.propensities is None:
        return slate
    recorded = [row.propensities[index] for index in kept]
    policy = {name: given[name] for name in _PROVENANCE if given.get(name) is not None}
    sampling = {name: given.get(name) for name in ("sampling", "seed", "n")}
    return replace(
        slate,
        logging_logprobs=[each.logging_logprob for each in recorded],
        completion_tokens=[len(each.token_ids) for each in recorded],
        completion_ids=[each.token_ids for each in recorded],
        logging_policy={"how": "recorded", "model": generations.model, **policy, **sampling},
    )
