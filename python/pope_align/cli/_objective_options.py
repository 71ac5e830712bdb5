"""A flag for every option of `pope_core.Objective`, made from the dataclass; imports no torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Annotated, Any, Literal

import typer

from pope_core.objective import CHOICES, Objective

#: The group of these flags in ``--help``.
PANEL = "Objective, the same for every policy"


def with_objective(default: Objective) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each option of the objective; it receives them as one ``objective``.

    Args:
        default: the values of flags that are not given.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [each for each in signature.parameters.values() if each.name != "objective"]
        flags = [_flag(each, getattr(default, each.name)) for each in fields(Objective)]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen = {flag.name: given.pop(flag.name) for flag in flags}
            command(**given, objective=Objective(**chosen))

        parameters = [*own, *flags]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        del run.__wrapped__  # otherwise typer would read the flags from there
        return run

    return decorate


def _flag(option: Field[Any], default: Any) -> inspect.Parameter:
    text = option.metadata["help"]
    kind: Any
    if option.name in CHOICES:
        kind = Literal[tuple(CHOICES[option.name])]
        about = typer.Option(help=text, rich_help_panel=PANEL)
    elif isinstance(default, bool):
        kind, about = bool, typer.Option(help=text, rich_help_panel=PANEL)
    elif option.name == "clip":
        kind = str
        about = typer.Option(help=text, rich_help_panel=PANEL, parser=_number_or_none, metavar="FLOAT|none")
        default = "none" if default is None else f"{default:g}"
    else:
        kind, about = float, typer.Option(help=text, rich_help_panel=PANEL)
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, about]
    )


def _number_or_none(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"expected a number or none, got {text!r}") from error
