"""``pope fit-logger``."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from .command import date_option

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..data import SlateLog
    from ..propensity.fit_report import BehaviourConfig, FitReport


def fit_logger(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet; a folder, glob or address of such files.")],
    model: Annotated[str, typer.Option(help="Model to start from: hub name, folder, or GGUF file.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder of the fitted policy; with --folds, a file of scored slates.")
    ],
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Cross-fit this many policies; each scores one fold and is fitted to the others."),
    ] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of the groups held out to decide when to stop (without --folds).")
    ] = 0.2,
    max_length: Annotated[int, typer.Option(min=2, help="Maximum number of tokens of prompt and response.")] = 1024,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum number of passes over the training responses.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-5,
    batch_slates: Annotated[int, typer.Option(min=1, help="Slates per optimizer step.")] = 4,
    micro_batch_slates: Annotated[int, typer.Option(min=1, help="Slates per forward pass.")] = 1,
    patience: Annotated[int, typer.Option(min=1, help="Stop after this many evaluations without a new best.")] = 2,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Fit an adapter of this rank; default: all weights.")
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations in backward to save memory.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, the order, dropout and the adapter.")] = 0,
    template_date: Annotated[str | None, date_option("the day the fit began")] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], typer.Option(help="Dtype of the model's weights.")
    ] = "float32",
    cache: Annotated[Path, typer.Option(help="With --folds: folder for finished batches of scoring.")] = Path(
        ".pope_cache"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted fit.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing results, and log-probabilities that the log already has."),
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip and count bad rows; default: stop.")] = False,
) -> None:
    """Fit a language model to all logged responses, as the logging policy of a log without recorded propensities.

    A group is what `pope convert --group` wrote, or else what comes before '#' in a slate's slate_id, or else its
    prompt; groups are never split. A checkpoint is written at every evaluation, and --resume continues from it. On
    several devices: accelerate launch -m pope_align.cli fit-logger ... Examples:

        pope fit-logger votes.jsonl --model openai-community/gpt2 -o logger

        pope fit-logger votes.jsonl --model openai-community/gpt2 --folds 5 -o scored.jsonl
    """
    from ..propensity.fit_report import BehaviourConfig
    from .checks import check_cache, check_log, check_model

    config = BehaviourConfig(
        max_length=max_length,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_slates=batch_slates,
        patience=patience,
        lora_rank=lora_rank,
        seed=seed,
        micro_batch_slates=micro_batch_slates,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        template_date=template_date,
    )
    if not 0 < holdout < 1:
        raise ValueError(f"--holdout: expected a share in (0, 1), got {holdout}")
    check_log(log, "LOG")
    if folds is not None:
        check_cache(cache)
    check_model(model)
    source = _Source(log, model, dtype, skip_bad_rows, config)
    if folds is None:
        _fit_one(source, out, holdout, resume=resume, overwrite=overwrite)
    else:
        _cross_fit(source, out, folds, cache, resume=resume, overwrite=overwrite)


class _Source(NamedTuple):
    """The log and the model."""

    log: Path
    model: str
    dtype: str
    skip_bad_rows: bool
    config: BehaviourConfig

    def slates(self) -> SlateLog:
        from ..data import read_slates
        from .console import err

        slates = read_slates(self.log, skip_bad_rows=self.skip_bad_rows)
        err.print(str(slates), markup=False)
        return slates

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        from ..models.loading import best_device, load_model, load_tokenizer

        tokenizer = load_tokenizer(self.model)
        return load_model(self.model, dtype=self.dtype).to(best_device()), tokenizer


def _fit_one(source: _Source, target: Path, holdout: float, *, resume: bool, overwrite: bool) -> None:
    from .checks import check_results_folder, hold_folder, is_main_process

    work = target / "checkpoints"
    if is_main_process():
        check_results_folder(target, overwrite=overwrite, resume=resume, flag="--resume")
        hold_folder(target)
        _begin(work, resume)
    from ..data import group_split, slate_group

    train, heldout = group_split(source.slates(), slate_group, holdout, source.config.seed)
    from ..propensity.behaviour_cloning import fit_behaviour_policy
    from .console import err, progress

    model, tokenizer = source.load()
    with progress("fitting", "slates") as report:
        policy = fit_behaviour_policy(
            model, tokenizer, train, heldout, source.config, checkpoints=work, resume=resume, progress=report
        )
    if is_main_process():
        policy.save(target, tokenizer)
        shutil.rmtree(work, ignore_errors=True)
        _show([policy.report])
        err.print(f"wrote the fitted policy to {target}", markup=False)


def _cross_fit(source: _Source, target: Path, folds: int, cache: Path, *, resume: bool, overwrite: bool) -> None:
    from .checks import claimed_by_main_process, is_main_process

    work = target.with_name(f"{target.name}.fits")
    if is_main_process() and work.is_dir() and any(work.iterdir()) and not (resume or overwrite):
        raise ValueError(
            f"out: {work}: holds the fits of a run that was stopped; pass --resume to continue that run, or "
            "--overwrite to begin again"
        )
    with claimed_by_main_process(target, overwrite=overwrite, endings=(".jsonl", ".parquet")):
        slates = source.slates()
        if not overwrite:
            from ..propensity.unscored import check_unscored

            check_unscored(slates)
        if is_main_process():
            _begin(work, resume)
        from ..data import slate_group, write_slates
        from ..propensity.behaviour_cloning import cross_fitted_slates
        from .console import err, progress

        model, tokenizer = source.load()
        with progress("fitting and scoring", "slates") as report:
            scored, reports = cross_fitted_slates(
                model,
                tokenizer,
                slates,
                slate_group,
                source.config,
                folds=folds,
                work_dir=work,
                resume=resume,
                cache_dir=cache if is_main_process() else None,
                overwrite=overwrite,
                progress=report,
            )
        if is_main_process():
            write_slates(scored, target)
            shutil.rmtree(work, ignore_errors=True)
            _show(reports)
            err.print(f"wrote {len(scored)} scored slates to {target}", markup=False)


def _begin(work: Path, resume: bool) -> None:
    """Remove what an earlier fit left, unless this one continues it."""
    if not resume:
        shutil.rmtree(work, ignore_errors=True)


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
