"""Mistakes are told before torch is imported and before any work: arguments, files, models, folders of results."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from pope_align.cli.hf_arguments import training_arguments
from pope_align.cli.train_arguments import read_arguments
from pope_align.cli.typed import options_of
from pope_align.training.config import PopeConfig
from pope_align.training.options import PopeOptions, RunOptions
from transformers import TrainingArguments

from pope_core import Objective

#: Runs the command line, then says on standard error which heavy libraries it imported.
PROBE = """
import sys
from pope_align.cli import main
try:
    main()
finally:
    print("imported:", sorted({"torch", "transformers"} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("early")
    slate = {"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}
    (folder / "log.jsonl").write_text(json.dumps(slate) + "\n")
    (folder / "scored.jsonl").write_text(json.dumps({**slate, "logging_logprobs": [-3.0, -4.0]}) + "\n")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "model.safetensors").write_text("weights of another run")
    (folder / "there.jsonl").write_text("results of another run")
    for name, text in {
        "yes.yaml": "learning_rate: yes",
        "typo.yaml": "learning_rte: 1.0",
        "choice.yaml": "weighting: responses",
        "list.yaml": "- 1",
        "broken.yaml": "a: [",
        "range.yaml": "max_length: 1",
    }.items():
        (folder / name).write_text(text + "\n")
    return folder


RUN = ["train", "scored.jsonl", "--model", "model", "-o", "new"]
SCORE = ["score", "log.jsonl", "--model", "model", "--how", "proxy", "-o", "new.jsonl"]
FIT = ["fit-logger", "log.jsonl", "--model", "model", "-o", "new"]
EVALUATE = ["evaluate", "scored.jsonl", "--policy", "m=model"]
GENERATE = ["generate", "log.jsonl", "--model", "model", "-o", "new.jsonl"]
MISTAKES = {
    "an unknown argument": ([*RUN, "--lerning-rate", "1"], "--lerning-rate: expected an argument of pope train"),
    "its neighbour": ([*RUN, "--lerning-rate", "1"], "did you mean --learning-rate?"),
    "a word for a number": ([*RUN, "--learning-rate", "fast"], "--learning-rate: expected a number, got 'fast'"),
    "a number with an underscore": ([*RUN, "--max-steps", "1_0"], "--max-steps: expected an integer, got '1_0'"),
    "half a step": ([*RUN, "--max-steps", "2.5"], "--max-steps: expected an integer, got '2.5'"),
    "not a number": ([*RUN, "--learning-rate", "nan"], "--learning-rate: expected a number, got 'nan'"),
    "a boolean": ([*RUN, "--bf16", "perhaps"], "--bf16: expected true or false, got 'perhaps'"),
    "a choice": ([*RUN, "--weighting", "item"], "--weighting: expected one of response, slate, geometric, got 'item'"),
    "a choice of transformers": ([*RUN, "--eval-strategy", "often"], "--eval-strategy: expected one of no, steps"),
    "a range of ours": ([*RUN, "--clip", "-1"], "clip: expected None or a finite number > 0, got -1.0"),
    "a range of transformers": ([*RUN, "--num-train-epochs", "0"], "num_train_epochs: expected a finite number > 0"),
    "an objective without an optimum": ([*RUN, "--diversity-form", "neg_log_prob"], "has no anchor"),
    "yes, in a file": ([*RUN, "--config", "yes.yaml"], "yes.yaml: learning_rate: expected a number, got True"),
    "a key": ([*RUN, "--config", "typo.yaml"], "typo.yaml: learning_rte: expected an argument of pope train"),
    "a choice, in a file": ([*RUN, "--config", "choice.yaml"], "choice.yaml: weighting: expected one of response"),
    "a list": ([*RUN, "--config", "list.yaml"], "list.yaml: expected a mapping of arguments, got list"),
    "no YAML": ([*RUN, "--config", "broken.yaml"], "broken.yaml: expected YAML"),
    "a range, in a file": ([*RUN, "--config", "range.yaml"], "max_length: expected a finite number >= 2, got 1"),
    "no such file": ([*RUN, "--config", "none.yaml"], "--config: expected a YAML file, found none at none.yaml"),
    "no log": (["train", "none.jsonl", "--model", "model"], "LOG: expected a file of slates, found none at none.jsonl"),
    "no log at all": (["train", "--model", "model"], "expected LOG, the scored slates to train on, got none"),
    "no model": (["train", "scored.jsonl", "--model", "./none"], "--model: expected a model"),
    "a folder without one": (["train", "scored.jsonl", "--model", "empty"], "expected config.json"),
    "a finished folder": ([*RUN[:-1], "full"], "full: holds files already; pass --resume-from-checkpoint last"),
    "score into nowhere": ([*SCORE[:-1], "nodir/z.jsonl"], "expected a folder that exists, got"),
    "score to text": ([*SCORE[:-1], "y.txt"], "expected a file ending in .jsonl or .parquet, got 'y.txt'"),
    "score over a file": ([*SCORE[:-1], "there.jsonl"], "there.jsonl: exists already; pass --overwrite"),
    "score what is scored": ([SCORE[0], "scored.jsonl", *SCORE[2:]], "pass --overwrite (overwrite=True) to replace"),
    "score with nothing": (["score", "log.jsonl", "--model", "./none", *SCORE[4:]], "--model: expected a model"),
    "fit into a finished folder": ([*FIT[:-1], "full"], "full: holds files already; pass --resume"),
    "fit folds into nowhere": ([*FIT[:-1], "nodir/z.jsonl", "--folds", "2"], "expected a folder that exists"),
    "fit folds to a folder": ([*FIT, "--folds", "2"], "expected a file ending in .jsonl or .parquet, got 'new'"),
    "fit with nothing": (["fit-logger", "log.jsonl", "--model", "./none", "-o", "new"], "--model: expected a model"),
    "a share": ([*FIT, "--holdout", "1.5"], "--holdout: expected a share in (0, 1), got 1.5"),
    **{
        f"a day of {command[0]}": (
            [*command, "--template-date", "26 Jul 2024"],
            "template_date: expected a date such as 2026-11-28, got '26 Jul 2024'",
        )
        for command in (RUN, SCORE, FIT, EVALUATE, GENERATE)
    },
    "an estimator": ([*EVALUATE, "--estimator", "magic"], "estimators: expected pope or one of ips, "),
    "a level": ([*EVALUATE, "--level", "2"], "level: expected a number in (0, 1), got 2.0"),
    "evaluate into nowhere": ([*EVALUATE, "-o", "nodir/z.json"], "expected a folder that exists"),
    "a figure of text": ([*EVALUATE, "--figure", "y.txt"], "figure: expected a file ending in .png, .svg or .pdf"),
    "evaluate nothing": (["evaluate", "scored.jsonl", "--policy", "m=./none"], "--policy m: expected a model"),
    "samples of nobody": ([*EVALUATE, "--samples", "x=log.jsonl"], "--samples: expected names among m, got x"),
    "generate over a file": ([*GENERATE[:-1], "there.jsonl"], "there.jsonl: exists already; pass --overwrite"),
    "generate with nothing": (
        ["generate", "log.jsonl", "--model", "./none", "-o", "g.jsonl"],
        "--model: expected a mo",
    ),
    "measure over a folder": (
        ["metrics", "log.jsonl", "--refs", "log.jsonl", "-o", "full"],
        "full: holds files already",
    ),
    "measure nothing": (["metrics", "none.jsonl", "--refs", "log.jsonl"], "generations: expected a file that exists"),
    "evaluate into no folder of JSON": (
        ["evaluate", "log.jsonl", "--policy", "a=./none", "--json", "no/x.json"],
        "json: no/x.json: expected a folder that exists",
    ),
    "measure into a file of JSON that is there": (
        ["metrics", "log.jsonl", "--refs", "log.jsonl", "-o", "new", "--json", "there.jsonl"],
        "json: there.jsonl: exists already",
    ),
    "generate into a file of JSON that is there": (
        ["generate", "log.jsonl", "--model", "./none", "-o", "g.jsonl", "--json", "there.jsonl"],
        "json: there.jsonl: exists already",
    ),
    "judge one set": (
        ["judge", "log.jsonl", "--refs", "log.jsonl", "--model", "m", "-o", "j"],
        "at least two",
    ),
    "convert over a file": (
        ["convert", "--from", "slates", "log.jsonl", "-o", "there.jsonl"],
        "there.jsonl: exists already; pass --overwrite",
    ),
    "label over a file": (
        ["label", "log.jsonl", "--with", "energy", "--refs", "log.jsonl", "-o", "there.jsonl"],
        "there.jsonl: exists already; pass --overwrite",
    ),
    "reproduce without a judge": (
        ["reproduce", "figure4", "--model", "model", "--data", "log.jsonl", "-o", "new"],
        "figure4: expected --judge NAME",
    ),
    "reproduce with an unknown method": (
        ["reproduce", "table1", "--model", "model", "--data", "log.jsonl", "-o", "new", "--method", "best"],
        "--method: expected some of sft, ",
    ),
    "reproduce with an unknown size": (
        ["reproduce", "table1", "--model", "model", "--data", "log.jsonl", "-o", "new", "--set", "answer=2"],
        "--set: expected NAME=VALUE with a name among train, ",
    ),
    "reproduce nothing": (
        ["reproduce", "table1", "--model", "./none", "--data", "log.jsonl", "-o", "new"],
        "--model: expected a model",
    ),
    "parts over a folder": (
        ["step", "parts", "log.jsonl", "--train", "1", "--test", "2", "-o", "full"],
        "full: holds files already",
    ),
    "inspect to text": (["inspect", "log.jsonl", "-o", "y.txt"], "expected a file ending in .png, .pdf or .svg"),
    "a rate": ([*FIT, "--learning-rate", "nan"], "learning_rate: expected a number > 0, got nan"),
}


def probe(arguments: list[str], work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROBE, *arguments], cwd=work, capture_output=True, text=True)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_torch_is_imported(mistake: str, work: Path) -> None:
    arguments, told = MISTAKES[mistake]
    before = sorted(path.name for path in work.iterdir())
    run = probe(arguments, work)
    message = " ".join(run.stderr.split())
    assert told in message, message
    assert run.returncode == 2
    assert "imported: []" in run.stderr
    assert "Traceback" not in run.stderr
    assert sorted(path.name for path in work.iterdir()) == before


@pytest.mark.parametrize("arguments", [["train", "--help"], ["score", "--help"], ["fit-logger", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], work: Path) -> None:
    run = probe(arguments, work)
    assert run.returncode == 0, run.stderr
    assert "imported: []" in run.stderr


# --- the arguments of pope train ------------------------------------------------------------------------------------


def test_the_source_of_transformers_says_what_its_dataclass_does() -> None:
    described = training_arguments("pope")
    dataclass = {each.name: each for each in fields(TrainingArguments) if each.init}
    assert set(described) == set(dataclass)
    for name, option in described.items():
        if isinstance(option.default, (bool, int, float)):
            assert option.default == dataclass[name].default, name
    assert described["bf16"].kind == "bool"
    assert described["max_steps"].kind == "int"
    assert "cosine" in described["lr_scheduler_type"].choices


@pytest.mark.parametrize(("method", "name"), [("sft", "SFTConfig"), ("dpo", "DPOConfig")])
def test_so_does_that_of_trl(method: str, name: str) -> None:
    trl = pytest.importorskip("trl")
    assert set(training_arguments(method)) == {each.name for each in fields(getattr(trl, name)) if each.init}


def test_the_objective_is_described_once() -> None:
    """Flags, files and `PopeConfig` have its fields, defaults and help, and nothing beside it writes them again."""
    described = {option.name: option for option in options_of(PopeOptions)}
    config = {each.name: each for each in fields(PopeConfig)}
    for each in fields(Objective):
        assert described[each.name].default == each.default == config[each.name].default
        assert described[each.name].help == each.metadata["help"]
        assert each.name not in PopeOptions.__annotations__
        assert each.name not in PopeConfig.__annotations__
    assert PopeOptions().objective == Objective()


def test_flags_go_over_the_file_and_the_log_comes_first(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain_data: t\nlearning_rate: 1e-6\nclip: 3.0\noutput_dir: out\nsave_strategy: no\n")
    read = read_arguments(["log.jsonl", "--config", str(path), "--clip", "none", "--normalization", "none", "--bf16"])
    assert read.run == RunOptions("log.jsonl", "m")
    expected = {"learning_rate": 1e-6, "clip": None, "normalization": "none", "bf16": True, "save_strategy": "no"}
    assert read.training == {**expected, "output_dir": "out"}
    read = read_arguments(["--config", str(path), "-o", "other", "--report-to", "none", "--no-disable-dropout"])
    assert read.run.train_data == "t"
    assert read.training["output_dir"] == "other"
    assert read.training["report_to"] == "none"
    assert read.training["disable_dropout"] is False
    assert capsys.readouterr().err == ""


def test_old_spellings_work_with_a_warning(capsys) -> None:
    read = read_arguments(["--train_data", "t", "--model", "m", "--output_dir", "o", "--learning_rate=2e-6"])
    assert (read.run.train_data, read.training["output_dir"], read.training["learning_rate"]) == ("t", "o", 2e-6)
    warned = capsys.readouterr().err
    for old, new in (("--train_data", "LOG"), ("--output_dir", "--out"), ("--learning_rate", "--learning-rate")):
        assert f"{old} (now {new})" in warned


@pytest.mark.parametrize("value", [True, "fast", float("nan"), [1], {"a": 1}, "1_0"])
def test_every_number_refuses_what_is_none(value: object, tmp_path: Path) -> None:
    numbers = [o for o in training_arguments("pope").values() if o.kind in ("int", "float")]
    numbers += [o for o in options_of(PopeOptions) if o.kind in ("int", "float")]
    assert len(numbers) > 40
    for option in numbers:
        with pytest.raises(ValueError, match=f"{option.name}: expected"):
            option.read(value)


@pytest.mark.parametrize("value", [0, 1, "perhaps", 1.0, []])
def test_every_switch_refuses_what_is_none(value: object) -> None:
    switches = [o for o in training_arguments("pope").values() if o.kind == "bool"]
    assert len(switches) > 20
    for option in switches:
        with pytest.raises(ValueError, match=f"{option.name}: expected true or false"):
            option.read(value)


def test_overwriting_leaves_no_checkpoint_of_the_run_before(work: Path, tmp_path: Path) -> None:
    from pope_align.cli.train import check_places

    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    arguments = [str(work / "scored.jsonl"), "--model", str(work / "model"), "-o", str(tmp_path)]
    check_places(read_arguments([*arguments, "--resume-from-checkpoint", "last"]))
    assert (tmp_path / "checkpoint-4").exists()
    check_places(read_arguments([*arguments, "--overwrite"]))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_recipe_of_pope_trains_a_baseline(tmp_path: Path, caplog) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "train_data": "t", "log_slates": 8, "clip": 2.0}))
    read = read_arguments(["--config", str(path), "--method", "sft"])
    assert "clip" not in read.training
    assert read.training["learning_rate"] == PopeOptions.learning_rate
    assert "not for method sft, left out: clip, log_slates" in caplog.text
