"""Captures of tinker-cookbook: sampled token ids with log-probabilities, and rewards in rollout summaries."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..checks import Turn
from ..pieces import Piece
from ..records import Record
from ..requests_log import Answer, Asked, Part, read_requests
from ..token_logprobs import NEUTRAL_SETTINGS
from .base import Format, Nothing, Source
from .completions import as_logprob, inner

if TYPE_CHECKING:
    from ..untemplate import Untemplate

#: What tells a trajectory of a run; the names of a capture's scope and of a rollout summary are the same.
_PLACE = ("iteration", "group_idx", "traj_idx")


def tinker(source: Source, feedback: str) -> Iterator[Piece]:
    """``capture/sample.jsonl`` (or rows of the capture store) and ``*_rollout_summaries.jsonl``.

    A sample is joined with the reward of its trajectory by the ``split``, ``iteration``, ``group_idx`` and ``traj_idx``
    of its scope. Without ``traj_idx``, the samples of one call are trajectories 0, 1, ... A row may have ``scores``.
    """
    if "tokenizer" not in source.mapping:
        raise ValueError(
            "mapping: expected tokenizer, of the model that was sampled, for captures are token ids: "
            "--map tokenizer=FOLDER-OR-NAME"
        )
    texts = _texts(source.mapping["tokenizer"])

    def of_record(record: Record) -> list[Part | Nothing] | Nothing:
        if "total_reward" in record:
            return _reward(record)
        if "sampled_tokens" in record:
            return _samples(record, record, [_row_sample(record)], texts)
        if record.optional_name("kind") not in (None, "sample"):
            return Nothing("capture of another call than sample")
        if record.optional_name("status") not in (None, "ok"):
            return Nothing("sample that failed or was cancelled")
        scope = inner(record, "scope") if "scope" in record else record
        return _samples(record, scope, record.records("samples"), texts)

    return read_requests(source, of_record)


@lru_cache(maxsize=1)
def _texts(tokenizer: str) -> Untemplate:
    from ...models.loading import load_tokenizer
    from ..untemplate import Untemplate

    return Untemplate(load_tokenizer(tokenizer))


def _reward(record: Record) -> list[Part | Nothing] | Nothing:
    """A rollout summary: one trajectory."""
    reward = record.feedback("total_reward")
    if "steps" in record and len(record.array("steps")) != 1:
        return Nothing("trajectory of several steps, whose reward is not that of one response")
    place = _trajectory(record, record, None)
    return (
        Nothing("rollout summary without group_idx and traj_idx")
        if place is None
        else [Part(place, scores=[(0, reward)])]
    )


def _row_sample(record: Record) -> Record:
    """A row of the capture store, which is one sample, in the form of a sample's record."""
    values = {"tokens": record.get("sampled_tokens"), "logprobs": record.get("logprobs"), "stop_reason": None}
    return Record(record.source, record.row, values, record.inside)


def _samples(record: Record, scope: Record, samples: list[Record], texts: Untemplate) -> list[Part | Nothing]:
    prompt = texts.prompt(_ids(record, "prompt_tokens"))
    settings = dict(inner(record, "sampling_params").values) if "sampling_params" in record else {}
    known = {name: settings[name] for name in NEUTRAL_SETTINGS if settings.get(name) is not None}
    for name in known:
        inner(record, "sampling_params").number(name)
    model = record.optional_name("model_path") or record.optional_name("base_model")
    model = model or record.optional_name("policy_version")
    scores = record.array("scores") if "scores" in record else None
    if scores is not None and len(scores) != len(samples):
        raise record.error("scores", f"{len(samples)} numbers, one for each sample", scores)
    found: list[Part | Nothing] = []
    for index, sample in enumerate(samples):
        answer = _answer(sample, prompt, texts)
        given: list[tuple[int | None, float]] = []
        if scores is not None:
            given = [(0, record.as_feedback(f"scores[{index}]", scores[index]))]
        if prompt is None:
            found.append(Nothing("prompt that no conversation gives with this tokenizer's chat template"))
        elif isinstance(answer, Nothing):
            found.append(answer)
        else:
            key = _trajectory(record, scope, index) or f"{record.source}:{record.row}:{index}"
            asked = Asked(prompt, known, model, None, "tinker" if settings else "tinker-unknown", texts.fingerprint)
            found.append(Part(key, asked=asked, answers=[answer], scores=given))
    return found


def _answer(sample: Record, prompt: str | list[Turn] | None, texts: Untemplate) -> Answer | Nothing:
    ids, logprobs = _ids(sample, "tokens"), None
    if "logprobs" in sample:
        given = sample.array("logprobs")
        if len(given) != len(ids):
            raise sample.error("logprobs", f"{len(ids)} numbers, one for each token", given)
        logprobs = [as_logprob(sample, f"logprobs[{i}]", value) for i, value in enumerate(given)]
    if not ids:
        return Nothing("sample without tokens")
    ends = texts.is_end(ids[-1])
    text = texts.response(ids[:-1] if ends else ids)
    completion: Any = text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
    return Answer(completion, finished=ends, tokens=ids, logprobs=logprobs, ends=ends)


def _trajectory(record: Record, scope: Record, index: int | None) -> str | None:
    """The name of a trajectory, or None without the numbers that tell it."""
    numbers = [scope.optional_integer(name) for name in _PLACE]
    if numbers[2] is None:
        numbers[2] = index
    if None in numbers[1:]:
        return None
    return f"trajectory {scope.optional_name('split') or 'train'} {' '.join(map(str, numbers))}"


def _ids(record: Record, field: str) -> list[int]:
    values = record.array(field)
    for i, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
            raise record.error(f"{field}[{i}]", "a token id", value)
    return values


TINKER = Format(
    "tinker",
    "tinker-cookbook: captured samples and rollout summaries; needs --map tokenizer=NAME",
    ("reward",),
    tinker,
    scattered=True,
    repeats="mean",
    marks=("prompt_tokens samples", "prompt_tokens sampled_tokens", "total_reward group_idx traj_idx"),
    maps=("tokenizer",),
)
