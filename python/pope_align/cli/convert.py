"""``pope convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .command import group_option

if TYPE_CHECKING:
    from ..data.convert import ConvertReport

_KEEP, _SPLIT, _TEXT, _INPUT = "What is kept", "Splits", "Prompts, votes and people", "Tables and bad rows"


def convert(
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Files or folders, or hub:NAME@SPLIT; .gz, .bz2, .xz and .zst are fine.")
    ] = None,
    format: Annotated[
        str, typer.Option("--from", metavar="FORMAT", help="Format of the input: a name in `--list`, or auto.")
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Slates: .jsonl or .parquet.")] = None,
    to: Annotated[
        Literal["slates", "preference", "nemo-rl"],
        typer.Option(
            metavar="FORM",
            help="slates; preference: TRL's prompt, chosen, rejected; nemo-rl: NeMo-RL's ranked completions.",
        ),
    ] = "slates",
    feedback: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Which feedback becomes the score; default: the first in `--list`."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write counts as JSON; - for standard output.")
    ] = None,
    list_formats: Annotated[bool, typer.Option("--list", help="List the formats and their feedback.")] = False,
    min_k: Annotated[
        int, typer.Option(metavar="K", help="Drop slates with fewer responses.", rich_help_panel=_KEEP)
    ] = 2,
    max_k: Annotated[
        int | None, typer.Option(metavar="K", help="Drop slates with more responses.", rich_help_panel=_KEEP)
    ] = None,
    sample_k: Annotated[
        int | None,
        typer.Option(metavar="K", help="Sample this many responses of larger slates.", rich_help_panel=_KEEP),
    ] = None,
    fraction: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Keep this share of the slates, chosen by hash.", rich_help_panel=_KEEP),
    ] = 1.0,
    min_chars: Annotated[int, typer.Option(metavar="N", help="Drop shorter responses.", rich_help_panel=_KEEP)] = 1,
    max_chars: Annotated[
        int | None, typer.Option(metavar="N", help="Drop longer responses.", rich_help_panel=_KEEP)
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(metavar="CODE", help="Drop responses in other languages, e.g. en.", rich_help_panel=_KEEP),
    ] = None,
    split_by: Annotated[
        Literal["slate", "group", "item", "user"] | None,
        typer.Option(
            metavar="WHAT",
            help="Write train, validation and test files, keeping together a slate, a group (see --group) or a user.",
            rich_help_panel=_SPLIT,
        ),
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            metavar="A,B,C", help="Shares of the three files; a share of 0 gets no file.", rich_help_panel=_SPLIT
        ),
    ] = "0.8,0.1,0.1",
    group: Annotated[
        str | None,
        group_option("none. Stored in the slates for later steps; the column is one of the input", _SPLIT),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of sampling and splits.", rich_help_panel=_SPLIT)] = 0,
    missing_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Replaces a missing prompt, e.g. 'Item {key}'; default: drop the slate.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    prompt_template: Annotated[
        str, typer.Option(metavar="TEXT", help="Template applied to every prompt.", rich_help_panel=_TEXT)
    ] = "{prompt}",
    age_scale_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="Correct votes for age; their rate falls by a factor e in this time.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    as_of: Annotated[
        str | None, typer.Option(metavar="DATE", help="Time of the log, e.g. 2023-09-30.", rich_help_panel=_TEXT)
    ] = None,
    keep_users: Annotated[
        bool,
        typer.Option(
            "--keep-users", help="Copy ids of people: authors, annotators with ratings.", rich_help_panel=_TEXT
        ),
    ] = False,
    map: Annotated[
        str,
        typer.Option(
            metavar="A=B,...",
            help="Columns of the table format, e.g. prompt=question,score=stars; for some others, a choice.",
            rich_help_panel=_INPUT,
        ),
    ] = "",
    sql: Annotated[
        str | None,
        typer.Option(
            metavar="QUERY", help="For the table format: a DuckDB query instead of files.", rich_help_panel=_INPUT
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", help="Skip and count bad rows; default: stop.", rich_help_panel=_INPUT),
    ] = False,
) -> None:
    """Convert a log of any known format to slates, and report what was read, kept and dropped.

    pope convert --from amazon-2023 Movies.jsonl.gz meta_Movies.jsonl.gz -o movies.parquet
    """
    from ..data.convert import ConvertOptions
    from ..data.convert import convert as convert_files
    from ..data.formats import FORMATS
    from .checks import check_json
    from .console import counting, err, show_json
    from .console import out as out_

    if list_formats:
        for entry in FORMATS.values():
            maps = f"\n    --map {', '.join(entry.maps)}" if entry.maps else ""
            out_.print(f"{entry.name}: {entry.summary}\n    --feedback {', '.join(entry.feedback)}{maps}")
        return
    if out is None or not format:
        missing = "--out FILE" if out is None else "--from FORMAT, where auto recognises most"
        raise ValueError(f"convert: expected {missing}, got none")
    check_json(json, overwrite=overwrite)
    options = ConvertOptions(
        feedback=feedback,
        min_k=min_k,
        max_k=max_k,
        sample_k=sample_k,
        fraction=fraction,
        seed=seed,
        split_by=split_by,
        group=group,
        splits=_shares(splits),
        min_chars=min_chars,
        max_chars=max_chars,
        language=language,
        missing_prompt=missing_prompt,
        prompt_template=prompt_template,
        age_scale_days=age_scale_days,
        as_of=None if as_of is None else _seconds(as_of),
        keep_users=keep_users,
        mapping=_mapping(map),
        sql=sql,
        skip_bad_rows=skip_bad_rows,
    )
    with counting("reading", "records") as report:
        result = convert_files(format, inputs or [], out, options, to=to, overwrite=overwrite, progress=report)
    if json is not None:
        show_json(result.to_dict(), json)
    if json != "-":
        show(result)
    for hint in result.hints:
        err.print(f"hint: {hint}")
    err.print(f"wrote {', '.join(result.outputs)} and {out}.report.json")


def show(report: ConvertReport) -> None:
    """Print the counts of a conversion."""
    from .console import table

    rows = [["records read", f"{report.records_read:,}"], ["bad rows skipped", f"{report.bad_row_count:,}"]]
    rows += [[f"  without a response: {reason}", f"{n:,}"] for reason, n in report.without_response.most_common()]
    rows += [["responses read", f"{report.responses_read:,}"], ["responses kept", f"{report.responses_kept:,}"]]
    rows += [[f"  dropped: {reason}", f"{n:,}"] for reason, n in report.responses_dropped.most_common() if n]
    if report.with_propensity or report.without_propensity:
        rows += [["  with a recorded propensity", f"{report.with_propensity:,}"]]
    rows += [[f"  without one: {reason}", f"{n:,}"] for reason, n in report.without_propensity.most_common()]
    rows += [["slates kept", f"{report.slates_kept:,}"]]
    rows += [[f"  dropped: {reason}", f"{n:,}"] for reason, n in report.slates_dropped.most_common()]
    rows += [[f"  in {name}", f"{n:,}"] for name, n in sorted(report.splits.items()) if name != "all"]
    rows += [["  with a sample of the responses", f"{report.slates_sampled:,}"]]
    rows += [["  with equal scores", f"{report.constant:,}"]]
    table(f"{report.format} to slates, score: {report.feedback}", ["", "count"], rows)


def _shares(text: str) -> tuple[float, float, float]:
    from ..data.checks import as_number

    shares = [as_number(part) for part in text.split(",")]
    if len(shares) != 3 or any(share is None for share in shares):
        raise ValueError(f"splits: expected three numbers such as 0.8,0.1,0.1, got {text!r}")
    train, validation, test = (float(share or 0) for share in shares)
    return train, validation, test


def _mapping(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not (name and column) for name, _, column in pairs):
        raise ValueError(f"map: expected NAME=COLUMN,..., got {text!r}")
    mapping = {name.strip(): column.strip() for name, _, column in pairs}
    if len(mapping) < len(pairs):
        raise ValueError(f"map: expected every name once, got {text!r}")
    return mapping


def _seconds(text: str) -> float:
    from datetime import UTC, datetime

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"as_of: expected a date such as 2023-09-30, got {text!r}") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
