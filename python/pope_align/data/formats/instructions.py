"""Instructions with several rated answers: Alpaca and Alpaca-GPT4, AlpacaEval, UltraFeedback."""

from __future__ import annotations

from collections.abc import Iterable

from ..pieces import Piece, Response, text_key
from ..records import Record
from .base import Format, Nothing, per_record


def alpaca(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``instruction``, ``input`` and ``output``, one reference each; or ``user_input`` and ``responses_and_scores``.

    References of several files to the same instruction make one slate. A reference without a rating scores 1.
    """
    if "responses_and_scores" in record:
        prompt = record.text("user_input").strip()
        responses = [
            Response(answer.text("response"), answer.number("score"), responder=answer.optional_name("source"))
            for answer in record.records("responses_and_scores")
        ]
        return [Piece(text_key(prompt), prompt=prompt, responses=responses)]
    instruction, extra = record.text("instruction").strip(), (record.optional_text("input") or "").strip()
    prompt = f"{instruction}\n\n{extra}" if extra else instruction
    outputs = record.array("output") if isinstance(record.get("output"), list) else [record.text("output")]
    for index, output in enumerate(outputs):
        if not isinstance(output, str):
            raise record.error(f"output[{index}]", "text", output)
    return [Piece(text_key(prompt), prompt=prompt, responses=[Response(output, 1.0) for output in outputs])]


def alpaca_eval(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """Annotations: ``preference`` is 1 where ``output_1`` (the baseline) wins and 2 where ``output_2`` does.

    The score of a model's output is its win rate over the baseline, the mean of ``preference - 1`` over annotators; the
    baseline's own is one half.
    """
    if "preference" not in record:
        return Nothing("output without an annotation, or an annotation that was not made")
    preference = record.number("preference")
    if not 0 <= preference <= 2:
        raise record.error("preference", "a number from 1 to 2 (or 0 and 1.5 for a tie)", preference)
    win_rate = 0.5 if preference == 0 else min(max(preference - 1, 0.0), 1.0)
    prompt = record.text("instruction")
    responses = [
        Response(record.text("output_1"), 0.5, responder=record.optional_name("generator_1")),
        Response(record.text("output_2"), win_rate, responder=record.optional_name("generator_2")),
    ]
    return [Piece(text_key(prompt), prompt=prompt, responses=responses)]


_ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def ultrafeedback(record: Record, feedback: str) -> Iterable[Piece] | Nothing:
    """``instruction`` and ``completions`` with ``overall_score``, or with ratings of four aspects to average."""
    responses = []
    for answer in record.records("completions"):
        if feedback == "overall_score":
            score = answer.number("overall_score")
        elif feedback == "fine_grained":
            score = answer.number("fine-grained_score")
        else:
            score = _mean_aspect(answer)
        responses.append(Response(answer.text("response"), score, responder=answer.optional_name("model")))
    prompt = record.text("instruction")
    return [Piece(text_key(prompt), prompt=prompt, responses=responses)]


def _mean_aspect(answer: Record) -> float:
    annotations = answer.required("annotations")
    if not isinstance(annotations, dict) or not all(isinstance(annotations.get(name), dict) for name in _ASPECTS):
        raise answer.error("annotations", f"an object with {', '.join(_ASPECTS)}", annotations)
    ratings = [
        answer.as_number(f"annotations.{name}.Rating", annotations[name].get("Rating"))
        for name in _ASPECTS
        if annotations[name].get("Rating") != "N/A"
    ]
    if not ratings:
        raise answer.error("annotations", "at least one rating", annotations)
    return sum(ratings) / len(ratings)


ALPACA = Format(
    "alpaca",
    "Alpaca and Alpaca-GPT4: instruction, input, output; or user_input with responses_and_scores",
    ("reference",),
    per_record(alpaca),
    scattered=True,
    marks=("instruction output", "user_input responses_and_scores"),
)
ALPACA_EVAL = Format(
    "alpaca-eval",
    "AlpacaEval annotations: output_1, output_2, preference",
    ("win_rate",),
    per_record(alpaca_eval),
    scattered=True,
    repeats="mean",
    marks=("instruction output_1 output_2", "instruction output generator"),
)
ULTRAFEEDBACK = Format(
    "ultrafeedback",
    "UltraFeedback: completions with overall_score",
    ("overall_score", "fine_grained", "mean_aspect"),
    per_record(ultrafeedback),
    scattered=False,
    marks=("instruction completions",),
)
