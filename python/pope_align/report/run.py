"""A run's folder: what `pope compare` leaves in it, or whatever part of it is there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.schema import Slate, read_slates
from ..generation.generations import read_generations

#: Where the parts of a run lie in its folder.
PLAN, EVALUATION, SLATES, SCORED = "run.json", "evaluation.json", "slates.jsonl", "scored.jsonl"
ANSWERS, METRICS, COVERED = "answers", "metrics/metrics.json", "metrics/covered.jsonl"
TRAINING = "metrics.json"  # of a model that `pope train` made


@dataclass(frozen=True)
class Run:
    """The parts of a run; None or empty for those that are missing."""

    folder: Path
    plan: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None
    metrics: Mapping[str, Any] | None
    slates: tuple[Slate, ...] = ()
    answers: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)  # policy -> slate's key -> texts
    covered: Mapping[tuple[str, str], list[list[int]]] = field(default_factory=dict)  # policy and key -> references
    training: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)  # policy -> logged metrics by step


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Read a run's folder.

    Raises:
        ValueError: no folder, or nothing in it to report: neither an evaluation nor metrics.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"run: expected a folder, got {str(folder)!r}")
    evaluation, metrics = _json(folder / EVALUATION), _json(folder / METRICS)
    if evaluation is None and metrics is None:
        raise ValueError(
            f"run: expected {EVALUATION} or {METRICS} in {folder}, as `pope compare` leaves them; found none"
        )
    log = next((folder / name for name in (SCORED, SLATES) if (folder / name).is_file()), None)
    plan = _json(folder / PLAN) or {}
    return Run(
        folder,
        plan,
        evaluation,
        metrics,
        slates=() if log is None else tuple(read_slates(log)),
        answers={
            path.stem: {row.key: row.texts for row in read_generations(path).rows}
            for path in sorted((folder / ANSWERS).glob("*"))
            if path.suffix in (".jsonl", ".parquet")
        },
        covered=_covered(folder / COVERED),
        training=_training(plan, evaluation),
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _covered(path: Path) -> dict[tuple[str, str], list[list[int]]]:
    if not path.is_file():
        return {}
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(row["model"], row["key"]): row["covered"] for row in rows}


def _training(plan: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    """What was logged while the policies were trained, of those that are folders of `pope train`."""
    folders = dict(plan.get("policies") or {})
    for name, provenance in ((evaluation or {}).get("policies") or {}).items():
        folders.setdefault(name, provenance.get("model") or "")
    history = {}
    for name, folder in folders.items():
        content = _json(Path(folder, TRAINING)) if folder else None
        if isinstance(content, dict) and content.get("history"):
            history[name] = content["history"]
    return history
