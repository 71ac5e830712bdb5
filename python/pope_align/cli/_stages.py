"""Stages of a run on the command line: shown with what they cost, run, and continued where they stopped."""

from __future__ import annotations

import shlex
import signal
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..compare.stages import Stage


def page_width() -> int:
    """The columns of a plan: those of the terminal, at most 100."""
    from .console import out

    return min(out.width, 100)


def run_pope(argv: Sequence[str]) -> None:
    """One of pope's own commands, in this process.

    Raises:
        KeyboardInterrupt, SystemExit: it was interrupted, which typer returns as an exit code, or ended with another.
    """
    from . import app

    code = app(list(argv), prog_name="pope", standalone_mode=False)
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def run_stages(stages: Sequence[Stage], folder: Path) -> None:
    """Run the stages that are not done; whatever stops them is raised again, with the command that stopped."""
    from ..compare.stages import run_stage
    from .console import err

    for number, stage in enumerate(stages, 1):
        err.print(f"[{number} of {len(stages)}] {stage.what}")
        try:
            ran = run_stage(stage, folder, run_pope)
        except BaseException:  # Ctrl-C too; raised again below
            err.print(f"stopped at: {shlex.join(['pope', *stage.argv])}")
            err.print("what was finished is kept; run the same command again to continue from here")
            raise
        if not ran:
            err.print("  there already")


def show_plan(stages: Sequence[Stage], folder: Path, width: int) -> None:
    """What each stage does, and what it costs if it is still to be done."""
    from ..compare.stages import is_done
    from .console import out

    for number, stage in enumerate(stages, 1):
        cost = "there already" if is_done(stage, folder) else stage.cost
        lead = f"  {number}  "
        out.print(hanging(lead, stage.what, width))
        out.print(hanging(" " * len(lead) + "  ", cost, width))


def show_commands(stages: Sequence[Stage], width: int) -> None:
    """The stages as commands to copy."""
    from .console import out

    out.print("\nThe same as commands, to run a stage with other options")
    for stage in stages:
        out.print(command_line(["pope", *stage.argv], width))
    out.print("")


def hanging(lead: str, text: str, width: int) -> str:
    """``text`` after ``lead``, later lines under its first word."""
    return textwrap.fill(text, width, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False)


def command_line(argv: Sequence[str], width: int) -> str:
    """A command to copy: options stay beside their values, and a backslash ends a line that continues."""
    parts: list[str] = []
    for word in map(shlex.quote, argv):
        if parts and parts[-1].startswith("-") and " " not in parts[-1] and not word.startswith("-"):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = ["  " + parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) + 3 > width:
            lines[-1] += " \\"
            lines.append("      " + part)
        else:
            lines[-1] += f" {part}"
    return "\n".join(lines)
