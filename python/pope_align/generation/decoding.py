"""Decoding with transformers in which the batch decides nothing: seeded per answer, ties settled alone.

Two things make a sampled text depend on its neighbours in a batch. One is a shared random stream; here every answer has
its own. The other is rounding: the same row gives logits that differ in the last digits in a batch of another size, or
behind padding, and where two tokens are that close the other one may win. Such a choice is recognised by its margin and
made on the logits of the row alone, without padding or cache, which depend on nothing else.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessorList

from ..models.rope import decide_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Logits of one row in float32 differ by less than this between batches (SmolLM2: up to 7e-5); a choice
#: that such a difference could turn is made on the row alone.
FLOAT32_TOLERANCE = 1e-3

#: Candidates ranked for top-p before all of the vocabulary is.
_RANKED = 1024


class SamplingOptions(Protocol):
    """What decoding reads of `generate.Sampling`."""

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
    """The tokens of an answer, and their log-probabilities where those were asked for, in nats."""

    ids: list[int]  # [t] with the stop token, unless the limit came first
    sampled: list[float] | None = None  # [t] under the distribution they were drawn from
    model: list[float] | None = None  # [t] under the model itself
    candidates: list[int] | None = None  # [t] vocabulary entries that top-k and top-p left to draw from


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
        use_cache: keep keys and values of earlier tokens; False where they change with the length (`models.rope`).
        logprobs: give the log-probability of every token, too; see `propensities`.
    """
    decide_alone(model)
    device = model.device
    length = max(map(len, prompts))
    input_ids = torch.full((len(prompts), length), stop_ids[0], dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(prompts):  # padded on the left: every row's next token stands at the same place
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
    with _own_configuration(model, config), torch.inference_mode():
        output = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            logits_processor=LogitsProcessorList([chooser]),
        )
    answers = [_until_stop(row, stop_ids) for row in output[:, length:].tolist()]
    return chooser.decoded(answers) if logprobs else [Decoded(ids) for ids in answers]


class _Chooser:
    """A logits processor that leaves one token possible in every row: the one that the row's own stream chooses."""

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
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []  # of `propensities`
        # A 16-bit model rounds its logits so coarsely that most choices would have to be made alone.
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
        return torch.full_like(scores, -torch.inf).scatter_(1, choice[:, None], 0.0)

    def decoded(self, answers: Sequence[list[int]]) -> list[Decoded]:
        """The answers with what was recorded of them."""
        of_rows = [torch.stack(steps, dim=1).tolist() for steps in zip(*self.steps)]
        return [Decoded(ids, *(of_row[row][: len(ids)] for of_row in of_rows)) for row, ids in enumerate(answers)]

    def _noise(self, scores: torch.Tensor) -> torch.Tensor:
        """Standard Gumbel noise, [B, V]: the largest of logit + noise is a sample of the softmax (Gumbel-max)."""
        noise = torch.zeros_like(scores)
        if self.sampling.temperature > 0:
            for row, stream in enumerate(self.streams):
                if not self.ended[row]:
                    noise[row].exponential_(generator=stream).log_().neg_()
        return noise

    def _logits_alone(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False, **self.only_last).logits
        return logits[:, -1].float()


def choose(
    logits: torch.Tensor,  # [B, V]
    noise: torch.Tensor,  # [B, V] standard Gumbel, not read when greedy
    sampling: SamplingOptions,
    tolerance: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of every row, and whether logits that are off by ``tolerance`` would have given the same one.

    Temperature first, then top-k, then top-p over what top-k kept, as everyone does it.

    Returns:
        ``[B]`` int64 and ``[B]`` bool.
    """
    if sampling.temperature == 0:
        best = logits.topk(2).values
        return logits.argmax(1), best[:, 0] - best[:, 1] > 2 * tolerance
    scaled = logits / sampling.temperature
    # Two logits move by 2 * tolerance against each other, a probability by that as a factor, and so does its total.
    slack = 2 * tolerance / sampling.temperature
    doubt = math.expm1(2 * slack)
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

    Equivalent: ``warped.log_softmax(-1)`` gathered at the tokens, where ``warped`` is what the temperature, top-k and
    top-p warpers of transformers make of the logits, and ``logits.log_softmax(-1)``. A token that is left out has -inf.

    Returns:
        ``[B]`` nats as drawn, ``[B]`` nats under the model, ``[B]`` vocabulary entries left to draw from.
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
    """What stands before the padding: everything up to and with the first stop token."""
    for position, token in enumerate(ids):
        if token in stop_ids:
            return ids[: position + 1]
    return ids


@contextmanager
def _own_configuration(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode and ``config`` alone: the checkpoint's own generation defaults would fill what it leaves open."""
    modes = [(module, module.training) for module in model.modules()]
    theirs = model.generation_config
    model.generation_config = config
    model.eval()
    try:
        yield
    finally:
        model.generation_config = theirs
        for module, training in modes:
            module.training = training
