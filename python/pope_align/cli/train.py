"""``pope train``: arguments from a YAML file and from flags, including every argument of transformers' Trainer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .checks import check_log, check_model, check_results_folder, hold_folder, is_main_process

if TYPE_CHECKING:
    from ..training.options import RunOptions
    from .train_arguments import TrainArguments


def train(context: typer.Context) -> None:
    """Align a causal language model with scored slates.

    Examples:

        pope train scored.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct -o out

        pope train scored.jsonl --config run.yaml --learning-rate 1e-5

        pope train --config run.yaml --dry-run

        pope train --config run.yaml --method dpo -o out-dpo
    """
    from .train_arguments import read_arguments

    arguments = read_arguments(list(context.args))
    if is_main_process() and not arguments.run.dry_run:
        hold_folder(arguments.training["output_dir"])
    check_places(arguments)
    run, args = configured(arguments)
    from accelerate import PartialState

    from ..training.callbacks import ProgressLines
    from ..training.plan import plan_training
    from ..training.run import run_baseline, run_training
    from .console import err, out

    adapter = run.peft_config()
    if run.dry_run:
        out.print(str(plan_training(run.model, args, run.train_data, run.eval_data, peft_config=adapter)))
        return
    lines: list[Any] = [ProgressLines(lambda line: err.print(line, markup=False))]
    data = (run.model, args, run.train_data, run.eval_data)
    if run.method == "sft" or run.method == "dpo":
        run_baseline(run.method, *data, pairs=run.pairs, peft_config=adapter, callbacks=lines)
    else:
        run_training(*data, peft_config=adapter, callbacks=lines)
    if args.should_log:
        err.print(f"wrote the model, its card, metrics.json and training.png to {args.output_dir}", markup=False)
    PartialState().destroy_process_group()


def check_places(arguments: TrainArguments) -> None:
    """Refuse missing files and an existing folder of results; remove the checkpoints of a run that is replaced.

    Raises:
        ValueError: names the argument.
    """
    run, training = arguments.run, arguments.training
    check_log(run.train_data, "LOG")
    if run.eval_data is not None:
        check_log(run.eval_data, "--eval-data")
    if run.dry_run or not is_main_process():  # only the main process checks and clears the folder
        check_model(run.model)
        return
    folder, resume = training["output_dir"], training.get("resume_from_checkpoint") is not None
    check_results_folder(folder, overwrite=run.overwrite, resume=resume, flag="--resume-from-checkpoint last")
    check_model(run.model)
    if run.overwrite and not resume:
        for checkpoint in Path(folder).glob("checkpoint-*"):  # of the run that is replaced
            shutil.rmtree(checkpoint)


def configured(arguments: TrainArguments) -> tuple[RunOptions, Any]:
    """The options of the run, and the configuration of its method: ``PopeConfig``, ``ListwiseConfig``, or TRL's
    ``SFTConfig`` or ``DPOConfig``.
    """
    method = arguments.run.method
    if method == "sft" or method == "dpo":
        from .._extras import require

        trl = require("trl", extra="baselines", purpose=f"for --method {method}")
        classes = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig}
        return arguments.run, classes[method](**arguments.training)
    from ..training.config import ListwiseConfig, PopeConfig

    if method == "pope":
        return arguments.run, PopeConfig(**arguments.training)
    return arguments.run, ListwiseConfig(method=method, **arguments.training)


def parse(flags: list[str]) -> tuple[RunOptions, Any]:
    """`configured` from flags."""
    from .train_arguments import read_arguments

    return configured(read_arguments(flags))
