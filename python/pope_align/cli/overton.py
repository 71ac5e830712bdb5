"""``pope overton``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def overton(
    ratings: Annotated[
        Path, typer.Argument(help="Slates with models and group ratings, as pope convert --from overton writes them.")
    ],
    metrics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="per_slate.parquet of pope metrics, for the same models and questions."),
    ] = None,
    threshold: Annotated[float, typer.Option(metavar="X", help="Least mean rating of a covered group.")] = 4.0,
    level: Annotated[float, typer.Option(metavar="P", help="Coverage of the intervals.")] = 0.95,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the scores as JSON; - for standard output.")
    ] = None,
) -> None:
    """The share of viewpoints that people say each model's answers represent (OvertonScore, ICLR 2026).

    With --metrics also how well each automatic metric orders the models as people do. Example:

        pope overton ratings.parquet --metrics metrics/per_slate.parquet
    """
    from dataclasses import asdict

    from ..data import read_slates
    from ..metrics.overton import human_coverage, overton_scores
    from ..stats.intervals import Confidence
    from .checks import check_file, check_json, check_log
    from .console import out, show_json, table

    check_log(ratings, "ratings")
    if metrics is not None:
        check_file(metrics, "--metrics")
    check_json(json_out, overwrite=True)
    slates, confidence = read_slates(ratings), Confidence(level=level)
    scores = overton_scores(slates, threshold, confidence)
    found: dict[str, Any] = {"threshold": threshold, "models": [asdict(score) for score in scores]}
    agreed = {} if metrics is None else _agreement(metrics, slates, *human_coverage(slates, threshold), confidence)
    found["agreement"] = {name: asdict(quantity) for name, quantity in agreed.items()}
    show_json(found, json_out)
    if json_out == "-":
        return
    rows = [
        [each.model, f"{each.score:.3f}", f"{each.adjusted:.3f}", _interval(each.deviation), f"{each.p_value:.2g}"]
        for each in scores
    ]
    table("OvertonScore", ["model", "score", "adjusted", "from the mean of all", "p"], rows)
    if agreed:
        rows = [[name, _interval(quantity)] for name, quantity in agreed.items()]
        table("Rank correlation with people's ratings, within questions", ["metric", ""], rows)
    out.print(f"a group is covered by an answer that it rates at {threshold:g} or more on average")


def _agreement(path: Path, slates: Any, models: list[str], shares: Any, confidence: Any) -> dict[str, Any]:
    """The agreement of every metric that is defined on two questions or more."""
    from .._extras import require
    from ..generation.generations import prompt_key
    from ..metrics.overton import agreement
    from ..metrics.registry import BY_NAME
    from .console import err

    rows = require("pyarrow.parquet", extra="train", purpose="to read --metrics").read_table(path).to_pylist()
    human = {
        (prompt_key(slate.prompt), model): float(shares[at, column])
        for at, slate in enumerate(slates)
        for column, model in enumerate(models)
    }
    found, undefined = {}, []
    for name in (name for name in BY_NAME if rows and name in rows[0]):
        sign = -1.0 if BY_NAME[name].better == "lower" else 1.0
        metric = {(row["prompt"], row["model"]): sign * row[name] for row in rows if row[name] is not None}
        try:
            found[name] = agreement(metric, human, confidence)
        except ValueError:
            undefined.append(name)
    if not found:
        raise ValueError("--metrics: expected models and questions of the ratings on which both differ, got none")
    if undefined:
        err.print(f"left out, because equal for all models or not defined: {', '.join(undefined)}")
    return found


def _interval(quantity: Any) -> str:
    return f"{quantity.value:+.3f} [{quantity.low:+.3f}, {quantity.high:+.3f}]"
