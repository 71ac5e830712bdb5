"""Slates to the padded batch of the Hugging Face convention, with the offsets and data that the objective takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from pope_core.slates import offsets_from_lengths
from pope_core.types import IGNORE_INDEX


class SlateExample(TypedDict):
    """One slate, ready to batch."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]  # [k]
    utility: list[float]  # [k] in [0, 1]
    logging_logprobs: list[float]  # [k] TOTAL log-probability under the logging policy, nats


@dataclass(frozen=True, slots=True)
class SlateCollator:
    """Batch slates of any sizes: one row per response, padded on the right.

    With ``S`` slates, ``R`` responses in all and ``L`` tokens in the longest row, a call returns

    ====================  =========  =====================================================================
    ``input_ids``         [R, L]     prompt, response, padding
    ``attention_mask``    [R, L]     1 on prompt and response
    ``labels``            [R, L]     the response's tokens where they stand, -100 on prompt and padding
    ``slate_offsets``     [S + 1]    responses of slate ``s`` are rows ``slate_offsets[s]:slate_offsets[s + 1]``
    ``utility``           [R]
    ``logging_logprobs``  [R]        nats; totals, or divided by the row's number of labels
    ====================  =========  =====================================================================

    The first four are int64. The last two are float32, which every device has and the policy's own log-probabilities
    are computed in; the division happens in float64 and is rounded once.

    Attributes:
        pad_token_id: fills ``input_ids``; any id will do, the mask and the labels cover it.
        length_normalize: divide the logging policy's total by the row's number of labels. The policy's total is divided
            by the same ``|y|``, so the log-weight is ``(1/|y|) log(pi_theta(y) / pi_0(y))`` even when the two models
            count tokens differently.

    Raises:
        ValueError: no slates, a slate without responses, an empty prompt or response, or unequal lengths.
    """

    pad_token_id: int
    length_normalize: bool

    def __call__(self, examples: Sequence[SlateExample]) -> dict[str, torch.Tensor]:
        if not examples:
            raise ValueError("examples: expected at least one slate, got none")
        for number, example in enumerate(examples):
            _check(example, number)
        rows = [(slate["prompt_ids"], response) for slate in examples for response in slate["completion_ids"]]
        shape = len(rows), max(len(prompt) + len(response) for prompt, response in rows)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
        for row, (prompt, response) in enumerate(rows):
            start, end = len(prompt), len(prompt) + len(response)
            input_ids[row, :end] = torch.tensor([*prompt, *response])
            attention_mask[row, :end] = 1
            labels[row, start:end] = input_ids[row, start:end]
        logging_logprobs = [total for slate in examples for total in slate["logging_logprobs"]]
        if self.length_normalize:
            lengths = [len(response) for _, response in rows]
            logging_logprobs = [total / length for total, length in zip(logging_logprobs, lengths, strict=True)]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "slate_offsets": offsets_from_lengths([len(slate["completion_ids"]) for slate in examples]),
            "utility": torch.tensor([u for slate in examples for u in slate["utility"]], dtype=torch.float32),
            "logging_logprobs": torch.tensor(logging_logprobs, dtype=torch.float32),
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
