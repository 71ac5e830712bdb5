"""A run as one page and its Markdown twin: the sentence first, then what it rests on."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from .._extras import require
from .._files import check_output, write_text
from .._text import in_markdown, printable
from ..data.schema import text_of
from ..generation.generations import slate_keys
from ..ope.rules import is_index
from .charts import Interval, curves, plane, whiskers
from .decision import decide, spoken
from .run import Run, read_run

#: Prompts inside the page; the others lie in a file beside it.
EMBEDDED = 300

#: Metrics of training that are drawn where a run has them, with what they are called.
_CURVES = (
    ("V_CU, self-normalised", "pope/utility_self_normalized"),
    ("loss", "loss"),
    ("share of effective weights", "is/ess_fraction"),
)


def write_report(run: str | os.PathLike[str], out: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
    """Write the report of a run's folder: ``OUT.html``, ``OUT.md`` and, for many prompts, ``OUT.prompts.js``.

    Args:
        run: a folder that `pope compare` made, or one with some of its parts (`report.run`).
        out: the page, ending in ``.html``.

    Returns:
        The files written.

    Raises:
        ValueError: a folder without results; an output that cannot be written or is there without ``overwrite``.
    """
    page, twin, beside = check_report(out, overwrite=overwrite)
    content = read_run(run)
    prompts = list(_prompts(content))
    context = _context(content)
    environment = _environment()
    more = prompts[EMBEDDED:]
    write_text(
        page,
        environment.get_template("report.html.j2").render(
            **context, prompts=_embedded(prompts[:EMBEDDED]), more=len(more), beside=beside.name, shown=len(prompts)
        ),
    )
    write_text(twin, environment.get_template("report.md.j2").render(**context))
    if not more:
        beside.unlink(missing_ok=True)
        return [page, twin]
    write_text(beside, f"popePrompts({_embedded(more)});\n")
    return [page, twin, beside]


def check_report(out: str | os.PathLike[str], *, overwrite: bool = False) -> tuple[Path, Path, Path]:
    """The page, its twin and the file of prompts, after a check that all three may be written.

    Raises:
        ValueError: as `write_report`, for the output.
    """
    page = check_output(out, overwrite=overwrite, endings=(".html",))
    twin, beside = page.with_suffix(".md"), page.with_suffix(".prompts.js")
    return page, check_output(twin, overwrite=overwrite), check_output(beside, overwrite=overwrite)


def _environment() -> Any:
    jinja2 = require("jinja2", extra="train", purpose="to write reports")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pope_align.report", "templates"),
        autoescape=lambda name: name is not None and not name.endswith(".md.j2"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, signed=_signed, printable=printable, markdown=in_markdown)
    environment.filters.update(prose=_prose, prose_markdown=_prose_markdown)
    return environment


def _prose(text: str) -> Markup:
    """A sentence of ours, in which commands stand between backticks."""
    parts = [escape(printable(part)) for part in text.split("`")]
    return Markup("").join(
        Markup(f"<code>{part}</code>") if at % 2 and at < len(parts) - 1 else part for at, part in enumerate(parts)
    )


def _prose_markdown(text: str) -> str:
    parts = text.split("`")
    return "".join(
        f"`{part}`" if at % 2 and at < len(parts) - 1 else in_markdown(part) for at, part in enumerate(parts)
    )


def _number(value: float | None, digits: int = 4) -> str:
    return "not defined" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def _signed(value: float | None, digits: int = 3) -> str:
    return "not defined" if value is None or not math.isfinite(value) else f"{value:+.{digits}g}"


def _embedded(value: Any) -> str:
    """JSON that ends no script element, whatever texts hold."""
    text = json.dumps(value, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return text.replace("\u2029", "\\u2029")


def _context(run: Run) -> dict[str, Any]:
    import pope_core

    evaluation = run.evaluation
    decisions = [] if evaluation is None else decide(evaluation)
    return {
        "run": run,
        "evaluation": evaluation,
        "decisions": decisions,
        "spoken": spoken(run.metrics),
        "values": _rows(evaluation, "estimates", indices=False),
        "weighted": _rows(evaluation, "estimates", indices=True),
        "differences": _rows(evaluation, "comparisons"),
        "indices": _rows(evaluation, "indices"),
        "reasons": list(_reasons(evaluation)),
        "metrics": list(_metrics(run.metrics)),
        "models": list((run.metrics or {}).get("models", {})),
        "plane": _plane(run),
        "groups": any(name.startswith("worst_group") for name in (run.metrics or {}).get("readings", {})),
        "training": _training(run),
        "commands": [_command(stage) for stage in run.plan.get("stages", [])],
        "found": run.plan.get("found", {}),
        "version": pope_core.__version__,
    }


def _command(stage: Mapping[str, Any]) -> str:
    line = shlex.join(["pope", *stage["argv"]])
    return f"{line}  # its result was replaced by hand" if stage.get("replaced") else line


def _interval(quantity: Mapping[str, Any] | None, *, refused: bool = False) -> Interval:
    if quantity is None or any(quantity[name] is None for name in ("value", "low", "high")):
        return Interval(math.nan, math.nan, math.nan, refused)
    return Interval(quantity["value"], quantity["low"], quantity["high"], refused)


def _rows(evaluation: Mapping[str, Any] | None, kind: str, *, indices: bool | None = None) -> list[dict[str, Any]]:
    """Estimates, comparisons or indices with the interval that their table shows and its strip."""
    rows = []
    for each in (evaluation or {}).get(kind, []):
        index = any(is_index(found["rule"]) for found in each.get("findings", []))
        if indices is None or index == indices:
            shown = each["gain"] if kind == "indices" else each["utility"]
            rows.append({**each, "shown": _interval(shown, refused=each["verdict"] == "refuse")})
    for row, strip in zip(rows, whiskers([row["shown"] for row in rows]), strict=True):
        row["strip"] = strip
    return rows


def _reasons(evaluation: Mapping[str, Any] | None) -> Iterator[tuple[str, str, list[str]]]:
    """Every reason of a verdict once, the gravest first, with the estimates that it concerns."""
    order = {"refuse": 0, "index": 1, "caution": 2}
    concerned: dict[tuple[str, str], list[str]] = {}
    for each in (evaluation or {}).get("estimates", []):
        for found in each["findings"]:
            concerned.setdefault((found["verdict"], found["reason"]), []).append(
                f"{each['policy']} {each['estimator']}"
            )
    for each in (evaluation or {}).get("comparisons", []):
        for found in each["findings"]:
            if found["rule"] in ("support_bias", "placebo"):
                pair = f"{each['policy']} - {each['baseline']}"
                concerned.setdefault((found["verdict"], found["reason"]), []).append(pair)
    for each in (evaluation or {}).get("indices", []):
        for reason in each["reasons"]:
            pair = f"direction of {each['policy']} by {each['weights']} weights"
            concerned.setdefault((each["verdict"], reason), []).append(pair)
    every = len((evaluation or {}).get("estimates", []))
    for (verdict, reason), where in sorted(concerned.items(), key=lambda item: order.get(item[0][0], 3)):
        names = list(dict.fromkeys(where))
        yield verdict, reason, ["every estimate"] if len(names) == every else names


def _metrics(metrics: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Rows of the table of metrics."""
    if metrics is None:
        return
    models = metrics["models"]
    for name, reading in metrics["readings"].items():
        pairs = [each["differences"].get(name) for each in metrics["comparisons"]]
        yield {
            **reading,
            "of": [_interval(models[model]["metrics"].get(name)) for model in models],
            "differences": [
                {"shown": _interval(pair), "strip": strip}
                for pair, strip in zip(pairs, whiskers([_interval(pair) for pair in pairs]), strict=True)
            ],
        }


def _plane(run: Run) -> dict[str, Any] | None:
    """Utility against diversity: of the estimates where none is refused, else of what the models say."""
    estimates = [] if run.evaluation is None else run.evaluation["estimates"]
    first = [each for each in estimates if each["estimator"] == estimates[0]["estimator"]]
    if len(first) > 1 and all(each["verdict"] in ("reliable", "caution") for each in first):
        points = [(each["policy"], _interval(each["utility"]), _interval(each["diversity"])) for each in first]
        x, y = "utility V_CU", "diversity V_Div (nats)"
    elif run.metrics is not None:
        of = {name: model["metrics"] for name, model in run.metrics["models"].items()}
        points = [(name, _interval(m.get("pl_score")), _interval(m.get("diversity"))) for name, m in of.items()]
        x, y = "PL-Score", "diversity of answers"
    else:
        return None
    points = [each for each in points if all(map(math.isfinite, [*each[1][:3], *each[2][:3]]))]
    return {"svg": plane(points, x=x, y=y), "x": x, "y": y, "points": points} if points else None


def _training(run: Run) -> list[dict[str, Any]]:
    """Curves of every policy that `pope train` made."""
    shown = []
    for policy, history in run.training.items():
        for label, name in _CURVES:
            series = [("training", _points(history, name)), ("held out", _points(history, f"eval_{name}"))]
            svg = curves(series, x="step", y=label)
            if svg:
                names = " and ".join(each for each, points in series if points)
                shown.append({"policy": policy, "label": label, "svg": svg, "series": names})
    return shown


def _points(history: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(each["step"], each[name]) for each in history if each.get(name) is not None and "step" in each]


def _prompts(run: Run) -> Iterator[dict[str, Any]]:
    """Prompts with what people and policies answered, and which references each answer covers."""
    for key, slate in zip(slate_keys(run.slates), run.slates, strict=True):
        answers = {policy: texts[key] for policy, texts in run.answers.items() if key in texts}
        yield {
            "key": key,
            "prompt": text_of(slate.prompt),
            "people": [
                {"text": text, "score": score}
                for text, score in zip(map(text_of, slate.completions), slate.scores, strict=True)
            ],
            "answers": {
                policy: [
                    {"text": text, "covers": covers}
                    for text, covers in zip(texts, _covers(run, policy, key, len(texts)), strict=True)
                ]
                for policy, texts in answers.items()
            },
        }


def _covers(run: Run, policy: str, key: str, answers: int) -> Sequence[list[int] | None]:
    found = run.covered.get((policy, key))
    return found if found is not None and len(found) == answers else [None] * answers
