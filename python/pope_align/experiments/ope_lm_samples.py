"""Responses of the study's policies with token log-probabilities, stored in pieces so that runs can be resumed.

A piece is a policy, a block of prompts and a round; its file is written once. Several workers may share a cache and
divide the pieces.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import pope_core

from .._files import replacing
from ..models.causal_lm import merged
from .ope_lm_policies import LENGTH, LENGTHS, LOGGING, TEMPERATURES, Policy, Prompt, chat_ids

#: Responses to each prompt in one piece.
ROUND = 6

#: Rows of logits computed at once when scoring.
_ROWS = 160

#: Vocabulary entries whose probabilities are summed first when a token is drawn.
_SPAN = 256


@dataclass(frozen=True)
class Portion:
    """`ROUND` responses to each prompt of a block, by one policy."""

    policy: Policy
    block: int
    round: int

    def path(self, cache: Path) -> Path:
        return cache / "samples" / f"{_plain(self.policy.name)}-b{self.block:02d}-r{self.round:02d}.npz"

    def scored_path(self, cache: Path, scorer: Policy) -> Path:
        folder = cache / f"scores-{_plain(scorer.name)}"
        return folder / f"{_plain(self.policy.name)}-b{self.block:02d}-r{self.round:02d}.npz"

    @property
    def seed(self) -> int:
        return zlib.crc32(f"{self.policy.name}/{self.block}/{self.round}".encode())


class PolicyModel:
    """One copy of the weights with adapters; draws and scores for every policy."""

    def __init__(self, model: Any, tokenizer: Any, cache: Path) -> None:
        self.model, self.tokenizer, self.cache = model.eval(), tokenizer, cache
        self.stop = int(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        self._loaded: dict[str, Any] = {}

    def ready(self, policy: Policy) -> bool:
        """Whether the policy's adapter exists, if it needs one."""
        return policy.adapter is None or (self.cache / "adapters" / policy.adapter / "adapter_config.json").exists()

    def network(self, policy: Policy) -> Any:
        """The causal language model of a policy."""
        if policy.adapter is None:
            return self.model
        if policy.adapter not in self._loaded:
            from copy import deepcopy

            from peft import PeftModel

            self._loaded.clear()  # one changed copy at a time
            changed = PeftModel.from_pretrained(deepcopy(self.model), self.cache / "adapters" / policy.adapter)
            self._loaded[policy.adapter] = merged(changed).eval()
        return self._loaded[policy.adapter]

    @torch.inference_mode()
    def draw(self, policy: Policy, prompts: tuple[Prompt, ...], seed: int) -> dict[str, npt.NDArray[Any]]:
        """`ROUND` responses to each prompt, with each token's log-probability under the policy that drew it.

        Returns:
            ``tokens`` ``[n, LENGTH]`` (-1 after the end), ``logprobs`` ``[n, LENGTH, 1]`` or, for an unchanged policy,
            ``[n, LENGTH, len(TEMPERATURES)]``, nats, and ``hidden`` ``[n, len(LENGTHS), D]``: the mean of the last
            layer's states that predict the tokens of each prefix.
        """
        network, stream = self.network(policy), torch.Generator().manual_seed(seed)
        temperatures = TEMPERATURES if policy.untouched else (policy.temperature,)
        past, state = self._read_prompts(network, policy, prompts)
        count = len(prompts) * ROUND
        tokens = torch.full((count, LENGTH), -1)
        logprobs = torch.zeros(count, LENGTH, len(temperatures))
        states = torch.zeros(count, LENGTH, state.shape[-1])
        alive = torch.arange(count)
        for place in range(LENGTH):
            logits = network.lm_head(state)  # [B, V]
            choice = _draw(logits / policy.temperature, stream)
            tokens[alive, place] = choice
            logprobs[alive, place] = _logprobs(logits, choice, temperatures)
            states[alive, place] = state
            on = choice != self.stop
            if place + 1 == LENGTH or not on.any():
                break
            if not on.all():
                keep = on.nonzero()[:, 0]
                past.batch_select_indices(keep)
                alive, choice = alive[keep], choice[keep]
            state = network.model(input_ids=choice[:, None], past_key_values=past, use_cache=True).last_hidden_state[
                :, -1
            ]
        return {
            "tokens": tokens.numpy().astype(np.int32),
            "logprobs": logprobs.numpy(),
            "hidden": _prefix_means(states, tokens),
        }

    @torch.inference_mode()
    def score(
        self, scorer: Policy, prompts: tuple[Prompt, ...], tokens: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[Any]]:
        """``logprobs`` ``[n, LENGTH, 1]`` of responses that another policy wrote, and ``hidden`` under `LOGGING`."""
        network = self.network(scorer)
        past, state = self._read_prompts(network, scorer, prompts)
        ids = torch.from_numpy(tokens.astype(np.int64))
        filled = ids.clamp(min=0)
        later = network.model(input_ids=filled[:, :-1], past_key_values=past, use_cache=True).last_hidden_state
        states = torch.cat([state[:, None], later], dim=1)  # [n, LENGTH, D]
        flat, wanted = states.flatten(0, 1), filled.flatten()
        out = torch.zeros(len(flat), 1)
        valid = (ids >= 0).flatten().nonzero()[:, 0]
        for start in range(0, len(valid), _ROWS):
            rows = valid[start : start + _ROWS]
            out[rows] = _logprobs(network.lm_head(flat[rows]), wanted[rows], (scorer.temperature,))
        result = {"logprobs": out.reshape(*ids.shape, -1).numpy()}
        return {**result, "hidden": _prefix_means(states, ids)} if scorer == LOGGING else result

    def _read_prompts(self, network: Any, policy: Policy, prompts: tuple[Prompt, ...]) -> tuple[Any, torch.Tensor]:
        """The cache after the prompts, `ROUND` rows of each, and the states that predict the first token."""
        ids = torch.tensor([chat_ids(self.tokenizer, prompt.text, policy.system) for prompt in prompts])
        read = network.model(input_ids=ids, use_cache=True)
        read.past_key_values.batch_repeat_interleave(ROUND)
        return read.past_key_values, read.last_hidden_state[:, -1].repeat_interleave(ROUND, 0)


def _draw(logits: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """One token a row, by inversion of the distribution function: the span of the vocabulary first, then the entry.

    Sums are in float64, so entries of small probability are drawn as often as they should be.
    """
    weights = (logits - logits.amax(1, keepdim=True)).exp_()
    padded = torch.nn.functional.pad(weights, (0, -weights.shape[1] % _SPAN))
    spans = padded.reshape(len(padded), -1, _SPAN)
    below = spans.sum(2, dtype=torch.float64).cumsum(1)
    uniform = torch.rand(len(logits), 1, generator=stream, dtype=torch.float64) * below[:, -1:]
    span = torch.searchsorted(below, uniform, right=True).clamp(max=below.shape[1] - 1)  # [B, 1]
    inside = spans.take_along_dim(span[..., None], 1)[:, 0].double().cumsum(1)
    rest = uniform - torch.nn.functional.pad(below, (1, 0)).take_along_dim(span, 1)
    entry = torch.searchsorted(inside, rest, right=True).clamp(max=_SPAN - 1)
    return (span * _SPAN + entry)[:, 0].clamp(max=logits.shape[1] - 1)


def _logprobs(logits: torch.Tensor, choice: torch.Tensor, temperatures: tuple[float, ...]) -> torch.Tensor:
    """``[B, T]`` log-probability of the chosen token at each temperature."""
    each_token = torch.arange(len(choice) + 1)
    at_each = [pope_core.response_logprobs(logits / t, choice, response_offsets=each_token) for t in temperatures]
    return torch.stack(at_each, dim=1)


def _prefix_means(states: torch.Tensor, tokens: torch.Tensor) -> npt.NDArray[np.float16]:
    valid = (tokens >= 0).float()[..., None]
    means = [
        (states[:, :length] * valid[:, :length]).sum(1) / valid[:, :length].sum(1).clamp(min=1) for length in LENGTHS
    ]
    return torch.stack(means, dim=1).half().numpy()


def write_portion(path: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write a piece atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **arrays)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
