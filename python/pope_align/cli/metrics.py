"""``pope metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ._engine_options import address_option, gpus_option, pool_of, workers_option
from .checks import check_cache, check_file, check_folder, check_input, check_json, check_log, check_model, hold_folder
from .command import group_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._arrays import Floats
    from ..data import Slate
    from ..generation.generations import GenerationSet
    from ..metrics.evaluate import ReferenceScorer
    from ..metrics.summary import MetricsReport
    from ..scale.pool import Pool


_MODELS, _READINGS, _INTERVALS = "Models", "Definitions of metrics", "Intervals"


def metrics(
    gens: Annotated[
        list[str],
        typer.Argument(help="Generations, FILE or NAME=FILE, one per model. Later ones are compared with the first."),
    ],
    refs: Annotated[Path, typer.Option(help="Slates with people's responses and votes.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for page, figures, JSON, per-slate table.")] = Path(
        "metrics"
    ),
    overwrite: Annotated[bool, typer.Option(help="Replace existing results.")] = False,
    json: Annotated[
        str | None, typer.Option(help="JSON of all results; - for standard output, which then contains nothing else.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="The model of the n-th generations, for metrics that need its probabilities; - for none.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Adapter folder of the n-th --policy; '-' for none.", rich_help_panel=_MODELS),
    ] = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(help="sentence-transformers name or folder; default: all-MiniLM-L6-v2.", rich_help_panel=_MODELS),
    ] = None,
    alignscore: Annotated[Path | None, typer.Option(help="AlignScore checkpoint.", rich_help_panel=_MODELS)] = None,
    alignscore_backbone: Annotated[
        str, typer.Option(help="The RoBERTa model that the checkpoint is based on.", rich_help_panel=_MODELS)
    ] = "roberta-base",
    entailment: Annotated[
        str | None,
        typer.Option(help="In place of AlignScore: any model of natural-language inference.", rich_help_panel=_MODELS),
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Maximum tokens of prompt and reference under --policy.", rich_help_panel=_MODELS)
    ] = 1024,
    cache: Annotated[Path, typer.Option(help="Folder for cached embeddings.", rich_help_panel=_MODELS)] = Path(
        ".pope_cache"
    ),
    threshold: Annotated[
        float, typer.Option(help="Least cosine at which an answer covers a reference.", rich_help_panel=_READINGS)
    ] = 0.8,
    coverage_k: Annotated[
        int | None, typer.Option(help="Answers that count for coverage; default: all.", rich_help_panel=_READINGS)
    ] = None,
    vote_weights: Annotated[
        Literal["log1p", "votes", "softmax", "uniform"],
        typer.Option(
            help="How votes weight references in the energy distance and the PL-Score.", rich_help_panel=_READINGS
        ),
    ] = "log1p",
    temperature: Annotated[
        float, typer.Option(help="Temperature of the distributional alignment.", rich_help_panel=_READINGS)
    ] = 0.5,
    group: Annotated[str | None, group_option("as written by convert, or the prompt", _INTERVALS)] = None,
    draws: Annotated[int, typer.Option(help="Number of bootstrap draws.", rich_help_panel=_INTERVALS)] = 2000,
    level: Annotated[float, typer.Option(help="Confidence level of the intervals.", rich_help_panel=_INTERVALS)] = 0.95,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", rich_help_panel=_INTERVALS)] = 0,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Where embeddings and log-probabilities are computed: in this process, or in Ray's."),
    ] = "local",
    workers: Annotated[int, workers_option()] = 1,
    gpus_per_worker: Annotated[float, gpus_option()] = 0,
    address: Annotated[str | None, address_option()] = None,
) -> None:
    """Measure whether answers are plural, helpful, relevant and faithful, with intervals, and compare models.

    Example:

        pope metrics base=base.parquet pope=pope.parquet --refs slates.jsonl -o report
    """
    from .._files import check_output_folder
    from ..data.split import grouping
    from .console import err, progress, show_json

    cluster = None if group is None else grouping(group)
    pool = pool_of(engine, workers, gpus_per_worker, address)
    check_log(refs, "--refs")
    for given in gens:
        check_input(given.rpartition("=")[2], "generations")
    policies = _policies(policy, adapter, len(gens))
    for _, folder in policies:
        check_folder(None if folder is None else Path(folder), "adapter_config.json", "--adapter")
    if alignscore is not None:
        check_file(alignscore, "--alignscore")
    if alignscore is not None and entailment is not None:
        raise ValueError("--entailment: expected it or --alignscore, got both")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws, level: expected an integer >= 1 and a number in (0, 1), got {draws} and {level}")
    check_output_folder(out, overwrite=overwrite)
    check_json(json, overwrite=overwrite)
    hold_folder(out)
    check_cache(cache)
    for name, _ in policies:
        if name:
            check_model(name, "--policy")
    if entailment is not None:
        check_model(entailment, "--entailment")

    from dataclasses import asdict

    from ..data import read_slates
    from ..generation.generations import read_generations
    from ..metrics.embeddings import Embedder
    from ..metrics.evaluate import evaluate_generations
    from ..metrics.faithfulness import load_alignscore, load_entailment
    from ..metrics.prompt import MetricOptions
    from ..metrics.summary import summarize, write_covered, write_json, write_prompt_metrics

    options = MetricOptions(vote_weights, threshold, coverage_k, temperature)
    sets = []
    for given in gens:
        label, _, file = given.rpartition("=")
        sets.append(read_generations(file, model=label or None))
        err.print(str(sets[-1]))
    names = [each.model for each in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"generations: expected models of different names, got {', '.join(names)}; write NAME=FILE")
    slates = read_slates(refs)
    err.print(str(slates))
    align_fn = None
    if alignscore is not None:
        align_fn = load_alignscore(alignscore, alignscore_backbone)
    elif entailment is not None:
        align_fn = load_entailment(entailment)
    embedder = Embedder(embedding_model, cache_dir=cache, pool=pool)
    tables = []
    for generations, (name, folder) in zip(sets, policies):
        scorer = _reference_scorer(name, folder, max_length, pool) if name else None
        with progress(f"embedding {generations.model}", "texts") as report:
            tables.append(
                evaluate_generations(
                    generations,
                    slates,
                    embedder=embedder,
                    options=options,
                    score_references=scorer,
                    align_fn=align_fn,
                    cluster=cluster,
                    progress=report,
                )
            )
    aligner = None if align_fn is None else f"entailment by {entailment}" if entailment else f"AlignScore {alignscore}"
    written = {**asdict(options), "embedding_model": embedder.report.model, "references": str(refs), "group": group}
    written["aligner"] = aligner
    result = summarize(tables, draws=draws, level=level, seed=seed, options=written)
    notes = [f"References: {refs.name}. Embeddings: {embedder.report}."]
    if aligner is not None:
        notes.append(f"Faithfulness (the row AlignScore): {aligner}.")
    out.mkdir(parents=True, exist_ok=True)  # before anything is printed or plotted, so that results are not lost
    write_json(result, out / "metrics.json")
    write_prompt_metrics(tables, out / "per_slate.parquet")
    write_covered(tables, out / "covered.jsonl")
    show_json(result.to_json(), json)
    if json != "-":
        _show(result, notes)
    _draw(result, sets, slates, notes, out)
    err.print(f"wrote {out}/index.html, metrics.png, pareto.png, metrics.json, per_slate.parquet, covered.jsonl")


def _draw(
    result: MetricsReport, sets: Sequence[GenerationSet], slates: Sequence[Slate], notes: list[str], out: Path
) -> None:
    from .._files import replacing
    from ..metrics.figures import bars, pareto
    from ..metrics.page import write_page

    for figure, name in ((bars, "metrics.png"), (pareto, "pareto.png")):
        with replacing(out / name) as partial:
            figure(result).savefig(partial, dpi=150)
    write_page(result, sets, slates, out / "index.html", notes=notes)


def _policies(policy: list[str] | None, adapter: list[str] | None, sets: int) -> list[tuple[str, str | None]]:
    if not policy:
        if adapter:
            raise ValueError("adapter: expected a --policy to put it on, got none")
        return [("", None)] * sets
    for option, values in (("policy", policy), ("adapter", adapter)):
        if values and len(values) != sets:
            raise ValueError(f"{option}: expected {sets}, one for each of the generations, got {len(values)}")
    folders = [None if folder == "-" else folder for folder in adapter or ["-"] * sets]
    return [("" if name == "-" else name, folder) for name, folder in zip(policy, folders)]


def _reference_scorer(name: str, adapter: str | None, max_length: int, pool: Pool | None) -> ReferenceScorer:
    from ..metrics.evaluate import policy_scores
    from ..models.loading import best_device, load_tokenizer
    from ..propensity.scores import model_provenance
    from ..scale.pool import PoolScorer, load_policy
    from .console import progress

    model, tokenizer = load_policy(name, "float32", adapter), load_tokenizer(name)
    if pool is None:
        model = model.to(best_device())
    about = model_provenance(model, tokenizer, max_length)
    elsewhere = None if pool is None else PoolScorer(pool, name, about["model_fingerprint"], adapter=adapter)

    def score(slates: Sequence[Slate]) -> list[Floats]:
        with progress(f"scoring references under {Path(name).name}", "tokens") as report:
            return policy_scores(
                slates,
                model,
                tokenizer,
                max_length=max_length,
                provenance=about,
                elsewhere=elsewhere,
                progress=report,
            )

    return score


def _show(report: MetricsReport, notes: list[str]) -> None:
    from ..metrics.page import cells, difference_label, label, summary_lines, units
    from ..metrics.registry import BY_NAME
    from .console import out, table

    for line in [*summary_lines(report), *notes]:
        out.print(line)
    columns = ["Metric"]
    for model in report.tables:
        columns += [model.model, f"{report.level:.0%} interval"]
    for comparison in report.comparisons:
        columns += [difference_label(comparison), f"{report.level:.0%} interval"]
    rows = []
    for name in report.metrics:
        digits = BY_NAME[name].digits
        row = [label(name)]
        for model in report.tables:
            row += cells(report.estimates[model.model].get(name), digits)
        for comparison in report.comparisons:
            row += cells(comparison.differences.get(name), digits, signed=True)
        rows.append(row)
    table(f"Means over slates, bootstrap intervals over {units(report)}", columns, rows, together=2)
