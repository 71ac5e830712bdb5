"""``pope generate``."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..generation.sampling import BATCH_SIZE
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

if TYPE_CHECKING:
    from ..generation.generate import Engine

_MODEL, _SAMPLING, _ENDPOINT = "The model", "Sampling", "Endpoints (--engine openai)"


def generate(
    log: Annotated[Path, typer.Argument(help="Slates whose prompts to answer: .jsonl or .parquet.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Hub name, folder, or GGUF file; with --engine openai, its name there.",
            rich_help_panel=_MODEL,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Generations: .parquet or .jsonl; without ending: a folder of shards."
        ),
    ],
    n: Annotated[int, typer.Option("--n", "-n", metavar="N", help="Answers per prompt.", min=1)] = 10,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Only the first prompts.", min=1)] = None,
    logprobs: Annotated[
        bool,
        typer.Option("--logprobs", help="Record log-probabilities of tokens, so that answers can be used as a log."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write counts as JSON; - for standard output.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Adapter for the model.", rich_help_panel=_MODEL)
    ] = None,
    engine: Annotated[
        Literal["transformers", "ray", "vllm", "openai"],
        typer.Option(
            metavar="NAME",
            help="transformers; ray: the same in processes of Ray; vllm; openai.",
            rich_help_panel=_MODEL,
        ),
    ] = "transformers",
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name in tables and figures; default: from --model.", rich_help_panel=_MODEL),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, help="Answers decoded together; does not change them.", rich_help_panel=_MODEL
        ),
    ] = BATCH_SIZE,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(
            metavar="NAME",
            help="Dtype of the weights: float32, bfloat16, float16 or auto. Only with float32 answers are exactly "
            "independent of the batch.",
            rich_help_panel=_MODEL,
        ),
    ] = "float32",
    template_date: Annotated[str | None, date_option("the day the run began", _MODEL)] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Maximum tokens of an answer.", rich_help_panel=_SAMPLING)
    ] = 256,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Sampling temperature; 0: greedy.", rich_help_panel=_SAMPLING)
    ] = 1.0,
    top_p: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="Sample from the most likely tokens with this total probability.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 1.0,
    top_k: Annotated[
        int,
        typer.Option(metavar="K", help="Sample from this many most likely tokens; 0: all.", rich_help_panel=_SAMPLING),
    ] = 0,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Seed; an answer depends on it, the slate and its number.", rich_help_panel=_SAMPLING
        ),
    ] = 0,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="E.g. http://localhost:8000/v1.", rich_help_panel=_ENDPOINT)
    ] = None,
    server: Annotated[
        Literal["openai", "vllm", "sglang"],
        typer.Option(help="What answers there; decides what its --logprobs are of.", rich_help_panel=_ENDPOINT),
    ] = "openai",
    answers_per_request: Annotated[
        int,
        typer.Option(metavar="N", min=1, help="Answers asked for in one request.", rich_help_panel=_ENDPOINT),
    ] = 1,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Concurrent requests.", rich_help_panel=_ENDPOINT)
    ] = 8,
    workers: Annotated[int, workers_option()] = 1,
    gpus_per_worker: Annotated[float, gpus_option()] = 0,
    address: Annotated[str | None, address_option()] = None,
    shard_rows: Annotated[int, rows_option()] = SHARD_ROWS,
) -> None:
    """Sample answers of a model to the prompts of a log.

    A killed run continues where it stopped and ends with the same file. Into a folder, answers are written as shards of
    Parquet, and slates that cannot be answered have the reason in the column error. Example:

        pope generate slates.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct -n 10 -o gens.parquet
    """
    from .._files import claim_output
    from ..generation.sampling import Sampling
    from .checks import check_folder, check_json, check_key, check_log, check_model, check_template_date

    check_log(log, "log")
    check_template_date(template_date)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    if logprobs:
        sampling.check_logprobs()
    if engine == "openai":
        check_key("OPENAI_API_KEY", base_url)
        if top_k:
            raise ValueError(f"top_k: expected 0 (off) with an OpenAI-compatible endpoint, got {top_k}")
        if adapter is not None:
            raise ValueError("adapter: expected none with --engine openai, whose models are fixed")
        if logprobs:
            from ..generation.recordable import check_recordable

            check_recordable(sampling, server)
    elif server != "openai" or answers_per_request != 1:
        raise ValueError(f"server, answers-per-request: expected with --engine openai only, got --engine {engine}")
    check_folder(adapter, "adapter_config.json", "--adapter")
    check_json(json_out, overwrite=overwrite)
    run = engine_of(engine, workers, gpus_per_worker, address)
    if is_folder_output(out, engine, shard_rows):
        from ..scale.generator import Generator

        if engine in ("vllm", "openai"):
            raise ValueError(f"out: expected a file with --engine {engine}, got the folder {str(out)!r}")
        if limit is not None:
            raise ValueError(f"limit: expected none with a folder, whose shards are made from all rows, got {limit}")
        check_model(model)
        step = Generator(
            model,
            name=name,
            n=n,
            sampling=sampling,
            seed=seed,
            adapter=None if adapter is None else str(adapter),
            batch_size=batch_size,
            dtype=dtype,
            logprobs=logprobs,
            template_date=template_date,
        )
        manifest = make_shards(step, log, out, "generating", engine=run, shard_rows=shard_rows, overwrite=overwrite)
        from .console import show_json

        show_json({"out": str(out), "shards": len(manifest.shards), "settings": step.settings()}, json_out)
        return
    with claim_output(out, overwrite=overwrite, endings=(".jsonl", ".parquet")):
        if engine != "openai":
            check_model(model)
        from ..data import read_slates
        from ..generation.generate import generate_for_slates, load_engine
        from ..generation.generations import write_generations
        from .console import err, progress, show_json

        slates = list(read_slates(log))[:limit]
        if engine == "transformers":
            runner: Engine = load_engine(
                model,
                adapter=adapter,
                dtype=dtype,
                batch_size=batch_size,
                logprobs=logprobs,
                template_date=template_date,
            )
        elif engine == "vllm":
            from ..generation.vllm_engine import VllmEngine

            runner = VllmEngine(model, adapter=adapter, dtype=dtype, logprobs=logprobs)
        else:
            from ..generation.endpoint import Endpoint
            from ..generation.endpoint_engine import EndpointEngine

            runner = EndpointEngine(
                Endpoint(model, base_url),
                concurrency=concurrency,
                answers_per_request=answers_per_request,
                logprobs=logprobs,
                server=server,
            )
        journal = out.with_name(out.name + ".journal")
        start = time.monotonic()
        with progress("generating", "answers") as report:

            def show(done: int, of: int, tokens: int) -> None:
                report(done, of, f"{tokens / max(time.monotonic() - start, 1e-9):.0f} tokens/s" if tokens else "")

            generations = generate_for_slates(
                runner,
                slates,
                name=name or Path(model).stem,
                n=n,
                sampling=sampling,
                seed=seed,
                journal=journal,
                progress=show,
            )
        write_generations(generations, out)
        with suppress(FileNotFoundError):
            os.remove(journal)
    err.print(f"wrote {generations} to {out}")
    show_json({"out": str(out), **generations.counts(), "settings": generations.settings}, json_out)
