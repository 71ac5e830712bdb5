"""``pope inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..inspect import Inspection


def inspect(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet.", exists=True, dir_okay=False)],
    against: Annotated[
        Path | None, typer.Option(help="Another split, with which no prompt should be shared.", exists=True)
    ] = None,
    transform: Annotated[str, typer.Option(help="Of scores to utilities.")] = "minmax",
    plot: Annotated[Path | None, typer.Option(help="Draw the distributions: .png, .pdf or .svg.")] = None,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave bad rows out and count them; default: stop.")] = False,
) -> None:
    """What to look at before trusting a log: sizes, feedback, utilities, repeats, overlap, propensities. Example:

    pope inspect movies.test.parquet --against movies.train.parquet --plot movies.png
    """
    from typing import cast

    from ..data import UtilityTransform, read_slates
    from ..inspect import inspect_slates, plot_inspection
    from .console import err

    slates = read_slates(log, skip_bad_rows=skip_bad_rows)
    other = None if against is None else read_slates(against, skip_bad_rows=skip_bad_rows)
    inspection = inspect_slates(slates, transform=cast(UtilityTransform, transform), against=other)
    show(str(log), inspection)
    if plot is not None:
        plot_inspection(inspection, plot)
        err.print(f"drew {plot}", markup=False)


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
        ["slates whose scores are all equal", part(inspection.constant, slates)],
        ["slates whose prompt came before", part(inspection.repeated_prompts, slates)],
        ["responses whose text came before", part(inspection.repeated_responses, responses)],
        ["  in the same slate", part(inspection.repeated_in_slate, responses)],
    ]
    if inspection.shared_prompts is not None and inspection.shared_groups is not None:
        rows += [
            ["slates whose prompt is in the other log", part(inspection.shared_prompts, slates)],
            ["slates whose group is in the other log", part(inspection.shared_groups, slates)],
        ]
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
    if not inspection.propensities:
        return
    rows = []
    for policy in inspection.propensities:
        rare = "-" if not policy.per_token.size else f"{quantiles(policy.per_token)[1]:.3f}"
        known = policy.nats_per_token is not None
        rows.append(
            [
                policy.how + (", cross-fitted" if policy.cross_fitted else ""),
                f"{policy.responses:,}",
                f"{policy.nats_per_token:.4f}" if known else "-",
                f"{policy.perplexity:.2f}" if known else "-",
                rare,
                f"{quantiles(policy.totals)[1]:,.1f}",
                f"{policy.in_sample:,}",
                policy.model.rpartition("/")[2],
            ]
        )
    columns = [
        "logging policy",
        "responses",
        "nats/token",
        "perplexity",
        "5% nats/token",
        "5% total",
        "fitted to",
        "model",
    ]
    table("propensities", columns, rows)
