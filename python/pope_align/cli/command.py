"""Shared by all subcommands: help that fits 80 columns, with options in groups; deprecated spellings."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

#: What a command holds until it ends, such as the lock of a folder.
until_the_end = ExitStack()

#: Whether tracebacks are shown.
debugging = {"on": False}


class Command(TyperCommand):
    """A subcommand of ``pope``.

    Attributes:
        renamed: from the old spelling of an option to the new one, or to "" if its value is now the first argument. Old
            spellings work for one release, with a warning; underscores for hyphens need no entry.
    """

    renamed: Mapping[str, str | Respelled] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, after `modern`."""
        known = {option for parameter in self.get_params(ctx) for option in parameter.opts + parameter.secondary_opts}
        return super().parse_args(ctx, modern(args, self.renamed, known, command=ctx.command_path))

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """The docstring; paragraphs that begin with ``pope`` are examples, wrapped with backslashes so that they can be
        copied.
        """
        with formatter.indentation():
            for paragraph in textwrap.dedent(self.help or "").strip().split("\n\n"):
                formatter.write_paragraph()
                text = " ".join(paragraph.split())
                if text.startswith("pope "):
                    formatter.write(example(text, formatter.width))
                else:
                    formatter.write_text(text)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Options by group (``rich_help_panel``), without truncation."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Options" if parameter.param_type_name == "option" else "Arguments"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
        plain = ("Arguments", "Options")
        for name in sorted(groups, key=lambda name: plain.index(name) if name in plain else len(plain)):
            with formatter.section(name):
                formatter.write_dl(groups[name], col_max=24)


class Group(TyperGroup):
    """``pope`` itself: lists every command with the first sentence of its help; accepts ``--debug`` anywhere."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer's, without ``--debug``."""
        debugging["on"] |= "--debug" in args  # which a command that runs others has seen before them
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        """As typer's; then what the command held is given back."""
        with until_the_end:
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Commands with the first sentence of their help."""
        rows = []
        for name in self.list_commands(ctx):
            help_text = " ".join((self.commands[name].help or "").split("\n\n")[0].split())
            rows.append((name, help_text.partition(". ")[0].rstrip(".:") + "."))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def example(text: str, width: int) -> str:
    """An example wrapped to ``width``, indented, with backslashes at line ends.

    An option and its value stay on one line.
    """
    indent, glue = "    ", "\u00a0"
    text = re.sub(r"(?<= )(--?[a-z][a-z-]*) (?=[^- ])", rf"\1{glue}", text)
    lines = textwrap.wrap(text, width - len(indent) - 4, break_long_words=False, break_on_hyphens=False)
    return (indent + f" \\\n{indent}  ".join(lines) + "\n").replace(glue, " ")


def group_option(default: str, panel: str | None = None) -> Any:
    """``--group``, the same in every command that has it; parsed by `pope_align.data.split.grouping`.

    Args:
        default: a group if the option is not given.
        panel: its group in ``--help``.
    """
    return typer.Option(
        metavar="HOW",
        help="Slates that belong together: column:NAME (origin.user is a part of one), prefix:SEP (the slate_id up to "
        f"its last SEP) or regex:PATTERN (its match, or first group, in the slate_id); default: {default}.",
        rich_help_panel=panel,
    )


def date_option(default: str, panel: str | None = None) -> Any:
    """``--template-date``, the same in every command that writes prompts; `pope_align.data.encode_slate` takes it."""
    return typer.Option(
        metavar="DAY",
        help=f"Date such as 2026-11-28, for chat templates that write one; default: {default}.",
        rich_help_panel=panel,
    )


class Respelled(NamedTuple):
    """A renamed option whose value has another form."""

    option: str
    value: Callable[[str], str]


#: ``--cluster-prefix TEXT`` took the ``slate_id`` up to the first TEXT, or all of it.
CLUSTER_PREFIX = Respelled("--group", lambda text: rf"regex:(?s)^(.*?)(?:{re.escape(text)}|\Z)")


def command(renamed: Mapping[str, str | Respelled]) -> type[Command]:
    """`Command` with deprecated spellings."""
    return type("Command", (Command,), {"renamed": renamed})


def modern(
    args: Sequence[str], renamed: Mapping[str, str | Respelled], known: set[str], *, command: str = "pope"
) -> list[str]:
    """``args`` with the current spelling of every option, and a warning on standard error for each deprecated one."""
    first: list[str] = []
    rest: list[str] = []
    pending = iter(args)
    for arg in pending:
        if arg == "--":
            rest += [arg, *pending]
            break
        name, equals, value = arg.partition("=")
        new = renamed.get(name)
        if new is None and name.startswith("--") and name not in known and name.replace("_", "-") in known:
            new = name.replace("_", "-")
        if new is None:
            rest.append(arg)
        elif isinstance(new, Respelled):
            value = new.value(value if equals else next(pending, ""))
            _warn(command, name, f"now {new.option} {value}")
            rest.append(f"{new.option}={value}")
        elif new:
            _warn(command, name, f"now {new}")
            rest.append(new + equals + value)
        else:
            _warn(command, name, "now the first argument, without a name")
            first.append(value if equals else next(pending, ""))
    return [*first, *rest]


def _warn(command: str, old: str, new: str) -> None:
    print(f"{command}: {old} is {new}; the old spelling works until the next minor release", file=sys.stderr)
