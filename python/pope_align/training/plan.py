"""The plan of a run: data, computation and memory, before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from pope_core.devices import device_type

from ..data.rows import Tree
from ..models.attention import why_not
from ..models.causal_lm import lm_head
from ..models.loading import load_config, load_tokenizer
from .config import SlateConfig
from .examples import slate_examples
from .sources import SlateSource, slates_for

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

_GIB = 2**30


@dataclass(frozen=True)
class TrainingPlan:
    """Counts are exact, bytes are estimates (of one process, before sharding).

    ``logits`` includes the buffer of the loss and the accumulator of a bfloat16 head's gradient. ``activations`` is for
    the largest micro-batch; see `activation_bytes`. Memory of libraries is not included: allow a fifth more.
    """

    slates: int
    eval_slates: int
    responses: int
    response_tokens: int
    prompt_tokens: int  # each prompt once
    positions: int  # computed in one epoch
    positions_unshared: int
    longest_row: int
    steps_per_epoch: int
    steps: int
    slates_per_step: int
    parameters: int
    trainable: int
    weights: int  # bytes, and all below
    gradients: int
    optimizer: int | None  # None: unknown for this optimizer
    logits: int
    activations: int

    @property
    def memory(self) -> int:
        """Total bytes, as far as known."""
        return self.weights + self.gradients + (self.optimizer or 0) + self.logits + self.activations

    def __str__(self) -> str:
        saved = self.positions_unshared / self.positions
        held_out = f", and {self.eval_slates} held out" if self.eval_slates else ""
        optimizer = "unknown" if self.optimizer is None else _gib(self.optimizer)
        return "\n".join(
            [
                f"data        {self.slates} slates of {self.responses / self.slates:.2f} responses{held_out}",
                f"tokens      {self.prompt_tokens} of prompts, {self.response_tokens} of responses",
                f"computed    {self.positions} positions an epoch, {saved:.2f}x fewer than with a prompt per response; "
                f"longest row {self.longest_row}",
                f"steps       {self.steps} of {self.slates_per_step} slates; {self.steps_per_epoch} an epoch",
                f"parameters  {self.parameters / 1e6:.1f} M, {self.trainable / 1e6:.1f} M of them trained",
                f"memory      about {_gib(self.memory)} a process before sharding: weights {_gib(self.weights)}, "
                f"gradients {_gib(self.gradients)}, optimizer {optimizer}, activations {_gib(self.activations)}, "
                f"logits {_gib(self.logits)}",
            ]
        )


def plan_training(
    model: str,
    args: SlateConfig,
    train_data: SlateSource,
    eval_data: SlateSource | None = None,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    peft_config: PeftConfig | None = None,
) -> TrainingPlan:
    """The plan of `run_training` with the same arguments; no weights are read.

    Whether prompts are shared is predicted from the model's configuration; training compares both ways first.

    Raises:
        ValueError: slates that training would refuse.
    """
    slates = slates_for(args, "train_data", train_data)
    held_out = [] if eval_data is None else slates_for(args, "eval_data", eval_data)
    examples = slate_examples("train_data", slates, processing_class or load_tokenizer(model), args)
    empty = empty_model(model, args)
    config = empty.config
    shared = args.prompt_sharing != "off" and why_not(config.get_text_config()) is None
    trees = [Tree(example["prompt_ids"], example["completion_ids"]) for example in examples]
    together = [len(tree) for tree in trees]
    apart = [sum(len(tree.prompt_ids) + len(ids) for ids in tree.response_ids) for tree in trees]
    per_slate = together if shared else apart
    longest = (
        max(per_slate, default=0)
        if shared
        else max(len(tree.prompt_ids) + max(map(len, tree.response_ids)) for tree in trees)
    )
    micro_batches = math.ceil(len(slates) / (args.train_batch_size * args.world_size))
    steps_per_epoch = math.ceil(micro_batches / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if peft_config is not None:
        from peft import get_peft_model

        empty = get_peft_model(empty, peft_config)
    parameters = list(empty.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    largest = sum(sorted(per_slate, reverse=True)[: args.train_batch_size])
    itemsize = 2 if args.bf16 or args.fp16 else parameters[0].itemsize
    return TrainingPlan(
        slates=len(slates),
        eval_slates=len(held_out),
        responses=sum(len(tree.response_ids) for tree in trees),
        response_tokens=sum(sum(map(len, tree.response_ids)) for tree in trees),
        prompt_tokens=sum(len(tree.prompt_ids) for tree in trees),
        positions=sum(per_slate),
        positions_unshared=sum(apart),
        longest_row=longest,
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        slates_per_step=args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        parameters=sum(parameter.numel() for parameter in parameters),
        trainable=sum(parameter.numel() for parameter in trainable),
        weights=_bytes(parameters),
        gradients=_bytes(trainable),
        optimizer=_optimizer_bytes(args.optim, trainable),
        logits=_logits_bytes(args, lm_head(empty).weight),
        activations=activation_bytes(config.get_text_config(), largest, itemsize, checkpointed=_checkpointed(args)),
    )


def _logits_bytes(args: SlateConfig, head: torch.Tensor) -> int:
    summed = 4 * head.numel() if head.requires_grad and head.dtype == torch.bfloat16 else 0
    if args.chunk_bytes is not None:
        return args.chunk_bytes + summed
    return device_type(args.device).chunk_bytes + summed


def empty_model(model: str, args: SlateConfig) -> PreTrainedModel:
    """The model without its weights (on the meta device)."""
    config = load_config(model)
    dtype = config.dtype if args.model_dtype == "auto" else getattr(torch, args.model_dtype)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)


def activation_bytes(config: Any, positions: int, itemsize: int, *, checkpointed: bool = False) -> int:
    """Approximate activations of a decoder for ``positions`` positions, with attention that does not store scores.

    A layer with gated MLP keeps 9 vectors of its hidden size (inputs and outputs of norms, of attention and of its
    projections), 2 of its key-value width and 4 of its intermediate size. Checkpointing keeps one hidden vector per
    layer, and all of one layer while it is recomputed.
    """
    hidden = config.hidden_size
    heads = config.num_attention_heads
    kv_width = hidden * (getattr(config, "num_key_value_heads", None) or heads) // heads
    intermediate = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 9 * hidden + 2 * kv_width + 4 * intermediate
    layers = config.num_hidden_layers
    return positions * itemsize * (layers * hidden + layer if checkpointed else layers * layer)


def _checkpointed(args: SlateConfig) -> bool:
    return bool(args.gradient_checkpointing or args.activation_checkpointing)


def _optimizer_bytes(name: str, trainable: list[torch.nn.Parameter]) -> int | None:
    count = sum(parameter.numel() for parameter in trainable)
    if "adamw" in name:
        return {"8bit": 2 * count, "4bit": count}.get(name[-4:], 2 * _bytes(trainable))
    return 0 if name == "sgd" else None


def _bytes(parameters: list[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in parameters)


def _gib(count: int) -> str:
    return f"{count / _GIB:.2f} GiB"
