"""``pope train``: a YAML file, flags on top of it, and every argument of transformers' Trainer."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import typer

logger = logging.getLogger(__name__)

#: Arguments of transformers that ``--help`` shows beside those of POPE.
_SHOWN = {
    "output_dir",
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "logging_steps",
    "eval_strategy",
    "seed",
    "bf16",
    "gradient_checkpointing",
    "report_to",
    "resume_from_checkpoint",
}


def train(context: typer.Context) -> None:
    """Align a causal language model with scored slates.

    Examples:

        pope train --config run.yaml --learning_rate 1e-5

        pope train --model HuggingFaceTB/SmolLM2-135M-Instruct --train_data scored.jsonl --output_dir out

        pope train --config run.yaml --dry_run

        pope train --config run.yaml --method dpo --output_dir out-dpo
    """
    from accelerate import PartialState

    from ..training.baselines import make_baseline
    from ..training.callbacks import ProgressLines
    from ..training.plan import plan_training
    from ..training.run import RunArguments, run_baseline, run_training
    from .console import err

    run, args = parse(list(context.args))
    assert isinstance(run, RunArguments)
    adapter = run.peft_config()
    if run.dry_run:
        if run.method != "pope":
            raise ValueError(f"dry_run: expected method 'pope', got {run.method!r}")
        plan = plan_training(run.model, args, run.train_data, run.eval_data, peft_config=adapter)
        print(plan)
        return
    lines = [ProgressLines(lambda line: err.print(line, markup=False))]
    if run.method == "pope":
        run_training(run.model, args, run.train_data, run.eval_data, peft_config=adapter, callbacks=lines)
        written = "the model, its card, metrics.json and training.png"
    else:
        slates = (run.train_data, run.eval_data)
        run_baseline(
            run.method, make_baseline(run.method, run.model, args, *slates, pairs=run.pairs, peft_config=adapter)
        )
        written = "the model and metrics.json"
    if args.should_log:
        err.print(f"wrote {written} to {args.output_dir}", markup=False)
    PartialState().destroy_process_group()


def parse(flags: list[str]) -> tuple[Any, Any]:
    """``RunArguments`` and the configuration of the method (``PopeConfig``, or TRL's ``SFTConfig`` or ``DPOConfig``)
    from flags, over the values of the file that ``--config`` names.

    Raises:
        ValueError: the file has a key that is no argument.
    """
    from transformers import HfArgumentParser, TrainingArguments

    from ..training.run import RunArguments

    method = _method(flags)
    parser = HfArgumentParser(
        [RunArguments, _config_class(method)],
        prog="pope train",
        description="Align a causal language model with scored slates.",
        epilog="... and every argument of transformers.TrainingArguments (with --method sft or dpo: of TRL's SFTConfig "
        "or DPOConfig). The value none stands for no value.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file of arguments; flags go over it.")
    if method != "pope":
        parser.set_defaults(**_same_training())
    inherited = set(TrainingArguments.__dataclass_fields__) - _SHOWN
    for action in parser._actions:
        if action.dest in inherited or action.const is False:  # the latter: --no_... twins
            action.help = argparse.SUPPRESS
    values = {**_config_file(flags, parser, method), **_nones(flags, parser)}
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
    run, args, _ = parser.parse_args_into_dataclasses(args=flags, look_for_args_file=False)
    return run, args


def _config_class(method: str) -> type:
    from ..training.config import PopeConfig

    if method == "pope":
        return PopeConfig
    from .._extras import require

    trl = require("trl", extra="baselines", purpose=f"for --method {method}")
    return {"sft": trl.SFTConfig, "dpo": trl.DPOConfig}[method]


def _same_training() -> dict[str, Any]:
    """The defaults of POPE for what a baseline shares with it, so that methods differ in their loss alone."""
    from ..training.config import PopeConfig

    shared = (
        "learning_rate",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "logging_steps",
        "max_length",
        "bf16",
    )
    return {name: PopeConfig.__dataclass_fields__[name].default for name in shared}


def _method(flags: list[str]) -> str:
    """The method that flags or file name, read before there is a parser for its arguments."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    first.add_argument("--method")
    known = first.parse_known_args(flags)[0]
    method = known.method or (_yaml(known.config).get("method") if known.config else None) or "pope"
    if method not in ("pope", "sft", "dpo"):
        raise ValueError(f"method: expected pope, sft or dpo, got {method!r}")
    return str(method)


def _config_file(flags: list[str], parser: argparse.ArgumentParser, method: str) -> dict[str, Any]:
    """The values of the file that ``--config`` names, read before required arguments are asked for."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path)
    path = first.parse_known_args(flags)[0].config
    return {} if path is None else _read(path, parser, method)


def _yaml(path: Path) -> dict[str, Any]:
    from .._extras import require

    yaml = require("yaml", extra="train", purpose="to read --config")
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of arguments, got {type(values).__name__}")
    return values


def _read(path: Path, parser: argparse.ArgumentParser, method: str) -> dict[str, Any]:
    """The file's values; without those that pope alone has, where another method is trained from its recipe."""
    from ..training.config import PopeConfig

    values = _yaml(path)
    names = {action.dest for action in parser._actions} - {"help", "config"}
    left_out = []
    for name in set(values) - names:
        if name not in PopeConfig.__dataclass_fields__:
            raise ValueError(f"{path}: {name}: expected an argument of pope train, got no such one")
        left_out.append(name)
    if left_out:
        logger.warning("%s: not for method %s, left out: %s", path, method, ", ".join(sorted(left_out)))
    return {name: value for name, value in values.items() if name in names}


def _nones(flags: list[str], parser: argparse.ArgumentParser) -> dict[str, None]:
    """Take ``--key none`` out of the flags: argparse has no word for no value (where "none" is not itself a value)."""
    meant = {"--report_to", "--report-to"}
    meant |= {
        option for action in parser._actions if "none" in (action.choices or ()) for option in action.option_strings
    }
    given: dict[str, None] = {}
    for at in range(len(flags) - 1, 0, -1):
        if flags[at] == "none" and flags[at - 1].startswith("--") and flags[at - 1] not in meant:
            given[flags[at - 1][2:].replace("-", "_")] = None
            del flags[at - 1 : at + 1]
    return given
