"""``pope step``: the parts of a reproduction that are no other command's; ``pope reproduce`` runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .checks import check_file, check_model
from .command import Command, Group

step = typer.Typer(cls=Group, no_args_is_help=True, help="Run one of the steps that pope reproduce adds.")

_Out = Annotated[Path, typer.Option("--out", "-o", help="File to write; a folder for parts.")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")]
_MaxLength = Annotated[int, typer.Option(min=2, help="Maximum tokens of prompt and answer.")]


@step.command(cls=Command)
def parts(
    data: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet.")],
    out: _Out,
    train: Annotated[int, typer.Option(min=0, help="Slates of the training part; 0: none.")],
    test: Annotated[int, typer.Option(min=2, help="Slates of the test part.")],
    validation: Annotated[int, typer.Option(min=0, help="Slates to choose settings on; 0: none.")] = 0,
    characters: Annotated[int, typer.Option(min=0, help="Cut responses to so many, before a word; 0: uncut.")] = 0,
    most: Annotated[int, typer.Option(min=2, help="Responses of a training slate; of more, a sample.")] = 64,
    answers: Annotated[int, typer.Option(min=2, help="Answers of other people to a test prompt, at most.")] = 10,
    matching: Annotated[str, typer.Option(help="Regular expression that prompts must contain.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the split and the samples.")] = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Divide a log: training part, test prompts with references, and other people's answers to them.

    pope step parts slates.jsonl --train 24 --test 8 -o parts
    """
    import re

    from .._files import check_output_folder

    check_file(data, "data")
    check_output_folder(out, overwrite=overwrite)
    try:
        re.compile(matching)
    except re.error as error:
        raise ValueError(f"--matching: expected a regular expression, got {matching!r} ({error})") from None
    from ..data import read_slates
    from ..experiments.reproduce.parts import make_parts
    from .console import err

    counts = make_parts(
        read_slates(data),
        out,
        train=train,
        test=test,
        most=most,
        answers=answers,
        validation=validation,
        characters=characters,
        matching=matching,
        seed=seed,
    )
    err.print(f"{counts.train} training and {counts.test} test slates of {counts.matching} that match, in {out}")


@step.command(cls=Command)
def shuffle(
    log: Annotated[Path, typer.Argument(help="Slates: .jsonl or .parquet.")],
    out: _Out,
    seed: Annotated[int, typer.Option(min=0, help="Of the permutation.")] = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Permute the votes within every slate: a placebo to train on.

    pope step shuffle scored.jsonl -o shuffled.jsonl
    """
    from .._files import claim_output

    check_file(log, "log")
    with claim_output(out, overwrite=overwrite, endings=(".jsonl", ".parquet")):
        from ..data import read_slates, write_slates
        from ..experiments.reproduce.shuffled import shuffled_votes

        write_slates(shuffled_votes(read_slates(log), seed), out)


@step.command(cls=Command)
def fluency(
    gens: Annotated[Path, typer.Argument(help="Generations, as pope generate writes them.")],
    out: _Out,
    model: Annotated[str, typer.Option(help="A model that wrote none of them: hub name, folder, or GGUF file.")],
    max_length: _MaxLength = 1024,
    overwrite: _Overwrite = False,
) -> None:
    """Measure nats per token of answers under a third model.

    pope step fluency gens.jsonl --model openai-community/gpt2-large -o fluency.json
    """
    from .._files import claim_output, write_json

    check_file(gens, "gens")
    with claim_output(out, overwrite=overwrite, endings=(".json",)):
        check_model(model)
        from ..experiments.reproduce.fluency import fluency as measure
        from ..generation.generations import read_generations
        from ..models.loading import best_device, load_model, load_tokenizer
        from .console import progress

        third = load_model(model).to(best_device())
        with progress("scoring", "tokens") as report:
            content = measure(
                read_generations(gens), third, load_tokenizer(model), max_length=max_length, progress=report
            )
        write_json(out, content)


@step.command(cls=Command)
def abilities(
    model: Annotated[str, typer.Argument(help="Hub name, folder, or GGUF file.")],
    out: _Out,
    text: Annotated[Path | None, typer.Option(help="Unrelated text, UTF-8; default: one of our own.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Slates with one option scored 1 and the others 0; default: 40 of our own.")
    ] = None,
    overwrite: _Overwrite = False,
) -> None:
    """Measure general abilities: nats per token of unrelated text, and a small multiple-choice test.

    pope step abilities ./model -o abilities.json
    """
    from .._files import claim_output, write_json

    for given, name in ((text, "--text"), (questions, "--questions")):
        if given is not None:
            check_file(given, name)
    with claim_output(out, overwrite=overwrite, endings=(".json",)):
        check_model(model)
        from ..data import read_slates
        from ..experiments.reproduce.abilities import QUESTIONS, TEXT
        from ..experiments.reproduce.abilities import abilities as measure
        from ..models.loading import best_device, load_model, load_tokenizer

        policy = load_model(model).to(best_device())
        unrelated = (text or TEXT).read_text(encoding="utf-8")
        write_json(out, measure(policy, load_tokenizer(model), read_slates(questions or QUESTIONS), unrelated))
