"""What the subcommands print: rich tables and progress on a terminal, plain lines otherwise.

Everything printed here is text, never rich's markup, and its control characters are written out (`pope_align._text`):
whatever data, models and files are called, nothing that they hold moves the cursor of a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .._text import printable


class _Plain(Console):
    """A console that takes text for text."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, with texts `printable` and without markup."""
        shown = [Text(printable(each, lines=True)) if isinstance(each, str) else each for each in objects]
        super().print(*shown, **{**options, "markup": False})


#: Standard output, for results.
out = _Plain(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
#: Standard error, for progress and remarks: results can be piped.
err = _Plain(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())

#: Without a terminal, progress is a line every so many seconds.
_PLAIN_SECONDS = 15.0


class ShowProgress(Protocol):
    """Takes how much of how many is done, and perhaps a remark on how it goes."""

    def __call__(self, done: int, of: int, remark: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[ShowProgress]:
    """Yield ``report(done, of)``: a bar with rate and time left on a terminal, a line now and then in a file."""
    what = printable(what)
    if err.is_terminal:
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Rate(unit),
        ]
        remarks = TextColumn("{task.fields[remark]}", markup=False)
        with Progress(*columns, remarks, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bar:
            task = bar.add_task(what, total=None, remark="")
            yield lambda done, of, remark="": bar.update(task, completed=done, total=of, remark=printable(remark))
        return
    last = -_PLAIN_SECONDS
    start: tuple[float, int] | None = None

    def report(done: int, of: int, remark: str = "") -> None:
        nonlocal last, start
        now = time.monotonic()
        start = start or (now, done)
        if done == of or now - last >= _PLAIN_SECONDS:
            last = now
            rate = (done - start[1]) / (now - start[0]) if now > start[0] else 0.0
            speed = f", {rate:,.3g} {unit}/s, {(of - done) / rate:,.0f} s left" if rate else ""
            err.print(f"{what}: {done:,} of {of:,} {unit}{speed} {remark}".rstrip(), markup=False)

    yield report


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``report(done)`` for work whose end is not known: a running count with its rate."""
    what = printable(what)
    if err.is_terminal:
        columns = [
            TextColumn("{task.description}", markup=False),
            SpinnerColumn(),
            TextColumn("{task.completed:,.0f}"),
            TextColumn(unit),
        ]
        with Progress(*columns, _Rate(unit), TimeElapsedColumn(), console=err) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done: bar.update(task, completed=done)
        return
    start = last = time.monotonic()

    def report(done: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PLAIN_SECONDS:
            last = now
            err.print(f"{what}: {done:,} {unit}, {done / (now - start):,.0f} {unit}/s")

    yield report


class _Rate(ProgressColumn):
    """Units a second, lately."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated otherwise. The first column is text, the others numbers."""
    lines = [[printable(cell) for cell in row] for row in [columns, *rows]]
    if not out.is_terminal:
        out.print(f"# {printable(title)}")
        for row in lines:
            print("\t".join(row), file=out.file)  # rich would turn the tabs into spaces
        return
    drawn = Table(title=Text(printable(title)), title_justify="left")
    for index, column in enumerate(lines[0]):
        drawn.add_column(Text(column), justify="left" if index == 0 else "right", overflow="fold")
    for row in lines[1:]:
        drawn.add_row(*map(Text, row))
    out.print(drawn)
