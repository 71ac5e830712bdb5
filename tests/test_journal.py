"""A journal believes no line that is not what was written: such a line is removed and counted, its piece done again."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pope_align._journal import Journal

ABOUT = {"model": "m", "seed": 1}
VALUES = {"a": [-1.5, "\ud83d"], "b": {"total": -12.25}, "c": "text"}


def journal(path: Path) -> Journal:
    return Journal(path, ABOUT)


def filled(folder: Path) -> Path:
    path = folder / "journal.jsonl"
    written = journal(path)
    for key, value in VALUES.items():
        written.add(key, value)
    return path


CORRUPTIONS: dict[str, Callable[[str], str]] = {
    "a digit": lambda line: line.replace("-12.25", "-12.24"),
    "NaN": lambda line: line.replace("-12.25", "NaN"),
    "infinity": lambda line: line.replace("-12.25", "-Infinity"),
    "positive": lambda line: line.replace("-12.25", "5.0"),
    "true": lambda line: line.replace("-12.25", "true"),
    "text": lambda line: line.replace("-12.25", '"-3"'),
    "key": lambda line: line.replace('"b"', '"d"'),
    "cut": lambda line: line[: len(line) // 2],
    "no checksum": lambda line: '{"key": "b", "value": {"total": -12.25}}',
    "a list": lambda line: "[1]",
    "null": lambda line: "null",
    "deep": lambda line: "[" * 200_000,
    "digits": lambda line: '{"key": "b", "checksum": ' + "9" * 5_000 + "}",
    "two lines in one": lambda line: line + line,
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS.values(), ids=list(CORRUPTIONS))
def test_a_changed_line_is_removed_and_counted(
    corrupt: Callable[[str], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = filled(tmp_path)
    lines = path.read_text().splitlines()
    whole = path.read_bytes()
    lines[2] = corrupt(lines[2])
    path.write_text("\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        found = journal(path)
    assert dict(found) == {key: value for key, value in VALUES.items() if key != "b"}
    assert found.bad_lines == 1
    assert "1 of 4 lines are unfinished or changed; their parts are done again" in caplog.text
    found.add("b", VALUES["b"])
    again = journal(path)
    assert (dict(again), again.bad_lines) == (VALUES, 0)
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize("kept", [1, 30, 60, -2, -1])
def test_a_journal_that_was_cut_anywhere_goes_on(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal(path)
    first = len(path.read_bytes())
    path = filled(tmp_path / "full")
    path.write_bytes(path.read_bytes()[: kept if kept < first else first + kept])
    found = journal(path)
    missing = [key for key in VALUES if key not in found]
    assert kept == -1 or missing  # the last line's end is no loss
    for key in missing:
        found.add(key, VALUES[key])
    again = journal(path)
    assert (dict(again), again.bad_lines) == (VALUES, 0)


def test_what_json_cannot_hold_is_refused_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    found = Journal(path, ABOUT, valid=lambda value: isinstance(value, float) and value <= 0)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (math.nan, -math.inf, {1, 2}, deep, 1.0, "x"):
        with pytest.raises(ValueError, match="expected a va"):
            found.add("k", value)
    found.add("k", -2.0)
    assert dict(Journal(path, ABOUT)) == {"k": -2.0}


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for content in (b"no json\n", b'{"about": {"model": "m", "seed": 1}}\n', b"{", b'{"prompt": "x"}\n', b"\xff\n"):
        path.write_bytes(content)
        if content == b"{":  # what a run leaves that was killed at once
            continue
        with pytest.raises(ValueError, match="expected a journal of this version"):
            journal(path)
        assert path.read_bytes() == content


def test_processes_may_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    program = (
        "import sys; from pope_align._journal import Journal\n"
        "journal = Journal(sys.argv[1], {'a': 1})\n"
        "for number in range(100): journal.keep(f'{sys.argv[2]}{number}', 'x' * 5000)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", program, str(path), name]) for name in "AB"]
    assert [run.wait(120) for run in runs] == [0, 0]
    found = Journal(path, {"a": 1})
    assert (len(found), found.bad_lines) == (200, 0)


def test_lines_are_json(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in filled(tmp_path).read_text().splitlines()]
    assert lines[0]["about"] == ABOUT
    assert {line["key"]: line["value"] for line in lines[1:]} == VALUES
