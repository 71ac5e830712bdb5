"""Outputs appear whole or not at all, two processes never share one, and a bad output is refused before the work."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from pope_align._files import (
    check_output,
    check_output_folder,
    claim_output,
    replacing,
    report_path,
    write_json,
    write_text,
)
from pope_align.data import Slate, slate_writer
from pope_align.data.pairs import PAIRS
from pope_align.generation.generations import Generation, GenerationSet, read_generations, write_generations

SLATE = Slate("Which tea?", ["Green", "Black"], [1.0, 0.0])
WRITERS = [
    (make, ending) for make in (slate_writer, PAIRS.replace) for ending in ("jsonl", "parquet")
]  # the writers that take one row after another


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("make", "ending"), WRITERS)
def test_a_second_writer_of_the_same_output_is_refused_and_the_first_is_not_disturbed(
    make: Callable[[Path], AbstractContextManager[Any]], ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"out.{ending}"
    link = tmp_path / f"link.{ending}"
    link.symlink_to(path.name)
    with make(path) as writer:
        writer.write(SLATE)
        for same in (path, link):
            with pytest.raises(ValueError, match="another process is writing this file"), make(same):
                pass
        program = f"from pope_align._files import write_text; write_text({str(link)!r}, 'mine')"
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert "another process is writing this file" in other.stderr
    assert entries(tmp_path) == sorted([path.name, link.name])
    alone = tmp_path / f"alone.{ending}"
    with make(alone) as writer:
        writer.write(SLATE)
    assert path.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize(("make", "ending"), WRITERS)
def test_after_an_error_the_old_file_stands_and_nothing_else(make: Any, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{ending}"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), make(path) as writer:  # noqa: PT012
        writer.write(SLATE)
        _ = 1 / 0
    assert path.read_bytes() == b"old"
    assert entries(tmp_path) == [path.name]


def test_two_processes_with_one_output_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program = textwrap.dedent(
        """
        import sys, time
        from pope_align.data import Slate, slate_writer
        name = sys.argv[2]
        with slate_writer(sys.argv[1]) as writer:
            for number in range(300):
                writer.write(Slate(f"{name} {number}", ["a", "b"], [1.0, 0.0]))
                time.sleep(0.001)
        """
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path), n], stderr=subprocess.PIPE) for n in "AB"]
    codes = [run.wait(120) for run in runs]
    winners = [name for name, code in zip("AB", codes, strict=True) if code == 0]
    assert winners  # both, where one was done before the other began
    lines = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    assert any(lines == [f"{name} {number}" for number in range(300)] for name in winners)
    assert entries(tmp_path) == ["out.jsonl"]


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "out [1].jsonl"
    program = "import os, signal, sys; from pope_align._files import replacing\n"
    program += "with replacing(sys.argv[1]) as new: new.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    assert all(name.startswith(".") for name in entries(tmp_path))
    write_text(path, "whole")
    assert entries(tmp_path) == [path.name]
    assert path.read_text() == "whole"


def test_links_are_followed_and_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real, link = tmp_path / "real" / "a.json", tmp_path / "a.json"
    link.symlink_to(real)
    write_json(link, {"a": 1})  # through a link to nothing
    assert stat.S_IMODE(real.stat().st_mode) == 0o666 & ~_umask()
    real.chmod(0o640)
    write_json(link, {"a": 2})
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"a": 2}
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_json_has_no_nan_and_holds_any_file_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert not path.exists()
    write_json(path, {"input": os.fsdecode(b"caf\xe9.jsonl")})
    assert json.loads(path.read_text()) == {"input": "caf\udce9.jsonl"}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_generations_are_written_through_the_same_door(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"g.{ending}"
    generations = GenerationSet("m", (Generation("k", "Why?", ["So."]),))
    with replacing(path), pytest.raises(ValueError, match="another process is writing"):
        write_generations(generations, path)
    write_generations(generations, path)
    assert read_generations(path) == generations
    assert entries(tmp_path) == [path.name]


def test_reports_of_two_files_never_share_a_name() -> None:
    names = ("r.jsonl", "r.parquet", "r", "r.report")
    assert len({report_path(name) for name in names}) == len(names)


def test_an_output_is_refused_before_the_work(tmp_path: Path) -> None:
    there, pipe = tmp_path / "there.jsonl", tmp_path / "pipe.jsonl"
    there.write_text("old")
    os.mkfifo(pipe)
    endings = (".jsonl", ".parquet")
    for path, reason in (
        (tmp_path / "nodir" / "z.jsonl", "expected a folder that exists"),
        (tmp_path / "y.txt", "expected a file ending in .jsonl or .parquet, got"),
        (tmp_path / "y", "expected a file ending in .jsonl or .parquet, got"),
        (there / "z.jsonl", "expected a folder that exists"),
        (there, "exists already; pass --overwrite"),
        (pipe, "no regular file"),
    ):
        with pytest.raises(ValueError, match=f"^out: .*{reason}"):
            check_output(path, endings=endings)
    with pytest.raises(ValueError, match=r"plot: .*got a folder"):
        check_output(tmp_path, overwrite=True, argument="plot")
    with claim_output(there, overwrite=True, endings=endings), replacing(there) as new:
        new.write_text("new")
    assert there.read_text() == "new"
    with claim_output(there, overwrite=True), pytest.raises(ValueError, match="another process"):  # noqa: SIM117
        with claim_output(there, overwrite=True):
            pass
    assert entries(tmp_path) == ["pipe.jsonl", "there.jsonl"]


def test_a_folder_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model").write_text("")
    check_output_folder(tmp_path / "new" / "deep")
    check_output_folder(tmp_path / "full", overwrite=True)
    with pytest.raises(ValueError, match="holds files already; pass --overwrite"):
        check_output_folder(tmp_path / "full")
    with pytest.raises(ValueError, match="expected a folder, got a file"):
        check_output_folder(tmp_path / "full" / "model")
    assert entries(tmp_path) == ["full"]


#: Calls that write a file, with where the file stands in them: "self" is what the method belongs to.
WRITERS = {
    "write_text": "self",
    "write_bytes": "self",
    "savefig": 0,
    "savez": 0,
    "dump": 1,
    "save": 1,
    "write_table": 1,
}
WRITERS |= {"ParquetWriter": 0}
#: Written through `replacing`, or into memory.
FINE = {"partial", "buffer", "formatter"}
#: Files of ours that stay open or grow line by line, tested above and in test_journal; and a folder to throw away.
OPEN = {f"python/pope_align/{name}.py" for name in ("_files", "_journal", "data/write", "data/gather")}


def writes_of(source: str) -> list[str]:
    """Calls that write a file under its final name."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if name == "open":
            texts = [
                arg.value
                for arg in [*call.args, *(each.value for each in call.keywords)]
                if isinstance(arg, ast.Constant)
            ]
            if any(isinstance(text, str) and re.fullmatch(r"[wax]b?\+?", text) for text in texts):
                found.append(ast.unparse(call))
            continue
        place = WRITERS.get(name)
        if name == "save" and ast.unparse(call.func) != "torch.save":  # of a model: a folder
            continue
        if place == "self" and not isinstance(call.func, ast.Attribute):  # `_files.write_text`
            continue
        if place is None or (place != "self" and len(call.args) <= place):
            continue
        path = call.func.value if place == "self" else call.args[place]
        if getattr(path, "id", "") not in FINE:
            found.append(ast.unparse(call))
    return found


def test_every_writer_goes_through_one_door() -> None:
    root = Path(__file__).parents[1]
    files = [path for path in (root / "python").rglob("*.py") if str(path.relative_to(root)) not in OPEN]
    assert len(files) > 150
    assert {str(path.relative_to(root)): found for path in files if (found := writes_of(path.read_text()))} == {}
    for line in ("path.write_text('x')", "open(p, 'w')", "p.open(mode='ab')", "figure.savefig(out)", "json.dump(x, f)"):
        assert len(writes_of(line)) == 1
    assert writes_of("write_text(path, 'x'); figure.savefig(partial); p.open(); open(p, 'rb')") == []


@pytest.mark.parametrize(
    ("study", "arguments"),
    [
        ("ope_similar_study", ["-o", "nodir/out.json"]),
        ("ope_calibration", ["held-out", "-o", "nodir/out.json"]),
        ("ope_study", ["--output", "nodir/out.json"]),
        ("ope_study", ["--output", "out.json", "--figure", "out.txt"]),
        ("ope_lm_study", ["study", "--prompts", "p", "--cache", "c", "-o", "nodir/out.json"]),
        ("defaults", ["log.jsonl", "--model", "m", "-o", "nodir/out.json"]),
        ("methods", ["log.jsonl", "--model", "m", "-o", "log.jsonl"]),
    ],
)
def test_studies_check_their_output_before_the_work(study, arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    monkeypatch.setattr(sys, "argv", [study, *arguments])
    main = importlib.import_module(f"pope_align.experiments.{study}").main
    with pytest.raises(ValueError, match=r"^(out|figure): "):
        main()


def test_a_folder_is_claimed_by_one_process_and_given_back_at_the_end_of_the_command(tmp_path, monkeypatch) -> None:
    from pope_align._files import claim_folder
    from pope_align.cli import app
    from pope_align.cli.command import until_the_end
    from pope_align.data import write_slates
    from typer.testing import CliRunner

    write_slates([SLATE], tmp_path / "log.jsonl")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    out = tmp_path / "new" / "report"
    log, model, answers = (str(tmp_path / name) for name in ("log.jsonl", "model", "gens.jsonl"))
    write_generations(GenerationSet("m", (Generation("k", "p", ["a"]),)), answers)
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-a-test")
    commands = [
        ["fit-logger", log, "--model", model, "-o", str(out)],
        ["train", log, "--model", model, "-o", str(out)],
        ["metrics", answers, "--refs", log, "-o", str(out)],
        ["judge", "--gens", answers, "--gens", f"b={answers}", "--refs", log, "--model", "m", "-o", str(out)],
    ]
    with claim_folder(out):
        for command in commands:
            result = CliRunner().invoke(app, command)
            assert "another process is writing" in str(result.exception), (command[0], result.output, result.exception)
    assert not out.exists()
    held = []
    monkeypatch.setattr("pope_align.data.read_slates", lambda *_, **__: held.append(entries(out.parent)) or 1 / 0)
    result = CliRunner().invoke(app, commands[2])
    assert isinstance(result.exception, ZeroDivisionError)
    assert held == [[".report.lock"]]
    assert entries(out.parent) == []
    assert not until_the_end._exit_callbacks
