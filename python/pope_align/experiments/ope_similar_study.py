"""Compares estimators at several response lengths, in a world whose true values are known in closed form.

    python -m pope_align.experiments.ope_similar_study -o docs/results/ope-similar.json

Responses have a meaning and a wording (`ope_similar_world`): with length, the wording increases the spread of sequence
weights, while the difference in meaning stays the same. Reward model, classifier and kernel get the meaning ("seen") or
unrelated features of equal size ("unseen").
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import check_output, write_json
from .._json import jsonable
from ..ope.features import Features
from ..ope.log_support import fresh_support
from ..stats.intervals import Confidence, quantities
from .ope_lm_results import Check, ReplicateEstimate, check_table, summarize
from .ope_long_estimators import estimate_all, learn
from .ope_similar_world import SimilarWorld

#: Spread of the log-weight per token of wording, nats: an effective sample of 14% at 8 tokens.
PER_TOKEN = 0.5

LENGTHS = (2, 8, 32, 64)

#: Shifts of the targets' meaning along the raters' preference.
SHIFTS = (-0.6, -0.3, -0.1, 0.1, 0.3, 0.6, 0.9, 1.2)


def run(replicates: int, slates: int) -> Iterator[tuple[ReplicateEstimate, Check | None]]:
    """Every row, and with the first of each log its checks."""
    for number in range(replicates):
        for shift in SHIFTS:
            for seen in (True, False):
                yield from _one(shift, number, slates, seen)
        print(f"{number + 1} of {replicates} logs", flush=True)


def _one(shift: float, number: int, slates: int, seen: bool) -> Iterator[tuple[ReplicateEstimate, Check | None]]:
    """One log at every length: the same meanings and ratings, with increasing spread of wording."""
    log, features = SimilarWorld(shift).draw(number, slates=slates)
    logging = SimilarWorld(0.0).unit(
        SimilarWorld(0.0).draw(number, slates=slates)[1]
    )  # the same log, fresh responses of its policy
    unit = SimilarWorld(shift).unit(features)
    if not seen:
        features, unit, logging = (_unseen(each, number) for each in (features, unit, logging))
    learned = learn(log, [features], unit, (logging.target, logging.owner))
    for length in LENGTHS:
        world = SimilarWorld(shift, PER_TOKEN * length**0.5, length)
        log, _ = world.draw(number, slates=slates)
        result = estimate_all(log, "target", learned)
        place = "seen" if seen else "unseen", length, f"{shift:+g}", number
        outside = fresh_support(log, "target")
        assert outside is not None
        check: Check | None = Check(*place, outside.share, **result.checks)
        for estimator, ratios in result.values.items():
            q = quantities(ratios.minus(result.base), Confidence())[0]
            truth = world.truth - world.base
            yield ReplicateEstimate(*place, estimator, q.value, q.standard_error, q.low, q.high, truth, 0.0), check
            check = None


def _unseen(features: Features, seed: int) -> Features:
    """Unrelated features of the same size."""
    random = np.random.default_rng((seed, 1))
    logged, target = random.normal(size=features.logged.shape), random.normal(size=features.target.shape)
    return Features("unseen", logged, target, features.owner)


def study(replicates: int, slates: int) -> dict[str, Any]:
    """Tables by what the model sees and by length."""
    found = list(run(replicates, slates))
    rows, checks = [row for row, _ in found], [check for _, check in found if check is not None]
    truths = {f"{shift:+g}": (SimilarWorld(shift).truth - SimilarWorld(shift).base, 0.0) for shift in SHIFTS}
    tables = {}
    for reward in ("seen", "unseen"):
        for length in LENGTHS:
            here = [row for row in rows if (row.reward, row.length) == (reward, length)]
            theirs = [check for check in checks if (check.reward, check.length) == (reward, length)]
            tables[f"{reward}, {length} tokens"] = {
                "estimators": summarize(here, truths),
                "checks": check_table(theirs),
            }
    return {
        "slates": slates,
        "responses_a_slate": 4,
        "fresh_responses_a_slate": 4,
        "replicates": replicates,
        "truths": {name: truth for name, (truth, _) in truths.items()},
        "tables": tables,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file for the tables")
    parser.add_argument("--replicates", type=int, default=20, help="of the log (default: 20)")
    parser.add_argument("--slates", type=int, default=150, help="of four responses (default: 150)")
    given = parser.parse_args(arguments)
    check_output(given.out, overwrite=True)
    result = study(given.replicates, given.slates)
    write_json(given.out, jsonable(result))
    for name, table in result["tables"].items():
        print(name)
        print(as_text(table["estimators"]))


def as_text(table: dict[str, dict[str, float]]) -> str:
    """The main columns, one estimator per line."""
    columns = ("rmse", "recovered", "covered", "half_width", "right_signs", "tau", "regret")
    lines = ["| estimator | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for estimator, row in table.items():
        lines.append(f"| {estimator} | " + " | ".join(f"{row[column]:.3f}" for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
