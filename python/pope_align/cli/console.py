"""What the subcommands print: rich tables and progress on a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

#: Standard output, for results.
out = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
#: Standard error, for progress and remarks: results can be piped.
err = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())

#: Without a terminal, progress is a line every so many seconds.
_PLAIN_SECONDS = 15.0


class Report(Protocol):
    """Takes how much of how many is done, and perhaps a remark on how it goes."""

    def __call__(self, done: int, of: int, remark: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[Report]:
    """Yield ``report(done, of)``: a bar with the time left on a terminal, a line now and then in a file."""
    if err.is_terminal:
        columns = [
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[remark]}"),
        ]
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=err) as bar:
            task = bar.add_task(what, total=None, remark="")
            yield lambda done, of, remark="": bar.update(task, completed=done, total=of, remark=remark)
        return
    last = -_PLAIN_SECONDS

    def report(done: int, of: int, remark: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done == of or now - last >= _PLAIN_SECONDS:
            last = now
            err.print(f"{what}: {done} of {of} {unit} {remark}".rstrip())

    yield report


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: drawn on a terminal, tab-separated otherwise. The first column is text, the others numbers."""
    if not out.is_terminal:
        out.print(f"# {title}")
        for row in [columns, *rows]:
            out.print("\t".join(row), markup=False)
        return
    drawn = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    out.print(drawn)
