"""A whole training run: slates in; model, metrics and curves out. ``pope train`` and ``pope demo`` call this."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .._extras import require
from .baselines import Pairs, TrainingMethod
from .checkpoint import last_checkpoint
from .config import PopeConfig
from .curves import plot_training
from .examples import SlateSource
from .trainer import PopeTrainer

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

#: Names of the files beside the model.
METRICS_NAME = "metrics.json"
CURVES_NAME = "training.png"


@dataclass
class RunArguments:
    """What a run reads, and what it puts around the model.

    Attributes:
        method: "pope", or one of `baselines` on the same slates: "sft" on the best-scored response, "dpo" on pairs.
        model: hub name, folder or GGUF file.
        train_data: scored slates (`pope score`), .jsonl or .parquet.
        eval_data: scored slates of other prompts, for evaluation.
        lora_rank: train an adapter of this rank and leave the model alone; None trains all weights.
        lora_alpha: scale of the adapter; None for twice the rank.
        lora_targets: names of the layers that get it; the language-model head may not be among them.
        pairs: of "dpo": "best-worst" of every slate, or "all" pairs of different scores.
        dry_run: print the plan and stop.
    """

    model: str = field(metadata={"help": "Hub name, folder or GGUF file."})
    train_data: str = field(metadata={"help": "Scored slates (pope score): .jsonl or .parquet."})
    eval_data: str | None = field(default=None, metadata={"help": "Scored slates of other prompts, for evaluation."})
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train an adapter of this rank; none trains all weights."}
    )
    lora_alpha: int | None = field(default=None, metadata={"help": "Scale of the adapter; none for twice the rank."})
    lora_targets: str = field(
        default="all-linear", metadata={"help": "Layers that get the adapter: names with commas, or all-linear."}
    )
    method: TrainingMethod = field(
        default="pope", metadata={"help": "pope, or a baseline on the same slates: sft on the best response, dpo."}
    )
    pairs: Pairs = field(default="best-worst", metadata={"help": "Pairs of dpo: best-worst of each slate, or all."})
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop."})

    def peft_config(self) -> PeftConfig | None:
        if self.lora_rank is None:
            return None
        peft = require("peft", extra="train", purpose="for lora_rank")
        targets = self.lora_targets if self.lora_targets == "all-linear" else self.lora_targets.split(",")
        return peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            lora_alpha=self.lora_alpha or 2 * self.lora_rank,
            target_modules=targets,
        )


def run_training(
    model: str | PreTrainedModel,
    args: PopeConfig,
    train_data: SlateSource,
    eval_data: SlateSource | None = None,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    peft_config: PeftConfig | None = None,
    callbacks: list[TrainerCallback] | None = None,
) -> PopeTrainer:
    """Train, and leave in ``args.output_dir`` model, tokenizer, model card, ``metrics.json`` and ``training.png``.

    ``metrics.json`` holds the configuration of the objective and everything that was logged, step by step. With
    ``eval_data``, the model is evaluated at the end, and the card says what the estimate is worth.

    Raises:
        ValueError: what `PopeTrainer` refuses.
    """
    trainer = PopeTrainer(
        model, args, train_data, eval_data, processing_class, peft_config=peft_config, callbacks=callbacks
    )
    if callbacks:  # they show the metrics: transformers' own way of printing would show them twice
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    _train_and_save(trainer)
    if eval_data is not None and not _evaluated_as_it_is(trainer):
        trainer.evaluate()
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        _write_metrics(trainer, {"objective": asdict(args.objective)})
        plot_training(trainer.state.log_history, Path(args.output_dir) / CURVES_NAME)
    trainer.accelerator.wait_for_everyone()  # all of it is there when any process goes on
    return trainer


def run_baseline(method: Literal["sft", "dpo"], trainer: Trainer) -> None:
    """Train what `make_baseline` made, and leave the model, its tokenizer and ``metrics.json``."""
    _train_and_save(trainer)
    if trainer.is_world_process_zero():
        _write_metrics(trainer, {"method": method})
    trainer.accelerator.wait_for_everyone()


def _train_and_save(trainer: Trainer) -> None:
    resume = trainer.args.resume_from_checkpoint
    trainer.train(last_checkpoint(trainer.args.output_dir) if resume == "last" else resume)
    trainer.save_model()


def _evaluated_as_it_is(trainer: PopeTrainer) -> bool:
    """Whether the last evaluation saw the final weights; the best ones of an earlier step are loaded after it."""
    window = trainer.eval_window
    at_the_end = bool(window.policy) and window.first_step == trainer.state.global_step
    return at_the_end and not trainer.args.load_best_model_at_end


def _write_metrics(trainer: Trainer, about: dict[str, Any]) -> None:
    content = {**about, "history": trainer.state.log_history}
    path = Path(trainer.args.output_dir) / METRICS_NAME
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
