"""Trained targets: adapters by SFT on references, DPO and POPE on the log, and POPE against the reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

import pope_core

from .ope_lm_policies import BLOCK, LENGTH, LOGGING, Prompt, chat_ids
from .ope_lm_samples import ROUND, PolicyModel, write_portion

#: Prompts of a step, responses of a slate, and the step size; the method's strength is its number of steps.
SLATES, SIZE, LEARNING_RATE = 4, 4, 2e-4

#: The beta of DPO, which scales its KL penalty to the logging policy.
_DPO_BETA = 0.1

Rates = Callable[[Prompt, list[str]], Sequence[float]]


@dataclass(frozen=True, eq=False)
class OwnSlate:
    """One training prompt: its logged responses, their totals in nats, and utilities in [0, 1]."""

    prompt_ids: list[int]
    response_ids: list[list[int]]
    logprobs: list[float]
    utility: list[float]
    reference_ids: list[int]


def training_slates(models: PolicyModel, prompts: Sequence[Prompt], utility: Rates) -> list[OwnSlate]:
    """The logging policy's own responses to the training prompts, kept in the cache, with their utilities."""
    _draw_missing(models, prompts)
    slates = []
    for index, prompt in enumerate(prompts):
        drawn = np.load(_path(models, index))
        rows = [row[row >= 0].tolist() for row in drawn["tokens"][:SIZE]]
        texts = [models.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        worth = np.asarray(utility(prompt, texts), dtype=np.float64)
        spread = float(np.ptp(worth))
        reference = models.tokenizer(prompt.references[0], add_special_tokens=False)["input_ids"][:LENGTH]
        slates.append(
            OwnSlate(
                chat_ids(models.tokenizer, prompt.text, None),
                rows,
                drawn["logprobs"][:SIZE, :, 0].sum(1).tolist(),
                ((worth - worth.min()) / spread if spread > 0 else np.full(len(worth), 0.5)).tolist(),
                list(reference),
            )
        )
    return slates


def _path(models: PolicyModel, index: int) -> Path:
    return models.cache / "training" / f"{index:03d}.npz"


def _draw_missing(models: PolicyModel, prompts: Sequence[Prompt]) -> None:
    """Draw the responses that are not in the cache, prompts of equal length together, which need no padding."""
    missing = [index for index in range(len(prompts)) if not _path(models, index).exists()]
    lengths = {index: len(chat_ids(models.tokenizer, prompts[index].text, None)) for index in missing}
    for _, group in groupby(sorted(missing, key=lengths.__getitem__), key=lengths.__getitem__):
        together = list(group)
        for start in range(0, len(together), BLOCK):
            indices = together[start : start + BLOCK]
            drawn = models.draw(LOGGING, tuple(prompts[index] for index in indices), seed=indices[0])
            for at, index in enumerate(indices):
                write_portion(
                    _path(models, index), {name: of[at * ROUND : (at + 1) * ROUND] for name, of in drawn.items()}
                )


def train(models: PolicyModel, slates: Sequence[OwnSlate], method: str, steps: int, folder: Path) -> None:
    """Train a LoRA adapter for ``steps`` steps and save it to ``folder``.

    Args:
        method: "sft", "dpo", "pope", or "against": POPE with inverted utilities.
    """
    from copy import deepcopy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    options = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(deepcopy(models.model), options).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=LEARNING_RATE)
    losses = {"sft": _sft, "dpo": _dpo, "pope": _pope, "against": _against}
    for step, batch in zip(range(steps), _batches(slates), strict=False):
        loss = losses[method](model, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"{folder.name} step {step + 1} of {steps}: loss {float(loss.detach()):.4g}", flush=True)
    model.save_pretrained(folder)


def _batches(slates: Sequence[OwnSlate]) -> Iterator[list[OwnSlate]]:
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(slates))
        for start in range(0, len(order) - SLATES + 1, SLATES):
            yield [slates[int(index)] for index in order[start : start + SLATES]]


def _logits(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits that predict response tokens, packed ``[N, V]``; the tokens ``[N]``; and offsets ``[R + 1]``."""
    length = max(len(prompt) + len(response) for prompt, response in rows)
    ids, mask = torch.zeros(len(rows), length, dtype=torch.int64), torch.zeros(len(rows), length, dtype=torch.int64)
    for row, (prompt, response) in enumerate(rows):
        ids[row, : len(prompt) + len(response)] = torch.tensor([*prompt, *response])
        mask[row, : len(prompt) + len(response)] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits
    packed = [logits[row, len(p) - 1 : len(p) + len(r) - 1] for row, (p, r) in enumerate(rows)]
    labels = torch.tensor([token for _, response in rows for token in response])
    return torch.cat(packed), labels, torch.tensor(np.cumsum([0] + [len(r) for _, r in rows]))


def _totals(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> torch.Tensor:
    logits, labels, offsets = _logits(model, rows)
    return pope_core.response_logprobs(logits, labels, response_offsets=offsets)


def _sft(model: Any, batch: Sequence[OwnSlate]) -> torch.Tensor:
    rows = [(slate.prompt_ids, slate.reference_ids) for slate in batch]
    return -_totals(model, rows).sum() / sum(len(response) for _, response in rows)


def _dpo(model: Any, batch: Sequence[OwnSlate]) -> torch.Tensor:
    rows, logged = [], []
    for slate in batch:
        for at in (int(np.argmax(slate.utility)), int(np.argmin(slate.utility))):
            rows.append((slate.prompt_ids, slate.response_ids[at]))
            logged.append(slate.logprobs[at])
    change = (_totals(model, rows) - torch.tensor(logged)).view(-1, 2)
    return -torch.nn.functional.logsigmoid(_DPO_BETA * (change[:, 0] - change[:, 1])).mean()


def _pope(model: Any, batch: Sequence[OwnSlate], sign: float = 1.0) -> torch.Tensor:
    rows = [(slate.prompt_ids, response) for slate in batch for response in slate.response_ids]
    logits, labels, offsets = _logits(model, rows)
    utility = torch.tensor([each if sign > 0 else 1 - each for slate in batch for each in slate.utility])
    logged = torch.tensor([each for slate in batch for each in slate.logprobs])
    slate_offsets = torch.tensor(np.cumsum([0] + [len(slate.response_ids) for slate in batch]))
    return pope_core.pope_loss(logits, labels, logged, utility, slate_offsets, response_offsets=offsets).loss


def _against(model: Any, batch: Sequence[OwnSlate]) -> torch.Tensor:
    return _pope(model, batch, sign=-1.0)
