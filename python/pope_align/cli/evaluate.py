"""``pope evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..data import Slate
    from ..ope import Comparison, Estimate, Evaluation


def evaluate(
    log: Annotated[
        Path, typer.Option(help="Scored slates: .jsonl or .parquet; see `pope score`.", exists=True, dir_okay=False)
    ],
    policy: Annotated[
        list[str], typer.Option(help="NAME=MODEL (hub name, folder, GGUF file); repeat. The first is the baseline.")
    ],
    estimator: Annotated[
        list[str] | None, typer.Option(help="pope, ips, snips, ...; repeat. The first one decides.")
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE of `pope generate` on the same log; repeat. Adds reward-model estimates."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="JSON of everything.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Picture: .png, .svg or .pdf.")] = None,
    require: Annotated[
        Literal["reliable", "caution", "none"],
        typer.Option(help="Exit with code 1 unless the first estimator's verdict on every policy is so good."),
    ] = "none",
    diversity_weight: Annotated[float, typer.Option(help="alpha, the weight of diversity against utility.")] = 0.1,
    length_normalize: Annotated[
        bool, typer.Option(help="Means per token (biased, less variance), or totals: true importance weights.")
    ] = True,
    clip: Annotated[float | None, typer.Option(help="Largest weight of the estimator pope.")] = None,
    lam: Annotated[float | None, typer.Option(help="Shrinkage of clipped_ips and its kin; default: SLOPE.")] = None,
    utility_transform: Annotated[
        Literal["minmax", "log1p_minmax", "rank", "softmax", "plackett_luce", "none"],
        typer.Option(help="Scores to utilities."),
    ] = "minmax",
    cluster_prefix: Annotated[
        str | None,
        typer.Option(help="Slates whose slate_id agrees up to this text are one unit; default: those of one prompt."),
    ] = None,
    interval: Annotated[Literal["t", "bootstrap", "bayesian"], typer.Option(help="How intervals are made.")] = "t",
    level: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    draws: Annotated[int, typer.Option(help="Of the bootstraps.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstraps.")] = 0,
    max_length: Annotated[int | None, typer.Option(help="Tokens kept; default: as the log was scored.")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"] | None,
        typer.Option(help="Of the models' weights; default: as the log was scored."),
    ] = None,
    batch_tokens: Annotated[int, typer.Option(help="Rows times length of a forward pass, at most.")] = 8192,
    cache: Annotated[Path, typer.Option(help="Folder of finished batches: a killed run goes on from there.")] = Path(
        ".pope_cache"
    ),
) -> None:
    """Estimate what policies are worth from a log, and whether to believe it.

    Exit code 0: done, and --require is met; 1: it is not; 2: the input is at fault. Example:

        pope evaluate --log scored.parquet --policy base=./base --policy new=./new --require caution
    """
    from ..data import read_slates
    from ..ope import Confidence, Scoring, evaluate_policies
    from .console import err, progress

    slates = read_slates(log)
    err.print(str(slates), markup=False)
    with progress("scoring", "tokens") as report:
        evaluation = evaluate_policies(
            slates,
            _pairs("--policy", policy, "MODEL"),
            samples=_samples(samples or [], slates),
            estimators=estimator,
            diversity_weight=diversity_weight,
            clip=clip,
            length_normalize=length_normalize,
            lam=lam,
            utility_transform=utility_transform,
            cluster=None
            if cluster_prefix is None
            else lambda slate: (slate.slate_id or "").partition(cluster_prefix)[0],
            confidence=Confidence(interval, level, draws, seed),
            scoring=Scoring(max_length, dtype, batch_tokens, cache),
            report=lambda name, done, of: report(done, of),
        )
    _show(evaluation)
    if output is not None:
        evaluation.write_json(output)
        err.print(f"wrote {output}", markup=False)
    if figure is not None:
        evaluation.write_figure(figure)
        err.print(f"wrote {figure}", markup=False)
    if require != "none" and not evaluation.meets(require):
        err.print(f"not every policy is {require} by {evaluation.estimators[0]}", markup=False)
        raise typer.Exit(1)


def _pairs(option: str, given: list[str], what: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise ValueError(f"{option}: expected NAME={what}, got {pair!r}")
        if name in pairs:
            raise ValueError(f"{option}: expected distinct names, got {name!r} twice")
        pairs[name] = value
    return pairs


def _samples(given: list[str], slates: Sequence[Slate]) -> dict[str, list[list[str]]]:
    """Fresh responses by policy, slate by slate."""
    from ..generation.generations import read_generations, slate_keys

    samples = {}
    for name, path in _pairs("--samples", given, "FILE").items():
        texts = {generation.key: generation.texts for generation in read_generations(path)}
        keys = slate_keys(slates)
        if missing := [key for key in keys if key not in texts]:
            raise ValueError(
                f"{path}: expected responses to every slate, got none for {len(missing)}, e.g. {missing[0]!r}"
            )
        samples[name] = [texts[key] for key in keys]
    return samples


def _show(evaluation: Evaluation) -> None:
    from .console import out, table

    columns = ["estimator", "V", "interval", "V_CU", "V_Div", "ESS", "k-hat", "verdict"]
    for name in evaluation.policies:
        mine = [each for each in evaluation.estimates if each.policy == name]
        first = mine[0]
        size = f"{first.num_responses} responses, {first.num_slates} slates, {first.num_clusters} queries"
        title = f"{name}: {size}; {first.estimator}: {', '.join(first.labels) or 'unnormalised'}"
        table(title, columns, [_row(each) for each in mine])
        for each in mine:
            if each.chosen:
                facts = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in each.chosen.items())
                out.print(f"  {each.estimator}: {facts}", markup=False)
        by_reason: dict[str, list[str]] = {}
        for each in mine:
            for reason in each.reasons:
                by_reason.setdefault(reason, []).append(each.estimator)
        for reason, estimators in by_reason.items():
            out.print(f"  {reason} ({', '.join(estimators)})", markup=False)
    if evaluation.comparisons:
        title = f"Against {evaluation.baseline}, paired, by {evaluation.estimators[0]}"
        table(
            title,
            ["policy", "difference of V", "of V_CU", "of V_Div", "P(better)", "verdict"],
            [_compared(each) for each in evaluation.comparisons],
        )


def _row(each: Estimate) -> list[str]:
    diagnostics = each.diagnostics
    shown = [f"{each.value:.4g}", f"{each.low:.4g} … {each.high:.4g}"]
    parts = [f"{each.utility.value:.4g}", f"{each.diversity.value:.4g}"]
    if each.estimator.startswith("set:"):
        parts[1] = "-"
    ess = "-" if diagnostics is None else f"{diagnostics.ess:.0f} ({diagnostics.ess_fraction:.0%})"
    tail = "-" if diagnostics is None else f"{diagnostics.pareto_k:.2f}"
    cells = [_struck(cell, each.verdict) for cell in [*shown, *parts]]
    return [each.estimator, *cells, ess, tail, each.verdict]


def _compared(each: Comparison) -> list[str]:
    cells = [f"{q.value:+.3g} ({q.low:+.3g} … {q.high:+.3g})" for q in (each.difference, each.utility, each.diversity)]
    return [each.policy, *(_struck(cell, each.verdict) for cell in [*cells, f"{each.probability:.3f}"]), each.verdict]


def _struck(cell: str, verdict: str) -> str:
    """A refused value is shown struck out, in any terminal and in files."""
    return "".join(letter + "\u0336" for letter in cell) if verdict == "refuse" else cell
