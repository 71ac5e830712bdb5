"""`PopeTrainer`: the POPE objective in the training loop of transformers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

import pope_core
from pope_core.types import PopeLossOutput

from ._extras import require
from .config import PopeConfig
from .data.collate import SlateCollator, SlateExample
from .data.feedback import to_utility
from .data.rows import TokenRows, Tree
from .data.schema import Slate, SlateLog, read_slates
from .data.tokenize import encode_slates
from .logging_policy import check_token_counts
from .model import check_head, lm_head, load_model, load_tokenizer, response_hidden_states, sharing_obstacle
from .window import SlateWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.getLogger(__name__)

#: What a log of slates may be given as: slates, rows (a list of dicts or a ``datasets.Dataset``), or a file.
SlateSource = Sequence[Slate] | Iterable[Mapping[str, Any]] | str | os.PathLike[str]


class PopeTrainer(Trainer):
    """Align a causal language model with logged slates.

    ::

        trainer = PopeTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", PopeConfig("out"), "scored.jsonl")
        trainer.train()

    Hidden states of response tokens go to `pope_core.linear_pope_loss`; no logits of prompts or padding are computed,
    and those of responses never exist all at once. The loss of a step is the exact mean over all its slates: a
    micro-batch of 1 accumulated 8 times equals a batch of 8.

    Args:
        model: a causal language model of transformers, a ``PeftModel`` around one, or what `load_model` takes.
        args: the run; see `PopeConfig`.
        train_dataset: scored slates: a list of `Slate`, a `SlateLog`, rows (dicts, a ``datasets.Dataset``) or a file.
        eval_dataset: the same, for evaluation; logged with the prefix ``eval_``.
        processing_class: the tokenizer; by default the one that belongs to the model's name.
        peft_config: put this adapter around the model and train it alone.
        callbacks: of transformers.

    Raises:
        ValueError: slates without ``logging_logprobs``, or whose log-probabilities belong to other tokens; a model
            whose head or logits are not supported; more than one device.
    """

    args: PopeConfig

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: PopeConfig,
        train_dataset: SlateSource,
        eval_dataset: SlateSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        if args.world_size > 1 or args.n_gpu > 1:
            raise ValueError(
                f"args: expected one device, got {args.world_size} processes and {args.n_gpu} GPUs; "
                "set CUDA_VISIBLE_DEVICES to one of them"
            )
        # Slates are read first: a mistake in the data should not wait for a model to load.
        train_slates = _scored_slates("train_dataset", train_dataset)
        eval_slates = None if eval_dataset is None else _scored_slates("eval_dataset", eval_dataset)
        _check_sizes(train_slates, args)
        name = model if isinstance(model, str) else model.config.name_or_path
        tokenizer = processing_class or load_tokenizer(name)
        train_examples = slate_examples("train_dataset", train_slates, tokenizer, args)
        eval_examples = None if eval_slates is None else slate_examples("eval_dataset", eval_slates, tokenizer, args)
        if isinstance(model, str):
            model = load_model(model, dtype=args.model_dtype)
        if args.disable_dropout:
            disable_dropout(model)
        if peft_config is not None:
            model = require("peft", extra="train", purpose="for peft_config").get_peft_model(model, peft_config)
        collator = SlateCollator(_pad_token_id(tokenizer), args.length_normalize)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_examples,  # a list has all that the loader asks for
            eval_dataset=eval_examples,
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        # The loss below is already the mean over the accumulation window: keep Trainer from dividing it once more.
        self.model_accepts_loss_kwargs = True
        self.train_window = SlateWindow(args.objective)
        self.eval_window = SlateWindow(args.objective)
        self.data_collator = replace(
            collator,
            share_prompt=self._shares_prompt(train_examples),
            max_tokens_per_row=args.max_tokens_per_row,
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """The micro-batches of one optimizer step, and the number of slates in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(_num_slates(batch) for batch in batches)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, PopeLossOutput]:
        """The share of one micro-batch in the loss of its step; the shares of a step add up to its loss."""
        window = self.train_window if model.training else self.eval_window
        window.start()
        num_slates = _num_slates(inputs) if num_items_in_batch is None else int(num_items_in_batch)
        output = self._pope_loss(model, inputs, num_slates)
        window.add(output.response_logprobs, inputs)
        loss = output.loss
        if self.args.normalization == "batch" and num_items_in_batch is not None:
            # A ratio of sums over the call: a step takes the mean of its micro-batches, by their number of slates.
            loss = loss * (_num_slates(inputs) / num_slates)
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, None, None]:
        """One batch of evaluation; its numbers go to the window, from which `evaluation_loop` takes the metrics."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss = self.compute_loss(model, inputs)
        assert isinstance(loss, torch.Tensor)
        return loss, None, None

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluation over all slates at once: no metric depends on the batches."""
        self.eval_window = SlateWindow(self.args.objective)
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        metrics = self.eval_window.metrics(self_normalized=True)
        output.metrics[f"{metric_key_prefix}_loss"] = -metrics["pope/value"]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the window to the training logs, and begin the next window."""
        if "loss" in logs:  # neither an evaluation nor the summary at the end
            logs.update(self.train_window.metrics())
            self.train_window = SlateWindow(self.args.objective)
        super().log(logs, start_time)

    def _pope_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], num_slates: int) -> PopeLossOutput:
        policy = self.accelerator.unwrap_model(model)
        # Not through model.forward, which would compute all logits; so its autocast is entered here.
        with self.accelerator.autocast():
            states = response_hidden_states(policy, cast(TokenRows, inputs))
            head = lm_head(policy)
            return pope_core.linear_pope_loss(
                states.hidden,
                head.weight,
                states.labels,
                inputs["logging_logprobs"],
                inputs["utility"],
                inputs["slate_offsets"],
                lm_head_bias=head.bias,
                response_offsets=states.response_offsets,
                length_normalize=self.args.length_normalize,
                logit_scale=head.logit_scale,
                logit_softcap=head.logit_softcap,
                diversity_weight=self.args.diversity_weight,
                weighting=self.args.weighting,
                normalization=self.args.normalization,
                clip=self.args.clip,
                utility_form=self.args.utility_form,
                diversity_form=self.args.diversity_form,
                num_slates=None if self.args.normalization == "batch" else num_slates,
                chunk_bytes=self.args.chunk_bytes,
                backend=self.args.backend,
            )

    def _shares_prompt(self, examples: list[SlateExample]) -> bool:
        """Whether prompts are computed once per slate; on the way, check that model and head are understood.

        Two responses are enough to see it; a log without slates of two has nothing to share.
        """
        example = next((example for example in examples if len(example["completion_ids"]) > 1), examples[0])
        tree = Tree(example["prompt_ids"], example["completion_ids"][:2])
        check_head(self.model, tree, share_prompt=False)
        if self.args.prompt_sharing == "off" or len(tree.response_ids) == 1:
            return False
        obstacle = sharing_obstacle(self.model, tree)
        if obstacle is not None:
            if self.args.prompt_sharing == "on":
                raise ValueError(f"prompt_sharing: {obstacle}")
            logger.warning("prompt_sharing: off, every response computes its prompt anew: %s", obstacle)
        return obstacle is None


def slate_examples(
    name: str, slates: Sequence[Slate], tokenizer: PreTrainedTokenizerBase, args: PopeConfig
) -> list[SlateExample]:
    """Tokens, utilities and log-probabilities of scored slates, ready for `SlateCollator`.

    Args:
        name: of the slates, in errors and reports.

    Raises:
        ValueError: log-probabilities that were summed over other tokens than these.
    """
    encoded, report = encode_slates(slates, tokenizer, max_length=args.max_length)
    logger.log(logging.WARNING if report.anything_cut else logging.INFO, "%s: %s", name, report)
    examples = []
    for number, (slate, ids) in enumerate(zip(slates, encoded, strict=True), start=1):
        check_token_counts(slate, ids, _place(name, number, slate))
        assert slate.logging_logprobs is not None
        examples.append(
            SlateExample(
                prompt_ids=ids.prompt_ids,
                completion_ids=ids.completion_ids,
                utility=to_utility(slate.scores, args.utility_transform).tolist(),
                logging_logprobs=slate.logging_logprobs,
            )
        )
    return examples


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability in ``model`` to 0: of ``nn.Dropout`` modules, and those that layers keep as numbers
    (``attention_dropout`` and the like) for functional dropout.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _scored_slates(name: str, source: SlateSource) -> Sequence[Slate]:
    slates = as_slates(source)
    for number, slate in enumerate(slates, start=1):
        if slate.logging_logprobs is None:
            raise ValueError(
                f"{_place(name, number, slate)}: logging_logprobs: expected one per response, got none; obtain them "
                "with `pope score LOG --model MODEL --how HOW --output SCORED` or pope_align.score_slates"
            )
    if any(slate.weight is not None for slate in slates):
        logger.warning("%s: the objective weighs all slates alike; the field 'weight' is not used", name)
    return slates


def as_slates(source: SlateSource) -> Sequence[Slate]:
    """The slates of any `SlateSource`, read and validated unless they are slates already."""
    if isinstance(source, SlateLog):
        return source
    if isinstance(source, list) and all(isinstance(row, Slate) for row in source):
        if not source:
            raise ValueError("slates: expected at least one slate, got none")
        return source
    return read_slates(cast("str | os.PathLike[str] | Iterable[Mapping[str, Any]]", source))


def _check_sizes(slates: Sequence[Slate], args: PopeConfig) -> None:
    if args.normalization == "slate" and all(len(slate.completions) == 1 for slate in slates):
        raise ValueError(
            "train_dataset: expected slates of two or more responses with normalization='slate', got only slates of "
            "one, whose weight divides itself out; use normalization='none'"
        )


def _place(name: str, number: int, slate: Slate) -> str:
    return f"{name}: slate {number}" + (f" ({slate.slate_id})" if slate.slate_id else "")


def _pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do: padding is masked and has no label."""
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    return 0


def _num_slates(batch: dict[str, torch.Tensor]) -> int:
    return batch["slate_offsets"].numel() - 1
