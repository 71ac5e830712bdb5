"""Output of the subcommands: rich tables and progress on a terminal, plain lines otherwise.

Everything is printed as text, not as rich markup, with control characters escaped (`pope_align._text`), so that names
and texts from data, models and files cannot control the terminal.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
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
    """A console without markup."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's, with strings made `printable` and without markup."""
        shown = [Text(printable(each, lines=True)) if isinstance(each, str) else each for each in objects]
        super().print(*shown, **{**options, "markup": False})


#: Standard output, for results.
out = _Plain(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
#: Standard error, for progress and remarks, so that results can be piped.
err = _Plain(stderr=True, highlight=False, markup=False, soft_wrap=not sys.stderr.isatty())

#: Characters between two columns of a table.
_GAP = 3

#: Seconds between lines of progress without a terminal.
_PLAIN_SECONDS = 15.0


class ShowProgress(Protocol):
    """Reports that ``done`` of ``of`` units are done, with an optional remark."""

    def __call__(self, done: int, of: int, remark: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[ShowProgress]:
    """Yield ``report(done, of)``: a bar with rate and time left on a terminal, otherwise a line every 15 seconds."""
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
        whole = Progress(*columns, remarks, TimeElapsedColumn(), TimeRemainingColumn(), console=err)
        with _no_other_bars(), whole as bar:
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
            more = f", {remark}" if remark else ""
            err.print(f"{what}: {done:,} of {of:,} {unit}{speed}{more}", markup=False)

    yield report


@contextmanager
def _no_other_bars() -> Iterator[None]:
    """Disable the progress bars of transformers meanwhile."""
    library = sys.modules.get("transformers.utils.logging")
    if library is None or not library.is_progress_bar_enabled():
        yield
        return
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.enable_progress_bar()


@contextmanager
def progress_by_name(what: str, unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yield ``report(name, done, of)``: a separate `progress` for every name, because their totals differ."""
    with ExitStack() as bars:
        shown: dict[str, ShowProgress] = {}

        def report(name: str, done: int, of: int) -> None:
            if name not in shown:
                bars.close()  # the one before has ended
                shown[name] = bars.enter_context(progress(f"{what} {name}", unit))
            shown[name](done, of)

        yield report


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Yield ``report(done)`` for work of unknown length: a running count with its rate."""
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
    """Units per second, recently."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else "")


def show_json(value: Any, path: str | None) -> None:
    """The option ``--json``: write a result as JSON to a file, to standard output for ``-``, nowhere for None."""
    from .._files import write_json

    if path == "-":
        print(json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False), file=out.file)
    elif path is not None:
        write_json(path, value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, together: int = 1) -> None:
    """Print a table: drawn on a terminal, tab-separated otherwise. The first column is text, the others numbers.

    A table wider than the terminal is drawn in parts, each with the first column; nothing is truncated.

    Args:
        together: how many columns after the first form a unit, such as an estimate and its interval, which is never
            split.
    """
    lines = [[printable(cell) for cell in row] for row in [columns, *rows]]
    if not out.is_terminal:
        out.print(f"# {printable(title)}")
        for row in lines:
            print("\t".join(row), file=out.file)  # rich would turn the tabs into spaces
        return
    for index, column in enumerate(lines[0][1:], start=1):
        least = max(1, *map(cell_len, column.split()), *(cell_len(row[index]) for row in lines[1:]))
        lines[0][index] = textwrap.fill(column, least, break_long_words=False, break_on_hyphens=False)
    for number, shown in enumerate(parts(lines, out.width, together)):
        out.print(printable(title) + (", continued" if number else ""))
        drawn = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for index in shown:
            justify: Literal["left", "right"] = "left" if index == 0 else "right"
            drawn.add_column(Text(lines[0][index]), justify=justify, overflow="fold")
        for row in lines[1:]:
            drawn.add_row(*(Text(row[index]) for index in shown))
        out.print(drawn)
        out.print()


def parts(lines: Sequence[Sequence[str]], width: int, together: int) -> list[list[int]]:
    """The columns of each part of a table, so that every part fits ``width``; all parts have the first column.

    The first column takes at most a third of the width (its texts are folded); other columns are folded only if a unit
    does not fit next to it.
    """
    widths = [max(cell_len(line) for row in lines for line in row[index].split("\n")) for index in range(len(lines[0]))]
    first = min(widths[0], width // 3)
    shown: list[list[int]] = [[0]]
    used = first
    for start in range(1, len(widths), together):
        group = list(range(start, min(start + together, len(widths))))
        needed = sum(widths[index] + _GAP for index in group)
        if len(shown[-1]) > 1 and used + needed > width:
            shown.append([0])
            used = first
        shown[-1] += group
        used += needed
    return shown
