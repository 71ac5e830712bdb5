"""``pope metrics``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..data import Slate
    from ..metrics.evaluate import ReferenceScorer
    from ..metrics.similarity import Floats
    from ..metrics.summary import MetricsReport


def metrics(
    gens: Annotated[
        list[str],
        typer.Option(help="Generations, FILE or NAME=FILE; once per model. Later models are compared with the first."),
    ],
    refs: Annotated[Path, typer.Option(help="Slates with people's responses and votes.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for page, figures, JSON, per-slate table.")] = Path(
        "metrics"
    ),
    policy: Annotated[
        list[str] | None,
        typer.Option(help="The model of the n-th --gens, for scores of its probabilities; once per --gens."),
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Adapter folder of the n-th --policy; '-' for none.")
    ] = None,
    embedding_model: Annotated[
        str | None, typer.Option(help="sentence-transformers name or folder; default: all-MiniLM-L6-v2.")
    ] = None,
    alignscore: Annotated[Path | None, typer.Option(help="AlignScore checkpoint.", exists=True)] = None,
    alignscore_backbone: Annotated[str, typer.Option(help="The RoBERTa that the checkpoint was made from.")] = (
        "roberta-base"
    ),
    threshold: Annotated[float, typer.Option(help="Cosine at which an answer covers a reference.")] = 0.8,
    coverage_k: Annotated[int | None, typer.Option(help="Answers that count for coverage; default: all.")] = None,
    vote_weights: Annotated[
        Literal["log1p", "votes", "softmax", "uniform"],
        typer.Option(help="How votes weigh references in the energy distance and the PL-Score."),
    ] = "log1p",
    temperature: Annotated[float, typer.Option(help="Of the distributional alignment.")] = 0.5,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.")] = 2000,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and reference that --policy reads.")] = 1024,
    cache: Annotated[Path, typer.Option(help="Folder of embeddings that are known already.")] = Path(".pope_cache"),
) -> None:
    """Are the answers plural, helpful, relevant, faithful? Metrics with intervals, and models compared.

    Example:

        pope metrics --gens base=base.parquet --gens pope=pope.parquet --refs slates.jsonl --out report
    """
    from dataclasses import asdict

    from ..data import read_slates
    from ..generation.generations import read_generations
    from ..metrics.embeddings import Embedder
    from ..metrics.evaluate import MetricOptions, evaluate_generations
    from ..metrics.faithfulness import load_alignscore
    from ..metrics.figures import bars, pareto
    from ..metrics.page import write_page
    from ..metrics.summary import summarize, write_json, write_prompt_metrics
    from .console import err, progress

    options = MetricOptions(vote_weights, threshold, coverage_k, temperature)
    sets = []
    for given in gens:
        name, _, file = given.rpartition("=")
        sets.append(read_generations(file, model=name or None))
        err.print(str(sets[-1]), markup=False)
    slates = read_slates(refs)
    err.print(str(slates), markup=False)
    policies = _policies(policy, adapter, len(sets))
    align_fn = load_alignscore(alignscore, alignscore_backbone) if alignscore is not None else None
    embedder = Embedder(embedding_model, cache_dir=cache)
    tables = []
    for generations, (name, folder) in zip(sets, policies):
        scorer = _reference_scorer(name, folder, max_length) if name else None
        with progress(f"embedding {generations.model}", "texts") as report:
            tables.append(
                evaluate_generations(
                    generations,
                    slates,
                    embedder=embedder,
                    options=options,
                    score_references=scorer,
                    align_fn=align_fn,
                    progress=report,
                )
            )
    written = {**asdict(options), "embedding_model": embedder.report.model, "references": str(refs)}
    result = summarize(tables, draws=draws, level=level, seed=seed, options=written)
    notes = [f"References: {refs.name}. Embeddings: {embedder.report}."]
    out.mkdir(parents=True, exist_ok=True)
    write_json(result, out / "metrics.json")
    write_prompt_metrics(tables, out / "per_slate.parquet")
    bars(result).savefig(out / "metrics.png", dpi=150)
    pareto(result).savefig(out / "pareto.png", dpi=150)
    write_page(result, sets, slates, out / "index.html", notes=notes)
    _show(result, notes)
    err.print(f"wrote {out}/index.html, metrics.png, pareto.png, metrics.json, per_slate.parquet", markup=False)


def _policies(policy: list[str] | None, adapter: list[str] | None, sets: int) -> list[tuple[str, str | None]]:
    if not policy:
        if adapter:
            raise ValueError("adapter: expected a --policy to put it on, got none")
        return [("", None)] * sets
    for option, values in (("policy", policy), ("adapter", adapter)):
        if values and len(values) != sets:
            raise ValueError(f"{option}: expected {sets}, one per --gens, got {len(values)}")
    folders = [None if folder == "-" else folder for folder in adapter or ["-"] * sets]
    return list(zip(policy, folders))


def _reference_scorer(name: str, adapter: str | None, max_length: int) -> ReferenceScorer:
    from ..generation.generate import load_adapter
    from ..metrics.evaluate import policy_scores
    from ..model import best_device, load_model, load_tokenizer
    from .console import progress

    model = load_model(name)
    if adapter is not None:
        model = load_adapter(model, adapter)
    model, tokenizer = model.to(best_device()), load_tokenizer(name)

    def score(slates: Sequence[Slate]) -> list[Floats]:
        with progress(f"scoring references under {Path(name).name}", "tokens") as report:
            return policy_scores(slates, model, tokenizer, max_length=max_length, progress=report)

    return score


def _show(report: MetricsReport, notes: list[str]) -> None:
    from ..metrics.page import cells, difference_label, label, summary_lines
    from ..metrics.registry import BY_NAME
    from .console import out, table

    for line in [*summary_lines(report), *notes]:
        out.print(line, markup=False)
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
    table("Means over slates, bootstrap intervals over prompts", columns, rows)
