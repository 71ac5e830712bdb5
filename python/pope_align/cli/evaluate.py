"""``pope evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pope_core.objective import Objective

from ._engine_options import address_option, gpus_option, pool_of
from ._evaluate_shards import columns_of, holds_rows, refuse_options
from ._objective_options import with_objective
from .checks import check_cache, check_input, check_json, check_log, check_model, check_template_date, pairs, required
from .command import date_option, group_option

if TYPE_CHECKING:
    from ..data import Slate
    from ..ope import Evaluation

_LOG, _ROWS, _INTERVALS = "The log", "Rows of responses", "Intervals"
_SCORING, _RESULTS = "Scoring of models", "Results"


@with_objective(Objective.evaluation())
def evaluate(
    log: Annotated[
        Path,
        typer.Argument(
            help="Scored slates, .jsonl or .parquet (see `pope score`); or Parquet with one row per response and its "
            "log-probabilities, a file or folder, which is read in one pass."
        ),
    ],
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=MODEL (hub name, folder, GGUF file), or NAME=COLUMN for rows of responses; repeat. The first is "
            "the baseline."
        ),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE of `pope generate` on the same log, at temperature 1; repeat. Shows whether the log covers "
            "the policy, and adds estimates with a reward model."
        ),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="pope, ips, clipped_ips, subgaussian_ips, snips, dm, dr, sndr, clipped_dr, switch_dr, dros, "
            "subgaussian_dr, slate_ips, slate_snips, pseudo_inverse or model_first; repeat. The first decides for "
            "comparisons and --require: by default model_first where every policy has --samples, else pope."
        ),
    ] = None,
    require: Annotated[
        Literal["reliable", "caution", "none"],
        typer.Option(
            help="Exit with code 1 unless the first estimator's verdict on every policy is at least this good."
        ),
    ] = "none",
    *,
    objective: Objective,
    utility_transform: Annotated[
        str, typer.Option(help="Scores to utilities: calibrated, log1p_calibrated, none, ...", rich_help_panel=_LOG)
    ] = "calibrated",
    score_range: Annotated[
        tuple[float, float] | None,
        typer.Option(
            help="Smallest and largest possible score; default: 0 and 1, or the log's.",
            rich_help_panel=_LOG,
            show_default=False,
        ),
    ] = None,
    group: Annotated[str | None, group_option("as written by convert, or the prompt", _INTERVALS)] = None,
    logging_policy: Annotated[
        str | None,
        typer.Option(
            help="The model that wrote the log, to score --samples with; default: the policy with its weights.",
            rich_help_panel=_LOG,
        ),
    ] = None,
    by_raters: Annotated[
        bool,
        typer.Option(
            "--by-raters",
            help="The value to every group of raters, the worst-served one and the gap, for slates with ratings.",
        ),
    ] = False,
    lam: Annotated[
        float | None,
        typer.Option(help="Shrinkage of clipped_ips and similar estimators; default: chosen from the data."),
    ] = None,
    interval: Annotated[
        Literal["t", "bootstrap", "bayesian", "empirical_likelihood", "anytime"],
        typer.Option(
            help="Method of the intervals; empirical_likelihood: for few prompts with uneven weights; anytime: for a "
            "log that grows and is evaluated repeatedly.",
            rich_help_panel=_INTERVALS,
        ),
    ] = "t",
    level: Annotated[float, typer.Option(help="Coverage of the intervals.", rich_help_panel=_INTERVALS)] = 0.95,
    draws: Annotated[int, typer.Option(help="Number of bootstrap draws.", rich_help_panel=_INTERVALS)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", rich_help_panel=_INTERVALS)] = 0,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="For rows of responses: KIND=COLUMN, where KIND is query, logging_logprob, score, cluster or tokens; "
            "repeat. Default: columns of the first three names.",
            rich_help_panel=_ROWS,
            show_default=False,
        ),
    ] = None,
    how: Annotated[
        Literal["recorded", "behaviour_cloned", "proxy", "unknown"],
        typer.Option(help="For rows of responses: where logging_logprob comes from.", rich_help_panel=_ROWS),
    ] = "unknown",
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="For rows of responses: shards that are read at the same time. With --engine ray: processes with the "
            "model.",
        ),
    ] = 1,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of tokens of prompt and response; default: as the log was scored.",
            rich_help_panel=_SCORING,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"] | None,
        typer.Option(help="Dtype of the models' weights; default: as the log was scored.", rich_help_panel=_SCORING),
    ] = None,
    template_date: Annotated[str | None, date_option("as the log was scored", _SCORING)] = None,
    batch_tokens: Annotated[
        int, typer.Option(help="Maximum tokens of a forward pass (rows times length).", rich_help_panel=_SCORING)
    ] = 8192,
    cache: Annotated[
        Path,
        typer.Option(help="Folder for finished batches, from which a killed run continues.", rich_help_panel=_SCORING),
    ] = Path(".pope_cache"),
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where models score: in this process, or in Ray's.", rich_help_panel=_SCORING),
    ] = "local",
    gpus_per_worker: Annotated[float, gpus_option()] = 0,
    address: Annotated[str | None, address_option()] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for all results.", rich_help_panel=_RESULTS)
    ] = None,
    json: Annotated[
        str | None,
        typer.Option(
            help="The same; - for standard output, which then contains nothing else.", rich_help_panel=_RESULTS
        ),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture: .png, .svg or .pdf.", rich_help_panel=_RESULTS)] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing results.", rich_help_panel=_RESULTS)] = False,
) -> None:
    """Estimate the value of policies from a log, and whether the estimate can be trusted.

    Exit code 0: done, and --require is met; 1: it is not met; 2: the input is invalid. Example:

        pope evaluate scored.parquet --policy base=./base --policy new=./new --require caution
    """
    from .._files import check_output
    from ..data.split import grouping
    from .console import err, show_json

    cluster = None if group is None else grouping(group)
    rows = holds_rows(log)
    if rows:
        scoring = {"--max-length": max_length, "--dtype": dtype, "--template-date": template_date}
        others = {"--samples": samples, "--group": group, "--logging-policy": logging_policy, "--figure": figure}
        refuse_options({**others, **scoring, "--by-raters": by_raters, "--engine ray": engine == "ray"}, rows=True)
    else:
        check_log(log, "log")
        of_rows = {"--workers": workers != 1 and engine == "local"}
        refuse_options({"--columns": columns, "--how": how != "unknown", **of_rows}, rows=False)
    pool = pool_of(engine, 1 if rows else workers, gpus_per_worker, address)
    check_template_date(template_date)
    policies = pairs("--policy", required(policy, "--policy"), "COLUMN" if rows else "MODEL")
    sampled = pairs("--samples", samples or [], "FILE")
    for name, file in sampled.items():
        check_input(file, f"--samples {name}")
    if unknown := sorted(set(sampled) - set(policies)):
        raise ValueError(f"--samples: expected names among {', '.join(policies)}, got {', '.join(unknown)}")
    check_json(json, overwrite=overwrite)
    if out is not None:
        check_output(out, overwrite=overwrite)
    if figure is not None:
        check_output(figure, overwrite=overwrite, endings=(".png", ".svg", ".pdf"), argument="figure")
    if not rows:
        check_cache(cache)
    for name, model in {} if rows else policies.items():
        check_model(model, f"--policy {name}")
    if logging_policy is not None:
        check_model(logging_policy, "--logging-policy")

    from ..data import read_slates
    from ..ope import Confidence, Scoring, evaluate_policies, evaluate_shards
    from ..ope.asked import check_by_raters, check_estimators, wanted
    from .console import progress_by_name

    confidence = Confidence(interval, level, draws, seed)
    if rows:
        evaluation = evaluate_shards(
            log,
            policies,
            columns=columns_of(columns or []),
            objective=objective,
            estimators=estimator,
            lam=lam,
            utility_transform=utility_transform,  # type: ignore[arg-type]  # checked there, by name
            score_range=score_range,
            how=how,
            confidence=confidence,
            workers=workers,
        )
    else:
        check_estimators(wanted(estimator, objective), lam, list(policies), list(sampled))
        if by_raters:
            check_by_raters(estimator, objective, confidence)
        slates = read_slates(log)
        err.print(str(slates))
        fresh, finished = _samples(sampled, slates)
        with progress_by_name("scoring", "tokens") as report:
            evaluation = evaluate_policies(
                slates,
                policies,
                objective=objective,
                samples=fresh,
                samples_finished=finished,
                logging_policy=logging_policy,
                estimators=estimator,
                lam=lam,
                utility_transform=utility_transform,  # type: ignore[arg-type]  # checked there, by name
                score_range=score_range,
                cluster=cluster,
                by_raters=by_raters,
                confidence=confidence,
                scoring=Scoring(max_length, dtype, batch_tokens, cache, template_date, pool),
                report=report,
            )
    if out is not None:  # before anything is printed or plotted, so that results are not lost
        evaluation.write_json(out)
        err.print(f"wrote {out}")
    show_json(evaluation.to_dict(), json)
    if json != "-":
        _show(evaluation)
    if figure is not None:
        evaluation.write_figure(figure)
        err.print(f"wrote {figure}")
    if require != "none" and not evaluation.meets(require):
        err.print(f"not every policy is {require} by {evaluation.estimators[0]}")
        raise typer.Exit(1)


def _samples(
    given: dict[str, str], slates: Sequence[Slate]
) -> tuple[dict[str, list[list[str]]], dict[str, list[list[bool]]]]:
    """Fresh responses of each policy, for every slate; and which of them the policy ended itself, where known."""
    from ..generation.generations import read_generations, slate_keys
    from ..generation.sampling import sampled_with

    samples, finished = {}, {}
    for name, path in given.items():
        generations = read_generations(path)
        if other := sampled_with(generations.settings):
            how = ", ".join(f"{key} {value}" for key, value in other.items())
            raise ValueError(
                f"{path}: expected responses drawn from the policy itself (temperature 1, no truncation), got {how}"
            )
        texts = {generation.key: generation.texts for generation in generations.rows}
        keys = slate_keys(slates)
        if missing := [key for key in keys if key not in texts]:
            raise ValueError(
                f"{path}: expected responses to every slate, got none for {len(missing)}, e.g. {missing[0]!r}"
            )
        samples[name] = [texts[key] for key in keys]
        ended = {generation.key: generation.finished for generation in generations.rows}
        if any(ended.values()):
            finished[name] = [ended[key] or [True] * len(texts[key]) for key in keys]
    return samples, finished


def _show(evaluation: Evaluation) -> None:
    from ._evaluation_tables import lines, tables
    from .console import out, table

    for title, columns, rows in tables(evaluation, struck=out.is_terminal):
        table(title, columns, rows)
    for line in lines(evaluation):
        out.print(line)
