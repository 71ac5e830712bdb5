"""The arguments of ``pope train``: a file, overridden by flags, all checked before torch is imported."""

from __future__ import annotations

import argparse
import difflib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from pope_core.objective import Objective

from .._extras import require
from ..training.methods import LISTWISE, METHODS
from ..training.options import LOSS_OPTIONS, OPTIONS, RunOptions, check_range
from .hf_arguments import training_arguments
from .typed import Option, options_of

logger = logging.getLogger(__name__)

#: Arguments of transformers that ``--help`` shows in addition to those of POPE.
_SHOWN = (
    *("num_train_epochs", "max_steps", "lr_scheduler_type", "warmup_steps", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps", "seed", "bf16", "use_cpu", "gradient_checkpointing", "report_to"),
    "resume_from_checkpoint",
)

#: Arguments whose POPE defaults also apply to baselines, so that methods differ only in their loss.
SHARED = (
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "logging_steps",
    "max_length",
    "bf16",
    "gradient_checkpointing",
)

#: Lower bounds of transformers' numbers.
_AT_LEAST = {
    "max_steps": -1,
    "warmup_steps": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "save_total_limit": 1,
    "seed": 0,
}
_ABOVE = {"num_train_epochs": 0, "eval_steps": 0, "save_steps": 0}

#: Deprecated spellings and their replacements.
_RENAMED = {"--train-data": "LOG", "--output-dir": "--out"}


@dataclass(frozen=True)
class TrainArguments:
    """The parsed arguments.

    Attributes:
        run: the model, the data and the method.
        training: values for the method's configuration (`PopeConfig`, `ListwiseConfig`, or TRL's ``SFTConfig`` or
            ``DPOConfig``).
    """

    run: RunOptions
    training: dict[str, Any]


def read_arguments(flags: Sequence[str]) -> TrainArguments:
    """Parse flags and the file given by ``--config``, which flags override; ``--help`` prints help and exits.

    Raises:
        ValueError: an unknown argument or invalid value; a file that is missing or not YAML.
        ImportError: a library of the method is not installed.
    """
    flags = _hyphens(list(flags))
    config = _first(flags, "--config")
    in_file = {} if config is None else _yaml(Path(config))
    method = RunOptions.__dataclass_fields__["method"]
    chosen = Option("method", "str", choices=METHODS).read(
        _first(flags, "--method") or in_file.get("method", method.default)
    )
    run = _run_options(chosen)
    training = _training_options(chosen)
    given = _Parser(run, training, chosen).parse(flags)
    values = {**_values(config, in_file, {**run, **training}, chosen), **given}
    missing = [option for option in run.values() if option.required and option.name not in values]
    if missing:
        names = {"train_data": "LOG, the scored slates to train on", "model": "--model"}
        raise ValueError(f"pope train: expected {' and '.join(names[option.name] for option in missing)}, got none")
    options = RunOptions(**{name: value for name, value in values.items() if name in run})
    options.check()
    rest = {name: value for name, value in values.items() if name not in run}
    for name, value in rest.items():
        check_range(name, value, {"at_least": _AT_LEAST.get(name), "above": _ABOVE.get(name)})
    if chosen not in OPTIONS:
        pope = _training_options("pope")  # TRL has other defaults, e.g. bfloat16
        rest = {**{name: pope[name].default for name in SHARED}, **rest}
    else:
        ours = {each.name for each in fields(OPTIONS[chosen])}
        named = {**rest, "method": chosen}
        OPTIONS[chosen](**{name: value for name, value in named.items() if name in ours}).check()
    return TrainArguments(options, {"output_dir": "trainer_output", **rest})


def _training_options(method: str) -> dict[str, Option]:
    """The options of the method's configuration; our own replace those of transformers."""
    return {**training_arguments(method), **_our_options(method)}


def _run_options(method: Any) -> dict[str, Option]:
    """The options of the run that the method uses."""
    users = {each.name: each.metadata.get("methods", METHODS) for each in fields(RunOptions)}
    return {option.name: option for option in options_of(RunOptions) if method in users[option.name]}


def _our_options(method: Any) -> dict[str, Option]:
    """The options of the method that are ours; none for those of TRL."""
    if method not in OPTIONS:
        return {}
    ours = {option.name: option for option in options_of(OPTIONS[method])}
    run = {each.name for each in fields(RunOptions)}
    defaults = LISTWISE[method].options if method in LISTWISE else {}
    return {
        name: replace(option, default=defaults[name]) if name in defaults else option
        for name, option in ours.items()
        if name not in run and (name not in LOSS_OPTIONS or name in defaults)
    }


def _methods_with(name: str) -> list[str]:
    """The methods that have an option of ours."""
    return [method for method in METHODS if name in _our_options(method) or name in _run_options(method)]


class _Parser(argparse.ArgumentParser):
    def __init__(self, run: Mapping[str, Option], training: Mapping[str, Option], method: str) -> None:
        super().__init__(
            prog="pope train",
            usage="pope train [LOG] --model MODEL -o FOLDER [--config FILE] [options]",
            description="Align a causal language model with scored slates.",
            epilog="Every argument of transformers.TrainingArguments is accepted, too (with --method sft or dpo: of "
            "TRL's SFTConfig or DPOConfig). The value none means no value. The file given by --config has the same "
            "arguments with underscores, LOG as train_data and --out as output_dir.",
            allow_abbrev=False,
        )
        self.read = {**run, **training}
        self.method = method
        self.add_argument(
            "train_data", metavar="LOG", nargs="?", default=argparse.SUPPRESS, help=run["train_data"].help
        )
        self.add_argument("--config", type=Path, default=argparse.SUPPRESS, help="YAML file of arguments.")
        self.add_argument("--train-data", dest="train_data", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        self.add_argument(
            *("-o", "--out", "--output-dir"),
            dest="output_dir",
            default=argparse.SUPPRESS,
            metavar="FOLDER",
            help="Folder for the model, its card, metrics.json and training.png.",
        )
        objective = {each.name for each in fields(Objective)}
        objective |= set(LOSS_OPTIONS)
        ours = {name for method in METHODS for name in _our_options(method)}
        self._add("model, data and method", [option for name, option in run.items() if name != "train_data"])
        self._add("objective", [option for name, option in training.items() if name in objective])
        self._add("training", [option for name, option in training.items() if name in ours - objective])
        shown = [training[name] for name in _SHOWN if name in training]
        self._add("most used arguments of transformers", shown)
        hidden = set(training) - objective - ours - set(_SHOWN) - {"output_dir"}
        self._add(None, [training[name] for name in sorted(hidden)])

    def _add(self, title: str | None, options: Sequence[Option]) -> None:
        group = self.add_argument_group(title) if title else self
        for option in options:
            text = option.help.replace("%", "%%") if title else argparse.SUPPRESS
            if title and option.default is not None:
                text += f" (default: {option.default})"
            more: dict[str, Any] = {"nargs": "?", "const": "true"} if option.kind == "bool" else {}
            if option.kind == "list":
                more = {"nargs": "+"}
            metavar = f"{{{','.join(option.choices)}}}" if option.choices else _METAVARS.get(option.kind)
            if len(metavar or "") > _METAVAR_COLUMNS:
                metavar, text = "NAME", f"{text} One of {', '.join(option.choices)}." if title else text
            group.add_argument(
                option.flag, dest=option.name, default=argparse.SUPPRESS, help=text, metavar=metavar, **more
            )
            if option.kind == "bool":
                off = f"--no-{option.flag[2:]}"
                self.add_argument(
                    off,
                    dest=option.name,
                    action="store_const",
                    const="false",
                    default=argparse.SUPPRESS,
                    help=argparse.SUPPRESS,
                )

    def parse(self, flags: Sequence[str]) -> dict[str, Any]:
        """The values of the flags that were given."""
        known, unknown = self.parse_known_args(list(flags))
        if unknown:
            name = unknown[0].partition("=")[0]
            others = _methods_with(name.removeprefix("--").replace("-", "_"))
            if others:
                raise ValueError(f"{name}: not for method {self.method}; only for {', '.join(others)}")
            near = difflib.get_close_matches(name, list(self._option_string_actions), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{name}: expected an argument of pope train, got no such one{hint}")
        given = vars(known)
        given.pop("config", None)
        read = {}
        for name, value in given.items():
            option = self.read[name]
            one = value[0] if option.kind == "list" and isinstance(value, list) and len(value) == 1 else value
            read[name] = option.read(one, "LOG" if name == "train_data" else option.flag)
        return read

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"pope train: {message}")


#: ``--help`` cannot break a line inside a list of choices; a longer list is moved to the text.
_METAVAR_COLUMNS = 50
_METAVARS = {"bool": "BOOL", "int": "INT", "float": "NUMBER", "str": "TEXT", "list": "NAME"}


def _values(path: str | None, in_file: Mapping[str, Any], options: Mapping[str, Option], method: str) -> dict[str, Any]:
    """The file's values, without options of other methods, so that one recipe serves several."""
    read, left_out = {}, []
    for name, value in in_file.items():
        if name in options:
            read[name] = options[name].read(value, f"{path}: {name}")
        elif _methods_with(str(name)):
            left_out.append(name)
        else:
            near = difflib.get_close_matches(str(name), list(options), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{path}: {name}: expected an argument of pope train, got no such one{hint}")
    if left_out:
        logger.warning("%s: not for method %s, left out: %s", path, method, ", ".join(sorted(left_out)))
    return read


def _yaml(path: Path) -> dict[Any, Any]:
    yaml = require("yaml", extra="train", purpose="to read --config")
    if not path.is_file():
        raise ValueError(f"--config: expected a YAML file, found none at {path}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of arguments, got {type(values).__name__}")
    return values


def _first(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag that must be known before the others are parsed."""
    for at, flag in enumerate(flags):
        if flag == name and at + 1 < len(flags):
            return flags[at + 1]
        if flag.startswith(f"{name}="):
            return flag.partition("=")[2]
    return None


def _hyphens(flags: list[str]) -> list[str]:
    """Flags in their current spelling; deprecated ones are accepted with a warning."""
    written, old = [], []
    for flag in flags:
        name, equals, value = flag.partition("=")
        new = name.replace("_", "-") if name.startswith("--") else name
        if new != name:
            old.append(f"{name} (now {_RENAMED.get(new, new)})")
        elif new in _RENAMED:
            old.append(f"{name} (now {_RENAMED[new]})")
        written.append(new + equals + value)
    if old:
        print(f"pope train: old spellings, gone in the next release: {', '.join(old)}", file=sys.stderr)
    return written
