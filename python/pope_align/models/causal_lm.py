"""Causal language models for the objective: hidden states of response tokens, and the head."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

import pope_core

from ..data.rows import TokenRows, Tree, lay_out
from ..distributed import call_as_forward
from .attention import is_shared, shared_prompt_mask, why_not
from .modes import evaluation_mode
from .rope import decide_alone

if TYPE_CHECKING:
    from peft import PeftModel


class LmHead(NamedTuple):
    """The last linear layer and what follows it: ``softcap * tanh(scale * (h @ W.T + b) / softcap)``."""

    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None  # [V]
    logit_scale: float
    logit_softcap: float | None


class ResponseHiddenStates(NamedTuple):
    """Packed hidden states that predict response tokens, with their labels."""

    hidden: torch.Tensor  # [N, D]
    labels: torch.Tensor  # [N] int64
    response_offsets: torch.Tensor  # [R + 1] int64


def response_hidden_states(model: PreTrainedModel | PeftModel, rows: TokenRows) -> ResponseHiddenStates:
    """Run the transformer body and keep only the positions that predict response tokens.

    Equivalent, for one prompt and one response::

        hidden = model(prompt_ids + response_ids, output_hidden_states=True).hidden_states[-1]
        hidden[len(prompt_ids) - 1 : -1]

    without computing logits. Prompts and padding are left out. Rows with shared prompts get a block mask and
    restarting positions (see `attention.shared_prompt_mask`); the result is the same up to rounding.

    Args:
        model: a causal language model of transformers, or a ``PeftModel`` around one (its adapters are active).
        rows: of `pope_align.data.lay_out`, on the model's device.

    Raises:
        ValueError: a model without a separate body, or one that cannot process rows with shared prompts.
    """
    body = _body(model)
    by_length = decide_alone(body)
    if is_shared(rows):
        config = pretrained(model).config.get_text_config()
        reason = why_not(config)
        if reason is not None:
            raise ValueError(f"model: expected one that can compute a prompt once for all its responses, but {reason}")
        mask = shared_prompt_mask(config, rows, next(body.parameters()).dtype)
        placed = {"attention_mask": mask, "position_ids": rows["position_ids"]}
    else:
        placed = {"attention_mask": (rows["tree"] >= 0).long()}
        if by_length:
            placed["position_ids"] = rows["position_ids"]
    states = body(input_ids=rows["input_ids"], use_cache=False, **placed).last_hidden_state  # [B, L, D]
    # The last position of a shared prompt is used once per response. The backward of indexing would add their gradients
    # with atomics in any order; that of an embedding lookup adds them in a fixed order.
    hidden = torch.nn.functional.embedding(rows["predictors"], states.flatten(0, 1))
    return ResponseHiddenStates(hidden, rows["labels"], rows["response_offsets"])


def output_layer(model: PreTrainedModel | PeftModel) -> torch.nn.Module:
    """The module whose matrix `lm_head` reads."""
    return pretrained(model).get_output_embeddings()


def lm_head(model: PreTrainedModel | PeftModel) -> LmHead:
    """The language-model head of ``model``, as arguments of `pope_core.linear_pope_loss`.

    Scale and cap come from the configuration (``logit_scale``, ``logits_scaling``, ``final_logit_softcapping``);
    `check_head` compares the result with the model's own logits.

    Raises:
        ValueError: the head is not a plain ``torch.nn.Linear``.
    """
    head = output_layer(model)
    if type(head).forward is not torch.nn.Linear.forward:  # FSDP makes a subclass with this forward
        raise ValueError(
            f"model: expected an output layer that is a plain torch.nn.Linear, got {type(head).__name__}; the loss "
            "reads its matrix directly and would ignore an adapter on it or quantisation. Leave the head "
            "out of the adapter's target_modules and modules_to_save, and unquantised"
        )
    assert isinstance(head, torch.nn.Linear)
    config = pretrained(model).config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return LmHead(head.weight, head.bias, float(scale) / float(divisor), float(softcap) if softcap else None)


def response_logprobs(model: PreTrainedModel | PeftModel, rows: TokenRows) -> torch.Tensor:
    """`pope_core.linear_response_logprobs` of the model's own hidden states and head: ``[R]`` nats, totals."""
    states = response_hidden_states(model, rows)
    return head_logprobs(model, states, states.response_offsets)


def head_logprobs(
    model: PreTrainedModel | PeftModel, states: ResponseHiddenStates, response_offsets: torch.Tensor
) -> torch.Tensor:
    """`pope_core.linear_response_logprobs` of hidden states and the model's own head: ``[R]`` nats, totals.

    Args:
        response_offsets: ``[R + 1]``; with one token to a response, the result is that of every token.
    """

    def logprobs(hidden: torch.Tensor) -> torch.Tensor:
        head = lm_head(model)
        return pope_core.linear_response_logprobs(
            hidden,
            head.weight,
            states.labels,
            lm_head_bias=head.bias,
            response_offsets=response_offsets,
            logit_scale=head.logit_scale,
            logit_softcap=head.logit_softcap,
        )

    head = output_layer(model)
    return cast(torch.Tensor, call_as_forward(head, head, logprobs, states.hidden))


@torch.no_grad()
def check_head(model: PreTrainedModel | PeftModel, tree: Tree) -> None:
    """Compare log-probabilities as training computes them with those of the model's own logits, on one prompt.

    This reveals steps between the body and the logits that `lm_head` does not know.

    Raises:
        ValueError: a response's mean log-probability differs by more than rounding.
    """
    with evaluation_mode(model):
        rows = rows_on(model, lay_out([tree], share_prompt=False))
        ours = response_logprobs(model, rows)
        base = pretrained(model)
        # The forward of the class: after mixed-precision training the instance's is wrapped in accelerate's autocast.
        forward = partial(type(base).forward, base)
        apart = [Tree(tree.prompt_ids, [ids]) for ids in tree.response_ids]
        alone = [rows_on(model, lay_out([tree], share_prompt=False)) for tree in apart]
        logits = [forward(input_ids=row["input_ids"], use_cache=False).logits[0][row["predictors"]] for row in alone]
        theirs = pope_core.response_logprobs(
            torch.cat(logits), rows["labels"], response_offsets=rows["response_offsets"]
        )
    difference = float(((ours - theirs) / rows["response_offsets"].diff()).abs().max())
    # The model rounds its logits to its own dtype; a few units in the last place of a typical logit are fine.
    tolerance = max(1e-3, 20 * torch.finfo(logits[0].dtype).eps)
    if not difference <= tolerance:
        raise ValueError(
            f"model: {type(pretrained(model)).__name__} computes its logits from its hidden states in a way that is "
            f"not supported: mean log-probabilities from hidden states and head differ from the model's own by "
            f"{difference:.3g} nats (allowed: {tolerance:.3g})"
        )


def rows_on(model: PreTrainedModel | PeftModel, rows: TokenRows) -> TokenRows:
    """The rows on the model's device."""
    device = next(model.parameters()).device
    return cast(TokenRows, {name: cast(torch.Tensor, tensor).to(device) for name, tensor in rows.items()})


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with its adapter added to its weights: the same log-probabilities, up to rounding.

    An adapter on an embedding that is tied to the head does not change the head, but merging would write to the shared
    matrix; so they are untied first, in the configuration too.
    """
    base = model.get_base_model()
    head, embedding = (wrapped(module) for module in (base.get_output_embeddings(), base.get_input_embeddings()))
    if head is not None and embedding is not None and head.weight is embedding.weight and _adapted(base):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    whole = cast(PreTrainedModel, model.merge_and_unload())
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        for config in (whole.config, whole.config.get_text_config()):
            config.tie_word_embeddings = False
    return whole


def wrapped(module: torch.nn.Module | None) -> Any:
    """The layer that an adapter wraps, or the layer itself."""
    original = getattr(module, "original_module", None)  # modules_to_save, which have a trained copy
    return original if original is not None else getattr(module, "base_layer", module)


def _adapted(base: PreTrainedModel) -> bool:
    modules = (base.get_output_embeddings(), base.get_input_embeddings())
    return any(wrapped(module) is not module for module in modules)


def pretrained(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself; adapters inside its layers stay active."""
    if is_peft_available():
        from peft import PeftModel

        if isinstance(model, PeftModel):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    "model: expected an adapter inside the model's layers (LoRA and its relatives), got "
                    f"{model.active_peft_config.peft_type}, which rewrites the model's inputs"
                )
            return model.get_base_model()
    return model


def compile_body(model: PreTrainedModel | PeftModel, backend: str | None, mode: str | None) -> None:
    """``torch.compile`` for everything below the head, in place: what `response_hidden_states` calls.

    Args:
        backend, mode: as ``torch.compile`` takes them; None for its defaults.
    """
    _body(model).compile(backend=backend or "inductor", mode=mode)


def _body(model: PreTrainedModel | PeftModel) -> torch.nn.Module:
    base = pretrained(model)
    if base.base_model is base:
        raise ValueError(
            "model: expected a causal language model with a separate body (base_model_prefix), "
            f"got {type(base).__name__}"
        )
    return base.base_model
