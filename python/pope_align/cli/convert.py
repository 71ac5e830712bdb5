"""``pope convert``."""

from __future__ import annotations

from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..data.convert import ConvertReport


def convert(
    format: Annotated[str, typer.Option("--from", help="Format of the input; `pope convert --list` names them.")] = "",
    inputs: Annotated[
        list[str] | None, typer.Argument(help="Files or folders, or hub:NAME@SPLIT; .gz, .bz2, .xz, .zst are fine.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Slates: .jsonl or .parquet.")] = None,
    to: Annotated[
        Literal["slates", "preference"], typer.Option(help="Slates, or TRL's prompt, chosen, rejected.")
    ] = "slates",
    feedback: Annotated[str | None, typer.Option(help="Which feedback becomes the score; default: the first.")] = None,
    min_k: Annotated[int, typer.Option(help="Drop slates with fewer responses.")] = 2,
    max_k: Annotated[int | None, typer.Option(help="Drop slates with more responses.")] = None,
    sample_k: Annotated[int | None, typer.Option(help="Sample so many responses of larger slates.")] = None,
    fraction: Annotated[float, typer.Option(help="Share of the slates to keep, chosen by hash.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling and splits.")] = 0,
    split_by: Annotated[
        Literal["slate", "item", "user"] | None, typer.Option(help="Write train, validation and test files.")
    ] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.8,0.1,0.1",
    min_chars: Annotated[int, typer.Option(help="Drop shorter responses.")] = 1,
    max_chars: Annotated[int | None, typer.Option(help="Drop longer responses.")] = None,
    language: Annotated[str | None, typer.Option(help="Drop responses in other languages, e.g. en.")] = None,
    missing_prompt: Annotated[
        str | None, typer.Option(help="Stands for a prompt that is missing, e.g. 'Item {key}'; default: drop.")
    ] = None,
    prompt_template: Annotated[str, typer.Option(help="Text around the prompt.")] = "{prompt}",
    age_scale_days: Annotated[
        float | None, typer.Option(help="Correct votes for age: e-folding time of the rate at which they come.")
    ] = None,
    as_of: Annotated[str | None, typer.Option(help="Time of the log, e.g. 2023-09-30.")] = None,
    keep_users: Annotated[bool, typer.Option(help="Copy user identifiers into responders.")] = False,
    map: Annotated[str, typer.Option(help="Of the table format, e.g. prompt=question,score=stars.")] = "",
    sql: Annotated[str | None, typer.Option(help="Of the table format: a DuckDB query instead of files.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave bad rows out and count them; default: stop.")] = False,
    list_formats: Annotated[bool, typer.Option("--list", help="List the formats and their feedback.")] = False,
) -> None:
    """Turn a log of any known format into slates, and say what was read, kept and dropped. Example:

    pope convert --from amazon-2023 Movies_and_TV.jsonl.gz meta_Movies_and_TV.jsonl.gz --out movies.parquet
    """
    from ..data.convert import ConvertOptions
    from ..data.convert import convert as convert_files
    from ..data.formats import FORMATS
    from .console import counting, err, table

    if list_formats:
        rows = [[entry.name, entry.summary, ", ".join(entry.feedback)] for entry in FORMATS.values()]
        table("formats", ["--from", "what", "--feedback"], rows)
        return
    if out is None or not format:
        raise ValueError("convert: expected --from FORMAT and --out FILE")
    options = ConvertOptions(
        feedback=feedback,
        min_k=min_k,
        max_k=max_k,
        sample_k=sample_k,
        fraction=fraction,
        seed=seed,
        split_by=split_by,
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
        result = convert_files(format, inputs or [], out, options, to=to, progress=report)
    show(result)
    err.print(f"wrote {out} and its report", markup=False)


def show(report: ConvertReport) -> None:
    """Print the counts of a conversion."""
    from .console import table

    rows = [["records read", f"{report.records_read:,}"], ["bad rows skipped", f"{len(report.bad_rows):,}"]]
    rows += [[f"  without a response: {reason}", f"{n:,}"] for reason, n in report.without_response.most_common()]
    rows += [["responses read", f"{report.responses_read:,}"], ["responses kept", f"{report.responses_kept:,}"]]
    rows += [[f"  dropped: {reason}", f"{n:,}"] for reason, n in report.responses_dropped.most_common() if n]
    rows += [["slates kept", f"{report.slates_kept:,}"]]
    rows += [[f"  dropped: {reason}", f"{n:,}"] for reason, n in report.slates_dropped.most_common()]
    rows += [[f"  in {name}", f"{n:,}"] for name, n in sorted(report.splits.items()) if name != "all"]
    rows += [["  whose responses are a sample", f"{report.slates_sampled:,}"]]
    rows += [["  whose scores are all equal", f"{report.constant:,}"]]
    table(f"{report.format} to slates, score: {report.feedback}", ["", "count"], rows)


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, validation, test = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"splits: expected three numbers such as 0.8,0.1,0.1, got {text!r}") from None
    return train, validation, test


def _mapping(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not (name and column) for name, _, column in pairs):
        raise ValueError(f"map: expected NAME=COLUMN,..., got {text!r}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def _seconds(text: str) -> float:
    from datetime import datetime

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"as_of: expected a date such as 2023-09-30, got {text!r}") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
