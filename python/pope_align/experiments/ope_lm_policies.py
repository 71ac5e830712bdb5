"""Prompts and policies of the study on real language: variants of one small model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Tokens of a response; a prefix of fewer is an exact sample of the policy that stops there.
LENGTH = 64
LENGTHS = (8, 16, 32, 64)

#: Prompts of a block have equally many tokens, so that a batch of them needs no padding.
BLOCK = 15

#: Temperatures at which texts of the unchanged model are all scored, because the logits are available.
TEMPERATURES = (1.0, 0.7, 0.85, 1.15)

_PLAIN = "You answer in one short paragraph. You use plain, everyday words and come to the point at once."


@dataclass(frozen=True)
class Policy:
    """How responses are drawn: which weights, which instructions, which temperature."""

    name: str
    temperature: float = 1.0
    system: str | None = None  # None: the chat template's own
    adapter: str | None = None  # a folder of the cache; None: the unchanged model

    @property
    def untouched(self) -> bool:
        """Whether it differs from the logging policy only in temperature."""
        return self.system is None and self.adapter is None


LOGGING = Policy("T=1")
TARGETS = (
    Policy("T=0.7", temperature=0.7),
    Policy("plain words", system=_PLAIN),
    Policy("T=1.15", temperature=1.15),
    Policy("T=0.85", temperature=0.85),
)
#: Trained by `ope_lm_training`; each is sampled as soon as its adapter is there.
TRAINED = tuple(Policy(name, adapter=name) for name in ("sft-24", "pope-24", "dpo-16", "against-16", "pope-8"))


@dataclass(frozen=True)
class Prompt:
    """An instruction and what others answered."""

    text: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Prompts:
    """Evaluation prompts in blocks of equal length, and other prompts to train on."""

    blocks: tuple[tuple[Prompt, ...], ...]
    training: tuple[Prompt, ...]


def chat_ids(tokenizer: Any, prompt: str, system: str | None) -> list[int]:
    """The prompt in the model's chat template, including the generation prompt."""
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns.append({"role": "user", "content": prompt})
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])


def choose_prompts(path: str | os.PathLike[str], tokenizer: Any, *, blocks: int = 10, training: int = 96) -> Prompts:
    """Blocks of `BLOCK` evaluation prompts with equally many tokens, drawn with a fixed seed, and disjoint others.

    Args:
        path: JSON lines with ``prompt`` and ``completions``, the reference answers.

    Raises:
        ValueError: the file has too few prompts of equal length.
    """
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))
    by_length: dict[int, list[Prompt]] = {}
    whole: list[tuple[Prompt, ...]] = []
    for index in order:
        row = rows[index]
        length = len(chat_ids(tokenizer, row["prompt"], None))
        if length > 80:
            continue
        group = by_length.setdefault(length, [])
        group.append(Prompt(row["prompt"], tuple(row["completions"])))
        if len(group) == BLOCK:
            whole.append(tuple(by_length.pop(length)))
    rest = [prompt for _, group in sorted(by_length.items()) for prompt in group]
    rest += [prompt for block in whole[blocks:] for prompt in block]
    if len(whole) < blocks or len(rest) < training:
        raise ValueError(
            f"{path}: expected {blocks} blocks of {BLOCK} prompts of equal length and {training} more prompts, "
            f"got {len(whole)} and {len(rest)}"
        )
    return Prompts(tuple(whole[:blocks]), tuple(rest[:training]))
