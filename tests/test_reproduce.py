"""The paper's experiments as commands: parts, plans, results, and all seven from data to a page on a tiny model."""

from __future__ import annotations

import copy
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from pope_align.cli import _stages as cli_stages
from pope_align.cli import app, hf_arguments
from pope_align.cli.train_arguments import read_arguments
from pope_align.compare.stages import STAMPS
from pope_align.data import Slate, read_slates, slate_group, write_slates
from pope_align.experiments.reproduce import parts
from pope_align.experiments.reproduce.abilities import QUESTIONS, TEXT, choices, text_nats
from pope_align.experiments.reproduce.fluency import fluency
from pope_align.experiments.reproduce.methods import AGAIN, BASE, METHODS, PEOPLE, Method, chosen, label
from pope_align.experiments.reproduce.page import cell
from pope_align.experiments.reproduce.parts import PartCounts, make_parts, subset
from pope_align.experiments.reproduce.plan import SOURCE, ReproductionRequest
from pope_align.experiments.reproduce.protocol import EXPERIMENTS, read_protocol, read_sizes
from pope_align.experiments.reproduce.results import Results
from pope_align.experiments.reproduce.shuffled import shuffled_votes
from pope_align.experiments.reproduce.stages import make_plan, preparation
from pope_align.generation.generations import Generation, GenerationSet, read_generations
from pope_align.metrics import embeddings
from pope_align.metrics import figures as metrics_figures
from pope_align.metrics import page as metrics_page
from pope_align.metrics.faithfulness import load_entailment
from pope_align.metrics.pareto import distance_to_front, dominated_volume, hypervolume
from pope_align.propensity.scores import score_model
from pope_align.stats.intervals import Quantity
from pope_align.training import run as training_run
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import FaultyServer, running
from letters import Letters

# --- parts ----------------------------------------------------------------------------------------------------------


def described(count: int, responses: int = 6) -> list[Slate]:
    """Prompts that ask for a description, and one in three that does not."""
    return [
        Slate(
            f"Question {at}?" if at % 3 == 2 else f"Describe colour {at}.",
            [f"{word} {at}, answer {number}" for number, word in enumerate(["red", "green", "blue", "grey", "b", "c"])][
                :responses
            ],
            [float((at + number) % responses) for number in range(responses)],
            slate_id=f"group{at // 2}#{at}",
        )
        for at in range(count)
    ]


def test_parts_share_no_group_and_references_no_response_with_other_people(tmp_path: Path) -> None:
    slates = described(30)
    counts = make_parts(slates, tmp_path, train=9, test=6, most=4, answers=2, matching="Describe")
    train, test, references = (
        list(read_slates(tmp_path / name)) for name in (parts.TRAIN, parts.TEST, parts.REFERENCES)
    )
    people = read_generations(tmp_path / parts.OTHERS)
    assert (len(train), len(test), len(people)) == (9, 6, 6)
    assert not {slate_group(slate) for slate in train} & {slate_group(slate) for slate in test}
    assert all("Describe" in slate.prompt for slate in train + test)
    assert all(len(slate.completions) == 4 for slate in train)
    for whole, kept, other in zip(test, references, people.rows, strict=True):
        assert sorted([*kept.completions, *other.texts]) == sorted(whole.completions)
        assert len(other.texts) == 2
        at = [whole.completions.index(text) for text in kept.completions]
        assert kept.scores == [whole.scores[index] for index in at]
    assert PartCounts(**json.loads((tmp_path / parts.COUNTS).read_text())) == counts
    assert counts.test_prompts == len({slate_group(slate) for slate in test}) >= 5  # few slates from many groups
    again = make_parts(slates[::-1], tmp_path / "again", train=9, test=6, most=4, answers=2, matching="Describe")
    assert again == counts
    for name in (parts.TRAIN, parts.TEST, parts.REFERENCES, parts.OTHERS):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()
    make_parts(slates, tmp_path / "other", train=9, test=6, most=4, answers=2, seed=1)
    assert (tmp_path / "other" / parts.TEST).read_text() != (tmp_path / parts.TEST).read_text()


def test_validation_slates_share_no_group_with_the_others_and_keep_all_their_responses(tmp_path: Path) -> None:
    counts = make_parts(described(60), tmp_path, train=20, test=12, most=4, answers=2, validation=8)
    groups = [
        {slate_group(slate) for slate in read_slates(tmp_path / name)}
        for name in (parts.TRAIN, parts.VALIDATION, parts.TEST)
    ]
    assert len(set.union(*groups)) == sum(map(len, groups))
    assert (counts.train, counts.validation, counts.test) == (20, 8, 12)
    assert counts.validation_responses == 8 * 6
    assert not (make_parts(described(60), tmp_path / "none", train=20, test=12, most=4, answers=2)).validation
    assert not (tmp_path / "none" / parts.VALIDATION).exists()
    with pytest.raises(ValueError, match="expected at least 2 validation slates, got 1 of 6"):
        make_parts(described(6), tmp_path / "few", train=4, test=2, most=4, answers=2, validation=1)


def test_references_are_cut_before_a_word_and_what_was_recorded_of_them_is_dropped(tmp_path: Path) -> None:
    slates = [replace(slate, logging_logprobs=[-1.0] * 6, completion_tokens=[3] * 6) for slate in described(8)]
    make_parts(slates, tmp_path, train=3, test=3, most=4, answers=2, characters=14)
    (first, *_) = read_slates(tmp_path / parts.TEST)
    number = "".join(filter(str.isdigit, first.prompt))
    whole = [f"{word} {number}, answer {at}" for at, word in enumerate(["red", "green", "blue", "grey", "b", "c"])]
    for text, uncut in zip(first.completions, whole, strict=True):
        assert uncut.startswith(text)
        assert uncut[len(text) :][:1] in ("", " ")
        assert len(text) <= 14
        assert text == uncut or len(f"{text} {uncut[len(text) :].split()[0]}") > 14  # the next word had no place
    assert (first.logging_logprobs, first.completion_tokens) == (None, None)
    make_parts(slates, tmp_path / "long", train=3, test=3, most=4, answers=2, characters=100)
    (same, *_) = read_slates(tmp_path / "long" / parts.TEST)
    assert same.logging_logprobs == [-1.0] * 6
    request = request_for("table1", tmp_path)
    request = replace(request, sizes=replace(request.sizes, reference_characters=160))
    assert "--characters 160" in " ".join(preparation(request)[SOURCE].argv)


def test_slates_of_three_responses_have_no_other_people_and_few_slates_are_told(tmp_path: Path) -> None:
    counts = make_parts(described(8, responses=3), tmp_path, train=0, test=50, most=4, answers=2)
    assert (counts.train, counts.test, counts.divided, counts.references) == (0, 8, 0, 24)
    assert not (tmp_path / parts.OTHERS).exists()
    with pytest.raises(ValueError, match="expected a prompt that contains 'Paint', got none among 8"):
        make_parts(described(8), tmp_path, train=2, test=2, most=4, answers=2, matching="Paint")
    with pytest.raises(ValueError, match="expected at least 2 test slates, got 1"):
        make_parts(described(1), tmp_path, train=0, test=2, most=4, answers=2)


def test_a_subset_keeps_what_belongs_to_its_responses() -> None:
    slate = Slate(
        "q", ["a", "b", "c"], [1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [1, 2, 3], [3, 2, 1], "id", ["x", "y", "z"],
        group_scores=[{"g": 1.0}, {"g": 2.0}, {"g": 3.0}], finished=[True, False, True],
        completion_ids=[[1, 2, 3], [4, 5], [6]],
    )  # fmt: skip
    part = subset(slate, [2, 0])
    assert (part.completions, part.scores, part.logging_logprobs) == (["c", "a"], [3.0, 1.0], [-3.0, -1.0])
    assert (part.completion_tokens, part.responders, part.finished) == ([3, 1], ["z", "x"], [True, True])
    assert part.group_scores == [{"g": 3.0}, {"g": 1.0}]
    assert part.ranks is None
    assert part.completion_ids == [[6], [1, 2, 3]]


def test_shuffled_votes_are_the_same_votes_in_another_order() -> None:
    slates = [replace(slate, ranks=[1, 2, 3, 4, 5, 6]) for slate in described(40)]
    shuffled = shuffled_votes(slates, seed=0)
    assert all(sorted(a.scores) == sorted(b.scores) for a, b in zip(slates, shuffled, strict=True))
    assert all(a.completions == b.completions and b.ranks is None for a, b in zip(slates, shuffled, strict=True))
    same = np.mean([x == y for a, b in zip(slates, shuffled) for x, y in zip(a.scores, b.scores)])
    assert abs(same - 1 / 6) < 0.09  # 240 votes
    assert shuffled == shuffled_votes(slates, seed=0) != shuffled_votes(slates, seed=1)


# --- volumes --------------------------------------------------------------------------------------------------------


def by_inclusion(points: np.ndarray) -> float:
    """The volume of a union of boxes from 0, by inclusion and exclusion."""
    boxes = [np.maximum(point, 0) for point in points]
    return sum(
        (-1) ** (size + 1) * float(np.min(some, axis=0).prod())
        for size in range(1, len(boxes) + 1)
        for some in itertools.combinations(boxes, size)
    )


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_the_dominated_volume_is_that_of_the_union_of_boxes(count: int, goals: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(-2, 5, (3, count, goals)).astype(float)
    volumes = dominated_volume(points)
    assert volumes == pytest.approx([by_inclusion(each) for each in points])
    assert dominated_volume(np.concatenate([points, points * np.nan], axis=1)) == pytest.approx(volumes)


def test_the_distance_to_the_front_is_what_a_point_lacks() -> None:
    points = np.array([[1.0, 3.0], [3.0, 1.0], [0.5, 0.8], [np.nan, 9.0], [2.0, 1.0]])
    found = distance_to_front(points)
    assert found[[0, 1, 2, 4]] == pytest.approx([0, 0, 0.5, 0])
    assert np.isnan(found[3])
    assert hypervolume(points) == pytest.approx(3 + 2)


# --- results --------------------------------------------------------------------------------------------------------


def results_of(draws: int = 400, **values: dict[str, list[list[float]]]) -> Results:
    names = {"again": AGAIN, **{name: name for name in values if name != "again"}}
    by_point = {
        (names[name], 1.0): {metric: np.array(rows, dtype=float) for metric, rows in of.items()}
        for name, of in values.items()
    }
    return Results(by_point, ["p", "p", "q", "r"], draws=draws)


def test_means_differences_and_intervals_over_prompts_and_seeds() -> None:
    base = {"energy": [[1.0, 2.0, 3.0, 4.0]]}
    sft = {"energy": [[0.5, 1.5, np.nan, 3.5], [0.5, 1.5, np.nan, 3.5]]}
    results = results_of(base=base, sft=sft)
    assert results.mean((BASE, 1.0), "energy").value == 2.5
    assert results.mean(("sft", 1.0), "energy").value == pytest.approx(5.5 / 3)
    gain = results.difference(("sft", 1.0), (BASE, 1.0), "energy")
    assert (gain.value, gain.low, gain.high) == pytest.approx((-0.5, -0.5, -0.5))  # paired: no prompt differs
    assert gain.standard_error == pytest.approx(0)
    of = results.mean((BASE, 1.0), "energy")
    assert of.low < 2.5 < of.high
    assert np.isnan(results.mean((BASE, 1.0), "diversity").value)


def test_seeds_widen_intervals_where_trainings_differ() -> None:
    same = results_of(base={"energy": [[1.0, 2.0, 3.0, 4.0]] * 3})
    other = results_of(base={"energy": [[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0], [5.0, 6.0, 7.0, 8.0]]})
    widths = [of.high - of.low for of in (each.mean((BASE, 1.0), "energy") for each in (same, other))]
    assert widths[1] > widths[0] + 1


def test_intervals_over_three_seeds_cover_what_they_say() -> None:
    """Of 400 experiments in which trainings differ and prompts do not; resampling the seeds covered 76%."""
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        seeds = random.normal(size=(3, 1))
        of = results_of(base={"energy": (seeds + np.zeros(4)).tolist()}).mean((BASE, 1.0), "energy")
        covered += of.low <= 0 <= of.high
    assert 0.92 <= covered / 400 <= 0.98


def test_only_what_the_base_reaches_at_no_temperature_is_beyond_its_front() -> None:
    def flat(*numbers: float) -> dict[str, list[list[float]]]:
        return {name: [[number] * 4] for name, number in zip(("pl_score", "coverage", "diversity"), numbers)}

    results = results_of(
        base=flat(0.5, 0.5, 0.5), again=flat(0.5, 0.5, 0.5), below=flat(0.4, 0.5, 0.5), more=flat(0.6, 0.5, 0.5)
    )
    assert results.beyond("below").value == 0
    assert results.beyond("more").value == pytest.approx(0.1 * 0.25)
    assert results.beyond_again("more").low == pytest.approx(0.025)
    assert results.beyond_other("more", "below").value == pytest.approx(0.025)
    assert results.beyond_other("below", "more").value == pytest.approx(-0.025)
    assert results.beyond(AGAIN).value == 0


def test_the_bases_best_temperature_is_the_lowest_energy_and_one_prompt_has_no_interval() -> None:
    values = {(BASE, 1.0): {"energy": np.array([[0.3, 0.2]])}, (BASE, 0.7): {"energy": np.array([[0.1, 0.2]])}}
    results = Results(values, ["p", "p"], draws=50)
    assert results.best_base("energy") == (BASE, 0.7)
    assert cell(results.mean((BASE, 0.7), "energy"), 3) == "0.150"
    assert cell(Quantity(0.1234, 0, 0.1, 0.2), 2, signed=True) == "+0.12 [+0.10, +0.20]"


# --- methods, protocols, plans --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_methods_arguments_are_those_of_pope_train(method: Method) -> None:
    given = read_arguments(["log.jsonl", "--model", "M", *method.train, "-o", "out"])
    assert given.run.train_data == "log.jsonl"
    assert (given.run.method == "pope") == method.name.startswith("pope")


def test_methods_have_distinct_names_and_quick_has_the_papers_four() -> None:
    assert len({each.name for each in METHODS}) == len(METHODS)
    quick = [each.name for each in chosen(None, own=True, quick=True, curve=False)]
    assert quick == ["sft", "dpo", "pope-paper", "pope-shuffled"]
    assert {each.feedback for each in chosen(None, own=False, quick=False, curve=False)} == {"votes", "shuffled"}
    assert "oapl" not in {each.name for each in chosen(None, own=False, quick=False, curve=False)}
    assert any(each.curve for each in chosen(None, own=True, quick=True, curve=True))
    with pytest.raises(ValueError, match=r"--method: expected some of sft, .* got 'pope-energy'"):
        chosen(["pope-energy"], own=False, quick=False, curve=False)
    assert label(PEOPLE) == "Other people"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_protocol_has_sizes_and_the_papers_numbers_fit_its_columns(name: str) -> None:
    protocol = read_protocol(name)
    for quick in (False, True):
        read_sizes(protocol, quick=quick)
    assert protocol.metrics[0] == "energy"
    for block in protocol.paper:
        for method in ("base", "sft", "dpo", "pope-paper"):
            rows = block[method] if isinstance(block[method][0], list) else [block[method]]
            assert len(rows) == len(block["data"])
            assert all(len(row) == len(protocol.paper_metrics) for row in rows)


def test_sizes_are_changed_by_name_and_checked() -> None:
    protocol = read_protocol("table1")
    sizes = read_sizes(protocol, quick=True, changes=["answers=6", "temperatures=1,0.7", "learning_rates=1e-4"])
    assert (sizes.answers, sizes.temperatures, sizes.learning_rates) == (6, (0.7, 1.0), (1e-4,))
    for change, message in {
        "answer=6": "expected NAME=VALUE with a name among train, .* got 'answer=6'",
        "answers=six": "--set answers: expected a number of type int, got 'six'",
        "answers=1": "answers: expected at least 2, got 1",
        "temperatures=0.5": r"temperatures: expected 1.0 among them, got \(0.5,\)",
        "epochs=0": "epochs: expected a number > 0, got 0",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_sizes(protocol, quick=True, changes=[change])


def request_for(
    name: str, folder: Path, *, seeds: int = 1, tests: Sequence[str] = (), **more: object
) -> ReproductionRequest:
    protocol = read_protocol(name)
    return ReproductionRequest(
        protocol=protocol,
        sizes=read_sizes(protocol, quick=True),
        methods=tuple(chosen(None, own=protocol.own, quick=True, curve=protocol.curve)),
        seeds=seeds,
        model="M",
        data="log.jsonl",
        tests={each: f"{each}.jsonl" for each in tests},
        folder=folder,
        logging_model="G",
        **more,
    )


COUNTS = PartCounts(
    slates=90, matching=80, train=24, validation=6, test=8, test_prompts=8, train_responses=96, validation_responses=30,
    references=40, test_responses=80,
    tokens=30, divided=8,
)  # fmt: skip


def test_the_plan_of_table_1_trains_on_own_candidates_with_recorded_propensities(tmp_path: Path) -> None:
    plan = make_plan(request_for("table1", tmp_path, seeds=2), {SOURCE: COUNTS})
    commands = {stage.name: " ".join(stage.argv) for stage in plan.stages}
    assert "--logprobs --n 4" in commands["candidates-1"]
    assert f"label {tmp_path}/logs/candidates-1.jsonl --with similarity" in commands["votes-1"]
    assert commands["train-pope-paper-1"].startswith(
        f"train {tmp_path}/logs/votes-1.jsonl --model M --normalization none"
    )
    assert commands["train-pope-shuffled-0"].startswith(f"train {tmp_path}/logs/shuffled-0.jsonl")
    base = [name for name in commands if name.startswith("answers-source-base-0")]
    assert len(base) == 5
    seeds = {
        name: stage.argv[stage.argv.index("--seed") + 1]
        for name, stage in zip(commands, plan.stages)
        if "answers-" in name
    }
    assert seeds["answers-source-base-1-T1"] == "1"  # its front; the others share their random numbers
    assert seeds["answers-source-base-again-1-T1"] == seeds["answers-source-sft-1-T1"] == "1001"
    assert "--policy M" in commands["metrics-source-base-0"]
    assert commands["metrics-source-base-0"].count("--policy -") == 4
    assert not [name for name in commands if name.startswith(("propensities", "values", "judge", "fluency"))]
    training = [stage for stage in plan.stages if stage.name.startswith("train-")]
    assert plan.cost.steps == 3 * len(training) == 24
    answers = len([name for name in commands if name.startswith("answers-")])
    assert answers == 2 * (5 + 1 + 4)
    assert plan.cost.written == (2 * 24 * 4 + answers * 8 * 4) * 40


def test_several_learning_rates_are_tried_on_validation_slates_and_one_is_trained_with_every_seed(
    tmp_path: Path,
) -> None:
    request = request_for("table1", tmp_path, seeds=2)
    request = replace(request, sizes=replace(request.sizes, learning_rates=(1e-5, 1e-4)))
    assert "--validation 8" in " ".join(preparation(request)[SOURCE].argv)
    assert "--validation" not in preparation(request_for("table1", tmp_path))[SOURCE].argv
    shown = make_plan(request, {SOURCE: COUNTS})
    assert set(shown.tuning) == set(itertools.product(("sft", "dpo", "pope-paper", "pope-shuffled"), (1e-5, 1e-4)))
    first = shown.stages[: shown.tuning_stages]
    assert not any("source" in stage.name for stage in first)  # no test prompt is read before the choice
    plan = make_plan(request, {SOURCE: COUNTS}, {"sft": 1e-4, "dpo": 1e-5, "pope-paper": 1e-4, "pope-shuffled": 1e-5})
    assert plan.stages[: shown.tuning_stages] == first
    assert plan.cost == shown.cost
    rates = {
        stage.name: stage.argv[stage.argv.index("--learning-rate") + 1]
        for stage in plan.stages
        if stage.name.startswith("train-")
    }
    assert len(rates) == 4 * 2 + 4  # two rates with the first seed, and the second seed with what was chosen
    assert rates["train-sft-0.0001-1"] == rates["train-pope-paper-0.0001-1"] == "0.0001"
    assert rates["train-dpo-1e-05-1"] == "1e-05"
    (answers,) = (stage for stage in plan.stages if stage.name == "answers-source-sft-0-T1")
    assert str(tmp_path / "models" / "sft-0.0001-0") in answers.argv
    assert f"generate {tmp_path}/source/parts/validation.jsonl" in " ".join(first[-2].argv)


def test_the_plan_of_table_3_reports_other_domains_only_and_clones_the_logging_policy(tmp_path: Path) -> None:
    request = request_for("table3", tmp_path, tests=["music", "games"])
    assert {name: stage.argv[2] for name, stage in preparation(request).items()} == {
        SOURCE: "log.jsonl",
        "music": "music.jsonl",
        "games": "games.jsonl",
    }
    plan = make_plan(request, dict.fromkeys([SOURCE, "music", "games"], COUNTS))
    commands = {stage.name: " ".join(stage.argv) for stage in plan.stages}
    assert "--model G --folds 2" in commands["propensities-source-train"]
    assert f"train {tmp_path}/source/scored-train.jsonl" in commands["train-pope-paper-0"]
    assert {each.data for each in plan.measured} == {"music", "games"}
    assert "evaluate" in commands["values-music"]
    assert not [name for name in commands if name.startswith(("answers-source", "candidates"))]
    with pytest.raises(ValueError, match="data: expected slates for training"):
        make_plan(request_for("table2", tmp_path), {SOURCE: replace(COUNTS, train=0)})


# --- what is measured by us -----------------------------------------------------------------------------------------


def test_our_questions_have_one_right_option_each() -> None:
    questions = read_slates(QUESTIONS)
    assert len(questions) == 40
    assert all(sorted(each.scores) == [0.0, 0.0, 0.0, 1.0] for each in questions)
    assert len({each.scores.index(1.0) for each in questions}) == 4
    assert len(TEXT.read_text(encoding="utf-8").split()) > 300


def test_choices_are_the_likeliest_options_per_token(make_tiny_model, tiny_tokenizer) -> None:
    model, questions = make_tiny_model(4).eval(), read_slates(QUESTIONS)[:12]
    right = choices(questions, model, tiny_tokenizer)
    scores = score_model(questions, model, tiny_tokenizer, max_length=512)
    best = [
        max(range(4), key=lambda at, t=totals, n=tokens: t[at] / n[at])
        for totals, tokens in zip(scores.totals, scores.tokens)
    ]
    assert right == [each.scores[at] == 1 for each, at in zip(questions, best)]
    with pytest.raises(ValueError, match="questions: row 2: scores: expected one 1 and else 0"):
        choices([questions[0], replace(questions[1], scores=[1.0, 1.0, 0.0, 0.0])], model, tiny_tokenizer)


def test_nats_of_a_text_are_those_of_its_windows(make_tiny_model, tiny_tokenizer) -> None:
    model, text = make_tiny_model(4).eval(), "The sea rises and falls."
    nats, tokens = text_nats(text, model, tiny_tokenizer, window=10)
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    total = 0.0
    for start in (0, 10, 20):
        row = torch.tensor([ids[start : start + 10]])
        with torch.no_grad():
            logprobs = model(row).logits[0].double().log_softmax(-1)
        total -= sum(float(logprobs[at, row[0, at + 1]]) for at in range(row.shape[1] - 1))
    assert tokens == len(ids) - 3
    assert nats == pytest.approx(total / tokens, rel=1e-5)


def test_fluency_is_a_mean_over_tokens_and_blank_answers_are_counted(make_tiny_model, tiny_tokenizer) -> None:
    model = make_tiny_model(4).eval()
    rows = (Generation("a", "Say a", ["red", " ", "blue sky"]), Generation("b", "Say b", ["", " "]))
    content = fluency(GenerationSet("m", rows), model, tiny_tokenizer, max_length=99)
    scores = score_model([Slate("Say a", ["red", "blue sky"], [0.0, 0.0])], model, tiny_tokenizer, max_length=99)
    assert content["blank"] == 3
    assert [(row["key"], row["tokens"]) for row in content["rows"]] == [("a", 4 + 9)]
    assert content["rows"][0]["nats_per_token"] == pytest.approx(scores.nats_per_token)


# --- the command ----------------------------------------------------------------------------------------------------


def write_writer(folder: Path, make: Callable[..., object], tokenizer: object, seed: int) -> str:
    """A model that writes lower-case letters, so that the text of an answer gives the tokens that were drawn."""
    model = make(seed, max_position_embeddings=1024, tie_word_embeddings=False)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    allowed = {end, *(tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghij")}
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 3.0  # a constant, which the head can use as a bias
        model.lm_head.weight[:, 0] = torch.tensor([0.0 if token in allowed else -8.0 for token in range(257)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer) -> Path:
    """A folder with models and data."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_writer(folder / "model", make_tiny_model, tiny_tokenizer, 3)
    write_writer(folder / "third", make_tiny_model, tiny_tokenizer, 5)
    write_slates(described(30), folder / "log.jsonl")
    write_slates(described(12), folder / "music.jsonl")
    return folder


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a model for embeddings, and without the pictures of `pope metrics` and `pope train`, which have tests."""
    monkeypatch.setattr(embeddings, "Embedder", Letters)
    for module, name in itertools.product((metrics_figures, metrics_page), ("bars", "pareto")):
        monkeypatch.setattr(module, name, lambda _: Figure(figsize=(1, 1)))
    monkeypatch.setattr(training_run, "plot_training", lambda _, path: path.touch())


SMALL = [
    "train=6",
    "test=4",
    "candidates=3",
    "answers=3",
    "max_new_tokens=5",
    "max_length=96",
    "batch=3",
    "draws=60",
    "learning_rates=0.02",
]


def pope(work: Path, name: str, out: str, *options: str, expect: int = 0) -> str:
    arguments = ["reproduce", name, "--quick", "--model", str(work / "model"), "--data", str(work / "log.jsonl")]
    arguments += [part for change in SMALL for part in ("--set", change)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(work / out), *options])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == expect, result.output
    return result.output


@pytest.mark.slow
def test_table_1_from_data_to_page_from_the_cache_and_after_one_change(work: Path) -> None:
    shown = pope(work, "table1", "one", "--dry-run")
    assert "optimizer steps" in shown
    assert "pope train" in shown
    assert not (work / "one" / "table1.md").exists()
    pope(work, "table1", "one")
    page = (work / "one" / "table1.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page.splitlines() if line.startswith("| ")]
    assert rows[:12] == [
        "Method", *(f"Base, T = {each}" for each in ("0.5", "0.7", "0.85", "1", "1.15")), "Base, sampled again",
        "SFT", "DPO", "POPE", "POPE on shuffled votes", "Other people",
    ]  # fmt: skip
    assert "*Paper: POPE, not named, Alpaca-GPT4* | - | *0.6842* | *0.5510* | *0.5757* | - | - |" in page
    assert "Energy distance ↓ | PL-Score ↑ | Coverage ↑ | Distr. alignment ↑" in page
    assert "## General abilities before and after" in page
    differences = page.partition("## Paired differences")[2].partition("## ")[0]
    changed = [
        line.split(" | ")[1] for line in differences.splitlines() if line.startswith(("| SFT", "| DPO", "| POPE"))
    ]
    assert len(set(changed)) == 4  # each was trained, in its own way
    rivals = page.partition("## Against other methods")[2].partition("## ")[0]
    pairs = [line.split(" | ")[:2] for line in rivals.splitlines() if line.startswith("| POPE")]
    assert pairs == [["| POPE", "SFT"], ["| POPE", "DPO"]]
    means = {
        row["method"]: row["means"]["energy"]["value"]
        for row in json.loads((work / "one" / "table1.json").read_text())["results"]["source"]
        if row["temperature"] == 1
    }
    shown = [float(line.split(" | ")[2].split()[0]) for line in rivals.splitlines() if line.startswith("| POPE")]
    assert shown == pytest.approx([means["pope-paper"] - means[other] for other in ("sft", "dpo")], abs=6e-4)
    first = (work / "one" / "table1.json").read_text()
    before = json.loads((work / "one" / "candidates" / STAMPS).read_text())
    pope(work, "table1", "one")
    assert (work / "one" / "table1.json").read_text() == first
    assert json.loads((work / "one" / "candidates" / STAMPS).read_text()) == before

    pope(work, "table1", "one", "--set", "answers=2")
    after = json.loads((work / "one" / "candidates" / STAMPS).read_text())
    again = {name for name in after if after[name] != before.get(name)}
    assert {name.partition("-")[0] for name in again} == {"parts", "answers", "metrics"}
    trained = [name for name in after if name.startswith(("train", "candidates", "votes", "abilities"))]
    assert len(trained) == 4 + 1 + 1 + 5


@pytest.mark.slow
def test_the_best_learning_rate_on_validation_slates_is_taken(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--set", "learning_rates=0.0001,0.05", "--set", "validation=4", "--method", "sft", "--method", "dpo"]
    ran = stages_run(monkeypatch, of=lambda: pope(work, "table1", "tuned", *options))
    assert ran.count("train " + str(work / "tuned/candidates/logs/votes-0.jsonl")) == 4  # chosen ones are not repeated
    content = json.loads((work / "tuned" / "table1.json").read_text())
    for method, of in content["learning_rates"].items():
        tried = {float(rate): each["value"] for rate, each in of["tried"].items()}
        assert set(tried) == {0.0001, 0.05}
        assert len(set(tried.values())) == 2
        assert of["chosen"] == min(tried, key=tried.get)
        used = [command for command in content["commands"] if f"{method}-0-T1" in command]
        assert any(f"models/{method}-{of['chosen']:g}-0" in each for each in used[0])
    page = (work / "tuned" / "table1.md").read_text()
    table = page.partition("## Learning rates")[2].partition("##")[0]
    assert "| Method | Energy distance ↓, 0.0001 | Energy distance ↓, 0.05 | chosen |" in table
    assert table.count("\n| SFT | ") == 1
    assert not stages_run(monkeypatch, of=lambda: pope(work, "table1", "tuned", *options))


@pytest.mark.slow
def test_figure_1_killed_at_any_stage_ends_with_the_same_numbers(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run is killed after every stage, by a failure inside the next; the other is not."""
    options = ["--method", "pope-paper", "--method", "pope-paper-0"]
    with monkeypatch.context() as patch:
        count = len(stages_run(patch, of=lambda: pope(work, "figure1", "whole", *options)))
    assert count > 12
    for kill in range(1, count // 3):
        with monkeypatch.context() as patch:
            ran = stages_run(patch, of=lambda: pope(work, "figure1", "killed", *options, expect=130), stop_after=3)
        assert len(ran) == 3  # and not those of the runs before
        assert not (work / "killed" / "figure1.md").exists(), kill
    pope(work, "figure1", "killed", *options)
    numbers = [json.loads((work / name / "figure1.json").read_text())["results"] for name in ("whole", "killed")]
    assert numbers[0] == numbers[1]
    assert (work / "whole" / "figure1.png").stat().st_size > 10_000
    assert "| POPE, diversity weight 0 | " in (work / "whole" / "figure1.md").read_text().partition("## Envelopes")[2]


def stages_run(patch: pytest.MonkeyPatch, *, of: Callable[[], object], stop_after: int | None = None) -> list[str]:
    """The stages that something runs; after some of them, the process is interrupted."""
    ran: list[str] = []
    run = cli_stages.run_pope

    def counted(argv: Sequence[str]) -> None:
        if stop_after is not None and len(ran) == stop_after:
            raise KeyboardInterrupt
        run(argv)
        ran.append(" ".join(argv[:2]))

    patch.setattr(cli_stages, "run_pope", counted)
    of()
    patch.undo()
    return ran


@pytest.mark.slow
def test_tables_2_and_3_and_figures_2_to_4_share_their_stages(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    music = ["--test", f"music={work / 'music.jsonl'}"]
    fluent = ["--third-model", str(work / "third"), "--entailment", str(work / "entailment")]
    monkeypatch.setattr("pope_align.metrics.faithfulness.load_entailment", lambda name: agree)
    (work / "entailment").mkdir(exist_ok=True)
    (work / "entailment" / "config.json").write_text("{}")
    few = ["--method", "sft", "--method", "pope-paper"]
    pope(work, "table2", "people", *music, *few)
    page = (work / "people" / "table2.md").read_text()
    assert "## Table 2, in the domain of training: log" in page
    assert "## Table 2, in the domain of training: music" in page
    values = [
        row.rsplit(" | ", 1)[1]
        for row in page.splitlines()
        if row.startswith(("| Base, T = 1 |", "| SFT |", "| POPE |"))
    ]
    assert sum("refused" in value or "caution" in value or "reliable" in value for value in values) == 6
    assert "| *Paper: POPE, Phi-3.5-mini, Reddit* | - | *24.83* | *60.26* | *11.58* | *40.74* | - | *0.8667* |" in page

    def again(name: str, *options: str) -> list[str]:
        with monkeypatch.context() as patch:
            return stages_run(patch, of=lambda: pope(work, name, "people", *options, *few))

    assert not again("table3", *music)  # all of it was there
    assert "Table 3, in other domains without adaptation: log" not in (work / "people" / "table3.md").read_text()
    assert not again("figure2", *music)
    assert (work / "people" / "figure2.png").stat().st_size > 10_000

    assert {name.partition(" ")[0] for name in again("figure3", *fluent)} == {"metrics", "step"}
    page = (work / "people" / "figure3.md").read_text()
    assert "Entailed by the prompt, by entailment ↑ | Nats per token of a third model ↓" in page
    (row,) = (line for line in page.splitlines() if line.startswith("| SFT |") and line.count("|") == 7)
    assert row.split(" | ")[3].startswith("0.250")

    with running(FaultyServer(lambda messages: '{"reason": "r", "winner": "1"}')) as server:
        pope(work, "figure4", "people", "--judge", "j", "--judge-url", server.url, *few)
    page = (work / "people" / "figure4.md").read_text()
    assert "| POPE against SFT | 0 | 4 | 0 | 0.500" in page  # the first shown wins, in both orders: ties
    assert "| POPE against Base | 0 | 4 | 0 | 0.500" in page


def agree(pairs: Sequence[tuple[str, str]]) -> list[float]:
    return [0.25] * len(pairs)


def test_what_an_experiment_needs_is_told_before_anything_is_made(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, options, message in [
        ("figure3", [], r"figure3: expected --alignscore FILE .* or --entailment MODEL .*, got none"),
        ("figure3", ["--entailment", str(work / "third")], "figure3: expected --third-model MODEL"),
        ("figure4", [], "figure4: expected --judge NAME, and --judge-url URL unless it is OpenAI's, got none"),
        ("table3", [], "--test: expected NAME=FILE of at least one other domain for table3, got none"),
        ("table1", ["--test", "a=b"], "--test: expected none for table1, .* got a"),
        ("table1", ["--judge", "J"], "--judge: expected none for table1, which does not use it"),
        ("table1", ["--logging-model", "gpt2"], "--logging-model: expected none for table1, which does not use it"),
        ("table2", ["--entailment", "M"], "--entailment: expected none for table2, which does not use it"),
        ("figure2", ["--text", "T"], "--text: expected none for figure2, which does not use it"),
        ("table1", ["--method", "best"], "--method: expected some of sft, .* got 'best'"),
        ("table2", ["--logging-model", "./none"], "--logging-model: expected a model"),
        ("table2", ["--test", "source=b"], "--test: expected names of .* not 'source', got 'source'"),
    ]:
        with pytest.raises(ValueError, match=message):
            pope(work, name, "nothing", *options)
    source = hf_arguments._source

    def without_trl(library: str, path: str) -> object:
        if library == "trl":
            raise ImportError("trl is needed")
        return source(library, path)

    with monkeypatch.context() as patch:
        patch.setattr(hf_arguments, "_source", without_trl)
        with pytest.raises(ImportError, match="trl is needed"):
            pope(work, "table1", "nothing", "--method", "pope", "--method", "sft")
    assert not (work / "nothing").exists()
    (work / "mine").mkdir()
    (work / "mine" / "candidates").mkdir()
    (work / "mine" / "candidates" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files that no reproduction made"):
        pope(work, "table1", "mine")


def test_an_entailment_model_is_named_by_its_labels(tmp_path: Path, tiny_tokenizer) -> None:
    config = transformers.BertConfig(
        vocab_size=257, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64, id2label={0: "CONTRADICTION", 1: "ENTAILMENT", 2: "NEUTRAL"},
        label2id={"CONTRADICTION": 0, "ENTAILMENT": 1, "NEUTRAL": 2},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, int(1e30)  # it does not know the model's
    tokenizer.save_pretrained(tmp_path)
    pairs = [("the sky is blue", "it is blue"), ("a", "b c d")]
    found = load_entailment(tmp_path, batch_size=1)(pairs)
    for (context, claim), probability in zip(pairs, found, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(context, claim, return_tensors="pt")).logits[0]
        assert probability == pytest.approx(float(logits.softmax(-1)[1]), rel=1e-5)
    (long,) = load_entailment(tmp_path)([("sky " * 40, "blue " * 40)])
    assert 0 < long < 1
    config.id2label = {0: "yes", 1: "no", 2: "perhaps"}
    model.config = config
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="one label that begins with 'entail', and others, got the labels yes, no, pe"):
        load_entailment(tmp_path)
