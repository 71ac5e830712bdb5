"""Slates to a batch: rows of tokens, with the offsets and data that the objective takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, cast

import torch

from pope_core.slates import offsets_from_lengths

from .rows import Tree, lay_out


class SlateExample(TypedDict):
    """One slate, ready to batch."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]  # [k]
    utility: list[float]  # [k] in [0, 1]
    logging_logprobs: list[float]  # [k] TOTAL log-probability under the logging policy, nats


@dataclass(frozen=True, slots=True)
class SlateCollator:
    """Batch slates of any sizes: `TokenRows`, and what the objective takes.

    With ``S`` slates and ``R`` responses in all, a call returns the entries of `TokenRows` and

    ====================  =========  ========================================================================
    ``slate_offsets``     [S + 1]    slate ``s`` is responses ``slate_offsets[s]:slate_offsets[s + 1]``; int64
    ``utility``           [R]        float32
    ``logging_logprobs``  [R]        float64, nats; totals under the logging policy
    ====================  =========  ========================================================================

    The number of tokens of a response is that of ``response_offsets``: the policy's own, whatever the logging policy
    counted.

    Attributes:
        pad_token_id: fills ``input_ids``; any id will do.
        share_prompt, max_tokens_per_row: as in `lay_out`.

    Raises:
        ValueError: no slates, a slate without responses, an empty prompt or response, or unequal lengths.
    """

    pad_token_id: int
    share_prompt: bool = False
    max_tokens_per_row: int | None = None

    def __call__(self, examples: Sequence[SlateExample]) -> dict[str, torch.Tensor]:
        if not examples:
            raise ValueError("examples: expected at least one slate, got none")
        for number, example in enumerate(examples):
            _check(example, number)
        rows = lay_out(
            [Tree(slate["prompt_ids"], slate["completion_ids"]) for slate in examples],
            share_prompt=self.share_prompt,
            max_tokens_per_row=self.max_tokens_per_row,
            pad_token_id=self.pad_token_id,
        )
        return {
            **cast("dict[str, torch.Tensor]", rows),
            "slate_offsets": offsets_from_lengths([len(slate["completion_ids"]) for slate in examples]),
            "utility": torch.tensor([u for slate in examples for u in slate["utility"]], dtype=torch.float32),
            "logging_logprobs": torch.tensor(
                [total for slate in examples for total in slate["logging_logprobs"]], dtype=torch.float64
            ),
        }


def _check(example: SlateExample, number: int) -> None:
    k = len(example["completion_ids"])
    if k == 0 or not all(example["completion_ids"]):
        raise ValueError(
            f"examples[{number}].completion_ids: expected responses of at least one token, got an empty one"
        )
    if not example["prompt_ids"]:
        raise ValueError(
            f"examples[{number}].prompt_ids: expected at least one token to predict the response from, got none"
        )
    for name, values in (("utility", example["utility"]), ("logging_logprobs", example["logging_logprobs"])):
        if len(values) != k:
            raise ValueError(f"examples[{number}].{name}: expected {k} numbers, one per response, got {len(values)}")
