"""Assembles pieces into slates: gathers, filters, samples, checks and counts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .._extras import require
from .checks import Place, Rating, SlateError
from .feedback import SMALL_UTILITY, age_corrected, is_constant, to_utility
from .formats import Format, Source
from .gather import gather
from .merge import content, merge
from .options import SPLITS, ConvertOptions, ConvertReport
from .pieces import ORIGIN_LISTS, Piece, Response
from .schema import Slate, parse_row, text_of
from .split import group_column, grouping

#: Called with the number of records read so far.
OnRecords = Callable[[int], None]

#: The field of an error that belongs to one response of a slate, such as ``completions[2][0].role``.
_OF_RESPONSE = re.compile(r"\w+\[(\d+)\]")


@dataclass(slots=True)
class Assembler:
    """Makes the slates of one conversion, and counts what happens to every piece."""

    kind: Format
    feedback: str
    source: Source
    options: ConvertOptions
    report: ConvertReport
    progress: OnRecords | None = None

    def slates(self) -> Iterator[tuple[str | None, Slate]]:
        """Every slate that is kept, with its split (None without splits)."""
        pieces = self.counted(self.kind.read(self.source, self.feedback))
        groups: Iterable[list[Piece]] = gather(pieces, Piece) if self.kind.scattered else ([piece] for piece in pieces)
        dropped = self.report.responses_dropped
        for group in groups:
            whole, copies = merge(group, self.kind.repeats)
            dropped["blank"] += sum(not text_of(r.completion).strip() for piece in group for r in piece.responses)
            dropped["repeated in its slate"] += copies
            found = self.slate(whole)
            if found is not None:
                split, slate = found
                self.report.splits[split or "all"] += 1
                yield split, slate

    def counted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for number, piece in enumerate(pieces):
            self.report.responses_read += len(piece.responses)
            if self.progress is not None and number % 1000 == 0:
                self.progress(self.source.records_read)
            yield piece
        if self.progress is not None:
            self.progress(self.source.records_read)

    def slate(self, piece: Piece) -> tuple[str | None, Slate] | None:
        """The slate of one key and its split, or None with the reason counted."""
        options, report = self.options, self.report
        if piece.prompt is None and options.missing_prompt is not None:
            piece = replace(piece, prompt=options.missing_prompt.replace("{key}", piece.key))
            report.prompts_missing += 1
        if piece.prompt is None or not content(piece.prompt).strip():
            report.drop("no prompt: its item, post or question is missing", len(piece.responses))
            return None
        if options.fraction < 1 and unit(options.seed, "fraction", piece.key) >= options.fraction:
            report.drop("not in the fraction", len(piece.responses))
            return None
        responses = [response for response in piece.responses if self.wanted(response)]
        responses, slate = self.good(piece, responses)
        logged = len(responses)
        if logged < options.min_k:
            report.drop(f"fewer than {options.min_k} responses", logged)
            return None
        if options.max_k is not None and logged > options.max_k:
            report.drop(f"more than {options.max_k} responses", logged)
            return None
        if options.sample_k is not None and logged > options.sample_k:
            responses = _sample(piece.key, responses, options)
        try:
            if slate is None or len(responses) < logged:
                slate = self.parsed(piece, responses, logged)
            slate = self.grouped(piece, slate)
            split = self.split(slate, piece)
        except SlateError as error:
            self.source.bad(error)
            report.drop("a bad row", logged)
            return None
        report.responses_dropped["not sampled"] += logged - len(responses)
        report.slates_sampled += len(responses) < logged
        report.slates_kept += 1
        report.responses_kept += len(responses)
        if slate.logging_logprobs is not None:
            report.with_propensity += len(responses)
        elif lost := sum(response.logprob is not None for response in responses):
            self.source.without_propensity["another response of its slate has none"] += lost
        if is_constant(slate.scores):
            report.constant += 1
        else:
            report.small_utilities += int((to_utility(slate.scores, "minmax") < SMALL_UTILITY).sum())
        return split, slate

    def wanted(self, response: Response) -> bool:
        options, text = self.options, text_of(response.completion)
        if len(text) < options.min_chars:
            reason = f"shorter than {options.min_chars} characters"
        elif options.max_chars is not None and len(text) > options.max_chars:
            reason = f"longer than {options.max_chars} characters"
        elif options.language is not None and _language(text) != options.language:
            reason = f"not in language {options.language}"
        else:
            return True
        self.report.responses_dropped[reason] += 1
        return False

    def good(self, piece: Piece, responses: list[Response]) -> tuple[list[Response], Slate | None]:
        """The valid responses and their slate; invalid responses are counted as bad rows."""
        responses = list(responses)
        while responses:
            try:
                return responses, self.parsed(piece, responses, len(responses))
            except SlateError as error:
                found = _OF_RESPONSE.match(error.field)
                if found is None:
                    return responses, None  # the slate as a whole is invalid
                at = responses.pop(int(found.group(1)))
                where = at.place or piece.place or Place(f"slate {piece.key}", 1)
                self.source.bad(SlateError(where.source, where.row, error.field, error.expected, error.got))
                self.report.responses_dropped["a bad row"] += 1
        return responses, None

    def parsed(self, piece: Piece, responses: list[Response], logged: int) -> Slate:
        options = self.options
        origin: dict[str, Any] = {"format": self.kind.name, "feedback": self.feedback, "responses": logged}
        if self.kind.by_people:
            origin["written_by"] = "people"
        origin.update(piece.origin or {})  # slates that are converted again came from where they first came from
        if len(responses) < logged:
            origin["sample_seed"] = options.seed
        scores = [response.score for response in responses]
        place = piece.place or Place(f"slate {piece.key}", 1)
        if options.age_scale_days is not None and options.as_of is not None:
            scores = _corrected(place, responses, options.age_scale_days, options.as_of)
            origin["age_scale_days"] = options.age_scale_days
        prompt = piece.prompt
        if isinstance(prompt, str):
            prompt = options.prompt_template.replace("{prompt}", prompt)
        origin |= _origin_lists(responses)
        recorded = _all([response.logprob for response in responses])
        row = {
            "prompt": prompt,
            "completions": [response.completion for response in responses],
            "scores": scores,
            "logging_logprobs": recorded,
            "completion_tokens": _all([response.tokens for response in responses]),
            "ranks": _all([response.rank for response in responses]),
            # Where a recorded total lacks the end-of-turn token, no policy's total may have it.
            "finished": _all([False if recorded and each.unended else each.finished for each in responses]),
            "completion_ids": _all([response.ids for response in responses]),
            "slate_id": piece.key,
            "responders": _all([r.responder or (r.user if options.keep_users else None) for r in responses]),
            "group_scores": _groups(responses),
            "ratings": _ratings(responses) if options.keep_users or self.kind.keeps_ratings else None,
            "origin": origin,
        }
        if row["logging_logprobs"] is not None:
            row["logging_policy"] = piece.logging_policy
        return parse_row(place.source, place.row, row)

    def grouped(self, piece: Piece, slate: Slate) -> Slate:
        """The slate with its group in its origin, if groups are requested."""
        if self.options.group is None:
            return slate
        place = piece.place or Place(f"slate {piece.key}", 1)
        column = group_column(self.options.group)
        try:
            group = piece.group if column is not None else grouping(self.options.group)(slate)
        except ValueError as error:
            raise place.error("group", f"a value of {self.options.group}", slate.slate_id) from error
        if group is None:
            raise place.error("group", f"a value in the column {column}", None)
        return replace(slate, origin={**(slate.origin or {}), "group": group})

    def split(self, slate: Slate, piece: Piece) -> str | None:
        options = self.options
        if options.split_by is None:
            return None
        group = piece.key if options.split_by == "slate" else grouping(None)(slate)
        if options.split_by == "user":
            if piece.user is None:
                place = piece.place or Place(f"slate {piece.key}", 1)
                raise SlateError(place.source, place.row, "split_by", "a format that says who asked", "none")
            group = piece.user
        at = unit(options.seed, "split", group)
        for name, share in zip(SPLITS, options.splits, strict=True):
            if at < share:
                return name
            at -= share
        return options.files[-1]


def unit(seed: int, *names: str) -> float:
    """A number in [0, 1), hashed from the seed and names."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _language(text: str) -> str:
    langid = require("py3langid", extra="train", purpose="to filter by language")
    return str(langid.classify(text)[0])


def _sample(key: str, responses: list[Response], options: ConvertOptions) -> list[Response]:
    """A uniform sample without replacement that does not depend on the order of the responses and keeps it."""
    ranked = sorted(responses, key=lambda response: unit(options.seed, "sample", key, content(response.completion)))
    kept = {id(response) for response in ranked[: options.sample_k]}
    return [response for response in responses if id(response) in kept]


def _corrected(place: Place, responses: list[Response], scale_days: float, as_of: float) -> list[float]:
    ages = []
    for index, response in enumerate(responses):
        if response.timestamp is None or response.timestamp > as_of:
            raise place.error(f"timestamp[{index}]", f"a time before as_of, {as_of:.0f}", response.timestamp)
        ages.append((as_of - response.timestamp) / 86_400)
    return age_corrected([response.score for response in responses], ages, scale=scale_days).tolist()


def _groups(responses: list[Response]) -> list[dict[str, float]] | None:
    groups = [response.group_scores for response in responses]
    return [group or {} for group in groups] if any(groups) else None


def _ratings(responses: list[Response]) -> list[list[Rating]] | None:
    ratings = [response.ratings for response in responses]
    return [each or [] for each in ratings] if any(ratings) else None


def _origin_lists(responses: list[Response]) -> dict[str, Any]:
    """What the log has of each response and a slate has no field for; in the order of the responses."""
    lists = {name: _all([getattr(response, each) for response in responses]) for name, each in ORIGIN_LISTS.items()}
    return {name: values for name, values in lists.items() if values is not None}


def _all(values: list[Any]) -> list[Any] | None:
    """The values of a column, or None if any response has none."""
    return None if any(value is None for value in values) else values
