"""Causal language models as the objective sees them: hidden states of response tokens, and the head that reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_peft_available

import pope_core
from pope_core.types import IGNORE_INDEX

from ._extras import require

if TYPE_CHECKING:
    from peft import PeftModel


class LmHead(NamedTuple):
    """The last linear layer and what follows it: ``softcap * tanh(scale * (h @ W.T + b) / softcap)``."""

    weight: torch.Tensor  # [V, D]
    bias: torch.Tensor | None  # [V]
    logit_scale: float
    logit_softcap: float | None


class ResponseHiddenStates(NamedTuple):
    """Packed rows that predict response tokens, aligned with the tokens they predict."""

    hidden: torch.Tensor  # [N, D]
    labels: torch.Tensor  # [N] int64
    response_offsets: torch.Tensor  # [R + 1] int64


def response_hidden_states(
    model: PreTrainedModel | PeftModel,
    input_ids: torch.Tensor,  # [R, L]
    attention_mask: torch.Tensor,  # [R, L]
    labels: torch.Tensor,  # [R, L], -100 where no response token stands
) -> ResponseHiddenStates:
    """Run the transformer body and keep only the rows that predict response tokens.

    Equivalent::

        hidden = model(input_ids, attention_mask, output_hidden_states=True).hidden_states[-1][:, :-1]
        hidden[labels[:, 1:] != -100]

    without computing a logit. The causal shift is done here: row ``t - 1`` predicts the token at ``t``. Prompt and
    padding never reach the head.

    Args:
        model: a causal language model of transformers, or a ``PeftModel`` around one (its adapters are active).
        input_ids, attention_mask, labels: ``[R, L]``, padded on the right, as `pope_align.data.SlateCollator` makes
            them.

    Raises:
        ValueError: a label at position 0, which nothing predicts; a model without a separate body.
    """
    if bool((labels[:, 0] != IGNORE_INDEX).any()):
        raise ValueError("labels: expected a prompt token before every response, got a response token at position 0")
    states = _body(model)(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    predicted = labels[:, 1:]  # [R, L - 1]
    kept = predicted != IGNORE_INDEX
    response_offsets = F.pad(kept.sum(1).cumsum(0), (1, 0))
    return ResponseHiddenStates(states[:, :-1][kept], predicted[kept], response_offsets)


def lm_head(model: PreTrainedModel | PeftModel) -> LmHead:
    """The language-model head of ``model``, in the terms of `pope_core.linear_pope_loss`.

    Scale and cap come from the configuration (``logit_scale``, ``logits_scaling``, ``final_logit_softcapping``);
    `check_head` compares the result with the model's own logits.

    Raises:
        ValueError: the head is not a plain ``torch.nn.Linear``, so its matrix is not all that it does.
    """
    base = _pretrained(model)
    head = base.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        raise ValueError(
            f"model: expected an output layer that is a plain torch.nn.Linear, got {type(head).__name__}; the loss "
            "reads its matrix directly, so an adapter on it or its quantisation would be passed over. Leave the head "
            "out of the adapter's target_modules and modules_to_save, and unquantised"
        )
    config = base.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return LmHead(head.weight, head.bias, float(scale) / float(divisor), float(softcap) if softcap else None)


@torch.no_grad()
def check_head(
    model: PreTrainedModel | PeftModel,
    input_ids: torch.Tensor,  # [R, L]
    attention_mask: torch.Tensor,  # [R, L]
    labels: torch.Tensor,  # [R, L]
) -> None:
    """Compare log-probabilities from hidden states and head with those of the model's own logits, on one small batch.

    Whatever a model does between its body and its logits that `lm_head` does not know of shows here.

    Raises:
        ValueError: a response's mean log-probability differs by more than rounding.
    """
    training = model.training
    model.eval()
    try:
        states = response_hidden_states(model, input_ids, attention_mask, labels)
        head = lm_head(model)
        ours = pope_core.linear_response_logprobs(
            states.hidden,
            head.weight,
            states.labels,
            lm_head_bias=head.bias,
            response_offsets=states.response_offsets,
            logit_scale=head.logit_scale,
            logit_softcap=head.logit_softcap,
        )
        logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        theirs = pope_core.response_logprobs(logits, labels)
    finally:
        model.train(training)
    difference = float((ours - theirs).abs().max())
    # The model rounds its logits to its own dtype; a few units in the last place of a typical logit are fine.
    tolerance = max(1e-3, 20 * torch.finfo(logits.dtype).eps)
    if not difference <= tolerance:
        raise ValueError(
            f"model: {type(_pretrained(model)).__name__} computes its logits from its hidden states in a way that is "
            "not supported: mean log-probabilities from hidden states and head differ from the model's own by "
            f"{difference:.3g} nats (allowed: {tolerance:.3g})"
        )


def load_model(name_or_path: str | Path, *, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """A causal language model: a hub name, a local folder, a GGUF file, or a folder with one.

    Args:
        dtype: of the weights; "auto" keeps the file's. float32 is the default because a learning rate that suits
            fine-tuning is lost to rounding in 16-bit weights; for speed, keep it and train with ``bf16=True``.

    Raises:
        FileNotFoundError: no such GGUF file, or a folder without ``config.json`` and not with exactly one GGUF file.
        OSError: transformers found no such model.
    """
    folder, gguf_file = _locate(name_or_path)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_file, dtype=dtype)


def best_device() -> torch.device:
    """The accelerator that torch sees, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to `load_model` of the same name."""
    folder, gguf_file = _locate(name_or_path)
    return AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)


def _locate(name_or_path: str | Path) -> tuple[str, str | None]:
    """What transformers takes: a name or folder, and the name of a GGUF file inside it."""
    path = Path(name_or_path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: expected a GGUF file, found none at {path}")
        require("gguf", extra="demo", purpose="to read GGUF files")
        return str(path.parent), path.name
    if not path.is_dir() or (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return str(name_or_path), None
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"model: expected config.json, adapter_config.json or one GGUF file in {path}, "
            f"found {len(files)} GGUF files"
        )
    return _locate(files[0])


def _pretrained(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The transformers model itself; adapters that live in its layers stay active."""
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


def _body(model: PreTrainedModel | PeftModel) -> torch.nn.Module:
    base = _pretrained(model)
    if base.base_model is base:
        raise ValueError(
            "model: expected a causal language model with a separate body (base_model_prefix), "
            f"got {type(base).__name__}"
        )
    return base.base_model
