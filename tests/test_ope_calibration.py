"""The calibration study counts what it says, and a small run of it keeps the promises that the whole one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pope_align._journal import Journal
from pope_align.experiments.ope_calibration import (
    STUDIES,
    GradedEstimate,
    judge_long_world,
    judge_world,
    promises,
    run,
    summarise,
    table,
    wilson_lower,
)
from pope_align.experiments.ope_long_worlds import LONG_DEVELOPMENT
from pope_align.experiments.ope_worlds import DEVELOPMENT, TableWorld
from scipy.stats import binomtest


def row(error: float, verdict: str, *, healthy: bool = False) -> GradedEstimate:
    return GradedEstimate("kind", "snips", "value", "first", error, 1.0, abs(error) <= 1.96, verdict, healthy, ())


def test_promises_are_counted() -> None:
    rows = [
        row(0.5, "reliable", healthy=True),
        row(2.5, "reliable"),
        row(4, "reliable"),
        row(5, "refuse"),
        row(9, "index"),
    ]
    found = promises(rows)["snips, value"]
    assert found["reliable_covered"] == pytest.approx(1 / 3)
    assert found["off_by_3_standard_errors"] == 3
    assert found["off_not_called_reliable"] == pytest.approx(2 / 3)
    assert found["healthy_reliable"] == 1
    assert found["share_index"] == pytest.approx(0.2)
    assert wilson_lower(93, 100) == pytest.approx(binomtest(93, 100).proportion_ci(method="wilson").low)
    assert "| snips, both | 5 | 3 | 33.3% |" in table(promises(rows))


def test_a_small_run_keeps_the_promises() -> None:
    rows = []
    for at, (name, kind) in enumerate(DEVELOPMENT.items()):
        random = np.random.default_rng([1, at])
        rows += list(judge_world(name, kind(random), random))
    assert {each.estimator for each in rows} >= {"snips", "ips", "dr", "sndr"}
    assert {each.what for each in rows} == {"value", "difference"}
    off = [each for each in rows if each.far_off]
    assert sum(each.verdict == "reliable" for each in off) <= 0.1 * len(off)
    reliable = [each for each in rows if each.verdict == "reliable"]
    assert sum(each.covered for each in reliable) >= 0.8 * len(reliable) > 10
    assert summarise(rows)["by_kind"].keys() == DEVELOPMENT.keys()


def test_a_stopped_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"study": "development", "seed": 3}
    few = {name: DEVELOPMENT[name] for name in ("nearly equal", "misrecorded")}
    monkeypatch.setitem(STUDIES, "development", (few, judge_world))
    first = run("development", 1, 3, Journal(tmp_path / "rows.jsonl", about))
    calls: list[str] = []

    def counted(name: str, world: TableWorld, random: np.random.Generator) -> Iterator[GradedEstimate]:
        calls.append(name)
        return judge_world(name, world, random)

    monkeypatch.setitem(STUDIES, "development", (few, counted))
    both = run("development", 2, 3, Journal(tmp_path / "rows.jsonl", about))
    assert calls == list(few)  # the second world of each kind only
    assert both[: len(first)] == first


def test_model_first_is_judged_on_worlds_of_its_own() -> None:
    """Policies far from the log are not reliable. What the features miss was far off and reliable once; now it is in
    the weights of whole responses.
    """

    def judged(kind: str) -> list[GradedEstimate]:
        rows = []
        for number in range(20):
            random = np.random.default_rng([5, number])
            rows += judge_long_world(kind, LONG_DEVELOPMENT[kind](random), random)
        return rows

    far = judged("far")
    assert {each.what for each in far} == {"value", "difference"}
    assert sum(each.far_off for each in far) > 3
    assert not any(each.far_off and each.verdict == "reliable" for each in far)
    hidden = judged("partly hidden")
    assert np.mean([each.covered for each in hidden]) > 0.8
    assert sum(each.far_off for each in hidden) <= 1
