"""Logs of evaluations: samples of Inspect and of the lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...generation.sampling import NEUTRAL
from ..checks import Turn
from ..pieces import Piece, Response, spelled, text_key
from ..records import Record
from .base import Format, Nothing, Source, per_record
from .completions import inner

#: Inspect's grades as numbers, as its own ``value_to_float`` has them.
_GRADES = {"C": 1.0, "I": 0.0, "P": 0.5, "N": 0.0, "yes": 1.0, "no": 0.0, "true": 1.0, "false": 0.0}
_ATTACHED = "attachment://"


def inspect(source: Source, feedback: str) -> Iterator[Piece]:
    """Samples of ``.eval`` logs: the answers of all epochs to an input make a slate, one scorer's scores are feedback.

    ``mapping["score"]`` names the scorer (``SCORER``, or ``SCORER.KEY`` of scores with several values); without it a
    sample must have one.
    """
    wanted = source.mapping.get("score")

    def of_record(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
        if "error" in record:
            return Nothing("sample that ended in an error")
        turns = _messages(record)
        if isinstance(turns, Nothing):
            return turns
        if not turns or turns[-1]["role"] != "assistant":
            return Nothing("sample without an answer")
        score = _score(record, wanted)
        if isinstance(score, Nothing):
            return score
        about = inner(record, "eval") if "eval" in record else Record(record.source, record.row, {})
        prompt, answer = turns[:-1], turns[-1]
        if not prompt:
            return Nothing("sample without an input")
        model = _model(record) or about.optional_name("model")
        response = Response([answer], score, responder=model, finished=_finished(record))
        task, number = about.optional_name("task"), record.name("id")
        key = f"{task or 'task'}/{number}#{text_key(spelled(prompt))[:8]}"
        return [Piece(key, prompt, [response], origin=_drawn(about))]

    return per_record(of_record)(source, feedback)


def _messages(record: Record) -> list[Turn] | Nothing:
    """The conversation with the answer, if all of it is text."""
    attachments = dict(inner(record, "attachments").values) if "attachments" in record else {}
    turns: list[Turn] = []
    for message in record.records("messages"):
        content = message.get("content")
        if message.get("tool_calls") or message.get("role") == "tool":
            return Nothing("sample with tool calls")
        if isinstance(content, list):
            parts = message.records("content")
            if any(part.get("type") != "text" for part in parts):
                return Nothing("sample with content that is not text (reasoning, media)")
            content = "\n".join(part.text("text") for part in parts)
        if not isinstance(content, str):
            raise message.error("content", "text or parts", content)
        if content.startswith(_ATTACHED):
            content = attachments.get(content.removeprefix(_ATTACHED), content)
        turns.append({"role": message.name("role"), "content": record.place.any_text("content", content)})
    return turns


def _score(record: Record, wanted: str | None) -> float | Nothing:
    if "scores" not in record or not record.get("scores"):
        return Nothing("sample without a score")
    scores = inner(record, "scores")
    scorer, _, key = (wanted or "").partition(".")
    if wanted is None:
        if len(scores.values) > 1:
            there = ", ".join(map(str, scores.values))
            raise record.error("scores", "one scorer, or --map score=NAME to choose", there)
        scorer = next(iter(scores.values))
    elif scorer not in scores:
        return Nothing(f"sample without a score by {scorer}")
    score = inner(scores, scorer)
    value = score.required("value")
    if isinstance(value, Mapping):
        if not key:
            there = ", ".join(map(str, value))
            raise score.error("value", f"one value, or --map score={scorer}.KEY to choose one", there)
        score = inner(score, "value")
        value = score.required(key)
    if isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value in _GRADES:
        return _GRADES[value]
    return score.as_number(key or "value", value)


def _model(record: Record) -> str | None:
    return inner(record, "output").optional_name("model") if "output" in record else None


def _finished(record: Record) -> bool | None:
    """False where the answer was cut at a limit."""
    choices = inner(record, "output").get("choices") if "output" in record else None
    first = choices[0] if isinstance(choices, list) and choices else None
    reason = first.get("stop_reason") if isinstance(first, Mapping) else None
    return None if reason in (None, "unknown") else reason not in ("max_tokens", "model_length", "content_filter")


def _drawn(about: Record) -> dict[str, Any] | None:
    """The settings of the sampler that are not neutral, for a step that scores the model later."""
    if "model_generate_config" not in about:
        return None
    config = inner(about, "model_generate_config")
    found = {name: config.number(name) for name in NEUTRAL if name in config}
    altered = {name: value for name, value in found.items() if value != NEUTRAL[name]}
    return {"sampled_with": altered} if altered else None


# --- lm-evaluation-harness ------------------------------------------------------------------------------------------

#: Fields of a sample that are not metrics.
_NO_METRIC = frozenset(
    [
        "doc_id",
        "doc",
        "target",
        "arguments",
        "resps",
        "filtered_resps",
        "filter",
        "metrics",
        "doc_hash",
        "prompt_hash",
        "target_hash",
    ]
)


def lm_eval(source: Source, feedback: str) -> Iterator[Piece]:
    """``samples_TASK_DATE.jsonl`` of ``--log_samples``: the answers of all files to one prompt make a slate.

    A metric is that of the filtered answer. So of several repeats only the first has it, unless the metric is a list
    with one value for each. ``mapping["score"]`` names the metric and ``mapping["filter"]`` the filter, where a log has
    several.
    """
    metric, wanted = source.mapping.get("score"), source.mapping.get("filter")
    filters: set[str] = set()

    def of_record(record: Record, feedback: str) -> Iterable[Piece | Nothing] | Nothing:
        name = record.optional_name("filter") or "none"
        filters.add(name)
        if wanted is None and len(filters) > 1:
            found = ", ".join(sorted(filters))
            raise ValueError(
                f"mapping: expected filter, for the log has several: {found}; choose with --map filter=NAME"
            )
        if wanted not in (None, name):
            return Nothing(f"answer by another filter than {wanted}")
        arguments = inner(record, "arguments")
        if len(arguments.values) != 1:
            return Nothing("multiple choice, whose answers were scored and not written")
        prompt = _prompt(inner(arguments, next(iter(arguments.values))))
        answers = _answers(record)
        if isinstance(answers, Nothing):
            return answers
        scores = _metric(record, metric, len(answers))
        written: list[Any] = answers if isinstance(prompt, str) else [[_turn(text)] for text in answers]
        responses = [Response(text, score) for text, score in zip(written, scores, strict=True) if score is not None]
        piece = Piece(text_key(spelled(prompt)), prompt, responses)
        without = [Nothing("repeat without a score of its own")] * (len(answers) - len(responses))
        return [piece, *without]

    return per_record(of_record)(source, feedback)


def _prompt(arguments: Record) -> str | list[Turn]:
    """The text of the prompt, or its turns, which chat endpoints get as JSON."""
    text = arguments.text("arg_0")
    if text.startswith('[{"'):
        try:
            turns = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in turns):
            kept = [{name: turn[name] for name in ("role", "content")} for turn in turns]
            return arguments.place.prompt(f"{arguments.inside}arg_0", kept)
    return text


def _answers(record: Record) -> list[str] | Nothing:
    responses = record.array("resps")
    answers = responses[0] if len(responses) == 1 and isinstance(responses[0], list) else responses
    if not answers or not all(isinstance(answer, str) for answer in answers):
        return Nothing("likelihoods, whose answers were scored and not written")
    return [record.place.any_text(f"resps[0][{i}]", answer) for i, answer in enumerate(answers)]


def _turn(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _metric(record: Record, wanted: str | None, answers: int) -> list[float | None]:
    """The metric of each answer; None where it is not known."""
    names = [str(name) for name in record.array("metrics")] if "metrics" in record else []
    names = names or [name for name, value in record.values.items() if name not in _NO_METRIC and value is not None]
    if wanted is None and len(names) != 1:
        raise record.error("metrics", "one metric, or --map score=NAME to choose", ", ".join(names) or "none")
    name = wanted or names[0]
    value = record.required(name)
    if isinstance(value, list):
        if len(value) != answers:
            raise record.error(name, f"a number, or {answers}, one for each answer", value)
        return [record.as_feedback(f"{name}[{i}]", each) for i, each in enumerate(value)]
    return [record.feedback(name), *[None] * (answers - 1)]


INSPECT = Format(
    "inspect",
    "Inspect AI: samples of .eval logs, whose epochs are the responses",
    ("score",),
    inspect,
    scattered=True,
    repeats="mean",
    marks=("id epoch messages scores", "id epoch messages output"),
    maps=("score",),
)
LM_EVAL = Format(
    "lm-eval",
    "lm-evaluation-harness: samples_*.jsonl of --log_samples",
    ("metric",),
    lm_eval,
    scattered=True,
    repeats="mean",
    marks=("doc_id arguments resps filtered_resps",),
    maps=("score", "filter"),
)
