"""`PolicyTrainer`: trains a policy on logged slates, for any loss of their log-probabilities and utilities."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, PredictionOutput, TrainOutput

from .._extras import require
from ..data.collate import SlateCollator
from ..data.schema import Slate
from ..distributed import whole_while_called
from ..models.causal_lm import LmHead
from ..models.loading import load_model
from ..models.modes import disable_dropout
from .arguments import (
    check_collator,
    check_config,
    check_functions,
    check_optimizer,
    check_watched,
    model_name,
    tokenizer_of,
    watched_set,
)
from .callbacks import EVALUATIONS, GAIN, P_OF_BEST, StopWithPlacebo, best_evaluation
from .card import NO_HELD_OUT, CardOptions, RunFacts, held_out_estimate, write_card
from .config import SlateConfig
from .examples import Collator, IndexedCollator, SlateDataset, fix_template_date, num_slates, slate_dataset
from .methods import TrainingMethod
from .objective_file import write_training_objective
from .policy_loss import ShareOfStep, policy_loss
from .predictions import with_predictions
from .slate_trainer import Optimizers, SlateTrainer, pad_token_id, refuse_several_gpus
from .sources import EvalSource, SlateSource, eval_sources, eval_title, slates_for
from .start import refuse_without_start, score_with_start
from .utilities import log_transform
from .window import ResponseWindow

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from ..ope import Estimate


class PolicyTrainer(SlateTrainer):
    """Slates, model, metrics and card of `PopeTrainer` and `ListwiseTrainer`, which add a loss and describe it.

    Args:
        model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics, callbacks,
            optimizers, peft_config: as in `PopeTrainer`.
    """

    args: SlateConfig
    config_class: type[SlateConfig]

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        args: SlateConfig | None = None,
        data_collator: Collator | None = None,
        train_dataset: SlateSource | None = None,
        eval_dataset: EvalSource | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: Optimizers = (None, None),
        peft_config: PeftConfig | None = None,
    ) -> None:
        name = model_name(model)
        if args is None:
            args = self._default_config(name)
        check_config(args, self.config_class)
        check_functions(args, data_collator, compute_metrics)
        refuse_several_gpus(args)
        if train_dataset is None:
            raise ValueError("train_dataset: expected slates to train on, got None")
        # Slates are read first, so that errors in the data appear before a model is loaded.
        train_slates = slates_for(args, "train_dataset", train_dataset)
        sources = eval_sources(eval_dataset)
        eval_slates = {each: slates_for(args, eval_title(each), source) for each, source in sources.items()}
        self._check_slates(train_slates, args)
        check_watched(args, eval_slates)
        tokenizer = tokenizer_of(name, processing_class)
        args.utility_transform = log_transform("train_dataset", train_slates, args.utility_transform)
        fix_template_date(args, tokenizer, [*train_slates, *itertools.chain(*eval_slates.values())])
        train_data = slate_dataset("train_dataset", train_slates, tokenizer, args)
        eval_data = {each: slate_dataset(eval_title(each), eval_slates[each], tokenizer, args) for each in eval_slates}
        if data_collator is not None:
            check_collator(IndexedCollator(data_collator), train_data)
        if isinstance(model, (str, Path)):
            model = load_model(model, dtype=args.model_dtype)
        if args.disable_dropout:
            disable_dropout(model)
        if peft_config is not None:
            model = require("peft", extra="train", purpose="for peft_config").get_peft_model(model, peft_config)
        check_optimizer(optimizers[0], model)
        super().__init__(
            model,
            args,
            data_collator or SlateCollator(pad_token_id(tokenizer)),
            train_data,
            eval_data.get("", eval_data or None),
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            prompt_sharing=args.prompt_sharing,
            max_tokens_per_row=args.max_tokens_per_row,
        )
        self.base_name = name
        if args.early_stopping_patience is not None:
            self.add_callback(StopWithPlacebo(args.early_stopping_patience, prefix=self._watched_prefix()))
        self.train_window = self._new_window()
        self.eval_window = self._new_window()  # of the last evaluation
        self.eval_windows: dict[str, ResponseWindow] = {}  # the same of each evaluation set, by its title
        self.at_start = True  # whether the model is still the one before training

    @classmethod
    def _default_config(cls, name: str) -> SlateConfig:
        """The configuration of a trainer that is given none: the defaults, in a folder named after the model."""
        stem = Path(name).name
        return cls.config_class(f"{stem}-aligned") if stem else cls.config_class()

    @property
    def eval_sets(self) -> dict[str, SlateDataset]:
        """The evaluation sets by name; a single one has the name ""."""
        data = self.eval_dataset
        return data if isinstance(data, dict) else {} if data is None else {"": data}

    def _own_set_evaluated(self) -> bool:
        """Whether the last evaluation was of one of the trainer's own sets, not of slates given to `evaluate`."""
        return any(data is self.evaluated for data in self.eval_sets.values())

    def _watched_prefix(self) -> str:
        """The prefix of the metrics of the evaluation set that ``metric_for_best_model`` watches."""
        name = watched_set(self.args.metric_for_best_model or GAIN, self.eval_sets)
        return f"eval_{name}_" if name else "eval_"

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> TrainOutput:
        """As `SlateTrainer.train`; before the first step, `score_start`."""
        if self.at_start:
            self.score_start()
        self.at_start = False
        return super().train(resume_from_checkpoint, **options)

    def evaluate(
        self,
        eval_dataset: EvalSource | SlateDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As `transformers.Trainer.evaluate`, on the evaluation sets or on other slates.

        Args:
            eval_dataset: None for those of the trainer; the name of one of them; or slates, a file, or several by name.
        """
        if isinstance(eval_dataset, str) and eval_dataset in self.eval_sets:
            data: Any = eval_dataset
            ready = [self.eval_sets[eval_dataset]]
        elif eval_dataset is None:
            data, ready = None, list(self.eval_sets.values())
        else:
            sets = self._prepare_sets(eval_dataset)
            data, ready = sets.get("", sets), list(sets.values())
        self.score_start(ready)
        return super().evaluate(data, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: SlateSource, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """As `transformers.Trainer.predict`; the predictions are a `SlatePredictions`, the labels are the utilities."""
        (data,) = self._prepare_sets(test_dataset).values()
        self.score_start([data])
        return super().predict(data, ignore_keys, metric_key_prefix)

    def _prepare_sets(self, source: EvalSource | SlateDataset) -> dict[str, SlateDataset]:
        """Other evaluation sets by name, read and tokenised as those of the constructor."""
        if isinstance(source, SlateDataset):
            return {"": source}
        return {name: self._prepared(eval_title(name), each) for name, each in eval_sources(source).items()}

    def _prepared(self, title: str, source: SlateSource | SlateDataset) -> SlateDataset:
        if isinstance(source, SlateDataset):
            return source
        slates = slates_for(self.args, title, source)
        fix_template_date(self.args, self.processing_class, slates)
        return slate_dataset(title, slates, self.processing_class, self.args)

    def score_start(self, data: Sequence[SlateDataset] | None = None) -> None:
        """Compute what the loss or a metric compares with and only the model before training can say, once.

        These are the log-probabilities of a KL penalty, of early stopping and of "lipo", and propensities with
        ``logging_policy="start"``. `train` calls it, and `evaluate` if it comes first.

        Args:
            data: those to score; None for all of the trainer.

        Raises:
            ValueError: propensities are needed after training has begun.
        """
        for_loss = self.args.needs_start
        for_metrics = for_loss or self.args.early_stopping_patience is not None
        with whole_while_called(self.model):
            for each in [self.train_dataset, *self.eval_sets.values()] if data is None else data:
                if not self.at_start:
                    refuse_without_start(each, compare=for_loss)
                    continue
                compare = for_loss if each is self.train_dataset else for_metrics
                score_with_start(each, self.model, self.processing_class, self.args, compare=compare)

    @property
    def method(self) -> TrainingMethod:
        """The name of the method."""
        raise NotImplementedError

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
        if self._own_set_evaluated():
            self.eval_windows[self.evaluated.title] = self.eval_window
        metrics = {**self._held_out_metrics(), **self.eval_window.held_out_index()}
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return with_predictions(output, self.eval_window, self.compute_metrics, metric_key_prefix)

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

    def create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """``README.md``: data, objective, training, and the held-out estimates with their verdicts (see `card`).

        `push_to_hub` calls it as `transformers.Trainer` does. Nothing is looked up on the hub.

        Args:
            language, license, tags: metadata of the card; tags are added to those of the method.
            model_name: the title; by default the name of the output folder.
            finetuned_from: the base model; by default the name of the model that was given.
            tasks: the hub's name of the task; "text-generation" by default.
            dataset_tags: names of datasets on the hub.
            dataset, dataset_args: the data in words, for the section on data.
        """
        if not self.is_world_process_zero():
            return
        about = self.about()
        objective = {**(about.pop("objective") or {}), **about}
        slates, args = self.train_dataset.slates, self.args
        facts = RunFacts.of(self.method, self, self.base_name, slates, objective, args.max_length)
        given = CardOptions(
            language, license, tags, model_name, finetuned_from, tasks, dataset_tags, dataset, dataset_args
        )
        facts = replace(facts, training={**facts.training, **self._best()}, options=given)
        write_card(facts, self.held_out_estimates())

    def held_out_estimates(self) -> dict[str, Estimate | str]:
        """`held_out_estimate` of every evaluation set, by name; a single one, or none, has the name ""."""
        return {name: self.held_out_estimate(name) for name in self.eval_sets or [""]}

    def held_out_estimate(self, name: str = "") -> Estimate | str:
        """The estimate of `pope evaluate` for the model on an evaluation set, or the reason why there is none.

        Args:
            name: of the set; "" for the only one.
        """
        sets, args = self.eval_sets, self.args
        if not sets:
            return NO_HELD_OUT
        if name not in sets:
            raise ValueError(f"name: expected one of the evaluation sets {', '.join(sets)}, got {name!r}")
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded and sets[name].title not in self.eval_windows:
            return "the model is sharded and was not evaluated on these slates; run pope evaluate on the saved one"
        policy = self._totals(sets[name].title) if sharded else (self.unwrapped(), self.processing_class)
        return held_out_estimate(sets[name].slates, policy, max_length=args.max_length)

    def _best(self) -> dict[str, Any]:
        """For the card: the evaluation of the best model, if it was chosen by its held-out gain."""
        watched = self.args.early_stopping_patience is not None
        best = best_evaluation(self.state, self._watched_prefix()) if watched else {}
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

    def _totals(self, title: str) -> list[list[float]]:
        """The totals of a sharded model, which no single process can score, from the last evaluation of these data."""
        window = self.eval_windows[title]
        parts = torch.split(torch.cat(window.policy).clamp(max=0.0), window.log.slate_offsets.diff().tolist())
        by_slate = dict(zip(torch.cat(window.index).tolist(), (part.tolist() for part in parts), strict=True))
        return [by_slate[index] for index in range(len(by_slate))]
