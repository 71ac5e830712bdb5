"""Log-probabilities of responses under a model: batched by length, cached, resumable, without side effects."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from .._journal import Journal
from ..data.rows import Tree, lay_out
from ..data.tokenize import EncodedSlate
from ..models.causal_lm import check_head, response_logprobs, rows_on
from ..models.limits import check_limits
from ..models.memory import FittingBatches, in_two
from ..models.modes import evaluation_mode
from ..models.sharing import sharing_obstacle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Called with the numbers of response tokens scored so far and in total (distinct responses count once).
OnProgress = Callable[[int, int], None]

#: Part of every cache key and of the cache's name; to be changed when scores change.
_CACHE_VERSION = "4"

#: A prompt is computed once for responses of up to this many tokens in total; if attention does not skip masked blocks,
#: longer rows would cost more than computing the prompt again.
_TREE_TOKENS = 512

#: Share of padding in a batch above which shorter rows begin a new one, if the batch has `_FULL` tokens: enough for
#: efficient matrix products.
_PADDING, _FULL = 0.1, 512

logger = logging.getLogger(__name__)


def score_responses(
    slates: Sequence[EncodedSlate],
    model: PreTrainedModel,
    *,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    fingerprint: str | None = None,
    elsewhere: Elsewhere | None = None,
    progress: OnProgress | None = None,
) -> list[list[float]]:
    """Total log-probability, in nats, of every response of every slate.

    Equivalent, for one response: ``model(ids).logits.log_softmax(-1)`` gathered at the response's tokens and summed.
    Only the response's positions reach the language-model head. A prompt is computed once for several of its responses
    if the model allows it (a first comparison checks this, and a warning says why not). The score of a response depends
    only on its own tokens, even if rotary frequencies depend on the length (`models.rope`). Rows are batched by length,
    longest first; equal responses are scored once. The model is put in evaluation mode and its modes are restored; no
    random state is changed.

    With ``cache_dir``, every finished batch is appended to a file there, so that only new responses of a log that grew
    are computed, and a killed run continues where it stopped. Batches depend on the log alone and are stored completely
    or not at all, so the results are bit-identical to those of an uninterrupted run. A batch that does not fit in
    memory is halved, with a warning; scores then differ from those of a larger machine by rounding. An entry's key is
    the SHA-256 of the cache version, the model's fingerprint (configuration, and names, dtypes, shapes and bytes of all
    parameters), the number of prompt tokens and the token ids: nothing else affects the score, up to rounding.

    Args:
        slates: token ids, from `encode_slates`.
        model: any causal language model of transformers, on its device and in its dtype.
        batch_tokens: upper bound of rows times length in one forward pass (a single longer row runs alone).
        cache_dir: folder of the cache, created if missing; None disables caching.
        fingerprint: the model's current `model_fingerprint`, if known; None computes it if the cache needs it.
        elsewhere: scores batches in other processes (`scale.pool.PoolScorer`); None: this one does.
        progress: called after every batch, and once before the first.

    Raises:
        ValueError: tokens or positions beyond the model's tables; an invalid cache file; a log-probability that is not
            finite; a model whose head or logits are not supported.
        MemoryError: a single response does not fit in memory.
    """
    check_limits(model, [Tree(slate.prompt_ids, slate.completion_ids) for slate in slates])
    if fingerprint is None:
        fingerprint = model_fingerprint(model) if cache_dir is not None else ""
    requests = [[_Request.of(slate.prompt_ids, ids, fingerprint) for ids in slate.completion_ids] for slate in slates]
    plan = list(_plan((request for of_slate in requests for request in of_slate), batch_tokens))
    totals = _ScoreCache.open(cache_dir, fingerprint) if cache_dir is not None else _ScoreCache()
    _score(plan, model, totals, elsewhere, progress)
    return [[totals.known[request.key] for request in of_slate] for of_slate in requests]


def model_fingerprint(model: torch.nn.Module) -> str:
    """A hash of the model's configuration and all bits of its parameters."""
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
    """One response to score, and its cache key."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    key: str

    @classmethod
    def of(cls, prompt_ids: list[int], completion_ids: list[int], fingerprint: str) -> _Request:
        ids = (*prompt_ids, *completion_ids)
        content = f"{_CACHE_VERSION} {fingerprint} {len(prompt_ids)} {' '.join(map(str, ids))}"
        return cls(tuple(prompt_ids), tuple(completion_ids), hashlib.sha256(content.encode()).hexdigest())


_Row = list[_Request]  # responses to one prompt, which may be computed once

#: Rows that are computed together.
Batch: TypeAlias = list[_Row]
#: Responses of a batch, and the total of each in nats.
ScoredPart: TypeAlias = tuple[list[_Request], list[float]]
#: Scores batches in other processes, given whether prompts are computed once; yields parts in any order.
Elsewhere: TypeAlias = Callable[[Sequence[Batch], bool], Iterable[ScoredPart]]


def _plan(requests: Iterable[_Request], batch_tokens: int) -> Iterator[Batch]:
    """Batches of rows with every distinct response once; they depend on the log alone, not on the cache.

    Longest first: rows of a batch have similar lengths, and a batch that does not fit in memory fails at the start.
    """
    by_prompt: dict[tuple[int, ...], dict[str, _Request]] = {}
    for request in requests:
        by_prompt.setdefault(request.prompt, {})[request.key] = request
    rows = [row for responses in by_prompt.values() for row in _rows(list(responses.values()))]
    batch: Batch = []
    for row in sorted(rows, key=_length, reverse=True):
        if batch and not _fits(batch, row, batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _fits(batch: Batch, row: _Row, batch_tokens: int) -> bool:
    """Whether the row, which is not longer than the batch's first, leaves the batch small and with little padding."""
    filled = sum(map(_length, batch))
    size = _length(batch[0]) * (len(batch) + 1)
    return size <= batch_tokens and (filled < _FULL or filled + _length(row) >= (1 - _PADDING) * size)


def _rows(responses: list[_Request]) -> Iterator[_Row]:
    """Responses to one prompt in rows of similar lengths, up to ``_TREE_TOKENS`` each (a longer response gets its
    own).
    """
    row: _Row = []
    for request in sorted(responses, key=lambda request: len(request.response)):
        if row and sum(len(other.response) for other in row) + len(request.response) > _TREE_TOKENS:
            yield row
            row = []
        row.append(request)
    if row:
        yield row


def _length(row: _Row) -> int:
    return len(row[0].prompt) + sum(len(request.response) for request in row)


def _tree(row: _Row) -> Tree:
    return Tree(row[0].prompt, [request.response for request in row])


class BatchScorer:
    """Computes the totals of batches under a model, one after another.

    Args:
        model: on its device, in evaluation mode.
        share_prompt: whether a prompt is computed once for several responses.
    """

    def __init__(self, model: PreTrainedModel, share_prompt: bool) -> None:
        self.model, self.share_prompt = model, share_prompt
        self._fitting: FittingBatches[_Row, list[float]] = FittingBatches(size=_size, what="scoring", halves=_halves)

    def __call__(self, batch: Batch) -> Iterator[ScoredPart]:
        """The totals of a batch, in parts if it does not fit in memory."""
        for part, logprobs in self._fitting.run(batch, self._logprobs):
            yield [request for row in part for request in row], logprobs

    def _logprobs(self, batch: Batch) -> list[float]:
        rows = rows_on(self.model, lay_out([_tree(row) for row in batch], share_prompt=self.share_prompt))
        # A log-probability is at most 0; rounding can make it slightly larger for near-certain tokens.
        logprobs: list[float] = response_logprobs(self.model, rows).double().clamp(max=0.0).tolist()
        return logprobs


def _score(
    plan: list[Batch],
    model: PreTrainedModel,
    totals: _ScoreCache,
    elsewhere: Elsewhere | None,
    progress: OnProgress | None,
) -> None:
    report = progress or (lambda done, of: None)
    of = sum(_tokens(row) for batch in plan for row in batch)
    pending = [unknown for batch in plan if (unknown := list(filter(None, map(totals.unknown, batch))))]
    done = of - sum(_tokens(row) for batch in pending for row in batch)
    report(done, of)
    if not pending:
        return
    share_prompt = _shares_prompt(model, plan)  # from the whole plan, so that a resumed run decides the same
    with evaluation_mode(model), torch.no_grad():
        here = itertools.chain.from_iterable(map(BatchScorer(model, share_prompt), pending))
        for requests, logprobs in here if elsewhere is None else elsewhere(pending, share_prompt):
            totals.add(requests, logprobs)
            done += _tokens(requests)
            report(done, of)


def _size(batch: Batch) -> int:
    """Tokens of a batch, with padding."""
    return len(batch) * max(map(_length, batch))


def _halves(batch: Batch) -> tuple[Batch, Batch] | None:
    """The rows in two parts; the responses of a single one."""
    if len(batch) > 1:
        return in_two(batch)
    parts = in_two(batch[0])
    return None if parts is None else ([parts[0]], [parts[1]])


def _tokens(row: _Row) -> int:
    return sum(len(request.response) for request in row)


def _shares_prompt(model: PreTrainedModel, plan: list[Batch]) -> bool:
    """Whether prompts may be computed once for several responses, after comparing both ways with the model's logits."""
    trees = [_tree(row) for batch in plan for row in batch]
    check_head(model, min(trees, key=len))
    if all(len(tree.response_ids) == 1 for tree in trees):
        return False
    obstacle = sharing_obstacle(model, trees)
    if obstacle is not None:
        logger.warning("every response computes its prompt again: %s", obstacle)
    return obstacle is None


# --- cache ----------------------------------------------------------------------------------------------------------


class _ScoreCache:
    """Totals by key, stored in a journal with one line per batch if there is a folder."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal
        batches = [] if journal is None else journal.values()
        self.known: dict[str, float] = {key: total for batch in batches for key, total in batch.items()}

    @classmethod
    def open(cls, folder: str | os.PathLike[str], fingerprint: str) -> _ScoreCache:
        about = {"log-probabilities": _CACHE_VERSION, "model": fingerprint}
        path = Path(folder) / f"logprobs-v{_CACHE_VERSION}-{fingerprint}.jsonl"
        return cls(Journal(path, about, valid=_are_totals))

    def unknown(self, row: _Row) -> _Row:
        return [request for request in row if request.key not in self.known]

    def add(self, batch: list[_Request], totals: list[float]) -> None:
        entries = {request.key: total for request, total in zip(batch, totals, strict=True)}
        self.known.update(entries)
        if self.journal is not None:
            self.journal.keep(hashlib.sha256(" ".join(entries).encode()).hexdigest(), entries)


def _are_totals(batch: Any) -> bool:
    return isinstance(batch, dict) and all(type(total) is float and total <= 0 for total in batch.values())
