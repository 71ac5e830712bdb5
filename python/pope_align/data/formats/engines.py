"""Outputs of vLLM and SGLang: of their own interfaces, and of their servers in OpenAI's form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..checks import Turn
from ..pieces import Piece
from ..records import Record
from ..requests_log import Answer, Asked, Part, read_requests
from ..token_logprobs import UNLIKELY, mode
from .base import Format, Nothing, Source
from .completions import as_logprob, ask, exchange, inner, is_native, number, scores, server

_BEYOND = "a stop string, whose tokens were sampled but are no part of the text"
_VERY_UNLIKELY = "a token so unlikely that its log-probability was not given"


def vllm(source: Source, feedback: str) -> Iterator[Piece]:
    """Rows with the fields of vLLM's ``RequestOutput``, ``sampling_params`` and ``scores``; or rows of its server."""
    ending = mode("vllm", source.mapping.get("logprobs_mode"))

    def of_record(record: Record) -> list[Part] | Nothing:
        if "outputs" not in record:
            return exchange(record, f"vllm-server{ending}")
        asked = _asked(record, f"vllm{ending}", "sampling_params")
        if isinstance(asked, Nothing):
            return asked
        answers = [_vllm_answer(output, asked.prompt) for output in record.records("outputs")]
        key = f"request {record.optional_name('request_id') or ''} {record.source}:{record.row}"
        return [Part(key, asked=asked, answers=answers, scores=scores(record, len(answers)))]

    return read_requests(source, of_record)


def sglang(source: Source, feedback: str) -> Iterator[Piece]:
    """Rows with ``request`` and ``response`` of SGLang's ``/generate``, and ``score``; or rows of its OpenAI server."""
    ending = mode("sglang", source.mapping.get("logprobs_mode"))

    def of_record(record: Record) -> list[Part] | Nothing:
        if not is_native(record.values):
            return exchange(record, f"sglang-server{ending}")
        asked = _asked(inner(record, "request"), f"sglang{ending}", "sampling_params")
        if isinstance(asked, Nothing):
            return asked
        several = isinstance(record.get("response"), list)
        given = record.records("response") if several else [inner(record, "response")]
        answers = [_sglang_answer(each, asked) for each in given]
        key = f"request {record.source}:{record.row}"
        return [Part(key, asked=asked, answers=answers, scores=scores(record, len(answers)))]

    return read_requests(source, of_record)


def _asked(record: Record, engine: str, parameters: str) -> Asked | Nothing:
    """The prompt and settings of a request that is not in OpenAI's form; the settings are in an object of their own.

    Without that object nothing is known of the sampler: then a server's defaults are those of the model.
    """
    known = parameters in record
    settings = dict(inner(record, parameters).values) if known else {}
    name, _, ending = engine.partition("-")
    values: dict[str, Any] = {**settings, "model": record.get("model")}
    if "messages" in record:
        values["messages"] = record.get("messages")
    elif "prompt" in record or "text" in record:
        values["prompt"] = record.text("prompt" if "prompt" in record else "text")
    elif "prompt_token_ids" in record or "input_ids" in record:
        return Nothing("prompt of token ids without its text")
    else:
        raise record.error("prompt", "the prompt, or messages", None)
    of_engine = engine if known else "-".join(filter(None, (name, "server", ending)))
    return ask(Record(record.source, record.row, values, record.inside), of_engine)


def _completion(prompt: str | list[Turn], text: str) -> str | list[Turn]:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _vllm_answer(output: Record, prompt: str | list[Turn]) -> Answer:
    """A ``CompletionOutput``: ``text``, ``token_ids`` and, of each token, a mapping from ids to ``logprob``."""
    completion, reason = _completion(prompt, output.text("text")), output.optional_name("finish_reason")
    finished = None if reason is None else reason == "stop"
    if "logprobs" not in output:
        return Answer(completion, finished)
    ids, entries = _ids(output, "token_ids"), output.records("logprobs")
    if len(entries) != len(ids):
        raise output.error("logprobs", f"{len(ids)} entries, one for each of token_ids", output.get("logprobs"))
    logprobs = [number(inner(entry, str(token)), "logprob") for token, entry in zip(ids, entries, strict=True)]
    if any(value <= UNLIKELY for value in logprobs):
        return Answer(completion, finished, unusable=_VERY_UNLIKELY)
    if isinstance(output.get("stop_reason"), str):
        return Answer(completion, finished, unusable=_BEYOND)
    return Answer(completion, finished, tokens=ids, logprobs=logprobs, ends=bool(finished))


def _sglang_answer(response: Record, asked: Asked) -> Answer:
    """A response of ``/generate``: ``text`` and ``meta_info`` with ``output_token_logprobs`` and ``finish_reason``."""
    completion, meta = _completion(asked.prompt, response.text("text")), inner(response, "meta_info")
    reason = inner(meta, "finish_reason") if "finish_reason" in meta else None
    kind = None if reason is None else reason.name("type")
    finished = None if kind is None else kind == "stop"
    if "output_token_logprobs" not in meta:
        return Answer(completion, finished)
    ids: list[int] = []
    logprobs: list[float] = []
    for i, entry in enumerate(meta.array("output_token_logprobs")):
        field = f"output_token_logprobs[{i}]"
        if not isinstance(entry, list) or len(entry) < 2 or not isinstance(entry[1], int):
            raise meta.error(field, "[log-probability, token id, text]", entry)
        logprobs.append(as_logprob(meta, field, entry[0]))
        ids.append(entry[1])
    matched = None if reason is None else reason.get("matched")
    if not ids:
        return Answer(completion, finished)
    if isinstance(matched, str):
        return Answer(completion, finished, unusable=_BEYOND)
    if finished and matched != ids[-1]:
        return Answer(completion, finished, unusable="a finish_reason that does not say which token ended the response")
    return Answer(completion, finished, tokens=ids, logprobs=logprobs, ends=bool(finished))


def _ids(record: Record, field: str) -> list[int]:
    values = record.array(field)
    for i, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise record.error(f"{field}[{i}]", "a token id", value)
    return values


VLLM = Format(
    "vllm",
    "vLLM: RequestOutput with sampling_params and scores, or its server's requests and responses",
    ("score",),
    vllm,
    scattered=True,
    repeats="mean",
    marks=("outputs prompt_token_ids", "outputs sampling_params", "request response"),
    looks=lambda values: "outputs" in values or server(values) == "vllm",
    maps=("logprobs_mode",),
)
SGLANG = Format(
    "sglang",
    "SGLang: requests and responses of /generate, or of its server in OpenAI's form",
    ("score",),
    sglang,
    scattered=True,
    repeats="mean",
    marks=("request response",),
    looks=lambda values: server(values) == "sglang",
    maps=("logprobs_mode",),
)
