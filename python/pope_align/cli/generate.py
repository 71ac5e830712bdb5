"""``pope generate``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..generation.generate import Engine, TransformersEngine


def generate(
    model: Annotated[str, typer.Option(help="Hub name, folder, or GGUF file; with --engine openai, its name there.")],
    data: Annotated[Path, typer.Option(help="Slates whose prompts to answer: .jsonl or .parquet.", exists=True)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Generations: .parquet or .jsonl.")],
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter for the model.", exists=True)] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Answers per prompt.", min=1)] = 10,
    engine: Annotated[
        Literal["transformers", "vllm", "openai"], typer.Option(help="What runs the model.")
    ] = "transformers",
    limit: Annotated[int | None, typer.Option(help="Only the first prompts of the data.", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token each time.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from so many likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int, typer.Option(help="With the slate and the answer's number, decides the answer.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Answers decoded together (transformers); changes no text.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16", "auto"],
        typer.Option(help="Of the weights; only float32 makes answers independent of the batch to the last tie."),
    ] = "float32",
    base_url: Annotated[
        str | None, typer.Option(help="Of the endpoint (openai), e.g. http://localhost:8000/v1.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests on their way together (openai).")] = 8,
    name: Annotated[str | None, typer.Option(help="Of the model in tables and figures; default: from --model.")] = None,
) -> None:
    """Sample answers of a model to the prompts of a log.

    A killed run goes on where it stopped, and ends with the same file. Example:

        pope generate --model HuggingFaceTB/SmolLM2-135M-Instruct --data slates.jsonl --n 10 --out gens.parquet
    """
    from ..data import read_slates
    from ..generation.generate import Sampling, generate_for_slates
    from ..generation.generations import check_path, write_generations
    from .console import err, progress

    check_path(out)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k)
    slates = list(read_slates(data))[:limit]
    if engine == "transformers":
        runner: Engine = _transformers(model, adapter, dtype, batch_size)
    elif engine == "vllm":
        from ..generation.engines import VllmEngine

        runner = VllmEngine(model, adapter=adapter, dtype=dtype)
    else:
        from ..generation.endpoint import Endpoint
        from ..generation.engines import EndpointEngine

        if adapter is not None:
            raise ValueError("adapter: expected none with --engine openai, which serves what it serves")
        runner = EndpointEngine(Endpoint(model, base_url), concurrency=concurrency)
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
    os.remove(journal)
    err.print(f"wrote {generations} to {out}", markup=False)


def _transformers(model: str, adapter: Path | None, dtype: str, batch_size: int) -> TransformersEngine:
    from ..generation.generate import TransformersEngine, load_adapter
    from ..model import best_device, load_model, load_tokenizer
    from ..propensity.scoring import model_fingerprint

    policy = load_model(model, dtype=dtype)
    if adapter is not None:
        policy = load_adapter(policy, adapter)
    about = {
        "model": model,
        "adapter": str(adapter) if adapter is not None else None,
        "model_fingerprint": model_fingerprint(policy),
    }
    return TransformersEngine(policy.to(best_device()), load_tokenizer(model), batch_size=batch_size, about=about)
