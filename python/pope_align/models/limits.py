"""Checks token ids and positions against a model's tables, before any work."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..data.rows import Tree
from .causal_lm import pretrained, wrapped

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class Limits(NamedTuple):
    """The sizes of a model's tables."""

    vocabulary: int  # ids below this have an embedding
    positions: int | None  # maximum tokens of a sequence, if positions come from a table
    trained: int | None  # the maximum length in the configuration


def limits(model: PreTrainedModel | PeftModel) -> Limits:
    """The limits of ``model``, from its tables if it has them, else from its configuration."""
    base = pretrained(model)
    config = base.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    trained = next((int(value) for name in names if (value := getattr(config, name, None) or 0) > 0), None)
    tables = [
        module.num_embeddings - int(getattr(module, "offset", 0))
        for name, module in base.named_modules()
        if isinstance(module, torch.nn.Embedding) and _counts_positions(name)
    ]
    return Limits(wrapped(base.get_input_embeddings()).num_embeddings, min(tables, default=None), trained)


def _counts_positions(name: str) -> bool:
    table = name.removesuffix(".base_layer").removesuffix(".original_module")  # if an adapter wraps it
    return ("position" in table.rpartition(".")[2] or table.endswith("wpe")) and "relative" not in table


def check_limits(model: PreTrainedModel | PeftModel, trees: Sequence[Tree], *, name: str = "slate") -> None:
    """Refuse token ids without an embedding and positions beyond the table.

    Sequences that are longer than the model was trained for, but can be computed (rotary positions, linear biases), are
    a warning.

    Args:
        trees: prompts with their responses, in the order of the log.
        name: the name of a prompt with its responses in errors, before its number.

    Raises:
        ValueError: names the first such prompt, the id or length, and the limit.
    """
    vocabulary, positions, trained = limits(model)
    kind = type(pretrained(model)).__name__
    longer = 0
    for number, tree in enumerate(trees, start=1):
        largest = max(map(max, filter(None, [tree.prompt_ids, *tree.response_ids])))
        if largest >= vocabulary:
            raise ValueError(
                f"{name} {number}: expected token ids below {vocabulary}, the size of the embedding table of {kind}, "
                f"got {largest}; the tokenizer has tokens that this model lacks: give the one that belongs to it"
            )
        length = len(tree.prompt_ids) + max(map(len, tree.response_ids))
        if positions is not None and length > positions:
            raise ValueError(
                f"{name} {number}: expected prompt and response of at most {positions} tokens, all that the position "
                f"table of {kind} holds, got {length}; lower max_length to {positions}"
            )
        longer += trained is not None and length > trained
    if longer:
        logger.warning(
            "%d of %d (%s) are longer than the %s positions that the configuration of %s speaks of: their "
            "log-probabilities are not what the model learnt; lower max_length",
            longer,
            len(trees),
            name,
            trained,
            kind,
        )
