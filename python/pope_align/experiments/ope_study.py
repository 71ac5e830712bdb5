"""The accuracy of each estimator: errors, coverage and verdicts on logs of a world with known truth.

    python -m pope_align.experiments.ope_study -o study.json --figure study.png
    python -m pope_align.experiments.ope_study --slates 1000 -o study.json

Every cell is a target, a slate size and a log size; every replicate a fresh log. docs/ope_study.md discusses the
results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pope_core.objective import Objective

from .._files import check_output, replacing, write_json
from .._json import jsonable
from ..ope import METHODS, Estimate, LoggedSlates, Predictions, estimate, pope_value
from ..ope.rules import VERDICTS
from .ope_world import World, make_world

ALPHA = 0.05
ASKED = replace(Objective.evaluation(), diversity_weight=ALPHA)
SIZES = (1, 2, 4, 8)
#: Slates of a log, and how many logs of that size are drawn for each cell.
LOGS = {100: 100, 1000: 30, 10_000: 6}


@dataclass(frozen=True)
class Row:
    """One estimate of one log, and how wrong it was."""

    target: str
    size: int
    slates: int
    estimator: str
    error: float
    standard_error: float
    covered: bool
    verdict: str
    ess_fraction: float

    @property
    def far_off(self) -> bool:
        """Off by more than three of its own standard errors, or not a number at all."""
        return not abs(self.error) <= 3 * self.standard_error


def estimators() -> dict[str, tuple[bool, Callable[[LoggedSlates, str, Predictions], Estimate]]]:
    """By name: whether it is length-normalised, and how it is computed."""

    def method(name: str, *, length_normalize: bool) -> Callable[[LoggedSlates, str, Predictions], Estimate]:
        def run(log: LoggedSlates, policy: str, model: Predictions) -> Estimate:
            return estimate(
                log,
                policy,
                name,
                predictions=model if METHODS[name].predictions else None,
                objective=replace(ASKED, length_normalize=length_normalize),
            )

        return run

    def pope(log: LoggedSlates, policy: str, _: Predictions) -> Estimate:
        return pope_value(log, policy, objective=replace(ASKED, length_normalize=True))

    def geometric(log: LoggedSlates, policy: str, _: Predictions) -> Estimate:
        return pope_value(log, policy, objective=replace(ASKED, weighting="geometric"))

    return {
        **{name: (False, method(name, length_normalize=False)) for name in METHODS},
        "geometric, self-normalised": (False, geometric),
        "snips, length-normalised": (True, pope),
        "ips, length-normalised": (True, method("ips", length_normalize=True)),
    }


def simulate(world: World, logs: dict[int, int] = LOGS, sizes: Iterable[int] = SIZES, seed: int = 0) -> Iterator[Row]:
    """Every estimator on every log; equal seeds give equal rows."""
    for target in world.targets:
        truth = {ln: world.value(target, ALPHA, length_normalize=ln)[0] for ln in (False, True)}
        for size in sizes:
            for slates, count in logs.items():
                for replicate in range(count):
                    key = [seed, list(world.targets).index(target), size, slates, replicate]
                    log, model = world.sample(target, slates, size, np.random.default_rng(key))
                    for name, (length_normalize, run) in estimators().items():
                        yield _row(target, size, slates, name, run(log, target, model), truth[length_normalize])


def _row(target: str, size: int, slates: int, name: str, value: Estimate, truth: float) -> Row:
    return Row(
        target,
        size,
        slates,
        name,
        error=value.value - truth,
        standard_error=value.standard_error,
        covered=value.low <= truth <= value.high,
        verdict=value.verdict,
        ess_fraction=value.diagnostics.ess_fraction if value.diagnostics else float("nan"),
    )


# --- what the rows say ----------------------------------------------------------------------------------------------


def summarise(world: World, rows: list[Row]) -> dict[str, Any]:
    """Tables by estimator, by cell and by verdict, and the two promises of the verdicts."""
    names = list(dict.fromkeys(row.estimator for row in rows))
    by_estimator = {name: _verdicts([row for row in rows if row.estimator == name]) for name in names}
    cells: dict[tuple[str, int, int, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.target, row.size, row.slates, row.estimator), []).append(row)
    return {
        "alpha": ALPHA,
        "targets": {
            name: {
                "value": world.value(name, ALPHA, length_normalize=False)[0],
                "chi_squared": world.chi_squared(name),
            }
            for name in world.targets
        },
        "promises": promises(rows),
        "estimators": by_estimator,
        "cells": [
            {**dict(zip(("target", "size", "slates", "estimator"), key)), **_errors(cell)}
            for key, cell in cells.items()
        ],
        "theorem": [asdict(theorem(world, target, size)) for target in world.targets for size in (2, 4, 8)],
    }


def promises(rows: list[Row]) -> dict[str, float]:
    """The share of reliable intervals that cover the truth, and the share of far-off estimates not called reliable."""
    reliable = [row for row in rows if row.verdict == "reliable"]
    off = [row for row in rows if row.far_off]
    return {
        "estimates": len(rows),
        "reliable": len(reliable),
        "reliable_covered": _share(row.covered for row in reliable),
        "off_by_3_standard_errors": len(off),
        "off_not_called_reliable": _share(row.verdict != "reliable" for row in off),
    }


def _verdicts(rows: list[Row]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for verdict in VERDICTS:
        mine = [row for row in rows if row.verdict == verdict]
        result[verdict] = {
            "share": len(mine) / len(rows),
            "covered": _share(row.covered for row in mine),
            "rmse": float(np.sqrt(np.mean([row.error**2 for row in mine]))) if mine else None,
        }
    return result


def _errors(rows: list[Row]) -> dict[str, float]:
    errors = np.array([row.error for row in rows])
    return {
        "rmse": float(np.sqrt(np.mean(errors**2))),
        "bias": float(errors.mean()),
        "deviation": float(errors.std()),
        "covered": _share(row.covered for row in rows),
        "ess_fraction": float(np.mean([row.ess_fraction for row in rows])),
        **{v: _share(row.verdict == v for row in rows) for v in VERDICTS},
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else float("nan")


@dataclass(frozen=True)
class Theorem:
    """Theorem 4.1 a and b by enumeration, query by query."""

    target: str
    size: int
    expectation_gap: float  # largest |E_0[joint] - E_0[decomposed]|
    condition_holds: float  # share of queries
    variance_ordered: float  # share of queries with Var(decomposed) <= Var(joint)
    contradictions: int  # queries where the condition holds and the order does not


def theorem(world: World, target: str, size: int) -> Theorem:
    """The joint and the decomposed estimator of V_CU for one slate of ``size`` independent responses.

    With ``m = E[w]``, ``s = E[w^2]``, ``a = E[w R]``, ``b = E[w^2 R]``, ``c = E[w^2 R^2]`` under the logging policy,
    ``E joint = a m^(k-1)`` and ``E joint^2 = (k c s^(k-1) + k (k-1) b^2 s^(k-2)) / k^2``.
    """
    p0, w, reward, k = np.exp(world.logging), np.exp(world.targets[target] - world.logging), world.reward, size
    m, s = (p0 * w).sum(1), (p0 * w**2).sum(1)
    a, b, c = (p0 * w * reward).sum(1), (p0 * w**2 * reward).sum(1), (p0 * w**2 * reward**2).sum(1)
    joint = a * m ** (k - 1)
    variance_joint = (k * c * s ** (k - 1) + k * (k - 1) * b**2 * s ** (k - 2)) / k**2 - joint**2
    variance_decomposed = (c - a**2) / k
    condition = b - a * m >= -(k - 1) / 2 * a * (s - m**2)
    ordered = variance_decomposed <= variance_joint * (1 + 1e-12)
    return Theorem(
        target,
        size,
        expectation_gap=float(np.abs(joint - a).max()),
        condition_holds=float(condition.mean()),
        variance_ordered=float(ordered.mean()),
        contradictions=int((condition & ~ordered).sum()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--out", "--output", dest="output", type=Path, required=True, help="JSON of the summary")
    parser.add_argument("--figure", type=Path, help="PNG, SVG or PDF")
    parser.add_argument("--slates", type=int, nargs="+", choices=list(LOGS), default=list(LOGS), help="of the logs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    check_output(arguments.output, overwrite=True)
    if arguments.figure is not None:
        check_output(arguments.figure, overwrite=True, endings=(".png", ".svg", ".pdf"), argument="figure")
    world = make_world()
    rows: list[Row] = []
    for row in simulate(world, {slates: LOGS[slates] for slates in arguments.slates}, seed=arguments.seed):
        if not rows or (row.target, row.size, row.slates) != (rows[-1].target, rows[-1].size, rows[-1].slates):
            print(f"{row.target}: {row.slates} slates of {row.size}", flush=True)
        rows.append(row)
    summary = summarise(world, rows)
    write_json(arguments.output, jsonable(summary))
    print(json.dumps(summary["promises"], indent=1))
    if arguments.figure is not None:
        from .ope_study_figure import study_figure

        with replacing(arguments.figure) as partial:
            study_figure(summary).savefig(partial, dpi=130)


if __name__ == "__main__":
    main()
