"""A whole training run: slates in; model, metrics and curves out. ``pope train`` and ``pope demo`` call this."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ._extras import require
from .config import PopeConfig
from .curves import plot_training
from .trainer import PopeTrainer
from .training_data import SlateSource

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
        model: hub name, folder or GGUF file.
        train_data: scored slates (`pope score`), .jsonl or .parquet.
        eval_data: scored slates of other prompts, for evaluation.
        lora_rank: train an adapter of this rank and leave the model alone; None trains all weights.
        lora_alpha: scale of the adapter; None for twice the rank.
        lora_targets: names of the layers that get it; the language-model head may not be among them.
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
    """Train, and leave in ``args.output_dir`` the model, its tokenizer, ``metrics.json`` and ``training.png``.

    ``metrics.json`` holds the configuration of the objective and everything that was logged, step by step.

    Raises:
        ValueError: what `PopeTrainer` refuses.
    """
    trainer = PopeTrainer(
        model, args, train_data, eval_data, processing_class, peft_config=peft_config, callbacks=callbacks
    )
    if callbacks:  # they show the metrics: transformers' own way of printing would show them twice
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    output = Path(args.output_dir)
    history: list[dict[str, Any]] = trainer.state.log_history
    summary = {"objective": asdict(args.objective), "history": history}
    (output / METRICS_NAME).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    plot_training(history, output / CURVES_NAME)
    return trainer
