"""The command ``pope``, as a user runs it: through a subprocess, on a tiny model."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pope_align.cli import app, console, main
from pope_align.cli.command import modern
from pope_align.cli.train import parse
from pope_align.data import read_slates, write_slates


def pope(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pope_align.cli", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_slates) -> Path:
    """A folder with a model and an unscored log."""
    folder = tmp_path_factory.mktemp("cli")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(make_slates(6, scored=False), folder / "log.jsonl")
    return folder


def test_score_then_train_leaves_a_model_metrics_and_curves(work: Path) -> None:
    run = pope(
        "score", "log.jsonl", "--model", "model", "--how", "proxy", "-o", "scored.jsonl", "--max-length", 64, cwd=work
    )
    assert run.returncode == 0, run.stderr
    assert "6 slates" in run.stderr
    scored = read_slates(work / "scored.jsonl")
    assert all(slate.logging_policy["how"] == "proxy" for slate in scored)
    config = {
        "model": "model",
        "train_data": "scored.jsonl",
        "eval_data": "scored.jsonl",
        "output_dir": "out",
        "learning_rate": "1e-3",
        "max_length": 64,
        "max_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "gradient_accumulation_steps": 2,
        "clip": None,
        "use_cpu": True,
    }
    (work / "run.yaml").write_text(yaml.safe_dump(config))
    run = pope("train", "--config", "run.yaml", "--dry-run", cwd=work)
    assert run.returncode == 0, run.stderr
    assert "steps       3 of 2 slates; 3 an epoch" in run.stdout
    assert not (work / "out").exists()
    run = pope("train", "--config", "run.yaml", "--diversity-weight", "0.2", cwd=work)
    assert run.returncode == 0, run.stderr
    assert "step 3 of 3: V " in run.stderr
    assert "held out: V " in run.stderr
    assert not re.search(r"%\||\{'|Warning", run.stderr)  # no bars, raw dicts or remarks of libraries in a log
    metrics = json.loads((work / "out" / "metrics.json").read_text())
    assert metrics["objective"]["diversity_weight"] == 0.2
    assert metrics["objective"]["clip"] is None
    assert [entry["step"] for entry in metrics["history"] if "loss" in entry] == [1, 2, 3]
    assert (work / "out" / "model.safetensors").exists()
    assert (work / "out" / "training.png").stat().st_size > 10_000
    assert "## Held-out estimate" in (work / "out" / "README.md").read_text()


def test_a_mistake_is_one_line_and_exit_code_2(work: Path) -> None:
    (work / "bad.jsonl").write_text('{"prompt": "p", "completions": ["a"], "scores": [1, 2]}\n')
    run = pope("score", "bad.jsonl", "--model", "model", "--how", "proxy", "-o", "out.jsonl", cwd=work)
    assert run.returncode == 2
    assert "bad.jsonl, row 1: scores: expected 1 entries, one per completion, got 2 entries" in run.stderr
    assert "Traceback" not in run.stderr
    run = pope("score", "none.jsonl", "--model", "model", "--how", "proxy", "-o", "out.jsonl", cwd=work)
    assert run.returncode == 2
    assert "none.jsonl" in run.stderr
    run = pope("train", "--model", "model", "--train_data", "log.jsonl", "--use_cpu", cwd=work)
    assert run.returncode == 2
    assert "logging_logprobs" in run.stderr
    assert "pope score" in run.stderr


def test_help_teaches(tmp_path: Path) -> None:
    for arguments in (["--help"], ["score", "--help"], ["train", "--help"], ["env", "--help"]):
        run = pope(*arguments, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        assert "Traceback" not in run.stderr
    run = pope("train", "--help", cwd=tmp_path)
    assert "Weight of diversity against utility (alpha)" in " ".join(run.stdout.split())
    assert "--adam-beta1" not in run.stdout  # there, but not shown


def test_flags_go_over_the_file_and_none_means_no_value(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain_data: t\nlearning_rate: 1e-6\nclip: 3.0\nbf16: false\nuse_cpu: true\n")
    flags = ["--config", str(path), "--clip", "none", "--learning_rate", "2e-6", "--normalization", "none"]
    run, args = parse([*flags, "--utility-transform", "none", "--max-steps", "7"])
    assert (run.model, run.train_data) == ("m", "t")
    assert args.clip is None
    assert args.learning_rate == 2e-6
    assert args.normalization == args.utility_transform == "none"
    assert args.max_steps == 7
    path.write_text("model: m\ntrain_data: t\nlearning_rte: 1e-6\n")
    with pytest.raises(ValueError, match=r"run\.yaml: learning_rte: expected an argument of pope train"):
        parse(["--config", str(path)])


# --- what every command has in common -------------------------------------------------------------------------------

COMMANDS = sorted(info.name or info.callback.__name__ for info in app.registered_commands)
#: Libraries that take seconds to import.
HEAVY = ("torch", "transformers", "numpy", "pyarrow", "scipy", "matplotlib", "datasets", "pandas", "sklearn")
#: Runs ``pope`` and prints which of them it imported.
PROBE = f"""
import sys
from pope_align.cli import main
try:
    main()
except SystemExit as end:
    print("exit", end.code, [name for name in {HEAVY} if name in sys.modules])
"""


def probe(*arguments: str, cwd: Path, columns: int = 80) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROBE, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_unknown_options_need_no_heavy_library_and_fit_80_columns(command, tmp_path) -> None:
    run = probe(command, "--help", cwd=tmp_path)
    assert run.stdout.splitlines()[-1] == "exit 0 []"
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "…" not in run.stdout
    names = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", run.stdout))
    assert not any(name.endswith("-") for name in names)
    run = probe(command, "--no-such-option", cwd=tmp_path)
    assert run.stdout.splitlines()[-1] == "exit 2 []"
    assert "--no-such-option" in run.stderr
    assert len(run.stderr.splitlines()) <= 4


def test_the_list_of_commands_has_whole_sentences(tmp_path) -> None:
    run = probe("--help", cwd=tmp_path)
    assert run.stdout.splitlines()[-1] == "exit 0 []"
    assert "..." not in run.stdout.replace("[ARGS]...", "")
    assert all(re.search(rf"^  {command} ", run.stdout, re.MULTILINE) for command in COMMANDS)


def test_examples_in_help_can_be_copied(tmp_path) -> None:
    text = probe("score", "--help", cwd=tmp_path).stdout
    example = re.search(r"^    pope score votes(?:.*\\\n)*.*$", text, re.MULTILINE)
    assert example is not None
    assert " ".join(example[0].replace("\\\n", " ").split()).startswith("pope score votes.jsonl --model Hugging")


def test_old_spellings_are_translated_with_a_warning_each(capsys) -> None:
    known = {"--out", "-o", "--max-length", "--model"}
    renamed = {"--output": "--out", "--log": ""}
    assert modern(["--log", "a.jsonl", "--output=b", "--max_length", "7"], renamed, known) == [
        "a.jsonl",
        "--out=b",
        "--max-length",
        "7",
    ]
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "pope: --log is now the first argument, without a name",
        "pope: --output is now --out",
        "pope: --max_length is now --max-length",
    ]
    today = ["a.jsonl", "--out", "b_c", "--bad_one", "1", "--", "--output"]
    assert modern(today, renamed, known) == today
    assert capsys.readouterr().err == ""


def test_an_old_spelling_still_runs(work: Path) -> None:
    run = pope(
        "score",
        "log.jsonl",
        "--model",
        "model",
        "--how",
        "proxy",
        "--output",
        "old.jsonl",
        "--max_length",
        64,
        cwd=work,
    )
    assert run.returncode == 0, run.stderr
    assert "pope score: --output is now --out" in run.stderr
    assert (work / "old.jsonl").exists()


ROWS = [["0", "1,234", "4 of 9", "3.1234", "21.11"], ["[/red] a long name " * 5 + "\x1b[2J", "5", "-", "2.5", "1"]]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_keeps_every_name_and_number_at_any_width(width, monkeypatch) -> None:
    terminal = console._Plain(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(console, "out", terminal)
    columns = ["fold", "trained on", "kept step", "held-out nats per token", "perplexity"]
    console.table("a [bold]title[/bold]", columns, ROWS, together=2)
    text = terminal.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for cell in [*ROWS[0], *ROWS[1][1:], *" ".join(columns).split(), "a [bold]title[/bold]"]:
        assert cell in text
    assert "[/red]" in text
    assert "\x1b" not in text
    assert ("continued" in text) == (width == 40)


def test_a_piped_table_is_plain_columns(monkeypatch) -> None:
    pipe = console._Plain(file=io.StringIO(), width=20)
    monkeypatch.setattr(console, "out", pipe)
    console.table("title", ["fold", "nats"], [["0", "1.5"]])
    assert pipe.file.getvalue() == "# title\nfold\tnats\n0\t1.5\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (ValueError("a file: bad\x1b[2J"), 2, "pope: a file: bad\\x1b[2J\n"),
        (RuntimeError("deep"), 2, "pope: RuntimeError: deep (the same with --debug shows where)\n"),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 2, "pope: [Errno 2] No such file: 'x.jsonl'\n"),
    ],
)
def test_the_end_of_a_command_is_a_line_and_a_code(error, code, line, monkeypatch, capsys) -> None:
    def fail() -> str:
        raise error

    monkeypatch.setattr("pope_core.env.report", fail)
    monkeypatch.setattr(sys, "argv", ["pope", "env"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("arguments", [["--debug", "env"], ["env", "--debug"]])
def test_debug_shows_where_before_or_after_the_command(arguments, monkeypatch, capsys) -> None:
    def fail() -> str:
        raise ValueError("bad")

    monkeypatch.setattr("pope_core.env.report", fail)
    monkeypatch.setattr(sys, "argv", ["pope", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert "in fail" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["pope", "env"])  # for this call alone
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "pope: bad\n"


def test_what_nobody_foresaw_is_one_line_that_says_what_was_read(tmp_path: Path, monkeypatch, capsys) -> None:
    from pope_align import cli

    (tmp_path / "log.jsonl").write_text('{"prompt": "p", "completion": "a", "score": 1}\n')

    def breaks(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("pope_align.data.pieces.Piece.checked", breaks)
    arguments = ["pope", "convert", "--from", "table", str(tmp_path / "log.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    for extra, traced in (([], False), (["--debug"], True)):
        monkeypatch.setattr(sys, "argv", [*arguments, *extra])
        monkeypatch.setitem(cli.debugging, "on", False)
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        shown = capsys.readouterr().err
        last = shown.splitlines()[-1]
        assert last.startswith(f"pope: KeyError while reading {tmp_path / 'log.jsonl'}: 'surprise'")
        assert ("Traceback" in shown) == traced
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
