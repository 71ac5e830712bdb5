"""Checks of a trainer's arguments, each as early as it can be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.schema import Slate
from ..models.loading import load_tokenizer
from .callbacks import GAIN
from .config import SlateConfig
from .examples import IndexedCollator, SlateDataset

if TYPE_CHECKING:
    from peft import PeftModel

#: What a batch of `SlateCollator` has, and a user's collator must return.
_BATCH = (
    *("input_ids", "position_ids", "tree", "branch", "predictors", "labels", "response_offsets"),
    "log",
)


def model_name(model: str | Path | PreTrainedModel | PeftModel) -> str:
    """The name or folder of the model; "" for a model in memory without one.

    Raises:
        TypeError: not a model.
    """
    if isinstance(model, (str, Path)):
        return str(model)
    config: Any = getattr(model, "config", None)
    if not isinstance(model, torch.nn.Module) or config is None:
        raise TypeError(f"model: expected a name, a folder or a model of transformers, got {type(model).__name__}")
    return str(config.name_or_path or "")


def check_config(args: Any, expected: type[SlateConfig]) -> None:
    """Refuse the configuration of another trainer.

    Raises:
        TypeError: not of the trainer's own class.
    """
    if not isinstance(args, expected):
        raise TypeError(
            f"args: expected a {expected.__name__}, got {type(args).__name__}; docs/migration-from-trl.md says what "
            "becomes of the arguments of TRL's configurations"
        )


def check_functions(args: SlateConfig, data_collator: Any, compute_metrics: Any) -> None:
    """Refuse what cannot be called, and the ways of evaluation that slates do not have.

    Raises:
        TypeError: not a function.
        ValueError: metrics of single batches, or with inputs or losses.
    """
    if data_collator is not None and not callable(data_collator):
        raise TypeError(
            f"data_collator: expected a function from examples to a batch, got {type(data_collator).__name__}; the "
            "data are train_dataset, which is the fourth argument as in transformers.Trainer: give it by name"
        )
    if compute_metrics is not None and not callable(compute_metrics):
        raise TypeError(f"compute_metrics: expected a function, got {type(compute_metrics).__name__}")
    if compute_metrics is not None and (args.batch_eval_metrics or args.include_for_metrics):
        raise ValueError(
            "compute_metrics: expected batch_eval_metrics=False and no include_for_metrics: it is called once, with "
            "the log-probabilities and utilities of all slates"
        )


def tokenizer_of(name: str, processing_class: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was given, or that of the model's name.

    Raises:
        TypeError: not a tokenizer.
        ValueError: there is none.
    """
    if processing_class is not None:
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            raise TypeError(f"processing_class: expected a tokenizer, got {type(processing_class).__name__}")
        return processing_class
    if not name:
        raise ValueError("processing_class: expected the tokenizer of a model without a name, got none")
    try:
        return load_tokenizer(name)
    except (OSError, ValueError) as error:
        if not Path(name).is_dir():  # no such model
            raise
        raise ValueError(
            f"processing_class: expected a tokenizer in {name}, or one as this argument, got none that can be read"
        ) from error


def check_watched(args: SlateConfig, eval_slates: Mapping[str, Sequence[Slate]]) -> None:
    """Refuse a run whose evaluations would fail, or could not say which model is the best.

    Raises:
        ValueError: evaluations without slates; several evaluation sets of which ``metric_for_best_model`` names none;
            early stopping by the gain within slates on slates of one response.
    """
    if args.eval_strategy != "no" and not eval_slates:
        raise ValueError(
            f"eval_dataset: expected slates with eval_strategy={str(args.eval_strategy.value)!r}, got none"
        )
    metric = args.metric_for_best_model
    if metric is None or not eval_slates:
        return
    name = watched_set(metric, eval_slates)
    if name is None:
        choices = ", ".join(f"eval_{each}_{GAIN.removeprefix('eval_')}" for each in eval_slates)
        raise ValueError(
            f"metric_for_best_model: expected a metric of one of the evaluation sets, such as {choices}, got {metric!r}"
        )
    gain = metric.endswith(GAIN.removeprefix("eval_"))
    if args.early_stopping_patience is not None and gain and all(len(s.completions) == 1 for s in eval_slates[name]):
        raise ValueError(
            "eval_dataset: expected a slate of two or more responses with early_stopping_patience, whose gain is "
            "within slates, got one each; or name another metric_for_best_model"
        )


def watched_set(metric: str, names: Mapping[str, Any]) -> str | None:
    """The evaluation set whose metric this is; "" for the only one, None if it is of no set."""
    if set(names) == {""}:
        return ""
    full = metric if metric.startswith("eval_") else f"eval_{metric}"
    found = [name for name in names if full.startswith(f"eval_{name}_")]
    return max(found, key=len, default=None)


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: torch.nn.Module) -> None:
    """Refuse an optimizer that would train nothing of the model.

    Raises:
        ValueError: none of its parameters is a trainable one of the model, as after loading it by name or adding an
            adapter to it.
    """
    if optimizer is None:
        return
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(
            "optimizers: expected an optimizer of trainable parameters of the model, got one with none of them; load "
            "the model, and add its adapter, before making the optimizer"
        )


def check_collator(collator: IndexedCollator, data: SlateDataset) -> None:
    """Try a user's collator on the first slate.

    Raises:
        ValueError: a batch without an entry of `SlateCollator`'s.
    """
    try:
        batch = collator([data[0]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            "data_collator: expected a function of examples with prompt_ids, completion_ids, utility and "
            f"logging_logprobs, such as pope_align.data.SlateCollator, but it fails on the first: {error!r}"
        ) from error
    missing = [name for name in _BATCH if name not in batch]
    if missing:
        raise ValueError(
            f"data_collator: expected a batch as of pope_align.data.SlateCollator, got one without {', '.join(missing)}"
        )
