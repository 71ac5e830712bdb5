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

from .data.rows import Tree, lay_out
from .data.tokenize import EncodedSlate
from .model import response_logprobs, rows_on, sharing_obstacle

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
    Only the response's positions reach the language-model head, and a prompt is computed once for all responses of its
    slate where the model can (`sharing_obstacle`). Slates are batched by length, longest first, and returned in their
    own order; equal responses to equal prompts are scored once. The model is in evaluation mode meanwhile, and its
    modes are restored; no random state is touched.

    With ``cache_dir``, every finished batch is appended to a file there, so that a run that was killed goes on where it
    stopped and a log that grew pays for the new responses only. An entry's key is the SHA-256 of the cache version, the
    model's fingerprint (configuration, and names, dtypes, shapes and bytes of all parameters), the number of prompt
    tokens and the token ids: nothing else decides the number.

    Args:
        slates: token ids, as `encode_slates` gives them.
        model: any causal language model of transformers, on its device and in its dtype.
        batch_tokens: upper bound of rows times length in one forward pass (a single longer row runs alone).
        cache_dir: folder of the cache, made if missing; None computes everything.
        progress: called after every batch, and once before the first.

    Raises:
        ValueError: a cache file that is not one.
    """
    fingerprint = model_fingerprint(model) if cache_dir is not None else ""
    requests = [[_Request.of(slate.prompt_ids, ids, fingerprint) for ids in slate.completion_ids] for slate in slates]
    totals = _Cache.open(cache_dir, fingerprint) if cache_dir is not None else _Cache({}, None)
    count = len({request.key for of_slate in requests for request in of_slate})
    _score(_pending(requests, totals.known), model, totals, batch_tokens, count, progress)
    return [[totals.known[request.key] for request in of_slate] for of_slate in requests]


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
    """One response to score, and the key of the answer."""

    prompt_ids: list[int]
    response_ids: list[int]
    key: str

    @classmethod
    def of(cls, prompt_ids: list[int], response_ids: list[int], fingerprint: str) -> _Request:
        ids = " ".join(map(str, [*prompt_ids, *response_ids]))
        content = f"{_CACHE_VERSION} {fingerprint} {len(prompt_ids)} {ids}"
        return cls(prompt_ids, response_ids, hashlib.sha256(content.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class _Group:
    """Responses to one prompt that are computed together, in one row or a row each."""

    requests: list[_Request]

    @property
    def tree(self) -> Tree:
        return Tree(self.requests[0].prompt_ids, [request.response_ids for request in self.requests])


def _pending(requests: list[list[_Request]], known: dict[str, float]) -> list[_Group]:
    """What is not known yet, every response once."""
    seen = set(known)
    groups = []
    for of_slate in requests:
        wanted = {request.key: request for request in of_slate if request.key not in seen}
        seen.update(wanted)
        if wanted:
            groups.append(_Group(list(wanted.values())))
    return groups


def _score(
    pending: list[_Group],
    model: PreTrainedModel,
    totals: _Cache,
    batch_tokens: int,
    count: int,
    progress: Progress | None,
) -> None:
    report = progress or (lambda done, of: None)
    done = count - sum(len(group.requests) for group in pending)
    report(done, count)
    if not pending:
        return
    with _evaluating(model):
        several = next((group.tree for group in pending if len(group.requests) > 1), None)
        share = several is not None and sharing_obstacle(model, several) is None
        if not share:
            pending = [_Group([request]) for group in pending for request in group.requests]
        for batch in _batches(pending, batch_tokens):
            requests = [request for group in batch for request in group.requests]
            rows = rows_on(model, lay_out([group.tree for group in batch], share_prompt=share))
            logprobs = response_logprobs(model, rows, length_normalize=False)
            # A log-probability is at most 0; rounding can leave a response of near-certain tokens a hair above.
            totals.add(requests, logprobs.double().clamp(max=0.0).tolist())
            done += len(requests)
            report(done, count)


def _batches(groups: list[_Group], batch_tokens: int) -> Iterator[list[_Group]]:
    """Longest first: rows of a batch are alike in length, and a batch too large for the memory fails at the start."""
    batch: list[_Group] = []
    for group in sorted(groups, key=lambda group: len(group.tree), reverse=True):
        if batch and len(batch[0].tree) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


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
