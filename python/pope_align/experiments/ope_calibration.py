"""Checks the promises of verdicts: estimates and differences on worlds with known truth, by kind and estimator.

    python -m pope_align.experiments.ope_calibration held-out --worlds 40 --out calibration.json
    python -m pope_align.experiments.ope_calibration long-held-out --worlds 40 --out long.json

Every world of a kind is drawn separately and gives one log. A stopped run continues with the same command.
docs/ope_study.md discusses the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._files import check_output, write_json
from .._journal import Journal
from .._json import jsonable
from ..ope import Comparison, Estimate, LoggedSlates, Predictions, compare, effective_sample_size, estimate
from ..ope.long_responses import NAME as MODEL_FIRST
from ..ope.long_responses import model_first_estimate
from ..ope.rules import FEW_CLUSTERS, VERDICTS
from .ope_long_worlds import LONG_DEVELOPMENT, LONG_HEALTHY, LONG_HELD_OUT, LongWorld
from .ope_worlds import DEVELOPMENT, HELD_OUT, POLICIES, TableWorld

#: The estimators, rows of `METHODS`.
ESTIMATORS = ("snips", "ips", "dr", "sndr", "clipped_ips")

#: A log is healthy by the effective sample size of whole sequences and the policy's exact mass outside the log.
HEALTHY_ESS, HEALTHY_SHARE = 100.0, 0.01

#: Kinds whose recorded propensities are wrong.
UNTRUE = ("misrecorded",)


@dataclass(frozen=True)
class GradedEstimate:
    """One estimate or difference, and how wrong it was."""

    kind: str
    estimator: str
    what: str  # "value" or "difference"
    policy: str
    error: float
    standard_error: float
    covered: bool
    verdict: str
    healthy: bool
    rules: tuple[str, ...]  # the rules that led to the verdict

    @property
    def far_off(self) -> bool:
        """Off by more than three of its own standard errors, or not a number at all."""
        return not abs(self.error) <= 3 * self.standard_error + 1e-12


def judge_world(kind: str, world: TableWorld, random: np.random.Generator) -> Iterator[GradedEstimate]:
    """Every estimator on one log."""
    log, predictions = world.sample(random)
    healthy = {policy: _healthy(kind, world, log, policy) for policy in POLICIES}
    truth = {policy: world.value(policy) for policy in POLICIES}
    tuned = log.num_clusters >= FEW_CLUSTERS
    for name in ESTIMATORS if tuned else ESTIMATORS[:-1]:
        values = {policy: _estimate(log, policy, name, predictions) for policy in POLICIES}
        for policy in POLICIES[1:]:
            yield _judged(kind, name, values[policy], truth[policy], healthy[policy])
            difference = compare(values[policy], values[POLICIES[0]])
            yield _judged(kind, name, difference, truth[policy] - truth[POLICIES[0]], healthy[policy])


def judge_long_world(kind: str, world: LongWorld, random: np.random.Generator) -> Iterator[GradedEstimate]:
    """Model first on one log of long responses; healthy where weights of whole responses would do as well."""
    log, features = world.sample(random)
    value, base = world.truth(random)
    ess = effective_sample_size(np.subtract(*log.logprobs("target", length_normalize=False)))
    within = world.support_share(log, random) < HEALTHY_SHARE
    healthy = kind in LONG_HEALTHY and ess >= HEALTHY_ESS and within
    mine = model_first_estimate(log, "target", [features]).estimate
    difference = compare(mine, model_first_estimate(log, "base", []).estimate)
    yield _judged(kind, MODEL_FIRST, mine, value, healthy)
    yield _judged(kind, MODEL_FIRST, difference, value - base, healthy)


def _healthy(kind: str, world: TableWorld, log: LoggedSlates, policy: str) -> bool:
    log_w = np.subtract(*log.logprobs(policy, length_normalize=False))
    enough = effective_sample_size(log_w) >= HEALTHY_ESS
    whole = max(world.cluster_sizes, default=0.0) == 0.0
    return kind not in UNTRUE and whole and enough and world.support_share(policy, log) < HEALTHY_SHARE


def _estimate(log: LoggedSlates, policy: str, name: str, predictions: dict[str, Predictions]) -> Estimate:
    model = predictions[policy] if name in ("dr", "sndr") else None
    return estimate(log, policy, name, predictions=model)


def _judged(kind: str, estimator: str, result: Estimate | Comparison, truth: float, healthy: bool) -> GradedEstimate:
    value = result.utility
    return GradedEstimate(
        kind,
        estimator,
        "value" if isinstance(result, Estimate) else "difference",
        result.policy,
        value.value - truth,
        value.standard_error,
        value.low <= truth <= value.high,
        result.verdict,
        healthy,
        tuple(sorted({each.rule for each in result.findings if each.verdict == result.verdict})),
    )


def promises(rows: Iterable[GradedEstimate]) -> dict[str, dict[str, float]]:
    """By estimator and kind of result: coverage of reliable results, with Wilson's bound, and the other promises."""
    groups: dict[str, list[GradedEstimate]] = {}
    for row in rows:
        groups.setdefault(f"{row.estimator}, {row.what}", []).append(row)
        groups.setdefault(f"{row.estimator}, both", []).append(row)
    return {name: _promises(mine) for name, mine in groups.items()}


def _promises(rows: list[GradedEstimate]) -> dict[str, float]:
    reliable = [row for row in rows if row.verdict == "reliable"]
    off = [row for row in rows if row.far_off]
    healthy = [row for row in rows if row.healthy]
    covered = sum(row.covered for row in reliable)
    return {
        "results": len(rows),
        "reliable": len(reliable),
        "reliable_covered": _share(covered, len(reliable)),
        "reliable_covered_wilson": wilson_lower(covered, len(reliable)),
        "off_by_3_standard_errors": len(off),
        "off_not_called_reliable": _share(sum(row.verdict != "reliable" for row in off), len(off)),
        "reliable_off": _share(sum(row.far_off for row in reliable), len(reliable)),
        "healthy": len(healthy),
        "healthy_reliable": _share(sum(row.verdict == "reliable" for row in healthy), len(healthy)),
        **{f"share_{verdict}": _share(sum(row.verdict == verdict for row in rows), len(rows)) for verdict in VERDICTS},
    }


def _share(count: int, of: int) -> float:
    return count / of if of else float("nan")


def wilson_lower(count: int, of: int, z: float = 1.959963984540054) -> float:
    """Lower end of Wilson's 95% interval for a share."""
    if of == 0:
        return float("nan")
    share = count / of
    centre = share + z**2 / (2 * of)
    half = z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return float((centre - half) / (1 + z**2 / of))


def summarise(rows: list[GradedEstimate]) -> dict[str, Any]:
    """The promises of all rows and by kind of world, and the rules that decided, most frequent first."""
    kinds = list(dict.fromkeys(row.kind for row in rows))
    deciding: dict[str, int] = {}
    for row in rows:
        if row.healthy and row.verdict != "reliable":
            for rule in row.rules:
                deciding[f"{row.what}: {rule}"] = deciding.get(f"{row.what}: {rule}", 0) + 1
    summary: dict[str, Any] = jsonable(
        {
            "promises": promises(rows),
            "by_kind": {kind: promises(row for row in rows if row.kind == kind) for kind in kinds},
            "healthy_and_not_reliable_by": dict(sorted(deciding.items(), key=lambda item: -item[1])),
        }
    )
    return summary


def table(rows: dict[str, dict[str, float]]) -> str:
    """The promises as Markdown, a line for each estimator and kind of result."""
    lines = [
        "| estimator | results | reliable | of these covered | Wilson bound | of these off by 3 errors "
        "| off by 3 errors | of these not reliable | healthy | of these reliable |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        shares = ("reliable_covered", "reliable_covered_wilson", "off_not_called_reliable", "healthy_reliable")
        covered, bound, caught, healthy = (f"{row[key]:.1%}" if row[key] is not None else "" for key in shares)
        chance = f"{row['reliable_off']:.2%}" if row["reliable_off"] is not None else ""
        counts = (row["results"], row["reliable"], row["off_by_3_standard_errors"], row["healthy"])
        results, reliable, off, well = (f"{count:,.0f}" for count in counts)
        lines.append(
            f"| {name} | {results} | {reliable} | {covered} | {bound} | {chance} | {off} | {caught} | {well} "
            f"| {healthy} |"
        )
    return "\n".join(lines)


#: The kinds of worlds of each study, and what is judged on one of them.
STUDIES: Mapping[str, tuple[Mapping[str, Any], Callable[..., Iterator[GradedEstimate]]]] = {
    "development": (DEVELOPMENT, judge_world),
    "held-out": (HELD_OUT, judge_world),
    "long-development": (LONG_DEVELOPMENT, judge_long_world),
    "long-held-out": (LONG_HELD_OUT, judge_long_world),
}


def run(study: str, worlds: int, seed: int, journal: Journal) -> list[GradedEstimate]:
    """All rows of a study, in the order of the worlds; those in the journal are not computed again."""
    kinds, judge = STUDIES[study]
    rows: list[GradedEstimate] = []
    for number in range(worlds):
        for at, (name, kind) in enumerate(kinds.items()):
            key = f"{name}, {number}"
            if key not in journal:
                random = np.random.default_rng([seed, at, number])
                journal.add(key, [jsonable(row) for row in judge(name, kind(random), random)])
            rows += [_row(each) for each in journal[key]]
        if (number + 1) % 10 == 0 or number + 1 == worlds:
            print(f"{number + 1} of {worlds} worlds of every kind", flush=True)
    return rows


def _row(written: dict[str, Any]) -> GradedEstimate:
    """A row as it was; numbers that JSON cannot hold are NaN."""
    numbers = {name: float("nan") if written[name] is None else written[name] for name in ("error", "standard_error")}
    return GradedEstimate(**{**written, **numbers, "rules": tuple(written["rules"])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--worlds", type=int, default=40, help="of every kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON of the summary; its rows lie beside it")
    arguments = parser.parse_args()
    check_output(arguments.out, overwrite=True)
    journal = Journal(
        arguments.out.with_suffix(".rows.jsonl"), {"study": arguments.study, "seed": arguments.seed, "rows": 1}
    )
    summary = summarise(run(arguments.study, arguments.worlds, arguments.seed, journal))
    write_json(arguments.out, {"study": arguments.study, "worlds": arguments.worlds, **summary})
    print(table(summary["promises"]))


if __name__ == "__main__":
    main()
