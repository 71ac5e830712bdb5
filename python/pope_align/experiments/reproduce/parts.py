"""The parts of a data set: a training log, test prompts with reference answers, and answers of other people to them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ..._files import write_json
from ...data import Slate, group_split, slate_group, write_slates
from ...data.schema import FIELDS, text_of
from ...generation.generations import Generation, GenerationSet, completion_text, slate_keys, write_generations
from .methods import PEOPLE

#: Files of the parts: slates to train on; test slates with all responses; the same with the responses that serve as
#: references; the other responses as generations; counts.
TRAIN, TEST, REFERENCES, OTHERS, COUNTS = "train.jsonl", "test.jsonl", "references.jsonl", "people.jsonl", "parts.json"
#: Slates that settings are chosen on; all their responses are references.
VALIDATION = "validation.jsonl"

#: Responses from which a test slate is divided into references and answers of other people: two of each, because a
#: spread needs pairs.
_DIVISIBLE = 4


@dataclass(frozen=True)
class PartCounts:
    """What is in the parts.

    Attributes:
        slates, matching: read, and those whose prompt matches.
        train, validation, test: slates of the parts.
        test_prompts: groups of the test part, over which intervals are taken.
        train_responses, validation_responses, references, test_responses: in all.
        tokens: of a response, about (four characters each).
        divided: test slates that have answers of other people.
    """

    slates: int
    matching: int
    train: int
    validation: int
    test: int
    test_prompts: int
    train_responses: int
    validation_responses: int
    references: int
    test_responses: int
    tokens: int
    divided: int


def make_parts(
    slates: Sequence[Slate],
    folder: Path,
    *,
    train: int,
    test: int,
    most: int,
    answers: int,
    validation: int = 0,
    characters: int = 0,
    matching: str = "",
    seed: int = 0,
) -> PartCounts:
    """Write the parts of a data set, which share no group (`slate_group`), into a folder.

    Slates are taken from the groups in turn, so that few slates still come from many groups. All depends on the seed
    and the content only.

    Args:
        train, validation, test: slates; 0 for no such part. Fewer if there are fewer, in the same proportion.
        most: responses of a training slate; of more, a sample.
        answers: of other people, at most, to a test prompt.
        characters: to which responses are cut, before a word; 0: uncut.
        matching: regular expression that prompts must contain.

    Raises:
        ValueError: fewer than two slates of a part; no prompt that matches.
    """
    pattern = re.compile(matching)
    kept = [_cut(slate, characters) for slate in slates if pattern.search(text_of(slate.prompt))]
    if not kept:
        raise ValueError(f"matching: expected a prompt that contains {matching!r}, got none among {len(slates)} slates")
    if train:
        rest, held_out = group_split(kept, slate_group, test / (train + validation + test), seed)
    else:
        rest, held_out = [], kept
    chosen_on: list[Slate] = []
    if validation:
        rest, chosen_on = group_split(rest, slate_group, validation / (train + validation), seed)
        chosen_on = _in_turn(chosen_on, validation, seed)
    tested, trained = _in_turn(held_out, test, seed), _in_turn(rest, train, seed)
    if len(tested) < 2:
        raise ValueError(f"data: expected at least 2 test slates, got {len(tested)} of {len(kept)} slates that match")
    if validation and len(chosen_on) < 2:
        raise ValueError(f"data: expected at least 2 validation slates, got {len(chosen_on)} of {len(kept)} that match")
    trained = [subset(slate, sorted(_shuffled(slate, seed)[:most])) for slate in trained]
    pairs = [_divided(slate, answers, seed) for slate in tested]
    references = [slate for slate, _ in pairs]
    rows = [
        Generation(key, slate.prompt, others)
        for key, (slate, others) in zip(slate_keys(references), pairs, strict=True)
        if others
    ]
    folder.mkdir(parents=True, exist_ok=True)
    if trained:
        write_slates(trained, folder / TRAIN)
    if chosen_on:
        write_slates(chosen_on, folder / VALIDATION)
    write_slates(tested, folder / TEST)
    write_slates(references, folder / REFERENCES)
    if rows:
        write_generations(GenerationSet(PEOPLE, tuple(rows)), folder / OTHERS)
    lengths = [len(completion_text(each)) for slate in [*trained, *tested] for each in slate.completions]
    counts = PartCounts(
        slates=len(slates),
        matching=len(kept),
        train=len(trained),
        validation=len(chosen_on),
        test=len(tested),
        test_prompts=len({slate_group(slate) for slate in tested}),
        train_responses=sum(len(slate.completions) for slate in trained),
        validation_responses=sum(len(slate.completions) for slate in chosen_on),
        references=sum(len(slate.completions) for slate in references),
        test_responses=sum(len(slate.completions) for slate in tested),
        tokens=max(1, round(sum(lengths) / len(lengths) / 4)),
        divided=len(rows),
    )
    write_json(folder / COUNTS, asdict(counts))
    return counts


def subset(slate: Slate, indices: Sequence[int]) -> Slate:
    """A slate with some of its responses, and everything that belongs to each of them."""
    count = len(slate.completions)
    per_response = {
        "completions",
        "scores",
        "logging_logprobs",
        "completion_tokens",
        "responders",
        "group_scores",
        "finished",
        "completion_ids",
        "ratings",
    }
    chosen: dict[str, Any] = {
        name: [getattr(slate, name)[index] for index in indices]
        for name in FIELDS
        if name in per_response and getattr(slate, name) is not None
    }
    return replace(slate, **chosen, ranks=slate.ranks if len(indices) == count else None)


def _cut(slate: Slate, characters: int) -> Slate:
    """The slate with responses of at most so many characters, without what was recorded of the uncut ones."""
    texts = [completion_text(each) for each in slate.completions]
    if not characters or max(map(len, texts)) <= characters:
        return slate
    cut = [text if len(text) <= characters else _before_a_word(text, characters) for text in texts]
    return replace(
        slate, completions=cut, logging_logprobs=None, completion_tokens=None, completion_ids=None, finished=None
    )


def _before_a_word(text: str, characters: int) -> str:
    head = text[:characters]
    inside = not (text[characters].isspace() or head[-1].isspace()) and len(head.split()) > 1
    return head.rsplit(maxsplit=1)[0] if inside else head.rstrip()


def _in_turn(slates: Sequence[Slate], count: int, seed: int) -> list[Slate]:
    """Up to ``count`` slates: the first of every group, then the second, groups and their slates in hashed order."""
    groups: dict[str, list[Slate]] = {}
    for slate in sorted(slates, key=lambda slate: _digest(seed, slate_group(slate), slate)):
        groups.setdefault(slate_group(slate), []).append(slate)
    ordered = [groups[name] for name in sorted(groups, key=lambda name: _digest(seed, name, None))]
    return list(_flat(zip_longest(*ordered)))[:count]


def _flat(rounds: Iterator[tuple[Slate | None, ...]]) -> Iterator[Slate]:
    for of_round in rounds:
        yield from (slate for slate in of_round if slate is not None)


def _digest(seed: int, group: str, slate: Slate | None) -> bytes:
    inside = "" if slate is None else f"{slate.slate_id}:{text_of(slate.prompt)}:{text_of(slate.completions[0])}"
    return hashlib.sha256(f"{seed}:{group}:{inside}".encode()).digest()


def _shuffled(slate: Slate, seed: int) -> list[int]:
    """Indices of the responses in hashed order."""
    texts = list(map(completion_text, slate.completions))
    return sorted(range(len(texts)), key=lambda at: hashlib.sha256(f"{seed}:{at}:{texts[at]}".encode()).digest())


def _divided(slate: Slate, answers: int, seed: int) -> tuple[Slate, list[str]]:
    """References, and up to ``answers`` other responses: at most half, none where there are too few."""
    order = _shuffled(slate, seed)
    if len(order) < _DIVISIBLE:
        return slate, []
    others = order[: min(answers, len(order) // 2)]
    return subset(slate, sorted(set(order) - set(others))), [completion_text(slate.completions[at]) for at in others]
