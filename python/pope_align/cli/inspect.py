"""``pope inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .command import group_option

if TYPE_CHECKING:
    from ..disagreement import Raters
    from ..inspect import Inspection


def inspect(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet; a folder, glob or address of such files.")],
    against: Annotated[
        Path | None,
        typer.Option(metavar="LOG", help="Another split, which should share no prompt or group."),
    ] = None,
    group: Annotated[
        str | None, group_option("as written by convert, or the id up to its first #, or the prompt")
    ] = None,
    transform: Annotated[
        Literal["minmax", "log1p_minmax", "rank", "softmax", "plackett_luce", "none"],
        typer.Option(metavar="NAME", help="Transform of scores to utilities, as in training."),
    ] = "minmax",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Draw the distributions: .png, .pdf or .svg.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the numbers as JSON; - for standard output.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip and count bad rows; default: stop.")
    ] = False,
) -> None:
    """Show what to check before using a log: sizes, feedback, utilities, repeats, overlap, propensities.

    pope inspect movies.test.parquet --against movies.train.parquet -o movies.png
    """
    from .._files import check_output
    from ..data.schema import read_slates
    from ..data.split import grouping
    from ..inspect import inspect_slates, plot_inspection
    from .checks import check_json, check_log
    from .console import err, show_json

    grouping(group)
    check_json(json, overwrite=overwrite)
    if out is not None:
        check_output(out, overwrite=overwrite, endings=(".png", ".pdf", ".svg"))
    check_log(log, "LOG")
    if against is not None:
        check_log(against, "--against")
    slates = read_slates(log, skip_bad_rows=skip_bad_rows)
    other = None if against is None else read_slates(against, skip_bad_rows=skip_bad_rows)
    inspection = inspect_slates(slates, transform=transform, against=other, group=group)
    if json is not None:
        show_json({"log": str(log), **inspection.to_dict()}, json)
    if json != "-":
        show(str(log), inspection)
    for skipped in (slates, other):
        if skipped is not None and skipped.skipped:
            err.print(f"{skipped.source}: {skipped.skipped:,} bad rows skipped, the first: {skipped.skip_reasons[0]}")
    for kind, remarks in (("warning", inspection.warnings), ("hint", inspection.hints)):
        for remark in remarks:
            err.print(f"{kind}: {remark}")
    if out is not None:
        plot_inspection(inspection, out, name=log.name)
        err.print(f"drew {out}")


def show(name: str, inspection: Inspection) -> None:
    """Print an inspection."""
    from ..inspect import quantiles
    from .console import table

    def part(count: int, of: int) -> str:
        return f"{count:,} ({count / of:.1%})"

    slates, responses = inspection.slates, inspection.responses
    rows = [["slates", f"{slates:,}"], ["responses", f"{responses:,}"], ["groups", f"{inspection.groups:,}"]]
    rows += [[f"from {origin}", part(count, slates)] for origin, count in inspection.origins.items()]
    rows += [
        ["slates with equal scores", part(inspection.constant, slates)],
        ["slates with a repeated prompt", part(inspection.repeated_prompts, slates)],
        ["repeated responses", part(inspection.repeated_responses, responses)],
        ["  in the same slate", part(inspection.repeated_in_slate, responses)],
    ]
    compared = [
        ("slates whose prompt is in the other log", inspection.shared_prompts),
        ("slates whose prompt is nearly in the other log", inspection.near_prompts),
        ("slates whose group is in the other log", inspection.shared_groups),
    ]
    rows += [[what, part(count, slates)] for what, count in compared if count is not None]
    rows += [["slates without log-probabilities", part(inspection.unscored, slates)]]
    table(name, ["", "count"], rows)
    spreads = {
        "responses per slate": inspection.k,
        "characters per prompt": inspection.prompt_chars,
        "characters per response": inspection.response_chars,
        "score": inspection.scores,
        f"utility ({inspection.transform})": inspection.utilities,
    }
    rows = [[label, *(f"{value:,.4g}" for value in quantiles(values))] for label, values in spreads.items()]
    table("distributions", ["", "least", "5%", "median", "95%", "greatest"], rows)
    if inspection.raters is not None:
        _show_raters(inspection.raters)
    for policy in inspection.propensities:
        known = policy.nats_per_token is not None
        rows = [
            ["model", policy.model.rpartition("/")[2]],
            ["responses", f"{policy.responses:,}"],
            ["  fitted to", f"{policy.in_sample:,}"],
            ["nats per token", f"{policy.nats_per_token:.4f}" if known else "-"],
            ["perplexity", f"{policy.perplexity:.2f}" if known else "-"],
            ["  5% of responses below, nats per token", f"{quantiles(policy.per_token)[1]:.3f}" if known else "-"],
            ["  5% of responses below, nats", f"{quantiles(policy.totals)[1]:,.1f}"],
        ]
        table("propensities: " + policy.how + (", cross-fitted" if policy.cross_fitted else ""), ["", ""], rows)


def _show_raters(raters: Raters) -> None:
    """Print who rated, and how far they disagree."""
    from .console import table

    def known(number: float | None) -> str:
        return "-" if number is None else f"{number:,.4g}"

    rows = [
        ["annotators", known(raters.annotators)],
        ["ratings", known(raters.ratings)],
        ["  of a response", known(raters.per_response)],
        ["standard deviation within a response", known(raters.within)],
        ["Krippendorff's alpha (1: all agree, 0: as by chance)", known(raters.alpha)],
        ["slates that several groups rated", known(raters.compared)],
        ["  in which two groups share no favourite", known(raters.apart)],
    ]
    table("raters", ["", ""], rows)
    if raters.groups:
        rows = [[name, *map(known, values)] for name, values in raters.groups.items()]
        table("groups of raters", ["", "annotators", "ratings", "mean"], rows)
