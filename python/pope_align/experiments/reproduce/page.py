"""Results as Markdown and JSON: the paper's layout with intervals, and the paper's own numbers beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pope_core.version import __version__

from ..._arrays import Floats
from ..._json import jsonable
from ..._text import in_markdown
from ...metrics.pareto import distance_to_front, hypervolume
from ...stats.intervals import Quantity
from .methods import AGAIN, BASE, METHODS, PEOPLE, label
from .plan import SOURCE, ReproductionPlan
from .results import DETECTABLE, FLUENCY, Point, Results, better_side, column_label, digits
from .tuning import tunings

_PAPER_NOTE = "as the paper reports it, with its own models and data"


@dataclass(frozen=True)
class Table:
    """A table under a heading, with notes below."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", "| " + " | ".join(self.columns) + " |", "|---" * len(self.columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"{note}\n" for note in self.notes)])


def cell(quantity: Quantity, places: int, *, signed: bool = False) -> str:
    """``value [low, high]``."""
    if math.isnan(quantity.value):
        return "-"
    style = f"{'+' if signed else ''}.{places}f"
    value = f"{quantity.value:{style}}"
    return value if math.isnan(quantity.low) else f"{value} [{quantity.low:{style}}, {quantity.high:{style}}]"


def name_of(point: Point) -> str:
    """A row's name: the temperature belongs to the base, and to methods away from 1."""
    method, temperature = point
    shown = method == BASE or temperature != 1
    return f"{label(method)}, T = {temperature:g}" if shown else label(method)


def main_table(plan: ReproductionPlan, data: str, results: Results) -> Table:
    """Every method and control, the energy distance first, then the paper's rows."""
    protocol = plan.request.protocol
    metrics = shown_metrics(plan, results)
    values = _values(plan, data)
    columns = ["Method", *(column(plan, metric) for metric in metrics), "Beyond the base's front ↑"]
    if protocol.value:
        columns.append("V (pope, self-normalised)")
    rows = []
    for point in results.points:
        method = point[0]
        row = [name_of(point), *(cell(results.mean(point, metric), digits(metric)) for metric in metrics)]
        front = point[1] == 1 and method not in (BASE, PEOPLE)
        row.append(cell(results.beyond(method), 4) if front else "-")
        if protocol.value:
            row.append(values.get(method, "-") if point[1] == 1 else "-")
        rows.append(tuple(row))
    rows += _paper_rows(plan, data, metrics)
    return Table(f"{protocol.title}: {in_markdown(data_label(plan, data))}", tuple(columns), tuple(rows), _notes(plan))


def _notes(plan: ReproductionPlan) -> tuple[str, ...]:
    request = plan.request
    of_one, of_several = "one seed: not over trainings", f"over {request.seeds} seeds as in a t interval"
    seeds = of_several if request.seeds > 1 else of_one
    notes = [
        f"Mean [95% interval], bootstrap over prompts ({seeds}), {request.sizes.draws} draws.",
        "*Beyond the base's front*: the volume of PL-Score, coverage and diversity that the method dominates at its "
        f"temperatures ({', '.join(f'{each:g}' for each in request.sizes.temperatures)}) and the base at none of its "
        "five. It is never negative: noise gives the base, sampled again, some too.",
    ]
    if request.protocol.paper:
        notes.append(f"*Paper*: {_PAPER_NOTE}; nothing of it is our measurement.")
    if request.protocol.value:
        notes.append(
            "V is estimated by self-normalised importance weights of whole responses (`pope evaluate --estimator "
            "pope`), for the first seed, on all responses of the test prompts; the paper does not say which estimator "
            "its V is. A refused value is shown as refused."
        )
    return tuple(notes)


def difference_table(plan: ReproductionPlan, data: str, results: Results) -> Table:
    """Paired differences, for which prompts and seeds are common."""
    metric = plan.request.protocol.metrics[0]
    base, best = (AGAIN, 1.0), results.best_base(metric)
    columns = (
        "Method",
        f"{column_label(metric)}, minus base sampled again",
        f"minus base at its best T = {best[1]:g}",
        "smallest visible difference",
        "Beyond the front, minus base sampled again ↑",
    )
    rows = []
    for point in results.points:
        if point[0] == BASE or point[1] != 1:
            continue
        same = "-" if point == base else cell(results.difference(point, base, metric), digits(metric), signed=True)
        against = results.difference(point, best, metric)
        visible = DETECTABLE * against.standard_error
        front = "-" if point[0] in (AGAIN, PEOPLE) else cell(results.beyond_again(point[0]), 4, signed=True)
        rows.append(
            (
                name_of(point),
                same,
                cell(against, digits(metric), signed=True),
                "-" if math.isnan(visible) else f"{visible:.{digits(metric)}f}",
                front,
            )
        )
    side = "below" if better_side(metric) == "lower" else "above"
    return Table(
        f"Paired differences: {in_markdown(data_label(plan, data))}",
        columns,
        tuple(rows),
        (
            f"An interval {side} 0 is a gain. The base sampled again is the base at T = 1 with the random numbers that "
            "all methods have. The base's best temperature is chosen on these prompts, which favours "
            "it. The smallest visible difference is what this many prompts and seeds detect in the second difference "
            "with 80% power.",
        ),
    )


def rivals_table(plan: ReproductionPlan, data: str, results: Results) -> Table | None:
    """POPE's variants minus every other trained method; None if there are none of either."""
    metric = plan.request.protocol.metrics[0]
    there = [each for each in METHODS if (each.name, 1.0) in results.points and each.feedback != "shuffled"]
    ours, others = ([each for each in there if each.is_pope is side] for side in (True, False))
    if not ours or not others:
        return None
    rows = [
        (
            each.label,
            other.label,
            cell(results.difference((each.name, 1.0), (other.name, 1.0), metric), digits(metric), signed=True),
            cell(results.beyond_other(each.name, other.name), 4, signed=True),
        )
        for each in ours
        for other in others
    ]
    return Table(
        f"Against other methods: {in_markdown(data_label(plan, data))}",
        ("Method", "minus", column_label(metric), "Beyond the base's front ↑"),
        tuple(rows),
        (
            f"Paired differences on the same prompts and seeds. {column_label(metric)}: at T = 1, an interval "
            f"{'below' if better_side(metric) == 'lower' else 'above'} 0 is a gain. Beyond the front: over all "
            "temperatures of both, above 0 is a gain. The intervals are not adjusted for the number of rows.",
        ),
    )


def tuning_table(plan: ReproductionPlan) -> Table:
    """What every learning rate gave on the validation prompts."""
    metric, rates = plan.request.protocol.metrics[0], plan.request.sizes.learning_rates
    rows = [
        (label(method), *(cell(of.tried[rate], digits(metric)) for rate in rates), f"{of.chosen:g}")
        for method, of in tunings(plan).items()
    ]
    return Table(
        "Learning rates",
        ("Method", *(f"{column_label(metric)}, {rate:g}" for rate in rates), "chosen"),
        tuple(rows),
        ("Answers at T = 1 to prompts that are neither trained on nor tested on, first seed. Intervals over prompts.",),
    )


def abilities_table(plan: ReproductionPlan, *, draws: int) -> Table:
    """Multiple choice and unrelated text, before and after."""
    read = {key: json.loads(path.read_text(encoding="utf-8")) for key, path in plan.abilities.items()}
    methods = list(dict.fromkeys(method for method, _ in read))
    runs = {method: [content for (name, _), content in read.items() if name == method] for method in methods}
    values = {
        (method, 1.0): {"right": np.array([run["right"] for run in of], dtype=np.float64)}
        for method, of in runs.items()
    }
    questions = len(next(iter(read.values()))["right"])
    results = Results(values, [str(at) for at in range(questions)], draws=draws)
    before = float(np.mean([run["text_nats_per_token"] for run in runs[BASE]]))
    rows = []
    for method, of in runs.items():
        nats = [run["text_nats_per_token"] for run in of]
        spread = f" ({min(nats):.3f} to {max(nats):.3f})" if len(nats) > 1 else ""
        change = "-" if method == BASE else f"{float(np.mean(nats)) - before:+.3f}"
        against = results.difference((method, 1.0), (BASE, 1.0), "right") if method != BASE else None
        rows.append(
            (
                label(method),
                cell(results.mean((method, 1.0), "right"), 3),
                "-" if against is None else cell(against, 3, signed=True),
                f"{float(np.mean(nats)):.3f}{spread}",
                change,
            )
        )
    columns = (
        "Method",
        f"right of {questions} questions ↑",
        "minus base",
        "nats per token of unrelated text ↓",
        "change",
    )
    return Table("General abilities before and after", columns, tuple(rows))


def column(plan: ReproductionPlan, metric: str) -> str:
    """The heading of a metric: faithfulness is named after what measured it."""
    if metric == "align_score" and "--entailment" in plan.request.aligner:
        return f"Entailed by the prompt, by {Path(plan.request.aligner[1]).name} ↑"
    return column_label(metric)


def envelope_table(plan: ReproductionPlan, data: str, results: Results) -> Table:
    """Figure 1 in numbers, from all prompts and seeds at temperature 1."""
    rows = []
    for point in results.points:
        if point[1] != 1:
            continue
        cloud = cloud_of(results, point)
        near = float(np.nanmean(distance_to_front(cloud)))
        means = [cell(results.mean(point, metric), 3) for metric in ("pl_score", "diversity")]
        rows.append((label(point[0]), f"{hypervolume(cloud):.3f}", f"{near:.3f}", *means))
    columns = ("Method", "Volume of the envelope ↑", "Mean distance to it ↓", "PL-Score ↑", "Diversity ↑")
    note = "The envelope is that of single prompts: a maximum over them, so it grows with their number and with noise."
    return Table(f"Envelopes: {in_markdown(data_label(plan, data))}", columns, tuple(rows), (note,))


def cloud_of(results: Results, point: Point) -> Floats:
    """``[n, 2]`` PL-Score and diversity of every prompt and seed."""
    values = results.metrics(point)
    return np.stack([values["pl_score"].ravel(), values["diversity"].ravel()], axis=1)


def judge_table(plan: ReproductionPlan, data: str) -> Table:
    """Win rates, ties counted half."""
    content = json.loads(plan.judged[data].read_text(encoding="utf-8"))
    rows = []
    for match in content["matches"]:
        counts = [str(match[f"{name}_count"]) for name in ("win", "tie", "loss")]
        rate = match["win_rate"]
        value, low, high = (math.nan if rate[name] is None else rate[name] for name in ("value", "low", "high"))
        rows.append(
            (f"{label(match['a'])} against {label(match['b'])}", *counts, cell(Quantity(value, math.nan, low, high), 3))
        )
    note = f"Judge: {content['judge']['model']}; every pair in both orders; Wilson intervals; first seed."
    columns = ("Match", "won", "tied", "lost", "win rate, ties half")
    return Table(f"Win rates: {in_markdown(data_label(plan, data))}", columns, tuple(rows), (note,))


def data_label(plan: ReproductionPlan, data: str) -> str:
    """A data set's name; the source has that of its file."""
    return Path(plan.request.data).stem if data == SOURCE else data


def shown_metrics(plan: ReproductionPlan, results: Results) -> list[str]:
    """The columns: those of the protocol that were measured, and fluency where a third model was named."""
    there = {name for point in results.points for name in results.metrics(point)}
    wanted = list(plan.request.protocol.metrics)
    wanted += [FLUENCY] if FLUENCY in there and FLUENCY not in wanted else []
    return [name for name in wanted if name in there]


def _values(plan: ReproductionPlan, data: str) -> dict[str, str]:
    """Off-policy values with their verdicts."""
    path = plan.values.get(data)
    if path is None:
        return {}
    shown = {}
    for each in json.loads(path.read_text(encoding="utf-8"))["estimates"]:
        value, low, high = (math.nan if each[name] is None else each[name] for name in ("value", "low", "high"))
        text = cell(Quantity(value, math.nan, low, high), 4)
        shown[each["policy"]] = f"~~{text}~~ refused" if each["verdict"] == "refuse" else f"{text}, {each['verdict']}"
    return shown


def _paper_rows(plan: ReproductionPlan, data: str, metrics: Sequence[str]) -> list[tuple[str, ...]]:
    protocol, rows = plan.request.protocol, []
    for block in protocol.paper:
        for at, theirs in enumerate(block["data"]):
            for method in ("base", "sft", "dpo", "pope-paper"):
                numbers = block[method][at] if isinstance(block[method][0], list) else block[method]
                known = dict(zip(protocol.paper_metrics, numbers))
                cells = [_number(known.get(metric), digits(metric)) for metric in metrics]
                extra = [_number(known.get("value"), 4)] if protocol.value else []
                rows.append((f"*Paper: {label(method)}, {block['model']}, {theirs}*", *cells, "-", *extra))
    return rows


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"*{value:.{max(places, 4) if abs(value) < 1 else places}f}*"


def result_json(plan: ReproductionPlan, results: Mapping[str, Results]) -> dict[str, Any]:
    """All numbers, for programs."""
    request = plan.request
    content: dict[str, Any] = {
        "experiment": request.protocol.name,
        "version": __version__,
        "model": request.model,
        "data": {SOURCE: request.data, **request.tests},
        "sizes": asdict(request.sizes),
        "seeds": request.seeds,
        "learning_rates": {method: asdict(of) for method, of in tunings(plan).items()},
        "results": {name: _result(plan, of) for name, of in results.items()},
        "values": {name: _values(plan, name) for name in plan.values},
        "judged": {name: json.loads(path.read_text(encoding="utf-8")) for name, path in plan.judged.items()},
        "commands": [["pope", *stage.argv] for stage in plan.stages],
    }
    cleaned: dict[str, Any] = jsonable(content)
    return cleaned


def _result(plan: ReproductionPlan, results: Results) -> list[dict[str, Any]]:
    metrics = shown_metrics(plan, results)
    best = results.best_base(metrics[0])
    rows = []
    for point in results.points:
        row: dict[str, Any] = {"method": point[0], "temperature": point[1]}
        row["means"] = {metric: asdict(results.mean(point, metric)) for metric in metrics}
        row["against_best_base"] = asdict(results.difference(point, best, metrics[0]))
        if point[0] not in (BASE, PEOPLE):
            row["beyond"] = asdict(results.beyond(point[0]))
            row["beyond_again"] = asdict(results.beyond_again(point[0]))
        rows.append(row)
    return rows
