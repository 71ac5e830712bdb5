"""Prints the tables of ``results/*.json`` in Markdown, as the README shows them.

``python benchmarks/compare.py [FILE ...]``; times are the best of the run, and in brackets how often ours fits in.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

MIB = 1 << 20


def cell(row: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ratio = f" ({row['best_ms'] / ours['best_ms']:.1f}x)" if ours and row is not ours else ""
    return f"{row['best_ms']:.0f} ms{ratio}" if row["best_ms"] >= 10 else f"{row['best_ms']:.1f} ms{ratio}"


def memory(row: dict[str, Any] | None) -> str:
    if row is None or "peak_bytes" not in row or row["name"].startswith("floor"):
        return ""
    return f"{max(0, row['peak_bytes'] - row['gradient_bytes']) / MIB:,.0f} MiB"


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rivals against dtypes and passes; memory is that of forward+backward, beyond inputs and gradients."""
    columns = list(dict.fromkeys((row["dtype"], row["backward"]) for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    found = {(row["name"], row["dtype"], row["backward"]): row for row in rows}
    ours = next((name for name in names if name.startswith("pope_core")), "")
    titles = [f"{dtype}, {'forward+backward' if backward else 'forward'}" for dtype, backward in columns]
    lines = [
        "| | " + " | ".join(titles) + " | memory |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for name in names:
        cells = [cell(found.get((name, *column)), found.get((ours, *column))) for column in columns]
        held = [memory(found.get((name, dtype, True))) for dtype in dict.fromkeys(dtype for dtype, _ in columns)]
        title = f"**{name}**" if name == ours else name
        lines.append(f"| {title} | " + " | ".join(cells) + f" | {', '.join(filter(None, held))} |")
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


def report(file: Path) -> str:
    run = json.loads(file.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [f"{run['device']}; {versions}; commit {run['commit'][:12]}.", ""]
    if file.name.startswith("training-"):
        return "\n".join([*lines, *training_table(run["rows"]), ""])
    groups = defaultdict(list)
    for row in (row for row in run["rows"] if "skipped" not in row):
        shape = row["shape"]
        what = f"From {row['source']}: {shape['tokens']} tokens, {shape['vocab']} words"
        what += f", width {shape['width']}" if row["source"] == "hidden" else ""
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
