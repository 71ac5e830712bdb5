"""Annotators as people: values to groups of them, against a known truth; intervals by prompt and by annotator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pope_align.cli import app
from pope_align.data import Slate, read_slates, write_slates
from pope_align.data.raters import rating_table
from pope_align.ope import Confidence, LoggedSlates, evaluate_policies, pope_value, values_by_raters
from pope_align.stats.agreement import krippendorff_alpha
from pope_align.stats.two_way import one_way_variance, two_way_variance
from typer.testing import CliRunner

from pope_core import Objective

P0, P1 = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
#: Mean utility of three responses to each group.
MEANS = {"cats": np.array([0.3, 0.5, 0.7]), "dogs": np.array([0.7, 0.5, 0.2])}
EVALUATION = Objective.evaluation().to_dict()
TRUE = {name: float(P1 @ means) for name, means in MEANS.items()}


def world(
    seed: int, prompts: int = 50, annotators: int = 40, raters: int = 6, spread: float = 0.2
) -> tuple[list[Slate], list[list[float]]]:
    """Slates of two, rated by some of the annotators, who are generous or strict everywhere; and a policy's totals.

    A rating is the group's mean, plus a number of the person's, one of the prompt's, and noise; all within [0, 1].
    """
    random = np.random.default_rng(seed)
    person, prompt = random.uniform(-spread, spread, annotators), random.uniform(-0.05, 0.05, prompts)
    slates, totals = [], []
    for at in range(prompts):
        drawn = random.choice(3, 2, p=P0)
        chosen = random.choice(annotators, raters, replace=False)
        ratings = []
        for response in drawn:
            of = []
            for who in chosen:
                group = "cats" if who % 2 else "dogs"
                noise = random.uniform(-0.05, 0.05)
                score = MEANS[group][response] + person[who] + prompt[at] + noise
                of.append({"annotator": f"p{who}", "score": float(np.clip(score, 0, 1)), "group": group})
            ratings.append(of)
        scores = [float(np.mean([each["score"] for each in of])) for of in ratings]
        slates.append(
            Slate(
                f"Prompt {at}?",
                ["first", "second"],
                scores,
                logging_logprobs=np.log(P0[drawn]).tolist(),
                logging_policy={"how": "recorded"},
                ratings=ratings,
            )
        )
        totals.append(np.log(P1[drawn]).tolist())
    return slates, totals


def logged(seed: int, **options: float) -> LoggedSlates:
    slates, totals = world(seed, **options)  # type: ignore[arg-type]
    base = [slate.logging_logprobs for slate in slates]
    return LoggedSlates.from_slates(slates, {"new": totals, "base": base}, score_range=(0, 1))


def test_intervals_by_prompt_and_annotator_cover_the_truth_and_those_by_prompt_do_not() -> None:
    truth, runs = float(np.mean(list(TRUE.values()))), 60
    hits: dict[str, list[bool]] = {"groups": [], "worst": [], "gap": [], "everyone": [], "by prompt": []}
    for seed in range(runs):
        log = logged(seed, spread=0.12)
        found = values_by_raters(log, "new")
        groups = [(found.of(name).value, value) for name, value in TRUE.items()]
        hits["groups"].append(all(each.low <= value <= each.high for each, value in groups))
        gap = abs(TRUE["cats"] - TRUE["dogs"])
        for name, each, value in (
            ("worst", found.worst_value, min(TRUE.values())),
            ("gap", found.gap, gap),
            ("everyone", found.everyone.value, truth),
            ("by prompt", pope_value(log, "new").utility, truth),
        ):
            hits[name].append(each.low <= value <= each.high)
    covered = {name: float(np.mean(each)) for name, each in hits.items()}
    by_prompt = covered.pop("by prompt")
    assert min(covered.values()) >= 0.89, covered  # .95 promised, less two standard errors
    assert by_prompt < 0.85  # a person counted as a new one at each prompt


def test_the_value_to_a_group_is_the_weighted_mean_of_its_ratings() -> None:
    log = logged(3)
    found = values_by_raters(log, "new", baseline="base")
    for name in MEANS:
        top = bottom = base_top = base_bottom = 0.0
        for slate, totals in zip(log.slates, np.split(log.policies["new"].logprobs, log.slate_offsets[1:-1])):
            rated = [[each["score"] for each in of if each["group"] == name] for of in slate.ratings]
            k = sum(bool(of) for of in rated)
            for of, total, before in zip(rated, totals, slate.logging_logprobs):
                if of:
                    weight = np.exp(total - before)
                    top, bottom = top + weight * np.mean(of) / k, bottom + weight / k
                    base_top, base_bottom = base_top + np.mean(of) / k, base_bottom + 1 / k
        assert found.of(name).value.value == pytest.approx(top / bottom, rel=1e-12)
        assert found.of(name).gain.value == pytest.approx(top / bottom - base_top / base_bottom, rel=1e-9)
    assert found.everyone.value.value == pytest.approx(pope_value(log, "new").utility.value, rel=1e-12)
    assert (found.worst, found.of("dogs").annotators, found.everyone.ratings) == ("dogs", 20, 600)
    assert found.gap.value == pytest.approx(found.of("cats").value.value - found.of("dogs").value.value)
    assert any("only 20 annotators" in reason for reason in found.of("dogs").reasons)


def test_a_group_whose_members_stand_alone_or_rate_one_prompt_is_named() -> None:
    slates, totals = world(1)
    lone = [[*slates[0].ratings[0], {"annotator": "x", "score": 0.5, "group": "one"}], slates[0].ratings[1]]
    log = LoggedSlates.from_slates([replace(slates[0], ratings=lone), *slates[1:]], {"new": totals})
    assert values_by_raters(log, "new").too_small == ("one",)


def test_means_of_groups_without_people_are_clustered_by_prompt() -> None:
    slates, totals = world(2)
    means = []
    for slate in slates:
        by_group = [
            {name: [each["score"] for each in of if each["group"] == name] for name in MEANS} for of in slate.ratings
        ]
        scores = [{name: float(np.mean(each)) for name, each in of.items() if each} for of in by_group]
        means.append(replace(slate, ratings=None, group_scores=scores))
    people, groups = (LoggedSlates.from_slates(log, {"new": totals}) for log in (slates, means))
    with_people, without = values_by_raters(people, "new"), values_by_raters(groups, "new")
    assert without.of("cats").annotators is None
    assert without.of("cats").value.value == pytest.approx(with_people.of("cats").value.value)
    assert without.of("cats").value.standard_error < with_people.of("cats").value.standard_error


def test_what_cannot_be_estimated_is_refused() -> None:
    slates, totals = world(4)
    bare = [replace(slate, ratings=None) for slate in slates]
    with pytest.raises(ValueError, match=r"expected ratings by annotator .* got neither"):
        values_by_raters(LoggedSlates.from_slates(bare, {"new": totals}), "new")
    with pytest.raises(ValueError, match="utility_transform: expected a calibrated one"):
        values_by_raters(LoggedSlates.from_slates(slates, {"new": totals}, utility_transform="rank"), "new")
    with pytest.raises(ValueError, match="score_range: expected a range of all ratings"):
        values_by_raters(logged(4), "new", score_range=(0.4, 0.5))
    with pytest.raises(ValueError, match="policy: expected one of new, base, got 'old'"):
        values_by_raters(logged(4), "old")


# --- variances and agreement -----------------------------------------------------------------------------------------


def test_two_way_variances_are_those_of_the_formula() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 7, 40), random.integers(0, 5, 40)
    psi = random.normal(size=(40, 2)) + 2 * random.normal(size=(7, 2))[first]  # ratings of one prompt are alike

    def by_loops(codes: list[object]) -> np.ndarray:
        clusters = sorted(set(codes))
        sums = [sum(psi[n] for n in range(40) if codes[n] == cluster) for cluster in clusters]
        return sum(np.square(each) for each in sums) * len(clusters) / (len(clusters) - 1)

    one, two = by_loops(first.tolist()), by_loops(second.tolist())
    both = by_loops(list(zip(first.tolist(), second.tolist())))
    np.testing.assert_allclose(two_way_variance(psi, first, second), np.maximum(one + two - both, np.maximum(one, two)))
    alone = np.arange(40)  # every rating by a person of its own: only prompts matter
    np.testing.assert_allclose(two_way_variance(psi, first, alone), one_way_variance(psi, first))
    with pytest.raises(ValueError, match="second: expected at least two clusters, got 1"):
        two_way_variance(psi, first, np.zeros(40, dtype=np.int64))


def test_alpha_of_krippendorffs_own_example() -> None:
    """Four observers, twelve units: 0.849 for interval data (Krippendorff 2011, Section C)."""
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    rows = [(unit, float(value)) for row in observers for unit, value in enumerate(row.split()) if value != "."]
    units, values = map(np.array, zip(*rows))
    assert krippendorff_alpha(units, values) == pytest.approx(0.849, abs=5e-4)
    assert krippendorff_alpha(np.array([0, 0, 1, 1]), np.array([1.0, 1.0, 5.0, 5.0])) == 1
    assert np.isnan(krippendorff_alpha(np.array([0, 1]), np.array([1.0, 2.0])))
    assert np.isnan(krippendorff_alpha(np.array([0, 0]), np.array([2.0, 2.0])))


# --- from people's ratings to a log, its inspection, training and evaluation -----------------------------------------

FORMATS = Path(__file__).parent / "formats"


def pope(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "file", "annotators", "group"),
    [
        ("community-alignment", "conversations.jsonl", {"a1", "a2"}, "India"),
        ("overton", "overtonbench.csv", {"p1", "p2"}, "0"),
        ("overton", "ratings.csv", {"p1", "p2"}, "0"),
        ("prism", "conversations.jsonl", {"user7"}, None),
    ],
)
def test_annotators_are_copied_on_request_and_kept_from_then_on(name, file, annotators, group, tmp_path: Path) -> None:
    for ending in ("jsonl", "parquet"):
        kept, again, bare = (tmp_path / f"{which}.{ending}" for which in ("kept", "again", "bare"))
        options = ("--min-k", 1, "--from")
        pope("convert", FORMATS / name / file, "-o", kept, "--keep-users", *options, name)
        pope("convert", kept, "-o", again, *options, "slates")
        pope("convert", FORMATS / name / file, "-o", bare, *options, name)
        ratings = [each for slate in read_slates(kept) for of in slate.ratings for each in of]
        assert {each["annotator"] for each in ratings} >= annotators
        assert group is None or group in {each["group"] for each in ratings}
        for slate, later in zip(read_slates(kept), read_slates(again), strict=True):
            assert slate.ratings == later.ratings
            if name != "prism":
                assert slate.scores == [np.mean([each["score"] for each in of]) for of in slate.ratings]
        assert all(slate.ratings is None for slate in read_slates(bare))


def test_a_table_has_a_row_for_each_rating(tmp_path: Path) -> None:
    rows = ["prompt,completion,score,who,country", "Q?,A,5,ann,X", "Q?,A,1,bob,Y", "Q?,B,2,ann,X", "Q?,B,4,ann,X"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    mapping = ("--map", "annotator=who,group=country", "--keep-users")
    pope("convert", tmp_path / "t.csv", "--from", "table", *mapping, "-o", tmp_path / "t.jsonl")
    (slate,) = read_slates(tmp_path / "t.jsonl")
    assert slate.scores == [3.0, 4.0]  # a mean over people; of one person's repeats the best, as without annotators
    assert slate.ratings == [
        [{"annotator": "ann", "score": 5.0, "group": "X"}, {"annotator": "bob", "score": 1.0, "group": "Y"}],
        [{"annotator": "ann", "score": 4.0, "group": "X"}],
    ]


RATED = {"prompt": "Q?", "completions": ["A"], "scores": [1.0]}
ONE = {"annotator": "a", "score": 1.0}


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        ([ONE], r"ratings\[0\]: expected a list of ratings, got \{"),
        ([[ONE], [ONE]], "ratings: expected 1 entries, one per completion, got 2"),
        ([[{"annotator": "a"}]], r"ratings\[0\]\[0\]: expected a rating"),
        ([[{**ONE, "country": "X"}]], r"ratings\[0\]\[0\]: expected a rating"),
        ([[{**ONE, "score": "4"}]], r"ratings\[0\]\[0\].score: expected a finite number, got '4'"),
        ([[{**ONE, "annotator": 7}]], r"ratings\[0\]\[0\].annotator: expected non-empty text, got 7"),
        ([[{**ONE, "group": ""}]], r"ratings\[0\]\[0\].group: expected non-empty text"),
        ([[ONE, ONE]], r"ratings\[0\]\[1\].annotator: expected each annotator once for a response, got 'a'"),
        ("[1", r"ratings: expected JSON"),
    ],
)
def test_bad_ratings_are_named(ratings: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_slates([{**RATED, "ratings": ratings}])


def small() -> list[Slate]:
    """Two slates by hand: three people, of whom two are of group x."""

    def rated(*scores: float | None) -> list[dict]:
        people = zip(("a", "b", "c"), scores, ("x", "x", "y"))
        return [{"annotator": who, "score": score, "group": group} for who, score, group in people if score is not None]

    return [
        Slate("Q?", ["one", "two"], [2.0, 3.0], slate_id="q", ratings=[rated(1, 3, 5), rated(2, 2, 1)]),
        Slate("P?", ["one", "two"], [2.0, 3.0], slate_id="p", ratings=[rated(None, None, 4), rated(5, None, None)]),
    ]


def test_disagreement_is_inspected(tmp_path: Path) -> None:
    write_slates(small(), tmp_path / "log.jsonl")
    shown = pope("inspect", tmp_path / "log.jsonl", "--json", tmp_path / "seen.json")
    raters = json.loads((tmp_path / "seen.json").read_text())["raters"]
    assert (raters["annotators"], raters["ratings"], raters["per_response"]) == (3, 8, 2)
    assert raters["within"] == pytest.approx(np.sqrt((4 + 0 + 4 + 1 / 9 + 1 / 9 + 4 / 9) / 4))
    observed, expected = (2 * (4 + 4 + 16) / 2 + 2 * 2 / 2) / 6, 0.0
    values = [1, 3, 5, 2, 2, 1]
    expected = sum((a - b) ** 2 for a in values for b in values) / 30
    assert raters["alpha"] == pytest.approx(1 - observed / expected)
    assert raters["groups"]["x"] == {"annotators": 2, "ratings": 5, "mean": pytest.approx(13 / 5)}
    assert (raters["compared"], raters["apart"]) == (1, 0)  # both groups like "one" best, or as much as "two"
    assert "Krippendorff" in shown


def test_scores_by_a_group_or_by_annotators_are_training_data(tmp_path: Path) -> None:
    write_slates(small()[:1], tmp_path / "log.jsonl")
    log, out = tmp_path / "log.jsonl", tmp_path / "out.jsonl"

    def scores(*options: object) -> list[float]:
        pope("label", log, "-o", out, "--overwrite", *options)
        (slate,) = read_slates(out)
        assert slate.ratings == small()[0].ratings
        return slate.scores

    annotators = ("--voices", "annotators", "--score-range", 1, 5)
    assert scores("--with", "maximin", *annotators) == [0.0, 0.0]
    assert scores("--with", "utilitarian", *annotators) == pytest.approx([0.5, 1 / 6])
    assert scores("--with", "nash", *annotators) == [0.0, 0.0]
    assert scores("--with", "maximin", "--score-range", 1, 5) == pytest.approx([0.25, 0.0])  # the means 2, 5; 2, 1
    assert scores("--with", "group", "--raters", "x") == [2.0, 2.0]
    assert scores("--with", "group", "--raters", "y") == [5.0, 1.0]
    write_slates(small(), log)
    said = pope("label", log, "-o", out, "--overwrite", "--with", "group", "--raters", "y")
    assert "1 of 2 slates left out, which y did not rate" in said.replace("\n", " ")
    assert [slate.scores for slate in read_slates(out)] == [[5.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--with", "group"), "--raters (for --with group): expected a value"),
        (("--with", "group", "--raters", "z"), "raters: expected a group that rated all responses of a slate (x, y)"),
        (("--with", "maximin", "--raters", "x"), "--raters: expected with --with group only"),
        (("--with", "group", "--raters", "x", "--voices", "annotators"), "--voices: expected with --with utilitarian"),
        (("--with", "group", "--raters", "x", "--score-range", "1", "5"), "--score-range: expected with --with util"),
        (("--with", "group", "--raters", "x", "--vote-weights", "votes"), "--vote-weights: expected with --with simil"),
        (("--with", "group", "--raters", "x", "--cache", "else"), "--cache: expected with --with similarity"),
        (("--with", "maximin", "--embedding-model", "m"), "--embedding-model: expected with --with similarity"),
        (
            ("--with", "maximin", "--base-url", "http://x"),
            "--base-url: expected with --with judge only",
        ),
        (("--with", "nash", "--max-tokens", "9"), "--max-tokens: expected with --with judge only"),
        (("--with", "nash", "--concurrency", "9"), "--concurrency: expected with --with judge only"),
        (("--with", "nash", "--budget-tokens", "9"), "--budget-tokens: expected with --with judge only"),
        (("--with", "nash", "--key-variable", "K"), "--key-variable: expected with --with judge only"),
        (("--with", "set-utility", "--vote-weights", "votes"), "only, got --with set-utility without --refs"),
        (("--with", "maximin", "--score-range", "5", "1"), "--score-range: expected two numbers, low < high, got 5 1"),
        (("--with", "nash", "--voices", "annotators"), "ratings[0]: group_scores: expected numbers in [0, 1]"),
    ],
)
def test_labels_that_cannot_be_made_are_named(options, message, tmp_path: Path, capsys, monkeypatch) -> None:
    import sys

    from pope_align.cli import main

    write_slates(small(), tmp_path / "log.jsonl")
    arguments = ["label", str(tmp_path / "log.jsonl"), "-o", str(tmp_path / "o.jsonl"), *options]
    monkeypatch.setattr(sys, "argv", ["pope", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_by_raters_is_in_its_json_and_on_the_screen() -> None:
    from pope_align.cli._evaluation_tables import lines, tables

    slates, totals = world(5)
    base = [slate.logging_logprobs for slate in slates]
    evaluation = evaluate_policies(slates, {"base": base, "new": totals}, by_raters=True, score_range=(0, 1))
    base_groups, new_groups = evaluation.raters
    assert (base_groups.baseline, new_groups.baseline) == (None, "base")
    written = evaluation.to_dict()["raters"]
    assert [each["worst"] for each in written] == [base_groups.worst, new_groups.worst] == ["cats", "dogs"]
    assert written[1]["groups"][1]["gain"]["value"] == new_groups.of("dogs").gain.value
    titles = [title for title, _, _ in tables(evaluation, struck=False)]
    assert titles[-2:] == [f"{name}: values to raters, intervals by prompt and person" for name in ("base", "new")]
    assert any(line.startswith("new: serves dogs worst") for line in lines(evaluation))
    with pytest.raises(ValueError, match="expected ratings by annotator"):  # before anything is scored
        evaluate_policies([replace(slate, ratings=None) for slate in slates], {"base": "no-model"}, by_raters=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": ["ips"]}, "estimators: expected pope or snips among them with by_raters, .*got ips; for other"),
        ({"objective": Objective()}, "objective: expected that of evaluation with by_raters, .*diversity_weight 0.1"),
        ({"objective": Objective.from_dict({**EVALUATION, "clip": 5.0})}, "whole responses, got clip 5.0"),
        ({"confidence": Confidence("bootstrap")}, "confidence: expected t intervals with by_raters.*got bootstrap"),
    ],
)
def test_what_values_to_raters_would_ignore_is_refused_before_scoring(options: dict, message: str) -> None:
    slates, _ = world(5, prompts=6)
    with pytest.raises(ValueError, match=message):
        evaluate_policies(slates, {"base": "no-model"}, by_raters=True, **options)


def test_a_log_in_one_pass_has_no_raters(tmp_path: Path, monkeypatch, capsys) -> None:
    import sys

    import pyarrow
    from pope_align.cli import main
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"query": ["q"], "logging_logprob": [-1.0], "score": [1.0]}), tmp_path / "r.parquet"
    )
    monkeypatch.setattr(
        sys, "argv", ["pope", "evaluate", str(tmp_path / "r.parquet"), "--policy", "a=b", "--by-raters"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--by-raters: expected none for a log with one row per response" in " ".join(capsys.readouterr().err.split())


def test_where_no_group_can_be_estimated_the_lines_say_what_to_do() -> None:
    from pope_align.cli._evaluation_tables import lines

    def said(slates: list[Slate], totals: list[list[float]]) -> str:
        evaluation = evaluate_policies(slates, {"new": totals}, by_raters=True, score_range=(0, 1))
        return next(line for line in lines(evaluation) if line.startswith("new: ") and "group" in line)

    slates, _ = world(5)
    long = [[-400.0 + 90 * (at % 5), -350.0] for at in range(len(slates))]  # weights of long responses: one has all
    assert "no group of raters can be estimated by weights" in said(slates, long)
    assert "pope label --with group --raters NAME" in said(slates, long)
    nameless = [
        replace(
            slate,
            ratings=[[{"annotator": each["annotator"], "score": each["score"]} for each in of] for of in slate.ratings],
        )
        for slate in slates
    ]
    assert "the ratings name no groups" in said(nameless, long)


def test_the_command_shows_values_to_raters(make_tiny_model, tiny_tokenizer, tmp_path: Path) -> None:
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_slates(world(6, prompts=12)[0], tmp_path / "log.parquet")
    options = ("--by-raters", "--score-range", 0, 1, "--cache", tmp_path / "cache", "-o", tmp_path / "e.json")
    shown = pope("evaluate", tmp_path / "log.parquet", "--policy", f"m={tmp_path / 'model'}", *options)
    assert "values to raters, intervals by prompt and person" in " ".join(shown.split())
    (written,) = json.loads((tmp_path / "e.json").read_text())["raters"]
    assert [each["group"] for each in written["groups"]] == ["cats", "dogs"]
    assert written["everyone"]["ratings"] == 12 * 2 * 6


def test_the_table_of_a_log_counts_responses_through_it() -> None:
    table = rating_table(small())
    assert table.response.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert table.annotators == ("a", "b", "c")
    assert table.of_group("y").tolist() == [2, 5, 6]
