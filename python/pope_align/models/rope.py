"""Rotary position embeddings whose frequencies depend on the length: each sequence uses its own length.

RoPE "longrope" (Phi-3) has one set of frequencies for sequences of up to the original context and another for longer
ones; "dynamic" stretches its frequencies with every token beyond it. transformers uses the longest sequence of the
batch, and for "dynamic" also of earlier batches, so that a sequence's log-probabilities would depend on other
sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any, NamedTuple, cast

import torch


class LengthRule(NamedTuple):
    """Sequences of more than ``limit`` tokens have other frequencies than shorter ones."""

    kind: str  # "longrope" or "dynamic"
    limit: int

    def keeps_cache(self, prompt: int, new: int) -> bool:
        """Whether the frequencies stay the same (so that a cache is valid) while ``new`` tokens follow ``prompt``
        ones.
        """
        return prompt + new <= self.limit or (self.kind == "longrope" and prompt > self.limit)

    def __str__(self) -> str:
        return f"{self.kind}: each sequence by its own length, unchanged up to {self.limit} tokens"


def length_rule(model: torch.nn.Module) -> LengthRule | None:
    """How the frequencies of ``model`` depend on a sequence's length; None if they do not.

    With layers of several types, the smallest limit.
    """
    rules = [rule for module in model.modules() for _, rule in _rules(module)]
    return min(rules, key=lambda rule: rule.limit, default=None)


def decide_alone(model: torch.nn.Module) -> bool:
    """Use the frequencies for each row's own length; returns True if the model has such a layer.

    A row's length is its largest position + 1, so padding must have small positions. The result for a sequence is then
    what transformers computes for it alone with a freshly loaded model.
    """
    layers = [module for module in model.modules() if any(_rules(module))]
    for module in layers:
        if "forward" not in vars(module):
            module.forward = MethodType(_forward, module)
    return bool(layers)


def _rules(module: torch.nn.Module) -> Iterator[tuple[str | None, LengthRule]]:
    """The rules of one rotary module, by layer type if it has several."""
    kinds = getattr(module, "rope_type", None)
    config = getattr(module, "config", None)
    for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
        if kind == "longrope":
            assert config is not None
            parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
            yield layer_type, LengthRule(kind, int(parameters["original_max_position_embeddings"]))
        elif isinstance(kind, str) and "dynamic" in kind:
            yield layer_type, LengthRule("dynamic", int(cast(int, module.original_max_seq_len)))


def _forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None) -> Any:
    """As the class's own forward, but separately for rows with different frequencies."""
    own = type(self).forward
    options = {} if layer_type is None else {"layer_type": layer_type}
    rule = dict(_rules(self)).get(layer_type)
    if rule is None:
        return own(self, x, position_ids, **options)
    lengths = (position_ids.amax(-1) + 1).tolist()
    sets = [max(length, rule.limit) if rule.kind == "dynamic" else length > rule.limit for length in lengths]
    pieces: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []
    for one in dict.fromkeys(sets):
        if rule.kind == "dynamic":
            _forget(self, layer_type)
        rows = torch.tensor([row for row, of in enumerate(sets) if of == one], device=position_ids.device)
        some = x[rows] if x.shape[0] == len(sets) else x
        pieces.append((rows, own(self, some, position_ids[rows], **options)))
    if len(pieces) == 1:
        return pieces[0][1]
    order = torch.cat([rows for rows, _ in pieces]).argsort()
    return tuple(torch.cat(parts)[order] for parts in zip(*(values for _, values in pieces), strict=True))


def _forget(module: Any, layer_type: str | None) -> None:
    """Reset what transformers remembers of the longest sequence so far."""
    prefix = "" if layer_type is None else f"{layer_type}_"
    original = getattr(module, f"{prefix}original_inv_freq", None)
    inv_freq = getattr(module, f"{prefix}inv_freq", None)
    if original is None or inv_freq is None:
        return
    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
    setattr(module, f"{prefix}inv_freq", original.detach().clone().to(inv_freq.device))
