"""Prints the tables of ``results/*.json`` in Markdown, as the README shows them.

``python benchmarks/compare.py [FILE ...]``; times are the best of the run, on a GPU the median and half the distance of
the quartiles, and in brackets the time relative to ours. A rival of another loss is in italics, with the loss.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

MIB = 1 << 20


def time_of(row: dict[str, Any]) -> float:
    return row["median_ms"] if "quartiles_ms" in row else row["best_ms"]


def cell(row: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    time = time_of(row)
    ratio = f" ({time / time_of(ours):.1f}x)" if ours and row is not ours else ""
    if "quartiles_ms" not in row:
        return f"{time:.0f} ms{ratio}" if time >= 10 else f"{time:.1f} ms{ratio}"
    low, high = row["quartiles_ms"]
    digits = 1 if time >= 10 else 2
    return f"{time:.{digits}f} ± {(high - low) / 2:.{digits}f} ms{ratio}"


def memory(row: dict[str, Any] | None) -> str:
    if row is None or "peak_bytes" not in row or row["name"].startswith("floor"):
        return ""
    return f"{max(0, row['peak_bytes'] - row['gradient_bytes']) / MIB:,.0f} MiB"


def title_of(row: dict[str, Any], ours: str) -> str:
    if row.get("job"):
        return f"*{row['name']}* (another loss: {row['job']})"
    return f"**{row['name']}**" if row["name"] == ours else row["name"]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rivals against dtypes and passes; memory is that of forward+backward, beyond inputs and gradients.

    Rows of a GPU have the floor above them, and the relative error of the gradient beside them.
    """
    columns = list(dict.fromkeys((row["dtype"], row["backward"]) for row in rows))
    rivals = {row["name"]: row for row in rows}
    found = {(row["name"], row["dtype"], row["backward"]): row for row in rows}
    ours = next((name for name in rivals if name.startswith("pope_core")), "")
    titles = [f"{dtype}, {'forward+backward' if backward else 'forward'}" for dtype, backward in columns]
    floors = {(row["dtype"], row["backward"]): row["floor_ms"] for row in rows if "floor_ms" in row}
    last = ["memory", "gradient's error"] if floors else ["memory"]
    lines = ["| | " + " | ".join([*titles, *last]) + " |", "|---|" + "---:|" * (len(columns) + len(last))]
    if floors:
        cells = [f"{floors[column]:.{1 if floors[column] >= 10 else 2}f} ms" for column in columns]
        lines.append(f"| floor: the bytes, or the products | {' | '.join(cells)} | | |")
    for name, row in rivals.items():
        cells = [cell(found.get((name, *column)), found.get((ours, *column))) for column in columns]
        with_gradient = [found.get((name, dtype, True)) for dtype in dict.fromkeys(dtype for dtype, _ in columns)]
        cells.append(", ".join(filter(None, map(memory, with_gradient))))
        if floors:
            cells.append(", ".join(f"{each['gradient_error']:.1e}" for each in with_gradient if each))
        lines.append(f"| {title_of(row, ours)} | {' | '.join(cells)} |")
    return lines


def training_table(rows: list[dict[str, Any]]) -> list[str]:
    """Time of a step and of one scored response, and the memory of the head."""
    lines = ["| | model, trained | step | per scored response | head memory |", "|---|---|---:|---:|---:|"]
    for row in rows:
        each = row["best_ms"] / row["responses"]
        what = f"{row['model']}, {'LoRA' if row['lora'] else 'all weights'}"
        held = f"{row['head_bytes'] / MIB:,.0f} MiB"
        lines.append(f"| {row['name']} | {what} | {row['best_ms']:,.0f} ms | {each:,.3g} ms | {held} |")
    return lines


def pipeline_table(rows: list[dict[str, Any]]) -> list[str]:
    """Steps of ``scripts/gpu_training.py``: how far their numbers are from the CPU's, time and memory."""
    lines = ["| | model | difference | allowed | time | memory |", "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['model']} | {row['error']} | | | |")
            continue
        apart = "other texts" if row["difference"] is None else f"{row['difference']:.1e}"
        held = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / MIB:,.0f} MiB"
        mark = "" if row["agrees"] else "**differs**: "
        what = f"{mark}{apart} | {row['allowed']:.0e} | {row['seconds']:.0f} s | {held}"
        lines.append(f"| {row['name']} | {row['model']} | {what} |")
    return lines


def scoring_table(rows: list[dict[str, Any]]) -> list[str]:
    """Tokens a second of scoring and generation."""
    lines = ["| job | | shape | tokens/s | time |", "|---|---|---|---:|---:|"]
    for row in rows:
        rate = f"{1e3 * row['tokens'] / row['best_ms']:,.0f}" if row["tokens"] else ""
        shape = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["shape"].items())
        lines.append(f"| {row['source']} | {row['name']} | {shape} | {rate} | {row['best_ms'] / 1e3:,.2f} s |")
    return lines


def one_pass_table(rows: list[dict[str, Any]]) -> list[str]:
    """CPU seconds and memory of evaluations by size."""
    lines = ["| | responses | CPU seconds | peak memory |", "|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: row["shape"]["responses"]):
        held = f"{row['peak_bytes'] / MIB:,.0f} MiB"
        lines.append(f"| {row['name']} | {row['shape']['responses']:,} | {row['cpu_s']:.1f} | {held} |")
    return lines


def report(file: Path) -> str:
    run = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    driver = f"driver {run['driver']}; " if "driver" in run else ""
    lines = [f"{run['device']}; {driver}{versions}; commit {run['commit'][:12]}.", ""]
    if file.name.startswith("training-"):
        return "\n".join([*lines, *training_table(run["rows"]), ""])
    if file.name.startswith("scoring-"):
        return "\n".join([*lines, *scoring_table(run["rows"]), ""])
    if file.name.startswith("one-pass-"):
        return "\n".join([*lines, *one_pass_table(run["rows"]), ""])
    if file.name.startswith("pipeline-"):
        return "\n".join([*lines, *pipeline_table(run["rows"]), ""])
    groups = defaultdict(list)
    for row in (row for row in run["rows"] if "skipped" not in row):
        shape = row["shape"]
        what = f"From {row['source']}: {shape['tokens']} tokens, {shape['vocab']} vocabulary entries"
        what += f", width {shape['width']}" if row["source"] == "hidden" else ""
        what += f", states of {row['states']}" if row.get("states") else ""
        what += ", ragged responses" if row.get("ragged") else ""
        what += "" if row.get("trainable", True) else ", frozen head"
        groups[what].append(row)
    for title, rows in groups.items():
        lines += [title, "", *table(rows), ""]
    skipped = {f"- {row['name']}: {row['skipped']}": None for row in run["rows"] if "skipped" in row}
    lines += ["Did not take part:", *skipped, ""] if skipped else []
    return "\n".join(lines)


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]] or sorted((Path(__file__).parent / "results").glob("*.json"))
    print("\n".join(report(file) for file in files))
