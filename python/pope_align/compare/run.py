"""A comparison from files to a page: the log is looked at, the plan made, its stages run, the report written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .._files import report_path, write_json
from ..data.schema import read_slates
from ..report.run import ANSWERS, PLAN, SLATES
from .plan import Found, Options, look, record, stages
from .stages import RunCommand, Stage, check_run_folder, run_stage


@dataclass(frozen=True)
class ComparisonPlan:
    """What was found in a log, and what is to be done: the first stages made the slates, and are done."""

    found: Found
    preparation: tuple[Stage, ...]
    stages: tuple[Stage, ...]
    folder: Path

    def write(self, options: Options) -> None:
        """Into the run's folder, for the report."""
        write_json(self.folder / PLAN, record(self.found, options, [*self.preparation, *self.stages], self.folder))


def prepare(
    inputs: Sequence[str], options: Options, folder: Path, *, most_slates: int, run: RunCommand
) -> ComparisonPlan:
    """Turn the log into slates, a sample of them where there are many, and plan the rest. Needs no model.

    Args:
        inputs: files of any format that `pope convert --from auto` tells, slates among them.
        folder: of the run; made if need be.
        most_slates: that are evaluated; of more, a sample is drawn by hash.

    Raises:
        ValueError: a folder that holds other things than a run; whatever `pope convert` refuses.
    """
    check_run_folder(folder, "run_dir", "comparison")
    (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    log = folder / SLATES
    whole = log.with_name("all.jsonl")
    preparation = [
        Stage(
            "slates",
            "the log as slates",
            "no model",
            ("convert", "--from", "auto", *inputs, "-o", str(whole)),
            tuple(inputs),
            (str(whole), str(report_path(whole))),
        )
    ]
    try:
        run_stage(preparation[0], folder, run)
    except ValueError as error:
        if str(error).startswith("from: "):
            reason = str(error).removeprefix("from: ")
            raise ValueError(
                f"log: {', '.join(inputs)}: {reason}; convert it first, then compare the slates"
            ) from error
        raise
    converted = json.loads(report_path(whole).read_text(encoding="utf-8"))
    share = min(1.0, most_slates / max(converted["slates_kept"], 1))
    sample = ("convert", "--from", "slates", str(whole), "--fraction", f"{share:.6g}", "--seed", str(options.seed))
    preparation.append(
        Stage(
            "sample",
            "all of them" if share == 1 else f"a sample of about {most_slates:,}, by hash",
            "no model",
            (*sample, "-o", str(log)),
            (str(whole),),
            (str(log), str(report_path(log))),
        )
    )
    run_stage(preparation[1], folder, run)
    found = look(read_slates(log), source=inputs, format=converted["format"])
    return ComparisonPlan(found, tuple(preparation), tuple(stages(found, options, log, folder)), folder)
