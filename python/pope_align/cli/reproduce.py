"""``pope reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..experiments.reproduce.protocol import EXPERIMENTS, Experiment
from ._stages import page_width, run_pope, run_stages, show_commands, show_plan
from .checks import NAME, check_embeddings, check_file, check_key, check_log, check_model, pairs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..experiments.reproduce.plan import ReproductionPlan, ReproductionRequest
    from ..experiments.reproduce.protocol import Protocol

_SIZE, _MODELS, _JUDGE = "Sizes", "Other models", "The judge (figure4)"

#: What an experiment may need, and the options that give it.
_NEEDS = {
    "faithfulness": "--alignscore FILE (the official checkpoint) or --entailment MODEL (your own)",
    "third_model": "--third-model MODEL, whose nats per token are the fluency",
    "judge": "--judge NAME, and --judge-url URL unless it is OpenAI's",
}


def reproduce(
    experiment: Annotated[
        Experiment, typer.Argument(metavar="NAME", help=f"{', '.join(EXPERIMENTS[:-1])} or {EXPERIMENTS[-1]}.")
    ],
    model: Annotated[str, typer.Option(help="The model to align: hub name, folder, or GGUF file.")],
    data: Annotated[
        Path, typer.Option(help="Slates: prompts with reference answers (table1, figure1), or a log of people's votes.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results, and of everything between.")],
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and fewer methods, for a first look.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its costs, and stop.")] = False,
    test: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="Slates of another domain, only tested on; repeat.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings and samples; default: 3, 1 with --quick.", rich_help_panel=_SIZE),
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method; repeat. Default: all.", rich_help_panel=_SIZE)
    ] = None,
    matching: Annotated[
        str | None,
        typer.Option(
            help="Regular expression of the prompts; default: descriptions (table1, figure1), else all.",
            rich_help_panel=_SIZE,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Change a size, e.g. answers=20; repeat.", rich_help_panel=_SIZE
        ),
    ] = None,
    logging_model: Annotated[
        str | None,
        typer.Option(
            help="Cloned as the logging policy of people's logs; default: GPT-2 Medium, with --quick the --model.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    third_model: Annotated[
        str | None, typer.Option(help="For nats per token of the answers.", rich_help_panel=_MODELS)
    ] = None,
    alignscore: Annotated[
        Path | None, typer.Option(help="AlignScore checkpoint, for faithfulness.", rich_help_panel=_MODELS)
    ] = None,
    entailment: Annotated[
        str | None, typer.Option(help="Entailment model of yours, in place of AlignScore.", rich_help_panel=_MODELS)
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Unrelated text for general abilities.", rich_help_panel=_MODELS)
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the judge at its endpoint.", rich_help_panel=_JUDGE)
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Endpoint; default: OpenAI's.", rich_help_panel=_JUDGE)
    ] = None,
) -> None:
    """Repeat an experiment of the paper, with more baselines, controls and intervals.

    It shows the plan with its costs, runs it, and writes the table in the paper's layout beside the paper's own
    numbers. A killed run continues where it stopped; after one changed option, only what depends on it is done again.
    Examples:

        pope reproduce table1 --model smollm2-135m --data prompts.jsonl --quick -o table1

        pope reproduce table3 --model M --data reddit.jsonl --test music=music.jsonl -o tables
    """
    from dataclasses import replace

    from .._files import claim_folder
    from ..experiments.reproduce.methods import chosen
    from ..experiments.reproduce.plan import ReproductionRequest
    from ..experiments.reproduce.protocol import read_protocol, read_sizes
    from .train_arguments import read_arguments

    protocol = read_protocol(experiment)
    tests = pairs("--test", test or [], "FILE")
    given = {"faithfulness": alignscore or entailment, "third_model": third_model, "judge": judge}
    _check_needs(protocol, given, tests)
    _check_used(
        protocol,
        judge=judge,
        judge_url=judge_url,
        alignscore=alignscore,
        entailment=entailment,
        text=text,
        logging_model=logging_model,
    )
    if alignscore is not None and entailment is not None:
        raise ValueError("--entailment: expected it or --alignscore, got both")
    check_log(data, "--data")
    for name, file in tests.items():
        check_log(file, f"--test {name}")
    for path, option in ((alignscore, "--alignscore"), (text, "--text")):
        if path is not None:
            check_file(path, option)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {str(out)!r}")
    if judge is not None and "judge" in protocol.needs and not dry_run:
        check_key("OPENAI_API_KEY", judge_url)
    request = ReproductionRequest(
        protocol=protocol if matching is None else replace(protocol, matching=matching),
        sizes=read_sizes(protocol, quick=quick, changes=set_ or ()),
        methods=tuple(chosen(method, own=protocol.own, quick=quick, curve=protocol.curve)),
        seeds=seeds or (1 if quick else 3),
        model=model,
        data=str(data),
        tests=tests,
        folder=out / protocol.log,
        logging_model=logging_model or (model if quick else "openai-community/gpt2-medium"),
        third_model=third_model,
        aligner=_aligner(alignscore, entailment) if "faithfulness" in protocol.needs else (),
        judge=_judge(judge, judge_url) if "judge" in protocol.needs else (),
        abilities=() if text is None else ("--text", str(text)),
    )
    named = {"--model": model, "--third-model": third_model, "--entailment": entailment}
    if not protocol.own:
        named["--logging-model"] = request.logging_model
    for option, each in named.items():
        if each is not None:
            check_model(each, option)

    for each_method in request.methods:  # its library may be missing
        read_arguments(["log.jsonl", "--model", model, *each_method.train, "-o", str(out)])
    check_embeddings()
    with claim_folder(out):
        _run(request, out, dry_run=dry_run)


def _check_needs(protocol: Protocol, given: Mapping[str, object], tests: Mapping[str, str]) -> None:
    """Refuse an experiment without what it needs, or with data sets that it has no place for."""
    for need in protocol.needs:
        if not given[need]:
            raise ValueError(f"{protocol.name}: expected {_NEEDS[need]}, got none")
    if protocol.own and tests:
        raise ValueError(
            f"--test: expected none for {protocol.name}, which has prompts of its own, got {', '.join(tests)}"
        )
    if not protocol.source and not tests:
        raise ValueError(f"--test: expected NAME=FILE of at least one other domain for {protocol.name}, got none")
    from ..experiments.reproduce.plan import SOURCE

    for name in tests:
        if not NAME.fullmatch(name) or name == SOURCE:
            raise ValueError(f"--test: expected names of letters, digits, '_', '-' and '.', not 'source', got {name!r}")


def _check_used(protocol: Protocol, **given: object) -> None:
    """Refuse options that the experiment has no use for."""
    judged, faithful = "judge" in protocol.needs, "faithfulness" in protocol.needs
    used = {
        "judge": judged,
        "judge_url": judged,
        "alignscore": faithful,
        "entailment": faithful,
        "text": protocol.shows == "table",
        "logging_model": not protocol.own,
    }
    for name, value in given.items():
        if value is not None and not used[name]:
            raise ValueError(f"--{name.replace('_', '-')}: expected none for {protocol.name}, which does not use it")


def _run(request: ReproductionRequest, out: Path, *, dry_run: bool) -> None:
    from ..experiments.reproduce.run import prepare, tuned, write
    from .console import err
    from .console import out as out_

    plan = prepare(request, run_pope)
    _show(plan, request)
    if dry_run:
        return
    if plan.tuning:
        run_stages(plan.stages[: plan.tuning_stages], request.folder)
        plan = tuned(plan)
    run_stages(plan.stages, request.folder)
    written = write(plan, out)
    out_.print(written[0].read_text(encoding="utf-8"))
    err.print(f"wrote {', '.join(map(str, written))}")


def _aligner(alignscore: Path | None, entailment: str | None) -> tuple[str, ...]:
    if alignscore is not None:
        return ("--alignscore", str(alignscore))
    return () if entailment is None else ("--entailment", entailment)


def _judge(name: str | None, url: str | None) -> tuple[str, ...]:
    return () if name is None else ("--model", name, *(() if url is None else ("--base-url", url)))


def _show(plan: ReproductionPlan, request: ReproductionRequest) -> None:
    from .console import out

    width = page_width()
    out.print(f"{request.protocol.title}: {', '.join(each.name for each in request.methods)}")
    show_plan(plan.stages, request.folder, width)
    show_commands(plan.stages, width)
    if plan.tuning:
        first = request.sizes.learning_rates[0]
        out.print(
            f"The first {plan.tuning_stages} stages choose each method's learning rate; the others are shown with "
            f"{first:g}, whatever is chosen."
        )
    out.print(f"In all, with what is there already: {plan.cost}")
