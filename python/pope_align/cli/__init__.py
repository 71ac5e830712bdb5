"""The command ``pope``: one module per subcommand, which imports what it needs when it runs.

A subcommand parses arguments, calls a public function of ``pope_align``, and shows the result; it computes nothing
itself.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from .._files import now_reading
from .._text import printable
from .command import CLUSTER_PREFIX, Command, Group, command, debugging
from .compare import compare
from .convert import convert
from .demo import demo
from .env import env
from .evaluate import evaluate
from .fit_logger import fit_logger
from .generate import generate
from .inspect import inspect
from .judge import judge
from .label import label
from .metrics import metrics
from .overton import overton
from .report import report
from .reproduce import reproduce
from .score import score
from .step import step
from .train import train

app = typer.Typer(
    name="pope",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich truncates option names at 80 columns
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

#: Old spellings of options, until the next minor release.
_OUTPUT = {"--output": "--out"}

app.command(cls=command(_OUTPUT))(demo)
app.command(cls=Command)(convert)
app.command(cls=command({"--plot": "--out"}))(inspect)
app.command(cls=command(_OUTPUT))(score)
app.command("fit-logger", cls=command(_OUTPUT))(fit_logger)
# The arguments of a training run are dataclass fields, parsed and explained by a parser of our own.
app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(train)
app.command(cls=command({"--log": "", "--cluster-prefix": CLUSTER_PREFIX, **_OUTPUT}))(evaluate)
app.command(cls=command({"--data": ""}))(generate)
app.command(cls=Command)(label)
app.command(cls=command({"--gens": ""}))(metrics)
app.command(cls=command({"--gens": ""}))(judge)
app.command(cls=Command)(overton)
app.command(cls=Command)(compare)
app.command(cls=Command)(report)
app.command(cls=Command)(reproduce)
app.add_typer(step, name="step")
app.command(cls=Command)(env)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error came from.")] = False,
) -> None:
    """Off-policy evaluation and alignment of language models from logged slates of rated responses."""
    if debug:  # usually `Group` has already removed it from the arguments
        debugging["on"] = True


def main() -> None:
    """Run ``pope``; an error is one line on standard error and exit code 2, with a traceback only under ``--debug``.

    For an unexpected error the line has its type and the file that was being read. Exit code 1 is a result: ``pope
    evaluate --require`` was not met. An interrupted run (Ctrl-C) ends with 130, a terminated one (SIGTERM) with 143,
    both after their temporary files and locks are removed.
    """
    debugging["on"] = False
    quiet()
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PrintableFormatter())
    try:
        with _ended_by_sigterm():
            app(prog_name="pope")
    except KeyboardInterrupt:  # before the command began
        raise SystemExit(130) from None
    except (ValueError, ImportError, OSError) as error:
        _fail(str(error), error)
    except Exception as error:
        place = f" while reading {now_reading()}" if now_reading() else ""
        message = str(error).partition("\n")[0]
        _fail(f"{type(error).__name__}{place}: {message} (the same with --debug shows where)", error)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within the block SIGTERM ends the program as an exception does, so that what it holds is given back.

    The second one kills it. So does the first where processes wait for each other, and could not end in order.
    """

    def end(number: int, frame: object) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(128 + number)

    if "RANK" in os.environ:
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, error: Exception) -> NoReturn:
    if debugging["on"]:
        traceback.print_exception(error)
    print(f"pope: {printable(message, lines=True)}", file=sys.stderr)
    raise SystemExit(2) from error


def quiet() -> None:
    """Silence the warnings of other libraries, and their progress bars if standard error is not a terminal."""
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(?!pope_)")


class _PrintableFormatter(logging.Formatter):
    """Makes warnings printable: they may quote data and file names."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), lines=True)
