"""Decoding with transformers that does not depend on the batch: seeded per answer, with near-ties recomputed alone.

A sampled text can depend on its batch in two ways. One is a shared random stream; here every answer has its own. The
other is rounding: logits of a row differ in the last digits with batch size and padding, which can change a near-tie
between two tokens. Such near-ties are detected by their margin and decided on logits of that row alone, without padding
or cache.

Answers to one prompt share its keys and values: the prompt is read once in a batch, not once for every answer.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicLayer

from ..models.modes import evaluation_mode
from ..models.rope import decide_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Float32 logits of a row differ by less than this between batches (SmolLM2: up to 7e-5); a choice that such a
#: difference could change is made on the row alone.
FLOAT32_TOLERANCE = 1e-3

#: Number of candidates ranked for top-p before the whole vocabulary is ranked.
_RANKED = 1024


class SamplingOptions(Protocol):
    """The fields of `generate.Sampling` that decoding uses."""

    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Decoded:
    """The tokens of an answer and, if requested, their log-probabilities in nats."""

    ids: list[int]  # [t] with the stop token, unless the limit came first
    sampled: list[float] | None = None  # [t] under the distribution they were drawn from
    model: list[float] | None = None  # [t] under the model itself
    candidates: list[int] | None = None  # [t] number of vocabulary entries kept by top-k and top-p


def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],  # [B] token ids
    seeds: Sequence[int],  # [B]
    sampling: SamplingOptions,
    stop_ids: Sequence[int],
    *,
    use_cache: bool = True,
    logprobs: bool = False,
) -> list[Decoded]:
    """The answers to ``prompts``, as token ids that end with a stop token unless the limit came first.

    Args:
        use_cache: cache keys and values; False if they change with the length (`models.rope`).
        logprobs: give the log-probability of every token, too; see `propensities`.
    """
    by_length = decide_alone(model)
    device = model.device
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), stop_ids[0], dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):  # padded on the left, so that every row's next token has the same position
        input_ids[row, length - len(ids) :] = torch.tensor(ids)
        attention_mask[row, length - len(ids) :] = 1
    chooser = _Chooser(model, [length - len(ids) for ids in prompts], seeds, sampling, stop_ids, logprobs)
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        use_cache=use_cache,
    )
    tokens, mask = input_ids.to(device), attention_mask.to(device)
    with _own_configuration(model, config), torch.inference_mode():
        # Frequencies that depend on a row's length may be others for the prompt without its last token.
        cache = _prompt_cache(model, prompts, tokens, mask) if use_cache and not by_length else None
        output = model.generate(
            input_ids=tokens,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([chooser]),
            **({} if cache is None else {"past_key_values": cache}),
        )
    answers = [_until_stop(row, stop_ids) for row in output[:, length:].tolist()]
    return chooser.decoded(answers) if logprobs else [Decoded(ids) for ids in answers]


def _prompt_cache(
    model: PreTrainedModel, prompts: Sequence[list[int]], input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> DynamicCache | None:
    """Keys and values of all prompts without their last tokens, each distinct prompt read once.

    None where nothing is gained, because all differ or have one token; and for models that keep anything but keys and
    values of single tokens, which read every row.
    """
    first = {tuple(ids): row for row, ids in reversed(list(enumerate(prompts)))}
    distinct = sorted(first.values())
    cache = DynamicCache(config=model.config)
    simple = cache.layers and all(isinstance(layer, DynamicLayer) for layer in cache.layers)
    if len(distinct) == len(prompts) or input_ids.shape[1] == 1 or not simple:
        return None
    mask = attention_mask[distinct, :-1]
    model.base_model(
        input_ids=input_ids[distinct, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    place = {row: at for at, row in enumerate(distinct)}
    cache.batch_select_indices(torch.tensor([place[first[tuple(ids)]] for ids in prompts], device=input_ids.device))
    return cache


class _Chooser:
    """A logits processor that forces in every row the token chosen with the row's own random stream."""

    def __init__(
        self,
        model: PreTrainedModel,
        padding: Sequence[int],
        seeds: Sequence[int],
        sampling: SamplingOptions,
        stop_ids: Sequence[int],
        logprobs: bool,
    ) -> None:
        self.model = model
        self.padding = padding
        self.sampling = sampling
        self.stop_ids = torch.tensor(stop_ids, device=model.device)
        self.streams = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        self.ended = torch.zeros(len(seeds), dtype=torch.bool, device=model.device)
        self.started = False
        self.logprobs = logprobs
        # [B, V], allocated once: fresh memory of this size costs more than what is computed in it.
        self.noise: torch.Tensor | None = None
        self.forced: torch.Tensor | None = None
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # of `propensities`
        # 16-bit logits are so coarse that most choices would be near-ties.
        self.tolerance = FLOAT32_TOLERANCE if model.dtype in (torch.float32, torch.float64) else 0.0
        names = inspect.signature(model.forward).parameters
        self.only_last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.started:
            self.ended |= torch.isin(input_ids[:, -1], self.stop_ids)
        self.started = True
        noise = self._noise(scores)
        choice, sure = choose(scores, noise, self.sampling, self.tolerance)
        for row in (~(sure | self.ended)).nonzero().flatten().tolist():
            alone = self._logits_alone(input_ids[row : row + 1, self.padding[row] :])
            choice[row] = choose(alone, noise[row : row + 1], self.sampling, 0.0)[0]
            if self.logprobs:
                scores = scores.index_put((torch.tensor([row], device=scores.device),), alone.to(scores.dtype))
        if self.logprobs:
            self.steps.append(propensities(scores, choice, self.sampling))
        if self.forced is None:
            self.forced = torch.empty_like(scores)
        return self.forced.fill_(-torch.inf).scatter_(1, choice[:, None], 0.0)

    def decoded(self, answers: Sequence[list[int]]) -> list[Decoded]:
        """The answers with recorded log-probabilities."""
        of_rows = [torch.stack(steps, dim=1).tolist() for steps in zip(*self.steps)]
        return [Decoded(ids, *(of_row[row][: len(ids)] for of_row in of_rows)) for row, ids in enumerate(answers)]

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        """Standard Gumbel noise, [B, V]: the largest of logit + noise is a sample of the softmax (Gumbel-max)."""
        if self.noise is None:
            self.noise = torch.zeros_like(scores)
        if self.sampling.temperature > 0:
            for row, stream in enumerate(self.streams):
                if not self.ended[row]:
                    self.noise[row].exponential_(generator=stream).log_().neg_()
        return self.noise

    def _logits_alone(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False, **self.only_last).logits
        return logits[:, -1].float()


def choose(
    logits: torch.Tensor,  # [B, V]
    noise: torch.Tensor,  # [B, V] standard Gumbel, not read when greedy
    sampling: SamplingOptions,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row, and whether logits with an error of ``tolerance`` would give the same one.

    Temperature first, then top-k, then top-p over the entries that top-k kept, as in transformers.

    Returns:
        ``[B]`` int64 and ``[B]`` bool.
    """
    if sampling.temperature == 0:
        best = logits.topk(2).values
        return logits.argmax(1), best[:, 0] - best[:, 1] > 2 * tolerance
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    # The difference of two logits changes by up to 2 * tolerance, probabilities and their sums by its exponential.
    slack = 2 * tolerance / sampling.temperature
    doubt = math.expm1(2 * slack)
    if sampling.top_p >= 1 and not 0 < sampling.top_k < logits.shape[1]:
        best, tokens = (scaled + noise).topk(2)
        return tokens[:, 0], best[:, 0] - best[:, 1] > slack
    lowest_kept = _cut(scaled, sampling.top_k, sampling.top_p, doubt)[0] - slack
    highest_dropped = _cut(scaled, sampling.top_k, sampling.top_p, -doubt)[1] + slack
    race = (scaled + noise).masked_fill(scaled < lowest_kept, -torch.inf)
    best, tokens = race.topk(2)
    winner = tokens[:, :1]
    clearly_kept = scaled.gather(1, winner) > highest_dropped
    return winner[:, 0], (best[:, 0] - best[:, 1] > slack) & clearly_kept[:, 0]


def propensities(
    logits: torch.Tensor,  # [B, V]
    tokens: torch.Tensor,  # [B]
    sampling: SamplingOptions,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities of ``tokens``, as `choose` draws them and under the model itself.

    Equivalent: ``warped.log_softmax(-1)`` gathered at the tokens, where ``warped`` are the logits after the
    temperature, top-k and top-p warpers of transformers, and the same of ``logits.log_softmax(-1)``. An excluded
    token has -inf.

    Returns:
        ``[B]`` nats as drawn, ``[B]`` nats under the model, ``[B]`` number of vocabulary entries kept.
    """
    picked = tokens[:, None]
    logits = logits.float()
    own = logits.log_softmax(1).gather(1, picked)[:, 0].clamp(max=0)
    scaled = logits / sampling.temperature
    kept = scaled >= _cut(scaled, sampling.top_k, sampling.top_p, 0.0)[0]
    drawn = scaled.masked_fill(~kept, -torch.inf).log_softmax(1).gather(1, picked)[:, 0].clamp(max=0)
    return drawn, own, kept.sum(1)


def _cut(scaled: torch.Tensor, top_k: int, top_p: float, more: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest logit that top-k and top-p (+ ``more``) keep, and the highest that they drop; each [B, 1]."""
    rows, size = scaled.shape
    nothing = scaled.new_full((rows, 1), -torch.inf)
    k = min(top_k or size, size)
    if top_p >= 1:
        if k == size:
            return nothing, nothing
        ranked = scaled.topk(k + 1).values
        return ranked[:, k - 1 : k], ranked[:, k:]
    total = scaled.logsumexp(1, keepdim=True) if k == size else scaled.topk(k).values.logsumexp(1, keepdim=True)
    for ranks in (min(_RANKED, k), k):
        ranked = scaled.topk(min(ranks + 1, size)).values
        before = (ranked[:, :ranks] - total).exp().cumsum(1).roll(1, dims=1)  # probability of all that rank higher
        before[:, 0] = -torch.inf
        kept = (before < top_p + more).sum(1, keepdim=True)
        if ranks == k or int(kept.max()) < ranks:
            break
    ranked = torch.cat([ranked, nothing], dim=1)
    return ranked.gather(1, kept - 1), ranked.gather(1, kept)


def _until_stop(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    """The tokens up to and including the first stop token."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


@contextmanager
def _own_configuration(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode, with ``config`` in place of the checkpoint's generation defaults."""
    theirs = model.generation_config
    model.generation_config = config
    try:
        with evaluation_mode(model):
            yield
    finally:
        model.generation_config = theirs
