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

from .._files import replacing
from ..models.causal_lm import merged
from .ope_lm_policies import LENGTH, LENGTHS, LOGGING, TEMPERATURES, Policy, Prompt, chat_ids

#: Responses to each prompt in one piece.
ROUND = 8

#: Rows of the vocabulary's log-softmax computed at once.
_ROWS = 160


@dataclass(frozen=True)
class Portion:
    """Eight responses to each prompt of a block, by one policy."""

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
        """``logprobs`` and ``hidden``, as `draw` gives them, of responses that another policy wrote."""
        network = self.network(scorer)
        temperatures = TEMPERATURES if scorer.untouched else (scorer.temperature,)
        past, state = self._read_prompts(network, scorer, prompts)
        ids = torch.from_numpy(tokens.astype(np.int64))
        filled = ids.clamp(min=0)
        later = network.model(input_ids=filled[:, :-1], past_key_values=past, use_cache=True).last_hidden_state
        states = torch.cat([state[:, None], later], dim=1)  # [n, LENGTH, D]
        flat, wanted = states.flatten(0, 1), filled.flatten()
        out = torch.zeros(len(flat), len(temperatures))
        valid = (ids >= 0).flatten().nonzero()[:, 0]
        for start in range(0, len(valid), _ROWS):
            rows = valid[start : start + _ROWS]
            out[rows] = _logprobs(network.lm_head(flat[rows]), wanted[rows], temperatures)
        result = {"logprobs": out.reshape(*ids.shape, -1).numpy()}
        return {**result, "hidden": _prefix_means(states, ids)} if scorer == LOGGING else result

    def _read_prompts(self, network: Any, policy: Policy, prompts: tuple[Prompt, ...]) -> tuple[Any, torch.Tensor]:
        """The cache after the prompts, `ROUND` rows of each, and the states that predict the first token."""
        ids = torch.tensor([chat_ids(self.tokenizer, prompt.text, policy.system) for prompt in prompts])
        read = network.model(input_ids=ids, use_cache=True)
        read.past_key_values.batch_repeat_interleave(ROUND)
        return read.past_key_values, read.last_hidden_state[:, -1].repeat_interleave(ROUND, 0)


def _draw(logits: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
    """One token a row, by inversion of the distribution function in float64."""
    below = logits.double().softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=stream, dtype=torch.float64) * below[:, -1:]
    return torch.searchsorted(below, uniform, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _logprobs(logits: torch.Tensor, choice: torch.Tensor, temperatures: tuple[float, ...]) -> torch.Tensor:
    """``[B, T]`` log-probability of the chosen token at each temperature."""
    chosen = logits.gather(1, choice[:, None])[:, 0]
    return torch.stack([chosen / each - (logits / each).logsumexp(-1) for each in temperatures], dim=1)


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
