"""``pope score``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ._engine_options import (
    SHARD_ROWS,
    address_option,
    engine_of,
    gpus_option,
    is_folder_output,
    make_shards,
    rows_option,
    workers_option,
)
from .command import date_option

_CACHE = Path(".pope_cache")


def score(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet; a folder, glob or address of such files.")],
    model: Annotated[str, typer.Option(help="The logging policy: hub name, folder, or GGUF file.")],
    how: Annotated[
        Literal["recorded", "behaviour_cloned", "proxy"],
        typer.Option(help="Relation of the model to the log: it wrote it, was fitted to it, or is a stand-in."),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Scored slates: .jsonl or .parquet; without ending: a folder of shards.")
    ],
    max_length: Annotated[int, typer.Option(min=2, help="Maximum number of tokens of prompt and response.")] = 1024,
    batch_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum tokens of a forward pass (rows times length).")
    ] = 8192,
    cache: Annotated[
        Path,
        typer.Option(help="Folder for finished batches, from which a killed run continues (files only)."),
    ] = _CACHE,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"], typer.Option(help="Dtype of the model's weights.")
    ] = "float32",
    template_date: Annotated[str | None, date_option("the log's own, or today")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace an existing file, and log-probabilities that the log already has.")
    ] = False,
    skip_bad_rows: Annotated[bool, typer.Option(help="Skip and count bad rows; default: stop.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where the model runs: in this process, or in Ray's.")
    ] = "local",
    workers: Annotated[int, workers_option()] = 1,
    gpus_per_worker: Annotated[float, gpus_option()] = 0,
    address: Annotated[str | None, address_option()] = None,
    shard_rows: Annotated[int, rows_option()] = SHARD_ROWS,
) -> None:
    """Compute the log-probability of every response under a logging policy, and record where it came from.

    Training and evaluation use them as propensities. Into a folder, slates are written as shards of Parquet, rows that
    cannot be scored have the reason in the column error, and a repeated command makes what is missing; there is no
    cache. Example:

        pope score votes.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --how proxy -o scored.jsonl
    """
    from .._files import claim_output
    from .checks import check_cache, check_log, check_model, check_template_date

    check_log(log, "LOG")
    check_template_date(template_date)
    run = engine_of(engine, workers, gpus_per_worker, address)
    if is_folder_output(out, engine, shard_rows):
        from ..scale.scorer import Scorer

        if cache != _CACHE:
            raise ValueError("--cache: expected none with a folder for --out, whose shards are what a repeat keeps")
        check_model(model)
        step = Scorer(
            model,
            how=how,
            max_length=max_length,
            batch_tokens=batch_tokens,
            dtype=dtype,
            template_date=template_date,
            overwrite=overwrite,
        )
        make_shards(step, log, out, "scoring", engine=run, shard_rows=shard_rows, overwrite=overwrite)
        return
    with claim_output(out, overwrite=overwrite, endings=(".jsonl", ".parquet"), remote=True):
        check_cache(cache)
        check_model(model)
        from ..data import read_slates, write_slates
        from ..propensity.unscored import check_unscored
        from .console import err, progress

        slates = read_slates(log, skip_bad_rows=skip_bad_rows)
        err.print(str(slates), markup=False)
        if not overwrite:
            check_unscored(slates)
        from ..models.loading import best_device, load_model, load_tokenizer
        from ..propensity.fit_report import FitReport
        from ..propensity.logging_policy import score_slates

        tokenizer = load_tokenizer(model)
        policy = load_model(model, dtype=dtype).to(best_device())
        with progress("scoring", "tokens") as report:
            scored = score_slates(
                slates,
                policy,
                tokenizer,
                how=how,
                max_length=max_length,
                batch_tokens=batch_tokens,
                cache_dir=cache,
                overwrite=overwrite,
                template_date=template_date,
                fit=FitReport.read(model) if how == "behaviour_cloned" else None,
                progress=report,
            )
        write_slates(scored, out)
    err.print(f"wrote {len(scored)} scored slates to {out}", markup=False)
