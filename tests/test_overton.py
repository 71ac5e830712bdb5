"""OvertonScore: coverage by people's own ratings, adjusted for who answered what, and metrics compared with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pope_align import cli
from pope_align.data import Slate, write_slates
from pope_align.generation.generations import prompt_key
from pope_align.metrics.overton import agreement, human_coverage, overton_scores
from scipy import stats


def question(number: int, ratings: dict[str, list[float]]) -> Slate:
    """A question and, for each model, the mean ratings of groups 0, 1, ..."""
    return Slate(
        f"Question {number}?",
        [f"{model} says {number}" for model in ratings],
        [float(np.mean(each)) for each in ratings.values()],
        responders=list(ratings),
        group_scores=[{str(g): rating for g, rating in enumerate(each)} for each in ratings.values()],
    )


LOG = [
    question(1, {"a": [4.0, 5.0, 3.9], "b": [1.0, 4.5, 2.0]}),
    question(2, {"a": [4.2, 1.0], "b": [3.99, 3.0]}),
    question(3, {"b": [5.0, 5.0], "a": [5.0, 4.0]}),
]


def test_a_group_is_covered_by_a_mean_rating_of_four() -> None:
    models, shares = human_coverage(LOG)
    assert models == ["a", "b"]
    assert shares == pytest.approx(np.array([[2 / 3, 1 / 3], [1 / 2, 0.0], [1.0, 1.0]]))
    assert human_coverage(LOG, 4.5)[1][2].tolist() == [0.5, 1.0]
    first, second = overton_scores(LOG)
    assert (first.model, first.questions) == ("a", 3)
    assert first.score == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert second.score == pytest.approx((1 / 3 + 1) / 3)


def test_where_every_model_answered_everything_errors_are_those_of_paired_means() -> None:
    """Balanced: the effect is a mean over questions of deviations, the covariance their scatter, times (N-1)/(N-K)."""
    generator = np.random.default_rng(0)
    log = [question(n, {m: generator.uniform(1, 5, 4).tolist() for m in "abc"}) for n in range(12)]
    _, shares = human_coverage(log)
    deviations = shares - shares.mean(1, keepdims=True)
    size, width = shares.size, 12 + 2
    factor = 12 / 11 * (size - 1) / (size - width)
    for score in overton_scores(log):
        own = deviations[:, "abc".index(score.model)]
        error = np.sqrt(factor * np.square(own - own.mean()).sum()) / 12
        assert score.score == pytest.approx(score.adjusted)
        assert score.deviation.value == pytest.approx(own.mean())
        assert score.deviation.standard_error == pytest.approx(error)
        assert score.deviation.high - score.deviation.low == pytest.approx(2 * stats.t.ppf(0.975, 11) * error)
        assert score.p_value == pytest.approx(2 * stats.t.sf(abs(own.mean() / error), 11))


def test_a_model_that_answered_easy_questions_only_gains_nothing_by_it() -> None:
    """Coverage is a question's level plus a model's effect, exactly; one model answered only the easy half."""
    ladder = {1.0: [5.0] * 4, 0.75: [5.0] * 3 + [1.0], 0.5: [5.0] * 2 + [1.0] * 2, 0.25: [5.0] + [1.0] * 3}
    level, effect = [0.75, 0.75, 0.25, 0.25], {"good": 0.25, "weak": 0.0}
    log = [
        question(n, {m: ladder[level[n] + plus] for m, plus in effect.items() if m == "good" or n < 2})
        for n in range(4)
    ]
    good, weak = overton_scores(log)
    assert weak.score == pytest.approx(good.score)  # 0.75, on two easy questions and on all four
    assert (good.adjusted, weak.adjusted) == pytest.approx((0.75, 0.5))
    assert good.deviation.value == pytest.approx(0.125)
    assert (good.questions, weak.questions) == (4, 2)


def test_ratings_without_models_or_groups_are_refused() -> None:
    plain = Slate("Why?", ["x"], [1.0])
    with pytest.raises(ValueError, match="slate 1: responders: expected one per answer, got none"):
        human_coverage([plain])
    with pytest.raises(ValueError, match="expected at least two rated questions and models, got 1 and 2"):
        overton_scores(LOG[:1])
    apart = [question(1, {"a": [5.0]}), question(2, {"b": [5.0]}), question(3, {"b": [1.0]})]
    with pytest.raises(ValueError, match="compared through common questions"):
        overton_scores(apart)


def test_agreement_is_the_mean_rank_correlation_within_questions() -> None:
    human = {(str(q), m): value for q in range(4) for m, value in zip("abc", (0.1, 0.5, 0.9))}
    same = {key: 100 * q_value + int(key[0]) for key, q_value in human.items()}  # levels of questions do not matter
    assert agreement(same, human).value == pytest.approx(1)
    mixed = {**same, ("0", "a"): 1e9}  # in one question the order is b, c, a
    assert agreement(mixed, human).value == pytest.approx((-0.5 + 1 + 1 + 1) / 4)
    with pytest.raises(ValueError, match="two questions or more on which metric and ratings differ"):
        agreement(dict.fromkeys(human, 1.0), human)


def test_the_command_shows_scores_and_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pope(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["pope", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    monkeypatch.chdir(tmp_path)
    write_slates(LOG, "ratings.parquet")
    rows = [
        {"model": m, "prompt": prompt_key(slate.prompt), "energy": d, "coverage": 0.5}
        for slate in LOG
        for m, d in (("a", 0.1), ("b", 0.3))
    ]
    pq.write_table(pa.Table.from_pylist(rows), "per_slate.parquet")
    assert pope("overton", "ratings.parquet", "--metrics", "per_slate.parquet", "--json", "-") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [row["model"] for row in found["models"]] == ["a", "b"]
    assert found["models"][0]["adjusted"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert found["agreement"]["energy"]["value"] == pytest.approx(1)  # the lower, the better
    assert "left out, because equal for all models or not defined: coverage" in shown.err
    assert pope("overton", "ratings.parquet") == 0
    assert "0.722" in capsys.readouterr().out
    assert pope("overton", "none.parquet") == 2
