"""Rows of token ids for one forward pass: each prompt once for all its responses, or once per response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch

from pope_core.slates import offsets_from_lengths


class TokenRows(TypedDict):
    """``B`` rows of ``L`` positions with ``R`` responses of ``N`` tokens in total; int64.

    A row has one or more shared prefixes: a prompt and its responses, each of which continues the prompt as if it were
    the only one. A token attends to earlier tokens of its own response and to the prompt of that response.
    """

    input_ids: torch.Tensor  # [B, L]
    position_ids: torch.Tensor  # [B, L] each response continues at the prompt's length
    tree: torch.Tensor  # [B, L] number of the shared prefix within its row, -1 on padding
    branch: torch.Tensor  # [B, L] 0 on the prompt, 1, 2, ... on its responses
    predictors: torch.Tensor  # [N] flat positions in [0, B * L) whose hidden states predict the response tokens
    labels: torch.Tensor  # [N] the response tokens
    response_offsets: torch.Tensor  # [R + 1]


@dataclass(frozen=True, slots=True)
class Tree:
    """One prompt and responses that continue it."""

    prompt_ids: Sequence[int]
    response_ids: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(map(len, self.response_ids))


def lay_out(
    trees: Iterable[Tree], *, share_prompt: bool, max_tokens_per_row: int | None = None, pad_token_id: int = 0
) -> TokenRows:
    """Arrange prompts with their responses in rows, padded on the right; responses keep their order.

    Args:
        trees: prompts with their responses, each of at least one token.
        share_prompt: one `Tree` per row, with its prompt once; otherwise one response per row, each with a copy of the
            prompt (a plain causal batch, which works with every model).
        max_tokens_per_row: with a shared prompt, fill rows with several prompts up to this many tokens (a larger one
            has a row to itself); None for one `Tree` per row. Rows of many prompts need no padding but attend over more
            positions, so use them if the attention kernel skips masked blocks.
        pad_token_id: fills the rest of a row; it is never read.
    """
    if not share_prompt:
        trees = [Tree(tree.prompt_ids, [response]) for tree in trees for response in tree.response_ids]
    rows: list[list[Tree]] = []
    used = 0
    for tree in trees:
        fits = share_prompt and max_tokens_per_row is not None and used + len(tree) <= max_tokens_per_row
        if rows and fits:
            rows[-1].append(tree)
            used += len(tree)
        else:
            rows.append([tree])
            used = len(tree)
    shape = len(rows), max(sum(map(len, row)) for row in rows)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    position_ids, branch = torch.zeros_like(input_ids), torch.zeros_like(input_ids)
    tree_ids = torch.full_like(input_ids, -1)
    predictors: list[int] = []
    labels: list[int] = []
    lengths: list[int] = []
    for r, row in enumerate(rows):
        at = 0
        for t, tree in enumerate(row):
            start, prompt = at, len(tree.prompt_ids)
            for b, ids in enumerate([tree.prompt_ids, *tree.response_ids]):
                span = slice(at, at + len(ids))
                input_ids[r, span] = torch.tensor(ids, dtype=torch.int64)
                first = 0 if b == 0 else prompt
                position_ids[r, span] = torch.arange(first, first + len(ids))
                branch[r, span] = b
                if b > 0:  # the prompt's last token predicts the first of every response
                    flat = r * shape[1]
                    predictors += [flat + start + prompt - 1, *range(flat + at, flat + at + len(ids) - 1)]
                    labels += ids
                    lengths.append(len(ids))
                at = span.stop
            tree_ids[r, start:at] = t
    return TokenRows(
        input_ids=input_ids,
        position_ids=position_ids,
        tree=tree_ids,
        branch=branch,
        predictors=torch.tensor(predictors, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        response_offsets=offsets_from_lengths(lengths),
    )
