"""A whole training run: slates in; model, metrics and curves out. ``pope train`` and ``pope demo`` call this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .._files import named_writes, write_json
from .._json import jsonable
from ..data.schema import Slate
from ..models.loading import load_tokenizer
from .baselines import make_baseline
from .card import NO_HELD_OUT, RunFacts, held_out_estimate, write_card
from .checkpoint import last_checkpoint
from .config import ListwiseConfig, PopeConfig
from .curves import plot_training
from .listwise_trainer import ListwiseTrainer
from .objective_file import write_training_objective
from .options import Pairs
from .policy_trainer import PolicyTrainer
from .sources import EvalSource, SlateSource, as_slates
from .trainer import PopeTrainer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel, TrainingArguments

#: Names of the files in the model's folder.
METRICS_NAME = "metrics.json"
CURVES_NAME = "training.png"


def run_training(
    model: str | PreTrainedModel,
    args: PopeConfig | ListwiseConfig,
    train_data: SlateSource,
    eval_data: EvalSource | None = None,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> PopeTrainer | ListwiseTrainer:
    """Train, and write model, tokenizer, model card, ``metrics.json`` and ``training.png`` to ``args.output_dir``.

    ``metrics.json`` has the method, the objective and everything that was logged, step by step. With ``eval_data``, the
    model is evaluated at the end, and the card has the estimate with its verdict. With ``args.push_to_hub`` all of it
    is uploaded at the end.

    Args:
        args: the run, and by its type the trainer.

    Raises:
        ValueError: errors of `PopeTrainer`.
    """
    kind: Any = PopeTrainer if isinstance(args, PopeConfig) else ListwiseTrainer
    trainer: PopeTrainer | ListwiseTrainer = kind(
        model,
        args,
        train_dataset=train_data,
        eval_dataset=eval_data,
        processing_class=processing_class,
        callbacks=callbacks,
        peft_config=peft_config,
    )
    _quiet(trainer, callbacks)
    _train(trainer, push=False)  # below, with the card and the metrics
    if eval_data is not None and not _evaluated_as_it_is(trainer):
        trainer.evaluate()
    if trainer.is_world_process_zero():
        _write_metrics(trainer, {"method": trainer.method, **trainer.about()})
    if args.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()  # everything is written before any process continues
    return trainer


def run_baseline(
    method: Literal["sft", "dpo"],
    model: str | PreTrainedModel,
    args: TrainingArguments,
    train_data: SlateSource,
    eval_data: SlateSource | None = None,
    *,
    pairs: Pairs = "best-worst",
    processing_class: PreTrainedTokenizerBase | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> Trainer:
    """As `run_training`, with a baseline's loss; writes the same files, so that runs can be compared.

    Args:
        args, pairs: as in `make_baseline`.

    Raises:
        ValueError: errors of `make_baseline`.
    """
    base = model if isinstance(model, str) else model.config.name_or_path
    tokenizer = processing_class or load_tokenizer(base)
    slates, held_out = as_slates(train_data), None if eval_data is None else as_slates(eval_data)
    trainer = make_baseline(
        method, model, args, slates, held_out, pairs=pairs, processing_class=tokenizer, peft_config=peft_config
    )
    for callback in callbacks or ():
        trainer.add_callback(callback)
    _quiet(trainer, callbacks)
    _train(trainer, push=True)
    if held_out is not None and not any("eval_loss" in entry for entry in trainer.state.log_history[-2:]):
        trainer.evaluate()
    if trainer.is_world_process_zero():
        options = _baseline_options(method, args, pairs)
        write_training_objective(str(args.output_dir), method, None, **options)
        _write_metrics(trainer, {"method": method})
        max_length = int(getattr(args, "max_length", 0))
        facts = RunFacts.of(method, trainer, base, slates, options, max_length)
        write_card(facts, {"": _baseline_estimate(trainer, tokenizer, held_out, max_length)})
    trainer.accelerator.wait_for_everyone()
    return trainer


def _baseline_options(method: str, args: TrainingArguments, pairs: Pairs) -> dict[str, Any]:
    """The settings of the loss."""
    if method == "sft":
        return {"responses": "best of each slate"}
    return {"pairs": pairs, "beta": getattr(args, "beta", None), "loss_type": getattr(args, "loss_type", None)}


def _baseline_estimate(trainer: Trainer, tokenizer: Any, held_out: Sequence[Slate] | None, max_length: int) -> Any:
    if held_out is None:
        return NO_HELD_OUT
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the model is sharded; run pope evaluate on the saved one"
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    return held_out_estimate(held_out, (model, tokenizer), max_length=max_length)


def _quiet(trainer: Trainer, callbacks: list[TrainerCallback] | None) -> None:
    """Remove transformers' printing of metrics, which the caller's callbacks show already."""
    if callbacks:
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)


def _train(trainer: Trainer, *, push: bool) -> None:
    """Train and save the model; with ``push`` it is also uploaded if the run asks for that."""
    resume = trainer.args.resume_from_checkpoint
    if resume == "last" and not isinstance(trainer, PolicyTrainer):  # TRL's know no "last"
        resume = last_checkpoint(trainer.args.output_dir)
    with named_writes(str(trainer.args.output_dir)):
        trainer.train(resume)
        trainer.save_model(_internal_call=not push)


def _evaluated_as_it_is(trainer: PolicyTrainer) -> bool:
    """Whether the last evaluation used the final weights (the best weights of an earlier step are loaded after it)."""
    window = trainer.eval_window
    at_the_end = bool(window.policy) and window.first_step == trainer.state.global_step
    return at_the_end and not trainer.args.load_best_model_at_end


def _write_metrics(trainer: Trainer, about: dict[str, Any]) -> None:
    """``metrics.json``, and its picture."""
    folder = Path(str(trainer.args.output_dir))
    write_json(folder / METRICS_NAME, jsonable({**about, "history": trainer.state.log_history}))  # NaN becomes null
    plot_training(trainer.state.log_history, folder / CURVES_NAME)
