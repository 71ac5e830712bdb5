"""Checks by comparison whether a model can compute a prompt once for all its responses."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..data.rows import TokenRows, Tree, lay_out
from .attention import why_not
from .causal_lm import head_logprobs, lm_head, pretrained, response_hidden_states, rows_on
from .memory import is_out_of_memory
from .modes import evaluation_mode
from .rope import length_rule

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def sharing_obstacle(
    model: PreTrainedModel | PeftModel, trees: Sequence[Tree], *, max_tokens_per_row: int | None = None
) -> str | None:
    """Why ``model`` cannot compute the prompts of ``trees`` once for all their responses; None if it can.

    Log-probabilities with shared prompts are compared with those of separate rows, on two probes: the longest sequence
    of ``trees``, and a row as long as the longest row that they will give, with responses as long as possible. So
    effects of positions and of places in a row occur in a probe if they occur in training; no row exceeds a window that
    no probe exceeds.

    Args:
        trees: all prompts with their responses that will be computed.
        max_tokens_per_row: as in `lay_out`, for rows of several prompts.
    """
    reason = _reason(model, trees, max_tokens_per_row)
    kind = type(pretrained(model)).__name__
    return reason and f"model: {kind} cannot compute a prompt once for all its responses: {reason}"


def _reason(model: PreTrainedModel | PeftModel, trees: Sequence[Tree], max_tokens_per_row: int | None) -> str | None:
    obstacle = why_not(pretrained(model).config.get_text_config())
    if obstacle is not None:
        return obstacle
    longest = max(_longest(tree) for tree in trees)
    rule = length_rule(model)
    if rule is not None and longest > rule.limit:
        return (
            f"its rotary frequencies ({rule.kind}) follow from the length of each sequence beyond {rule.limit} tokens, "
            f"and one has {longest}"
        )
    return _difference(model, probes(trees, max_tokens_per_row), max_tokens_per_row)


def probes(trees: Sequence[Tree], max_tokens_per_row: int | None) -> list[Tree]:
    """The two probes of `sharing_obstacle`, with tokens of ``trees``."""
    largest = max((tree for tree in trees if len(tree.response_ids) > 1), key=_longest)
    sample = Tree(largest.prompt_ids, sorted(largest.response_ids, key=len)[-3:])
    row = max(*map(len, trees), min(max_tokens_per_row or 0, sum(map(len, trees))))
    prompt = max(1, min(row // 4, _longest(largest) // 2))
    response = max(1, min(row // 4, _longest(largest) - prompt))
    count = max(2, (row - prompt) // response)
    tokens = itertools.cycle([*largest.prompt_ids, *itertools.chain(*largest.response_ids)])

    def take(length: int) -> list[int]:
        return list(itertools.islice(tokens, length))

    return [sample, Tree(take(prompt), [take(response) for _ in range(count)])]


def _difference(
    model: PreTrainedModel | PeftModel, trees: Sequence[Tree], max_tokens_per_row: int | None
) -> str | None:
    """How log-probabilities of ``trees`` with shared prompts differ; None if they are equal."""
    with evaluation_mode(model), torch.no_grad():
        alone = [logprobs for tree in trees for logprobs in _alone(model, tree)]
        packed = None if max_tokens_per_row is None else sum(map(len, trees))
        try:
            together = _token_logprobs(model, lay_out(trees, share_prompt=True, max_tokens_per_row=packed))
        except Exception as error:
            if is_out_of_memory(error):
                return f"a row with a shared prompt and {sum(map(len, trees))} tokens does not fit in memory"
            # Separate rows work, so the model rejects the mask or the positions.
            return f"it takes no mask of its own ({_line(error)})"
    parts = torch.split(together, [logprobs.numel() for logprobs in alone])
    off = max(float((a - b).square().mean().sqrt()) for a, b in zip(parts, alone, strict=True))
    # Rounding differs with the shape of a row; a few units in the last place of a typical logit are fine.
    tolerance = max(1e-3, 20 * torch.finfo(lm_head(model).weight.dtype).eps)
    if off <= tolerance:
        return None
    return (
        f"its log-probabilities with a shared prompt are others, {off:.3g} nats per token apart "
        f"(allowed: {tolerance:.3g})"
    )


def _alone(model: PreTrainedModel | PeftModel, tree: Tree) -> list[torch.Tensor]:
    """The token log-probabilities of every response with a copy of the prompt; equally long ones in one batch."""
    found: dict[int, torch.Tensor] = {}
    at = range(len(tree.response_ids))
    for length in {len(ids) for ids in tree.response_ids}:
        same = [index for index in at if len(tree.response_ids[index]) == length]
        rows = lay_out([Tree(tree.prompt_ids, [tree.response_ids[index] for index in same])], share_prompt=False)
        found |= zip(same, torch.split(_token_logprobs(model, rows), length), strict=True)
    return [found[index] for index in at]


def _token_logprobs(model: PreTrainedModel | PeftModel, rows: TokenRows) -> torch.Tensor:
    """The log-probability of every response token: ``[N]`` nats."""
    states = response_hidden_states(model, rows_on(model, rows))
    return head_logprobs(model, states, torch.arange(states.labels.numel() + 1)).double()


def _longest(tree: Tree) -> int:
    return len(tree.prompt_ids) + max(map(len, tree.response_ids))


def _line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {textwrap.shorten(text[0], 160)}" if text else type(error).__name__
