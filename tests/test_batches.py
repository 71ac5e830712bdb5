"""Tokens to batches: rows, labels, shared prompts, and examples that do not fit."""

from __future__ import annotations

import pytest
import torch
from pope_align.data import (
    SlateCollator,
    Tree,
    lay_out,
)

EXAMPLES = [
    {"prompt_ids": [5, 6], "completion_ids": [[7], [8, 9, 1]], "utility": [0.0, 1.0], "logging_logprobs": [-2.0, -6.0]},
    {"prompt_ids": [4], "completion_ids": [[3, 1]], "utility": [0.5], "logging_logprobs": [-5.0]},
]


def test_a_batch_by_hand() -> None:
    batch = SlateCollator(pad_token_id=1)(EXAMPLES)
    log = batch.pop("log")
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 1, 1], [5, 6, 8, 9, 1], [4, 3, 1, 1, 1]],
        "position_ids": [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]],
        "tree": [[0, 0, 0, -1, -1], [0, 0, 0, 0, 0], [0, 0, 0, -1, -1]],
        "branch": [[0, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 1, 0, 0]],
        "predictors": [1, 6, 7, 8, 10, 11],
        "labels": [7, 8, 9, 1, 3, 1],
        "response_offsets": [0, 1, 4, 6],
    }
    assert {name: tensor.tolist() for name, tensor in log._asdict().items()} == {
        "logging_logprobs": [-2.0, -6.0, -5.0],
        "utility": [0.0, 1.0, 0.5],
        "slate_offsets": [0, 2, 3],
        "tokens": [1, 3, 2],
    }
    assert log.logging_logprobs.dtype == log.utility.dtype == torch.float64
    assert {tensor.dtype for tensor in [*batch.values(), log.slate_offsets, log.tokens]} == {torch.int64}


def test_rows_that_share_prompts_by_hand() -> None:
    trees = [Tree(e["prompt_ids"], e["completion_ids"]) for e in EXAMPLES]
    rows = lay_out(trees, share_prompt=True)
    assert rows["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1], [4, 3, 1, 0, 0, 0]]
    assert rows["position_ids"].tolist() == [[0, 1, 2, 2, 3, 4], [0, 1, 2, 0, 0, 0]]
    assert rows["branch"].tolist() == [[0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 0, 0]]
    assert rows["predictors"].tolist() == [1, 1, 3, 4, 6, 7]  # the prompt's last token predicts twice
    assert rows["labels"].tolist() == [7, 8, 9, 1, 3, 1]
    one = lay_out(trees, share_prompt=True, max_tokens_per_row=9)
    assert one["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 4, 3, 1]]
    assert one["tree"].tolist() == [[0] * 6 + [1] * 3]
    assert one["predictors"].tolist() == [1, 1, 3, 4, 6, 7]
    assert lay_out(trees, share_prompt=True, max_tokens_per_row=8)["input_ids"].shape == (2, 6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"completion_ids": [[7], []]}, r"examples\[1\]\.completion_ids"),
        ({"completion_ids": []}, r"examples\[1\]\.completion_ids"),
        ({"prompt_ids": []}, r"examples\[1\]\.prompt_ids"),
        ({"utility": [1.0]}, r"examples\[1\]\.utility: expected 2 numbers, one per response, got 1"),
        ({"logging_logprobs": [1.0]}, r"examples\[1\]\.logging_logprobs"),
    ],
)
def test_a_bad_example_is_named(change: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SlateCollator(0)([EXAMPLES[0], {**EXAMPLES[0], **change}])
    with pytest.raises(ValueError, match="at least one slate"):
        SlateCollator(0)([])
