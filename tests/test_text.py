"""Text from data, models and file names reaches terminals and files harmless, and secrets reach neither."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pope_align import cli
from pope_align._text import HIDDEN, in_markdown, passwords, printable, redact, utf8, without_password

EVIL = "\x1b]0;title\x07\x1b[31mred\x9b31m\r\u202eevil\u2066 [/evil] {task} [bold]x[/bold]"


@given(st.text())
def test_nothing_printable_controls_a_terminal(text: str) -> None:
    for shown in (printable(text), printable(text, lines=True)):
        assert not any(char < " " and char not in "\n\t" for char in shown)
        assert not any("\x7f" <= char <= "\x9f" or "\u202a" <= char <= "\u202e" for char in shown)
        shown.encode()
    assert "\n" not in printable(text)
    assert utf8(text).encode().decode() == utf8(text)


def test_what_is_harmless_is_left_as_it_is() -> None:
    for text in ("Grüße, 日本語, हिन्दी 👨\u200d👩\u200d👧, می\u200cخواهم", "a [b] <c> \\ {d}"):  # noqa: RUF001
        assert printable(text) == utf8(text) == text
    assert printable("a\tb\r\nc", lines=True) == "a\tb\nc"
    assert printable("a\x1b\n\ud800\u202e") == r"a\x1b\n\ud800\u202e"


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1", []),
        ("http://me:secret99@host:1/v1", f"http://{HIDDEN}@host:1/v1", ["me:secret99", "secret99"]),
        ("https://token-1234@host/v1?a=1", f"https://{HIDDEN}@host/v1?a=1", ["token-1234"]),
        ("https://h/v1?api_key=abc12345&v=2", f"https://h/v1?api_key={HIDDEN}&v=2", ["abc12345"]),
    ],
)
def test_addresses_are_shown_without_their_secrets(url: str, shown: str, secrets: list[str]) -> None:
    assert without_password(url) == shown
    assert set(passwords(url)) == set(secrets)
    assert redact(f"called {url}", passwords(url)).count("secret99") == 0
    assert redact("x EMPTY x", ["x", "EMPTY"]) == "x EMPTY x"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_takes_text_for_text(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """At 1536b0c a model called [/evil] ended `pope judge` with a MarkupError after the work."""
    from pope_align.cli import console

    files = {}
    for name in ("out", "err"):
        files[name] = io.StringIO()
        stream = console._Plain(file=files[name], highlight=False, markup=False, force_terminal=terminal, width=200)
        monkeypatch.setattr(console, name, stream)
    console.out.print(EVIL)
    console.table(EVIL, [EVIL, "b"], [[EVIL, "1"]])
    with console.progress(EVIL, "things") as report:
        report(1, 2, EVIL)
        report(2, 2, EVIL)
    with console.counting(EVIL, "things") as count:
        count(3)
    result, progress = files["out"].getvalue(), files["err"].getvalue()
    assert result.count("[/evil]") == 4
    assert "[/evil]" in progress
    for shown in (result, progress):
        assert not {"\x07", "\x9b", "\u202e"} & set(shown)
        assert "\x1b]0" not in shown
        assert "\x1b[31mred" not in shown


def test_errors_and_warnings_of_the_command_line_are_harmless(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "\x1b[31mred.jsonl"
    path.write_text('{"prompt": "\\u001b]0;x\\u0007", "completions": 3, "scores": []}\n')
    monkeypatch.setattr(sys, "argv", ["pope", "inspect", str(path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert "red.jsonl" in shown.err
    assert "\x1b" not in shown.err + shown.out


def test_a_line_of_markdown_stays_text() -> None:
    """What a page of slates shows comes from a log: no cell ends, no tag or link begins, nothing moves a cursor."""
    hostile = "a | b \\ <script>x</script> [click](http://x) ![p](y) `c` *d* _e_\x1b[31m"
    shown = in_markdown(hostile)
    assert "\x1b" not in shown
    assert not re.search(r"(?<!\\)[|<>\[\]`*_!]", shown)
    assert re.sub(r"\\([\\`*_\[\]<>|#!~])", r"\1", shown) == printable(hostile)
