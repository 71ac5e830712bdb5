"""Log-probabilities of responses under a model: batched by length, cached, resumable, without side effects."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import pope_core
from pope_core.types import IGNORE_INDEX

from .data.tokenize import EncodedSlate
from .model import lm_head, response_hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Called with the number of distinct responses scored so far and in all.
Progress = Callable[[int, int], None]

#: Part of every cache key; a change of what is computed changes it.
_CACHE_VERSION = "1"

logger = logging.getLogger(__name__)


def score_responses(
    slates: Sequence[EncodedSlate],
    model: PreTrainedModel,
    *,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[list[float]]:
    """Total log-probability, in nats, of every response of every slate.

    Equivalent, for one response: ``model(ids).logits.log_softmax(-1)`` gathered at the response's tokens and summed.
    Only the response's positions reach the language-model head. Responses are batched by length, longest first, and
    returned in their own order; equal responses are scored once. The model is in evaluation mode meanwhile, and its
    modes are restored; no random state is touched.

    With ``cache_dir``, every finished batch is appended to a file there, so that a run that was killed goes on where it
    stopped and a log that grew pays for the new responses only. An entry's key is the SHA-256 of the cache version, the
    model's fingerprint (configuration, and names, dtypes, shapes and bytes of all parameters), the number of prompt
    tokens and the token ids: nothing else decides the number.

    Args:
        slates: token ids, as `encode_slates` gives them.
        model: any causal language model of transformers, on its device and in its dtype.
        batch_tokens: upper bound of rows times length in one forward pass (a single longer response runs alone).
        cache_dir: folder of the cache, made if missing; None computes everything.
        progress: called after every batch, and once before the first.

    Raises:
        ValueError: a cache file that is not one.
    """
    fingerprint = model_fingerprint(model) if cache_dir is not None else ""
    requests = [[_Request.of(slate.prompt_ids, ids, fingerprint) for ids in slate.completion_ids] for slate in slates]
    unique = {request.key: request for of_slate in requests for request in of_slate}
    totals = _Cache.open(cache_dir, fingerprint) if cache_dir is not None else _Cache({}, None)
    pending = [request for key, request in unique.items() if key not in totals.known]
    _score(pending, model, totals, batch_tokens, len(unique), progress)
    return [[totals.known[request.key] for request in of_slate] for of_slate in requests]


def padded_responses(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of prompt and response as ``input_ids``, ``attention_mask`` and ``labels``, [R, L], padded on the right."""
    shape = len(rows), max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.zeros(shape, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, (prompt, response) in enumerate(rows):
        start, end = len(prompt), len(prompt) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt, *response])
        attention_mask[row, :end] = 1
        labels[row, start:end] = input_ids[row, start:end]
    return input_ids, attention_mask, labels


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of what decides a model's log-probabilities: its configuration and its parameters, bit for bit."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        volatile = {"_name_or_path", "transformers_version", "use_cache"}
        content = {name: value for name, value in config.to_dict().items() if name not in volatile}
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        data = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Request:
    """One response to score: its ids, how many of them are prompt, and the key of the answer."""

    ids: tuple[int, ...]
    prompt_tokens: int
    key: str

    @property
    def completion_tokens(self) -> int:
        return len(self.ids) - self.prompt_tokens

    @classmethod
    def of(cls, prompt_ids: list[int], completion_ids: list[int], fingerprint: str) -> _Request:
        ids = (*prompt_ids, *completion_ids)
        content = f"{_CACHE_VERSION} {fingerprint} {len(prompt_ids)} {' '.join(map(str, ids))}"
        return cls(ids, len(prompt_ids), hashlib.sha256(content.encode()).hexdigest())


def _score(
    pending: list[_Request],
    model: PreTrainedModel,
    totals: _Cache,
    batch_tokens: int,
    count: int,
    progress: Progress | None,
) -> None:
    report = progress or (lambda done, of: None)
    done = count - len(pending)
    report(done, count)
    with _evaluating(model):
        for batch in _batches(pending, batch_tokens):
            totals.add(batch, _totals(batch, model))
            done += len(batch)
            report(done, count)


def _batches(requests: list[_Request], batch_tokens: int) -> Iterator[list[_Request]]:
    """Longest first: rows of a batch are alike in length, and a batch too large for the memory fails at the start."""
    batch: list[_Request] = []
    for request in sorted(requests, key=lambda request: len(request.ids), reverse=True):
        if batch and len(batch[0].ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def _totals(batch: list[_Request], model: PreTrainedModel) -> list[float]:
    """Total log-probability of every response of one batch."""
    device = next(model.parameters()).device
    rows = [(request.ids[: request.prompt_tokens], request.ids[request.prompt_tokens :]) for request in batch]
    hidden, packed_labels, response_offsets = response_hidden_states(
        model, *(tensor.to(device) for tensor in padded_responses(rows))
    )
    head = lm_head(model)
    logprobs = pope_core.linear_response_logprobs(
        hidden,
        head.weight,
        packed_labels,
        lm_head_bias=head.bias,
        response_offsets=response_offsets,
        length_normalize=False,
        logit_scale=head.logit_scale,
        logit_softcap=head.logit_softcap,
    )
    # A log-probability is at most 0; rounding can leave a response of near-certain tokens a hair above.
    return logprobs.double().clamp(max=0.0).tolist()


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module has its own mode back (parts may have been frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


# --- cache ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cache:
    """Totals by key; appended to a JSON-lines file, a batch at a time, when there is a file."""

    known: dict[str, float]
    path: Path | None

    @classmethod
    def open(cls, folder: str | os.PathLike[str], fingerprint: str) -> _Cache:
        path = Path(folder) / f"logprobs-{fingerprint}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return cls({}, path)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the last line of a run that was killed while writing
            logger.warning("%s: dropped an unfinished last line", path)
            os.truncate(path, len(whole))
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            return cls({entry["key"]: float(entry["total"]) for entry in entries}, path)
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a cache of log-probabilities, got a bad line ({error}); delete it"
            ) from error

    def add(self, batch: list[_Request], totals: list[float]) -> None:
        self.known.update((request.key, total) for request, total in zip(batch, totals, strict=True))
        if self.path is not None:
            lines = [json.dumps({"key": request.key, "total": self.known[request.key]}) + "\n" for request in batch]
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
