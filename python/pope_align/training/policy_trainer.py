"""`PolicyTrainer`: trains a policy on logged slates, for any loss of their log-probabilities and utilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from .._extras import require
from ..data.collate import SlateCollator
from ..data.schema import Slate
from ..data.tokenize import EncodedSlate
from ..distributed import from_main_process, whole_while_called
from ..models.causal_lm import LmHead
from ..models.loading import load_model, load_tokenizer
from ..propensity.scoring import score_responses
from .callbacks import EVALUATIONS, GAIN, P_OF_BEST, StopWithPlacebo, best_evaluation
from .card import NO_HELD_OUT, RunFacts, held_out_estimate, write_card
from .config import SlateConfig
from .examples import SlateDataset, SlateSource, fix_template_date, num_slates, slate_dataset, slates_for
from .methods import TrainingMethod
from .objective_file import write_training_objective
from .policy_loss import ShareOfStep, policy_loss
from .slate_trainer import SlateTrainer, pad_token_id, refuse_several_gpus
from .utilities import log_transform
from .window import ResponseWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from ..ope import Estimate

logger = get_logger(__name__)  # of the main process alone


class PolicyTrainer(SlateTrainer):
    """Slates, model, metrics and card of `PopeTrainer` and `ListwiseTrainer`, which add a loss and describe it.

    Args:
        model, args, train_dataset, eval_dataset, processing_class, peft_config, callbacks: as in `PopeTrainer`.
    """

    args: SlateConfig
    method: TrainingMethod

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: SlateConfig,
        train_dataset: SlateSource,
        eval_dataset: SlateSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        refuse_several_gpus(args)
        # Slates are read first, so that errors in the data appear before a model is loaded.
        train_slates = slates_for(args, "train_dataset", train_dataset)
        eval_slates = None if eval_dataset is None else slates_for(args, "eval_dataset", eval_dataset)
        self._check_slates(train_slates, args)
        _check_watched(args, eval_slates)
        name = model if isinstance(model, str) else model.config.name_or_path
        tokenizer = processing_class or load_tokenizer(name)
        args.utility_transform = log_transform("train_dataset", train_slates, args.utility_transform)
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
        if args.early_stopping_patience is not None:
            self.add_callback(StopWithPlacebo(args.early_stopping_patience))
        self.train_window = self._new_window()
        self.eval_window = self._new_window()
        needed = [train_data, eval_data] if args.needs_start else [eval_data] if args.early_stopping_patience else []
        with whole_while_called(model):
            for data in filter(None, needed):
                data.start_logprobs = from_main_process(partial(self._start_logprobs, data))

    def _check_slates(self, slates: Sequence[Slate], args: SlateConfig) -> None:
        """Refuse training slates from which the loss learns nothing."""

    def _new_window(self, first_step: int = 0) -> ResponseWindow:
        """An empty window of metrics."""
        raise NotImplementedError

    def _share(
        self, hidden: torch.Tensor, head: LmHead, batch: Mapping[str, Any], slates_of_step: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The contribution of a micro-batch to the loss of its step, and its total log-probabilities.

        Args:
            slates_of_step: number of slates in all micro-batches of all processes; None outside training.
        """
        raise NotImplementedError

    def _held_out_metrics(self) -> dict[str, float]:
        """Metrics of the last evaluation, from ``eval_window``; "loss" is one of them."""
        raise NotImplementedError

    def about(self) -> dict[str, Any]:
        """The training objective for files: a JSON object with ``objective`` and the other settings of the loss."""
        raise NotImplementedError

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
            share = policy_loss(
                model, inputs, self.accelerator, partial(self._share, batch=inputs, slates_of_step=slates_of_step)
            )
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
        self.eval_window = self._new_window(self.state.global_step)
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        self.eval_window = self.eval_window.gathered()
        metrics = {**self._held_out_metrics(), **self.eval_window.held_out_index()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of the window to the training logs, and begin the next window."""
        if "loss" in logs:  # neither an evaluation nor the summary at the end
            window = self.train_window.gathered()
            # The loss of all steps in the window, including those before the checkpoint of a resumed run.
            logs["loss"] = window.mean_loss(self.state.global_step)
            logs.update(window.metrics())
            self.train_window = self._new_window(self.state.global_step)
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As Trainer's; also saves the training objective (see `objective_file`)."""
        super().save_model(output_dir, _internal_call)
        if self.is_world_process_zero():
            write_training_objective(output_dir or self.args.output_dir, self.method, **self.about())

    def create_model_card(self, **options: Any) -> None:
        """``README.md``: data, objective, training, and the held-out estimate with its verdict (see `card`)."""
        if not self.is_world_process_zero():
            return
        about = self.about()
        objective = {**(about.pop("objective") or {}), **about}
        slates, args = self.train_dataset.slates, self.args
        facts = RunFacts.of(self.method, self, self.base_name, slates, objective, args.max_length)
        write_card(replace(facts, training={**facts.training, **self._best()}), self.held_out_estimate())

    def held_out_estimate(self) -> Estimate | str:
        """The estimate of `pope evaluate` for the model on ``eval_dataset``, or the reason why there is none."""
        data, args = self.eval_dataset, self.args
        if data is None:
            return NO_HELD_OUT
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        policy = self._totals_of_last_evaluation() if sharded else (self.unwrapped(), self.processing_class)
        return held_out_estimate(data.slates, policy, max_length=args.max_length)

    def _best(self) -> dict[str, Any]:
        """For the card: the evaluation of the best model, if it was chosen by its held-out gain."""
        best = best_evaluation(self.state) if self.args.early_stopping_patience is not None else {}
        if GAIN not in best:
            return {}
        return {
            "best_step": best["step"],
            "held_out_gain_at_best_step": f"{best[GAIN]:+.4f}",
            "placebo_p_value": f"{best['eval_index/p_value']:.2g}",
            "placebo_p_value_of_the_best": f"{best[P_OF_BEST]:.2g} (times {best[EVALUATIONS]} evaluations)",
        }

    def own_state(self) -> dict[str, Any]:
        return {"window": self.train_window.state_dict(), "template_date": self.args.template_date}

    def restore_own_state(self, state: Mapping[str, Any]) -> None:
        self.train_window.load_state_dict(state["window"])

    def _totals_of_last_evaluation(self) -> list[list[float]]:
        """The totals of a sharded model, which no single process can score: in its training precision."""
        window = self.eval_window
        parts = torch.split(torch.cat(window.policy).clamp(max=0.0), window.log.slate_offsets.diff().tolist())
        by_slate = dict(zip(torch.cat(window.index).tolist(), (part.tolist() for part in parts), strict=True))
        return [by_slate[index] for index in range(len(by_slate))]

    def _start_logprobs(self, data: SlateDataset) -> list[list[float]]:
        """Total log-probabilities under the current model (an untrained adapter does not change them)."""
        logger.info("computing the log-probabilities of %d slates under the model before training", len(data))
        slates = [EncodedSlate(example["prompt_ids"], example["completion_ids"]) for example in data.examples]
        return score_responses(slates, self.model)


def _check_watched(args: SlateConfig, eval_slates: Sequence[Slate] | None) -> None:
    """Early stopping needs the held-out gain, which compares the responses of a slate."""
    watched = args.early_stopping_patience is not None and args.metric_for_best_model == GAIN
    if watched and eval_slates is not None and all(len(slate.completions) == 1 for slate in eval_slates):
        raise ValueError(
            "eval_dataset: expected a slate of two or more responses with early_stopping_patience, whose gain is "
            "within slates, got one each; or name another metric_for_best_model"
        )


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
