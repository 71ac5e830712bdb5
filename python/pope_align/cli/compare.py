"""``pope compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._stages import hanging, page_width, run_pope, run_stages, show_commands, show_plan
from .checks import NAME, check_embeddings, check_file, check_json, check_model, pairs, required

if TYPE_CHECKING:
    from ..compare.run import ComparisonPlan

_LOG, _ANSWERS = "The log", "Fresh answers"


def compare(
    log: Annotated[list[str], typer.Argument(help="Files of any format that `pope convert --from auto` recognises.")],
    policy: Annotated[
        list[str] | None, typer.Option(help="NAME=MODEL; at least two. The first is the baseline.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The report: .html.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of everything between; default: the report's name with .run.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look at the log and show the plan.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a report that is there.")] = False,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="The decisions; - for standard output.")] = None,
    slates: Annotated[
        int, typer.Option(min=10, help="About how many slates are used; of more, a sample.", rich_help_panel=_LOG)
    ] = 200,
    logging_policy: Annotated[
        str | None,
        typer.Option(help="The model that wrote the log; default: fitted, unless recorded.", rich_help_panel=_LOG),
    ] = None,
    utility_transform: Annotated[
        str, typer.Option(help="Scores to utilities: calibrated, log1p_calibrated, none, ...", rich_help_panel=_LOG)
    ] = "calibrated",
    max_length: Annotated[
        int, typer.Option(min=2, help="Tokens of prompt and response that are kept.", rich_help_panel=_LOG)
    ] = 1024,
    answers: Annotated[int, typer.Option(min=2, help="Of every policy to every prompt.", rich_help_panel=_ANSWERS)] = 4,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer, at most.", rich_help_panel=_ANSWERS)
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of fits, answers and bootstraps.", rich_help_panel=_ANSWERS)] = 0,
) -> None:
    """Compare models on a log, as far as the log can tell: one command from files to a report.

    It looks at the log, shows its plan with the commands that it consists of, runs them, and ends with one sentence.
    A killed run continues where it stopped; after a change of one option, only what depends on it is done again.
    Example:

        pope compare Posts.xml --policy old=./base --policy new=./new -o report.html
    """
    policies = pairs("--policy", required(policy, "--policy"), "MODEL")
    if len(policies) < 2:
        raise ValueError(f"--policy: expected at least two, to compare, got {len(policies)}")
    for name in policies:
        if not NAME.fullmatch(name):
            raise ValueError(f"--policy: expected names of letters, digits, '_', '-' and '.', got {name!r}")
    from ..report.page import check_report

    check_json(json, overwrite=overwrite)
    page, *_ = check_report(required(out, "--out"), overwrite=overwrite)
    for each in log:
        if not Path(each).is_dir() and not each.startswith("hub:"):
            check_file(Path(each), "log")
    for name, model in policies.items():
        check_model(model, f"--policy {name}")
    if logging_policy is not None:
        check_model(logging_policy, "--logging-policy")

    from ..ope.utility import TRANSFORMS

    if utility_transform not in TRANSFORMS:
        raise ValueError(f"utility_transform: expected one of {', '.join(TRANSFORMS)}, got {utility_transform!r}")
    check_embeddings()
    from .._files import claim_folder
    from ..compare.plan import Options
    from ..compare.run import prepare

    folder = run_dir or page.with_suffix(".run")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--run-dir: expected a folder, got the file {str(folder)!r}")
    options = Options(policies, logging_policy, answers, max_new_tokens, max_length, utility_transform, seed)
    with claim_folder(folder):
        plan = prepare(log, options, folder, most_slates=slates, run=run_pope)
        plan.write(options)
        if json != "-":
            _show(plan)
        if not dry_run:
            run_stages(plan.stages, plan.folder)
            plan.write(options)
            _finish(plan, page, json, overwrite=overwrite)


def _show(plan: ComparisonPlan) -> None:
    from .console import err, out

    width = page_width()
    out.print("The log")
    facts = plan.found.lines()
    for name, text in facts.items():
        out.print(hanging(f"  {name:<{max(map(len, facts))}}  ", text, width))
    out.print("\nThe plan")
    show_plan(plan.stages, plan.folder, width)
    show_commands([*plan.preparation, *plan.stages], width)
    err.print(f"everything between is kept in {plan.folder}")


def _finish(plan: ComparisonPlan, page: Path, json: str | None, *, overwrite: bool) -> None:
    from ..report.decision import decide, spoken
    from ..report.page import write_report
    from ..report.run import read_run
    from .console import err, out, show_json

    written = write_report(plan.folder, page, overwrite=overwrite)
    run = read_run(plan.folder)
    assert run.evaluation is not None  # its stage has run
    decisions = decide(run.evaluation)
    show_json({"decisions": [each.to_dict() for each in decisions]}, json)
    if json != "-":
        out.print("")
        for decision in decisions:
            out.print(decision.sentence)
            if decision.would_tell:
                out.print(f"What would tell: {'; or '.join(decision.would_tell)}.")
        for sentence in spoken(run.metrics):
            out.print(sentence)
    err.print(f"wrote {', '.join(map(str, written))}")
