"""The attention mask of `TokenRows`: responses attend to their prompt and not to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..data.rows import TokenRows

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PretrainedConfig

#: Attention implementations of transformers that accept any 4D mask.
_MASKED = ("sdpa", "eager", "flex_attention")
#: ``layer_types`` whose attention is fully described by a mask.
_LAYERS = ("full_attention", "sliding_attention")


def is_shared(rows: TokenRows) -> bool:
    """Whether some row has more than one response; from shapes alone, without synchronisation."""
    return rows["response_offsets"].shape[0] - 1 > rows["input_ids"].shape[0]


def why_not(config: PretrainedConfig) -> str | None:
    """Why a model cannot process rows with a shared prompt; None if its configuration allows it."""
    implementation = config._attn_implementation
    if implementation not in _MASKED:
        return f"its attention implementation {implementation!r} takes no block mask (one of {', '.join(_MASKED)} does)"
    if "local" in (getattr(config, "attention_layers", None) or ()):  # GPT-Neo
        return "its local layers count their window along the row, not by the position in the text"
    other = sorted(set(getattr(config, "layer_types", None) or ()) - set(_LAYERS))
    if other:
        return f"its layers of type {', '.join(other)} carry a state from one response to the next"
    return None


def shared_prompt_mask(config: PretrainedConfig, rows: TokenRows, dtype: torch.dtype) -> Any:
    """The ``attention_mask`` of a transformers body for rows with shared prompts.

    Position ``q`` attends to ``k`` if ``k <= q``, both belong to the same prompt and its responses, and ``k`` is in the
    prompt or in ``q``'s own response; in layers with a sliding window, their positions in the text must also be less
    than the window apart.

    Returns:
        A ``[B, 1, L, L]`` mask (bool for SDPA, additive for eager attention) or a ``BlockMask`` for FlexAttention; for
        models that mix layers with and without a window, a dict of both.
    """
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    if layers is None:
        return _mask(config, rows, dtype, window)
    if "sliding_attention" not in layers:
        return _mask(config, rows, dtype, None)
    return {name: _mask(config, rows, dtype, window if name == "sliding_attention" else None) for name in _LAYERS}


def _mask(
    config: PretrainedConfig, rows: TokenRows, dtype: torch.dtype, window: int | None
) -> torch.Tensor | BlockMask:
    tree, branch, position = rows["tree"], rows["branch"], rows["position_ids"]

    def visible(b: Any, h: Any, q: Any, k: Any) -> torch.Tensor:
        seen = (q >= k) & (tree[b, q] == tree[b, k]) & ((branch[b, k] == 0) | (branch[b, k] == branch[b, q]))
        return seen if window is None else seen & (position[b, q] - position[b, k] < window)

    batch, length = tree.shape
    if config._attn_implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(visible, batch, None, length, length, device=tree.device)
    at = torch.arange(length, device=tree.device)
    row = torch.arange(batch, device=tree.device)[:, None, None]
    mask = visible(row, None, at[None, :, None], at[None, None, :]).unsqueeze(1)  # [B, 1, L, L]
    if config._attn_implementation == "eager":
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
    return mask
