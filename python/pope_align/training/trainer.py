"""`PopeTrainer`: the POPE objective in the training loop of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalPrediction

from ..data.schema import Slate
from ..models.causal_lm import LmHead
from .callbacks import OverlapWatch
from .config import PopeConfig, SlateConfig
from .examples import Collator
from .methods import TrainingMethod
from .policy_loss import pope_share
from .policy_trainer import PolicyTrainer
from .slate_table import SlateTable
from .slate_trainer import Optimizers
from .sources import EvalSource, SlateSource
from .window import SlateWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class PopeTrainer(PolicyTrainer):
    """Align a causal language model with logged slates.

    ::

        trainer = PopeTrainer("HuggingFaceTB/SmolLM2-135M-Instruct", train_dataset="scored.jsonl")
        trainer.train()

    Hidden states of response tokens go to `pope_core.linear_pope_loss`; no logits of prompts or padding are computed,
    and those of responses need a buffer of fixed size. The loss of a step is the exact mean over all its slates: a
    micro-batch of 1 accumulated 8 times equals a batch of 8.

    Args:
        model: a causal language model of transformers, a ``PeftModel`` around one, or what `load_model` takes.
        args: the run; see `PopeConfig`. None for the defaults, in a folder named after the model.
        data_collator: a function from a list of `SlateExample` to a batch with the entries of `SlateCollator`'s, which
            is the default. Prompts are shared only by a `SlateCollator` (or a subclass); any other function decides
            itself. It may change tokens and utilities, not the number of responses where the loss compares with the
            start.
        train_dataset: scored slates: a list of `Slate`, a `SlateLog`, rows (dicts, a ``datasets.Dataset``) or a file;
            or preferences in TRL's formats (``prompt``, ``chosen``, ``rejected``; ``prompt``, ``completion``,
            ``label``), which become slates with the model before training as the logging policy.
        eval_dataset: the same, for evaluation; logged with the prefix ``eval_``. A dict of several by name is logged
            with ``eval_NAME_``.
        processing_class: the tokenizer; by default that of the model's name.
        compute_metrics: called once per evaluation with a ``transformers.EvalPrediction`` whose ``predictions`` are a
            `predictions.SlatePredictions` and whose ``label_ids`` are the utilities; returns metrics by name.
        callbacks: of transformers.
        optimizers: an optimizer of the model's parameters and its scheduler; None for those of ``args``.
        peft_config: add this adapter to the model and train only the adapter.

    Raises:
        ValueError: slates without ``logging_logprobs``, or with log-probabilities of other tokens; rows of another
            format; a model without a tokenizer; a model whose head or logits are not supported; several GPUs in one
            process.
        TypeError: an argument of another type, such as the configuration of another trainer.
    """

    args: PopeConfig
    config_class = PopeConfig
    eval_window: SlateWindow

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        args: PopeConfig | None = None,
        data_collator: Collator | None = None,
        train_dataset: SlateSource | None = None,
        eval_dataset: EvalSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Optimizers = (None, None),
        peft_config: PeftConfig | None = None,
    ) -> None:
        super().__init__(
            model,
            args,
            data_collator,
            train_dataset,
            eval_dataset,
            processing_class,
            compute_metrics,
            callbacks,
            optimizers,
            peft_config,
        )
        self.add_callback(OverlapWatch(self.args.stop_if_ess_below))
        self.slate_table = SlateTable(
            lambda: (self.evaluated, self.eval_window) if self._own_set_evaluated() else None, self.args.log_slates
        )
        if self.args.log_slates > 0 and self.eval_sets:
            self.add_callback(self.slate_table)

    @property
    def method(self) -> TrainingMethod:
        return "pope"

    def _check_slates(self, slates: Sequence[Slate], args: SlateConfig) -> None:
        assert isinstance(args, PopeConfig)
        if args.objective.normalized_within_slates and all(len(slate.completions) == 1 for slate in slates):
            raise ValueError(
                "train_dataset: expected slates of two or more responses with "
                f"normalization={args.objective.normalization!r}, got only slates of "
                "one, whose weight cancels; use normalization='none'"
            )

    def _new_window(self, first_step: int = 0) -> SlateWindow:
        return SlateWindow(first_step, objective=self.args.objective)

    def _share(
        self, hidden: torch.Tensor, head: LmHead, batch: Mapping[str, Any], slates_of_step: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return pope_share(hidden, head, batch, self.args, self.accelerator.num_processes, slates_of_step)

    def _held_out_metrics(self) -> dict[str, float]:
        metrics = self.eval_window.metrics(self_normalized=True)
        return {"loss": -metrics["pope/value"], **metrics}

    def about(self) -> dict[str, Any]:
        args = self.args
        penalty = {"kl_weight": args.kl_weight} if args.kl_weight > 0 else {}
        return {"objective": args.objective.to_dict(), "utility_transform": args.utility_transform, **penalty}

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "slates_before": self.slate_table.before}

    def restore_own_state(self, state: Mapping[str, Any]) -> None:
        super().restore_own_state(state)
        self.slate_table.before = state["slates_before"]
