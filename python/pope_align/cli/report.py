"""``pope report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `pope compare` makes it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page: .html; its Markdown twin stands beside it.")],
    overwrite: Annotated[bool, typer.Option(help="Replace a report that is there.")] = False,
) -> None:
    """Write the page of a run: the decision, what it rests on, and the answers side by side.

    Any of evaluation.json, metrics/ and answers/ may be missing from the folder; the page shows what is there. Example:

        pope report report.run -o report.html
    """
    from ..report.page import write_report
    from .console import err

    written = write_report(run, out, overwrite=overwrite)
    err.print(f"wrote {', '.join(map(str, written))}")
