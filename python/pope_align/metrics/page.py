"""The report as one HTML file: table, figures, explanations, sample answers."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

import pope_core

from .._files import write_text
from ..data import Slate
from ..generation.generations import GenerationSet, completion_text, prompt_text, slate_keys
from .figures import bars, pareto
from .registry import BY_NAME
from .summary import MeanOverPrompts, MetricsReport, ModelDifference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a }
h1 { font-size: 1.5rem }
h2 { font-size: 1.15rem; margin-top: 2.2rem }
h3 { font-size: 1rem; white-space: pre-wrap }
table { border-collapse: collapse; width: 100% }
th, td { text-align: right; padding: .25rem .6rem; vertical-align: top }
th:first-child, td:first-child, td.text, th.text { text-align: left }
thead th { border-bottom: 1px solid #888 }
tbody tr:nth-child(even) { background: #f5f5f5 }
.interval, .note { color: #666; font-size: .85em }
.interval { display: block }
.clear { font-weight: 600 }
img { max-width: 100% }
blockquote { margin: .4rem 0; padding-left: .8rem; border-left: 3px solid #ccc; white-space: pre-wrap }
"""


def write_page(
    report: MetricsReport,
    sets: Sequence[GenerationSet],
    references: Sequence[Slate],
    path: str | os.PathLike[str],
    *,
    notes: Sequence[str] = (),
    examples: int = 3,
) -> None:
    """Write the page.

    Args:
        sets: the generations of the report's models, for the examples.
        notes: sentences under the title, e.g. on truncation.
        examples: prompts whose answers are shown.
    """
    title = "Generations of " + ", ".join(table.model for table in report.tables)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(line)}</p>" for line in [*summary_lines(report), *notes]),
        "<h2>Metrics</h2>",
        _table(report),
        f"<p class=note>Mean over slates, with a {report.level:.0%} bootstrap interval over {units(report)} "
        f"({report.draws} draws). Bold: the interval of the difference excludes 0; with this many metrics, some will "
        "by chance.</p>",
        _image(bars(report), "metrics with their intervals"),
        "<h2>PL-Score against diversity</h2>",
        _image(pareto(report), "PL-Score against diversity, one point per slate"),
        "<p class=note>One point per slate. The envelope joins the slates that no other beats in both; the hypervolume "
        "is the area under it.</p>",
        "<h2>How to read the metrics</h2>",
        _readings(report),
        "<h2>Some answers</h2>",
        *_examples(sets, references, examples),
        f"<p class=note>pope-core {escape(pope_core.__version__)}</p></html>",
    ]
    write_text(path, "\n".join(parts))


def summary_lines(report: MetricsReport) -> list[str]:
    """What was and could not be evaluated, one line per model."""
    lines = []
    for table in report.tables:
        line = (
            f"{table.model}: {table.answers} answers to {len(table.keys)} slates of {len(set(table.prompts))} prompts"
            + ("" if table.drawn == table.prompts else f" in {len(set(table.drawn))} groups")
        )
        remarks = [
            (table.empty, "empty answers"),
            (table.unanswered, "slates without an answer"),
            (table.unmatched, "generations without a slate"),
        ]
        counted = [f"{count} {what}" for count, what in remarks if count]
        lines.append(line + (": " + ", ".join(counted) if counted else ""))
    return lines


def units(report: MetricsReport) -> str:
    """The name of the units that the bootstrap draws."""
    return "prompts" if all(table.drawn == table.prompts for table in report.tables) else "groups"


def cells(estimate: MeanOverPrompts | None, digits: int, *, signed: bool = False) -> tuple[str, str]:
    """An estimate and its interval as text; empty if there is none."""
    if estimate is None or np.isnan(estimate.value):
        return "n/a", ""
    sign = "+" if signed else ""
    value = f"{estimate.value:{sign}.{digits}f}"
    if np.isnan(estimate.low):
        return value, ""
    return value, f"[{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"


def label(name: str) -> str:
    """A metric's label with an arrow to its better side."""
    return BY_NAME[name].arrow


def difference_label(comparison: ModelDifference) -> str:
    """The heading of a column of differences."""
    return f"{comparison.b} - {comparison.a}"


def _table(report: MetricsReport) -> str:
    headings = [table.model for table in report.tables] + [difference_label(each) for each in report.comparisons]
    head = "".join(f"<th>{escape(heading)}" for heading in ["Metric", *headings])
    rows = []
    for name in report.metrics:
        digits = BY_NAME[name].digits
        row = [escape(label(name))]
        row += [_cell(*cells(report.estimates[table.model].get(name), digits)) for table in report.tables]
        for comparison in report.comparisons:
            difference = comparison.differences.get(name)
            clear = difference is not None and difference.excludes_zero
            row.append(_cell(*cells(difference, digits, signed=True), clear=clear))
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in row))
    return f"<table><thead><tr>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(value: str, interval: str, *, clear: bool = False) -> str:
    shown = f"<span class=clear>{value}</span>" if clear else value
    return f"{shown}<span class=interval>{interval}</span>" if interval else shown


def _readings(report: MetricsReport) -> str:
    rows = []
    for name in report.metrics:
        metric = BY_NAME[name]
        low, high = (("∞" if bound > 0 else "-∞") if np.isinf(bound) else f"{bound:g}" for bound in _bounds(name))
        undefined = ", ".join(
            f"{report.estimates[table.model][name].undefined} of {len(table.keys)} ({table.model})"
            for table in report.tables
            if name in report.estimates[table.model] and report.estimates[table.model][name].undefined
        )
        rows.append(
            f"<tr><td>{escape(label(name))}<td class=text>{escape(metric.reading)}<td>{low} to {high}"
            f"<td>{escape(undefined) or '-'}"
        )
    head = "<th>Metric<th class=text>Reading<th>Range<th>Slates where it is not defined"
    return f"<table><thead><tr>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _bounds(name: str) -> tuple[float, float]:
    return BY_NAME[name].low, BY_NAME[name].high


def _examples(sets: Sequence[GenerationSet], references: Sequence[Slate], count: int) -> list[str]:
    by_key = dict(zip(slate_keys(references), references))
    shown: list[str] = []
    prompts: set[str] = set()
    for generation in sets[0].rows:
        slate = by_key.get(generation.key)
        text = prompt_text(generation.prompt)
        if slate is None or text in prompts or len(prompts) == count:
            continue
        prompts.add(text)
        best = sorted(range(len(slate.scores)), key=lambda at: -slate.scores[at])[:3]
        shown.append(f"<h3>{escape(_short(text, 300))}</h3><p>People, best voted first:</p>")
        shown += [_quote(completion_text(slate.completions[at])) for at in best]
        for of_model in sets:
            answer = next((row for row in of_model.rows if row.key == generation.key), None)
            if answer is not None:
                shown.append(
                    f"<p>{escape(of_model.model)}, first {min(3, len(answer.texts))} of {len(answer.texts)}:</p>"
                )
                shown += [f"<blockquote>{escape(_short(each)) or '(empty)'}</blockquote>" for each in answer.texts[:3]]
    return shown


def _quote(text: str) -> str:
    return f"<blockquote>{escape(_short(text)) or '(empty)'}</blockquote>"


def _short(text: str, limit: int = 600) -> str:
    text = text.strip()
    return text if len(text) <= limit else text[:limit].rstrip() + " …"


def _image(figure: Figure, alternative: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alternative)}" src="data:image/png;base64,{data}">'
