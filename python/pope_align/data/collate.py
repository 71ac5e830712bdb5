"""Collates slates to a batch: rows of tokens, and the offsets and logged data for the objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import torch

from pope_core.slates import LogData, offsets_from_lengths

from .rows import Tree, lay_out


class ResponseExample(TypedDict):
    """The tokens of one slate."""

    prompt_ids: list[int]
    completion_ids: list[list[int]]  # [k]


class SlateExample(ResponseExample):
    """One scored slate, ready to batch."""

    utility: list[float]  # [k] in [0, 1]
    logging_logprobs: list[float]  # [k] TOTAL log-probability under the logging policy, nats; NaN: not known


@dataclass(frozen=True, slots=True)
class RowCollator:
    """Batch the tokens of slates of any sizes: `TokenRows`.

    Attributes:
        pad_token_id: fills ``input_ids``; any id works.
        share_prompt, max_tokens_per_row: as in `lay_out`.

    Raises:
        ValueError: no slates, a slate without responses, or an empty prompt or response.
    """

    pad_token_id: int
    share_prompt: bool = False
    max_tokens_per_row: int | None = None

    def __call__(self, examples: Sequence[ResponseExample]) -> dict[str, Any]:
        if not examples:
            raise ValueError("examples: expected at least one slate, got none")
        for number, example in enumerate(examples):
            _check_tokens(example, number)
        rows = lay_out(
            [Tree(slate["prompt_ids"], slate["completion_ids"]) for slate in examples],
            share_prompt=self.share_prompt,
            max_tokens_per_row=self.max_tokens_per_row,
            pad_token_id=self.pad_token_id,
        )
        return {**rows}


@dataclass(frozen=True, slots=True)
class SlateCollator(RowCollator):
    """Batch scored slates of any sizes: `TokenRows`, and under ``log`` the logged data for the objective.

    ``log`` is a `pope_core.slates.LogData`: totals of the logging policy and utilities in float64, offsets of the
    slates, and the number of tokens of each response, by which the objective divides where it is length-normalised.

    Raises:
        ValueError: what `RowCollator` refuses, and utilities or log-probabilities that are not one per response.
    """

    def __call__(self, examples: Sequence[ResponseExample]) -> dict[str, Any]:
        batch = RowCollator.__call__(self, examples)
        scored = cast("Sequence[SlateExample]", examples)
        for number, example in enumerate(scored):
            _check_log(example, number)
        batch["log"] = LogData(
            logging_logprobs=_float64(total for slate in scored for total in slate["logging_logprobs"]),
            utility=_float64(utility for slate in scored for utility in slate["utility"]),
            slate_offsets=offsets_from_lengths([len(slate["completion_ids"]) for slate in scored]),
            tokens=batch["response_offsets"].diff(),
        )
        return batch


def _float64(values: Iterable[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _check_tokens(example: ResponseExample, number: int) -> None:
    if not example["completion_ids"] or not all(example["completion_ids"]):
        raise ValueError(
            f"examples[{number}].completion_ids: expected responses of at least one token, got an empty one"
        )
    if not example["prompt_ids"]:
        raise ValueError(
            f"examples[{number}].prompt_ids: expected at least one token to predict the response from, got none"
        )


def _check_log(example: SlateExample, number: int) -> None:
    k = len(example["completion_ids"])
    for name, values in (("utility", example["utility"]), ("logging_logprobs", example["logging_logprobs"])):
        if len(values) != k:
            raise ValueError(f"examples[{number}].{name}: expected {k} numbers, one per response, got {len(values)}")
