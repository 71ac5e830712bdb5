"""`PopeTrainer`: the POPE objective in the training loop of transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from .._extras import require
from ..data.collate import SlateCollator
from ..data.schema import Slate
from ..data.tokenize import EncodedSlate
from ..distributed import from_main_process, whole_while_called
from ..models.loading import load_model, load_tokenizer
from ..propensity.scoring import score_responses
from .callbacks import OverlapWatch
from .card import NO_HELD_OUT, RunFacts, held_out_estimate, write_card
from .config import PopeConfig
from .examples import SlateDataset, SlateSource, fix_template_date, num_slates, scored_slates, slate_dataset
from .objective_file import write_training_objective
from .policy_loss import ShareOfStep, policy_loss
from .slate_table import SlateTable
from .slate_trainer import SlateTrainer, pad_token_id, refuse_several_gpus
from .window import SlateWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from ..ope import Estimate

logger = get_logger(__name__)  # of the main process alone


class PopeTrainer(SlateTrainer):
    """Align a causal language model with logged slates.

    ::

        trainer = PopeTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", PopeConfig("out"), "scored.jsonl")
        trainer.train()

    Hidden states of response tokens go to `pope_core.linear_pope_loss`; no logits of prompts or padding are computed,
    and those of responses need a buffer of fixed size. The loss of a step is the exact mean over all its slates: a
    micro-batch of 1 accumulated 8 times equals a batch of 8.

    Args:
        model: a causal language model of transformers, a ``PeftModel`` around one, or what `load_model` takes.
        args: the run; see `PopeConfig`.
        train_dataset: scored slates: a list of `Slate`, a `SlateLog`, rows (dicts, a ``datasets.Dataset``) or a file.
        eval_dataset: the same, for evaluation; logged with the prefix ``eval_``.
        processing_class: the tokenizer; by default that of the model's name.
        peft_config: add this adapter to the model and train only the adapter.
        callbacks: of transformers.

    Raises:
        ValueError: slates without ``logging_logprobs``, or with log-probabilities of other tokens; a model
            whose head or logits are not supported; several GPUs in one process.
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
        refuse_several_gpus(args)
        # Slates are read first, so that errors in the data appear before a model is loaded.
        train_slates = scored_slates("train_dataset", train_dataset)
        eval_slates = None if eval_dataset is None else scored_slates("eval_dataset", eval_dataset)
        _check_sizes(train_slates, args)
        name = model if isinstance(model, str) else model.config.name_or_path
        tokenizer = processing_class or load_tokenizer(name)
        fix_template_date(args, tokenizer, [*train_slates, *(eval_slates or [])])
        train_data = slate_dataset("train_dataset", train_slates, tokenizer, args)
        eval_data = None if eval_slates is None else slate_dataset("eval_dataset", eval_slates, tokenizer, args)
        if isinstance(model, str):
            model = load_model(model, dtype=args.model_dtype)
        if args.disable_dropout:
            disable_dropout(model)
        if peft_config is not None:
            model = require("peft", extra="train", purpose="for peft_config").get_peft_model(model, peft_config)
        super().__init__(
            model,
            args,
            SlateCollator(pad_token_id(tokenizer)),
            train_data,
            eval_data,
            processing_class=tokenizer,
            callbacks=callbacks,
            prompt_sharing=args.prompt_sharing,
            max_tokens_per_row=args.max_tokens_per_row,
        )
        self.base_name = name
        self.add_callback(OverlapWatch(args.stop_if_ess_below))
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self.train_window = SlateWindow(args.objective)
        self.eval_window = SlateWindow(args.objective)
        self.slate_table = SlateTable(eval_data, lambda: self.eval_window, args.log_slates)
        if args.log_slates > 0 and eval_data is not None:
            self.add_callback(self.slate_table)
        if args.kl_weight > 0:
            with whole_while_called(model):
                for data in filter(None, (train_data, eval_data)):
                    data.start_logprobs = from_main_process(partial(self._start_logprobs, data))

    def count_items(self, batch: Mapping[str, Any]) -> int:
        """The number of slates: the loss of a step is their mean."""
        return num_slates(batch)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ShareOfStep]:
        """The contribution of one micro-batch to the loss of its step; contributions add up to the loss.

        Multiplied by the number of processes, because DDP and FSDP average gradients.
        """
        window = self.train_window if model.training else self.eval_window
        window.start()
        slates_of_step = None if num_items_in_batch is None else int(num_items_in_batch)
        with self.naming(inputs):
            share = policy_loss(model, inputs, self.args, self.accelerator, slates_of_step)
            if not torch.isfinite(share.value):
                raise ValueError(f"loss: expected a finite number, got {float(share.value)}")
        window.add(share, inputs)
        loss = share.loss if slates_of_step is None else share.loss * self.accelerator.num_processes
        return (loss, share) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluation over all slates at once, so that metrics do not depend on batches."""
        self.eval_window = SlateWindow(self.args.objective, self.state.global_step)
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        self.eval_window = self.eval_window.gathered()
        metrics = self.eval_window.metrics(self_normalized=True)
        output.metrics[f"{metric_key_prefix}_loss"] = -metrics["pope/value"]
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the window to the training logs, and begin the next window."""
        if "loss" in logs:  # neither an evaluation nor the summary at the end
            window = self.train_window.gathered()
            # The loss of all steps in the window, including those before the checkpoint of a resumed run.
            logs["loss"] = window.mean_loss(self.state.global_step)
            logs.update(window.metrics())
            self.train_window = SlateWindow(self.args.objective, self.state.global_step)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; also saves the training objective (see `objective_file`)."""
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            write_training_objective(
                output_dir or self.args.output_dir,
                "pope",
                self.args.objective,
                utility_transform=self.args.utility_transform,
                kl_weight=self.args.kl_weight,
            )

    def create_model_card(self, **options: Any) -> None:
        """``README.md``: data, objective, training, and the held-out estimate with its verdict (see `card`)."""
        if not self.is_world_process_zero():
            return
        args = self.args
        objective: dict[str, Any] = {**args.objective.to_dict(), "utility_transform": args.utility_transform}
        if args.kl_weight > 0:
            objective["kl_weight"] = args.kl_weight
        facts = RunFacts.of("pope", self, self.base_name, self.train_dataset.slates, objective, args.max_length)
        write_card(facts, self.held_out_estimate())

    def held_out_estimate(self) -> Estimate | str:
        """The estimate of `pope evaluate` for the model on ``eval_dataset``, or the reason why there is none."""
        data, args = self.eval_dataset, self.args
        if data is None:
            return NO_HELD_OUT
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        policy = self._totals_of_last_evaluation() if sharded else (self.unwrapped(), self.processing_class)
        return held_out_estimate(data.slates, policy, max_length=args.max_length)

    def own_state(self) -> dict[str, Any]:
        return {
            "window": self.train_window.state_dict(),
            "slates_before": self.slate_table.before,
            "template_date": self.args.template_date,
        }

    def restore_own_state(self, state: Mapping[str, Any]) -> None:
        self.train_window.load_state_dict(state["window"])
        self.slate_table.before = state["slates_before"]

    def _totals_of_last_evaluation(self) -> list[list[float]]:
        """The totals of a sharded model, which no single process can score: in its training precision."""
        window = self.eval_window
        parts = torch.split(torch.cat(window.policy).clamp(max=0.0), window.log.slate_offsets.diff().tolist())
        by_slate = dict(zip(torch.cat(window.index).tolist(), (part.tolist() for part in parts), strict=True))
        return [by_slate[index] for index in range(len(by_slate))]

    def _start_logprobs(self, data: SlateDataset) -> list[list[float]]:
        """Total log-probabilities under the current model (an untrained adapter does not change them)."""
        logger.info("kl_weight: computing %d slates under the model before training", len(data))
        slates = [EncodedSlate(example["prompt_ids"], example["completion_ids"]) for example in data.examples]
        return score_responses(slates, self.model)


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout probability in ``model`` to 0: of ``nn.Dropout`` modules, and numbers for functional dropout in
    layers (``attention_dropout`` etc.).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _check_sizes(slates: Sequence[Slate], args: PopeConfig) -> None:
    if args.objective.normalized_within_slates and all(len(slate.completions) == 1 for slate in slates):
        raise ValueError(
            "train_dataset: expected slates of two or more responses with "
            f"normalization={args.objective.normalization!r}, got only slates of "
            "one, whose weight cancels; use normalization='none'"
        )
