"""``pope fit-logger``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..propensity.fit_report import FitReport


def fit_logger(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet.", exists=True, dir_okay=False)],
    model: Annotated[str, typer.Option(help="The start of the fit: hub name, folder, or GGUF file.")],
    output: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the fitted policy; with --folds, a file of scored slates.")
    ],
    folds: Annotated[
        int | None, typer.Option(help="Cross-fit: so many policies, each scoring groups that it never saw.")
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the groups that decides when to stop (without --folds).")
    ] = 0.2,
    max_length: Annotated[int, typer.Option(help="Tokens of prompt and response that are kept.")] = 1024,
    epochs: Annotated[int, typer.Option(help="Passes over the training responses, at most.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 5e-5,
    batch_slates: Annotated[int, typer.Option(help="Slates of an optimizer step.")] = 4,
    patience: Annotated[int, typer.Option(help="Stop after so many evaluations without a new best.")] = 2,
    lora_rank: Annotated[int | None, typer.Option(help="Fit an adapter of this rank; default: all weights.")] = None,
    seed: Annotated[int, typer.Option(help="Of the split, the order, dropout and the adapter.")] = 0,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], typer.Option(help="Of the model's weights.")
    ] = "float32",
    cache: Annotated[Path | None, typer.Option(help="With --folds: folder of finished batches of the scoring.")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="With --folds: replace log-probabilities that the log already has.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave bad rows out and count them; default: stop.")] = False,
) -> None:
    """Fit a language model to all logged responses: the logging policy of a log that nobody recorded it for.

    A group is what comes before '#' in a slate's slate_id, or else its prompt; groups are never split. Examples:

        pope fit-logger votes.jsonl --model openai-community/gpt2 -o logger

        pope fit-logger votes.jsonl --model openai-community/gpt2 --folds 5 -o scored.jsonl
    """
    from ..data import group_split, read_slates, slate_group, write_slates
    from ..model import best_device, load_model, load_tokenizer
    from ..propensity.behaviour_cloning import cross_fitted_slates, fit_behaviour_policy
    from ..propensity.fit_report import BehaviourConfig
    from .console import err, progress

    config = BehaviourConfig(
        max_length=max_length,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_slates=batch_slates,
        patience=patience,
        lora_rank=lora_rank,
        seed=seed,
    )
    slates = read_slates(log, skip_bad_rows=skip_bad_rows)
    err.print(str(slates), markup=False)
    tokenizer = load_tokenizer(model)
    start = load_model(model, dtype=dtype).to(best_device())
    if folds is None:
        train, heldout = group_split(slates, slate_group, holdout, seed)
        with progress("fitting", "slates") as report:
            policy = fit_behaviour_policy(start, tokenizer, train, heldout, config, progress=report)
        policy.save(output, tokenizer)
        _show([policy.report])
        err.print(f"wrote the fitted policy to {output}", markup=False)
        return
    with progress("fitting and scoring", "slates") as report:
        scored, reports = cross_fitted_slates(
            start,
            tokenizer,
            slates,
            slate_group,
            config,
            folds=folds,
            cache_dir=cache,
            overwrite=overwrite,
            progress=report,
        )
    write_slates(scored, output)
    _show(reports)
    err.print(f"wrote {len(scored)} scored slates to {output}", markup=False)


def _show(reports: list[FitReport]) -> None:
    from .console import table

    rows = []
    for fold, report in enumerate(reports):
        before, after = report.heldout_nats_per_token_before, report.heldout_nats_per_token
        best = report.evaluations[report.best]
        rows.append(
            [
                str(fold) if len(reports) > 1 else "all",
                f"{report.train_responses:,}",
                f"{report.heldout_responses:,}",
                f"{report.heldout_tokens:,}",
                f"{best.step} of {report.evaluations[-1].step}",
                "-" if report.train_nats_per_token is None else f"{report.train_nats_per_token:.4f}",
                f"{before:.4f}",
                f"{after:.4f}",
                f"{math.exp(before):.2f}",
                f"{math.exp(after):.2f}",
            ]
        )
    columns = ["fold", "trained on", "held out", "held-out tokens", "kept step", "train nats/token"]
    columns += ["nats/token before", "after", "perplexity before", "after"]
    table("behaviour-cloned logging policy, held-out responses", columns, rows)
