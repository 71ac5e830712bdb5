"""An experiment from its protocol to its page: parts, plan, stages, results."""

from __future__ import annotations

import json
from pathlib import Path

from ..._files import replacing, write_json, write_text
from ...compare.stages import RunCommand, Stage, check_run_folder, run_stage
from . import parts
from .figures import draw
from .page import (
    Table,
    abilities_table,
    difference_table,
    envelope_table,
    judge_table,
    main_table,
    result_json,
    rivals_table,
    tuning_table,
)
from .parts import PartCounts
from .plan import ReproductionPlan, ReproductionRequest
from .results import Results, read_results
from .stages import make_plan, preparation
from .tuning import chosen_rates


def prepare(request: ReproductionRequest, run: RunCommand) -> ReproductionPlan:
    """Make the parts of every data set, and plan the rest. Needs no model.

    Raises:
        ValueError: a folder that holds other things than a run; data that is too small.
    """
    folder = request.folder
    check_run_folder(folder, "out", "reproduction")
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, stage in preparation(request).items():
        run_stage(stage, folder, run)
        counts[name] = _counts(stage)
    return _ready(make_plan(request, counts))


def tuned(plan: ReproductionPlan) -> ReproductionPlan:
    """The plan with the learning rates that its tuning stages, which have run, choose."""
    counts = {name: _counts(stage) for name, stage in preparation(plan.request).items()}
    return _ready(make_plan(plan.request, counts, chosen_rates(plan)))


def _counts(stage: Stage) -> PartCounts:
    return PartCounts(**json.loads((Path(stage.writes[0]) / parts.COUNTS).read_text(encoding="utf-8")))


def _ready(plan: ReproductionPlan) -> ReproductionPlan:
    """The plan after its folders are made, so that its commands can be run by hand, too."""
    for stage in plan.stages:
        for path in stage.writes:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
    return plan


def results_of(plan: ReproductionPlan) -> dict[str, Results]:
    """What the stages measured, by data set."""
    draws = plan.request.sizes.draws
    return {data: read_results(plan.measured, plan.fluency, data, draws=draws) for data in plan.request.reported}


def tables(plan: ReproductionPlan, results: dict[str, Results]) -> list[Table]:
    """The page's tables."""
    found = []
    for data, of in results.items():
        found += [main_table(plan, data, of), difference_table(plan, data, of)]
        if (rivals := rivals_table(plan, data, of)) is not None:
            found.append(rivals)
        if plan.request.protocol.shows == "envelopes":
            found.append(envelope_table(plan, data, of))
        if data in plan.judged:
            found.append(judge_table(plan, data))
    if plan.tuning:
        found.append(tuning_table(plan))
    if plan.abilities:
        found.append(abilities_table(plan, draws=plan.request.sizes.draws))
    return found


def write(plan: ReproductionPlan, folder: Path) -> list[Path]:
    """The page, its numbers and, for a figure, the picture; everything is computed from what the stages wrote."""
    name, results = plan.request.protocol.name, results_of(plan)
    page, numbers, picture = (folder / f"{name}.{ending}" for ending in ("md", "json", "png"))
    title = f"# {plan.request.protocol.title}\n"
    about = f"Model: {plan.request.model}. Seeds: {plan.request.seeds}. `{name}.json` has all numbers and commands.\n"
    write_text(page, "\n".join([title, about, *(each.markdown() for each in tables(plan, results))]))
    write_json(numbers, result_json(plan, results))
    figure = draw(plan, results)
    if figure is None:
        return [page, numbers]
    with replacing(picture) as partial:
        figure.savefig(partial, dpi=150)
    return [page, numbers, picture]
