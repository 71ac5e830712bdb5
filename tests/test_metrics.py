"""Metrics equal the values of other libraries, keep their bounds and symmetries, and say where they are not defined."""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from pope_align.metrics.distribution import choice_probability, distributional_alignment, plackett_luce_loglik
from pope_align.metrics.diversity import diversity, vendi_score
from pope_align.metrics.faithfulness import align_scores, context_chunks, load_alignscore, sentences
from pope_align.metrics.groups import group_coverage, group_weights, worst_group
from pope_align.metrics.lexical import distinct_n, expectation_adjusted_distinct, self_bleu, self_bleu_per_text, words
from pope_align.metrics.opinions import opinion_coverage, opinions
from pope_align.metrics.pareto import hypervolume, pareto_front
from pope_align.metrics.similarity import covered, helpfulness, pl_score, pluralistic_coverage, relevance, vote_weights

GOLDEN = Path(__file__).parent / "golden"
TEXT = json.loads((GOLDEN / "text.json").read_text())
SETS = json.loads((GOLDEN / "sets.json").read_text())
TOKENIZERS = {"ws": lambda text: text.lower().split(), "rx": words}

quick = settings(max_examples=60, deadline=None)


def unit(rows: object) -> np.ndarray:
    x = np.asarray(rows, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# --- the stored values of other libraries ---------------------------------------------------------------------------

text_cases = [(name, tokenizer) for name in TEXT["sets"] for tokenizer in TOKENIZERS]


@pytest.mark.parametrize(("name", "tokenizer"), text_cases)
def test_self_bleu_of_every_text_is_nltk_s(name: str, tokenizer: str) -> None:
    tokens = [TOKENIZERS[tokenizer](text) for text in TEXT["sets"][name]["texts"]]
    assert tokens == TEXT["sets"][name][tokenizer]["tokens"]
    for order, expected in TEXT["sets"][name][tokenizer]["self_bleu_nltk_method1"].items():
        assert self_bleu_per_text(tokens, int(order)) == pytest.approx(expected["per_text"], abs=1e-9)
        assert self_bleu(tokens, int(order)) == pytest.approx(expected["mean"], abs=1e-9)


@pytest.mark.parametrize(("name", "tokenizer"), text_cases)
def test_distinct_n_is_exact_and_ead_is_its_authors_formula(name: str, tokenizer: str) -> None:
    tokens = [TOKENIZERS[tokenizer](text) for text in TEXT["sets"][name]["texts"]]
    expected = TEXT["sets"][name][tokenizer]
    for order, value in expected["distinct"].items():
        assert distinct_n(tokens, int(order)) == value
        unique, total = expected["distinct_counts"][order]
        assert distinct_n(tokens, int(order)) == unique / total
    for size, value in expected["ead"].items():
        assert expectation_adjusted_distinct(tokens, int(size)) == pytest.approx(value, rel=1e-12)


def test_embedding_metrics_on_fixed_vectors_are_the_stored_ones() -> None:
    case = TEXT["embedding_metrics"]
    given_ = case["inputs"]
    answers, references = unit(given_["candidate_embeddings"]), unit(given_["reference_embeddings"])
    similarity, votes = answers @ references.T, given_["upvotes"]
    assert similarity == pytest.approx(np.array(case["similarity (candidates x references)"]), abs=1e-9)
    for threshold, value in case["coverage_at"].items():
        assert pluralistic_coverage(similarity, float(threshold)) == value
    entropies = case["normalised_entropy_T0.5"]
    for scores, name in (
        (similarity.mean(0), "softmax over references of mean_j sim"),
        (similarity.max(0), "softmax over references of max_j sim"),
        (given_["reference_mean_logprob"], "softmax over references of mean log-prob"),
    ):
        assert distributional_alignment(scores, 0.5) == pytest.approx(entropies[name], abs=1e-9)
    key = "helpfulness: sum_j wtilde_j sim(y,h_j), wtilde = minmax(upvotes)/sum"
    assert helpfulness(similarity, votes) == pytest.approx(100 * np.mean(case[key]), abs=1e-7)
    for row, value in zip(similarity, case[key]):
        assert helpfulness(row[None], votes) / 100 == pytest.approx(value, abs=1e-9)
    stored = case["upvote_weighted_max_sim (PL-Score candidate a)"]
    assert pl_score(similarity, votes, "votes") == pytest.approx(stored, abs=1e-9)
    assert diversity(answers) == pytest.approx(case["pairwise_diversity 1-mean cos(candidates)"], abs=1e-9)


def test_vendi_scores_are_those_of_the_reference_package() -> None:
    (case,) = SETS["vendi"]
    vectors = unit(case["inputs"]["X"])
    for key, order in (("q0.5", 0.5), ("q1", 1.0), ("q2", 2.0), ("qinf", math.inf)):
        assert vendi_score(vectors, order) == pytest.approx(case["out"][f"score_K_{key}"], abs=1e-9)
    assert 1 - diversity(vectors) == pytest.approx(case["out"]["mean_pairwise_cosine"], abs=1e-9)


def test_vendi_is_the_same_from_either_side_of_the_matrix() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(30, 5)))  # n > d: the small matrix
    eigenvalues = np.linalg.eigvalsh(vectors @ vectors.T / 30)
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi_score(vectors) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-9)


def test_hypervolume_and_front_are_those_of_moocore_and_pymoo() -> None:
    (case,) = SETS["hypervolume"]
    points, reference = np.array(case["inputs"]["points_maximise"]), tuple(case["inputs"]["ref"])
    assert pareto_front(points).tolist() == case["out"]["nondominated"]
    assert hypervolume(points, reference) == pytest.approx(case["out"]["hypervolume"], abs=1e-9)


def test_plackett_luce_is_choix_s() -> None:
    (case,) = SETS["plackett_luce"]
    theta = np.array(case["inputs"]["theta"])
    for ranking, value in zip(case["inputs"]["rankings"], case["choix"]["per_ranking"]):
        feedback = np.empty(theta.size)
        feedback[ranking] = -np.arange(theta.size)
        assert plackett_luce_loglik(theta, feedback) == pytest.approx(value, abs=1e-9)


# --- Self-BLEU against NLTK on anything -----------------------------------------------------------------------------

token_lists = st.lists(st.lists(st.sampled_from("abcde"), max_size=9), min_size=2, max_size=7)


@pytest.mark.filterwarnings("ignore::UserWarning")  # NLTK's remark on missing overlaps
@quick
@given(texts=token_lists, n=st.integers(1, 4))
def test_self_bleu_is_nltk_s_for_any_texts(texts: list[list[str]], n: int) -> None:
    method1 = SmoothingFunction().method1
    for index, (text, ours) in enumerate(zip(texts, self_bleu_per_text(texts, n))):
        others = texts[:index] + texts[index + 1 :]
        expected = sentence_bleu(others, text, weights=[1 / n] * n, smoothing_function=method1)
        assert ours == pytest.approx(float(expected), abs=1e-9)


@quick
@given(texts=token_lists, data=st.data())
def test_word_metrics_do_not_depend_on_the_order_of_texts(texts: list[list[str]], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(texts))
    assert self_bleu(shuffled) == pytest.approx(self_bleu(texts), abs=1e-12)
    assert 0 <= self_bleu(texts) <= 1
    for n in (1, 2):
        assert distinct_n(shuffled, n) == pytest.approx(distinct_n(texts, n), nan_ok=True)


@quick
@given(texts=token_lists.filter(any))
def test_repeating_every_text_lowers_distinct_n_and_raises_self_bleu(texts: list[list[str]]) -> None:
    assert distinct_n(texts * 2, 1) == pytest.approx(distinct_n(texts, 1) / 2)
    assert self_bleu(texts * 2) >= self_bleu(texts) - 1e-12
    assert expectation_adjusted_distinct(texts * 2, 100) < expectation_adjusted_distinct(texts, 100)


# --- symmetries and bounds of the vector metrics --------------------------------------------------------------------

floats = st.floats(-10, 10)


@st.composite
def vectors(draw: st.DrawFn, least: int = 1) -> np.ndarray:
    shape = (draw(st.integers(least, 8)), draw(st.integers(2, 6)))
    seed = draw(st.integers(0, 2**32 - 1))
    return unit(np.random.default_rng(seed).normal(size=shape))


@quick
@given(answers=vectors(least=2), seed=st.integers(0, 2**32 - 1))
def test_diversity_and_vendi_are_symmetric_and_bounded(answers: np.ndarray, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(answers))
    assert diversity(answers[order]) == pytest.approx(diversity(answers), abs=1e-9)
    assert vendi_score(answers[order]) == pytest.approx(vendi_score(answers), abs=1e-9)
    assert 0 <= diversity(answers) <= 2
    assert 1 <= vendi_score(answers) <= min(answers.shape) + 1e-9
    pairs = [1 - answers[i] @ answers[j] for i, j in itertools.combinations(range(len(answers)), 2)]
    assert diversity(answers) == pytest.approx(np.mean(pairs), abs=1e-9)


@quick
@given(answers=vectors(least=2))
def test_equal_answers_have_no_diversity_and_duplicates_never_add_any(answers: np.ndarray) -> None:
    same = np.repeat(answers[:1], 5, axis=0)
    assert diversity(same) == pytest.approx(0, abs=1e-12)
    assert vendi_score(same) == pytest.approx(1, abs=1e-9)
    twice = np.concatenate([answers, answers])
    assert diversity(twice) <= diversity(answers) + 1e-12
    assert vendi_score(twice) == pytest.approx(vendi_score(answers), abs=1e-9)


@st.composite
def similarities(draw: st.DrawFn) -> np.ndarray:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    return draw(arrays.arrays(np.float64, shape, elements=st.floats(-1, 1)))


@quick
@given(similarity=similarities(), data=st.data())
def test_another_answer_never_lowers_coverage_or_pl_score(similarity: np.ndarray, data: st.DataObject) -> None:
    n, count = similarity.shape
    votes = data.draw(st.lists(floats, min_size=count, max_size=count))
    another = data.draw(arrays.arrays(np.float64, (1, count), elements=st.floats(-1, 1)))
    more = np.concatenate([similarity, another])
    assert pluralistic_coverage(more) >= pluralistic_coverage(similarity)
    assert pluralistic_coverage(more, k=n) == pluralistic_coverage(similarity)
    assert pluralistic_coverage(np.concatenate([more, np.ones((1, count))])) == 1
    for weights in ("log1p", "votes", "softmax"):
        assert pl_score(more, votes, weights) >= pl_score(similarity, votes, weights) - 1e-12
        assert -1 - 1e-9 <= pl_score(similarity, votes, weights) <= 1 + 1e-9
    approval = data.draw(arrays.arrays(np.float64, (3, count), elements=st.floats(0, 1)))
    before, after = group_coverage(similarity, approval), group_coverage(more, approval)
    assert (np.isnan(before) == (approval.sum(1) == 0)).all()
    assert (after >= before - 1e-12)[~np.isnan(before)].all()


@quick
@given(similarity=similarities(), data=st.data())
def test_order_of_answers_and_of_references_does_not_matter(similarity: np.ndarray, data: st.DataObject) -> None:
    n, count = similarity.shape
    votes = np.array(data.draw(st.lists(floats, min_size=count, max_size=count)))
    rows, columns = data.draw(st.permutations(range(n))), data.draw(st.permutations(range(count)))
    moved, their_votes = similarity[rows][:, columns], votes[columns]
    assert pl_score(moved, their_votes) == pytest.approx(pl_score(similarity, votes), abs=1e-9)
    assert helpfulness(moved, their_votes) == pytest.approx(helpfulness(similarity, votes), abs=1e-7)
    assert pluralistic_coverage(moved) == pytest.approx(pluralistic_coverage(similarity))
    alignment = distributional_alignment(votes)
    assert distributional_alignment(their_votes) == pytest.approx(alignment, abs=1e-9, nan_ok=True)
    assert math.isnan(alignment) if count == 1 else 0 <= alignment <= 1
    loglik = plackett_luce_loglik(similarity[0], votes)
    assert plackett_luce_loglik(similarity[0][columns], their_votes) == pytest.approx(loglik, abs=1e-9)
    assert loglik <= 1e-12


@quick
@given(votes=st.lists(floats, min_size=1, max_size=8))
def test_vote_weights_are_a_distribution_that_keeps_the_order_of_votes(votes: list[float]) -> None:
    for name in ("log1p", "votes", "softmax"):
        weights = vote_weights(votes, name)
        assert weights.sum() == pytest.approx(1)
        order = np.argsort(votes)
        assert (np.diff(weights[order]) >= -1e-12).all()


def test_log1p_weights_are_one_plus_votes() -> None:
    assert vote_weights([12, 3, 0, 5], "log1p") == pytest.approx(np.array([13, 4, 1, 6]) / 24)


# --- Plackett-Luce with ties ----------------------------------------------------------------------------------------


def average_over_orders(scores: np.ndarray, feedback: np.ndarray) -> float:
    """The likelihood averaged over every ranking that the feedback allows, by enumeration."""
    likelihoods = []
    for order in itertools.permutations(range(scores.size)):
        ranked = feedback[list(order)]
        if (np.diff(ranked) <= 0).all():
            s = scores[list(order)]
            likelihoods.append(math.prod(np.exp(s[i] - np.logaddexp.reduce(s[i:])) for i in range(s.size)))
    return math.log(np.mean(likelihoods))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), count=st.integers(1, 6))
def test_ties_average_the_likelihood_over_their_orders(data: st.DataObject, count: int) -> None:
    scores = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count)))
    feedback = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), dtype=float)
    assert plackett_luce_loglik(scores, feedback) == pytest.approx(average_over_orders(scores, feedback), abs=1e-9)


def test_plackett_luce_with_nothing_to_choose_and_at_extremes() -> None:
    assert plackett_luce_loglik([0.3, -2, 5], [1, 1, 1]) == pytest.approx(-math.log(6))
    assert plackett_luce_loglik([1.0], [3]) == 0
    assert math.isnan(plackett_luce_loglik([], []))
    many = np.zeros(64)
    two_levels = np.repeat([1.0, 0.0], 32)  # the 32 tied come first: one way in (64 choose 32)
    # average over orders of the first level: 32! 32! / 64! / 32!, and of the second: / 32!
    expected = -math.lgamma(65)
    assert plackett_luce_loglik(many, two_levels) == pytest.approx(expected, rel=1e-12)
    assert plackett_luce_loglik([900.0, -900, 0], [2, 1, 0]) == pytest.approx(-900)
    assert plackett_luce_loglik([900.0, 900, -900], [1, 1, 0]) == pytest.approx(-math.log(2))
    assert plackett_luce_loglik([-900.0, -900, 900], [1, 1, 0]) == pytest.approx(-3600, rel=1e-3)
    assert choice_probability(-math.log(6), [3, 2, 1]) == pytest.approx(6**-0.5)
    assert math.isnan(choice_probability(-math.log(6), [1, 1, 1]))


# --- groups, envelope -----------------------------------------------------------------------------------------------


def test_references_in_a_chain_are_one_opinion_and_count_once() -> None:
    angles = np.deg2rad([0, 90, 30, 60, 200, 210])  # cos 30 = .87, cos 60 = .5
    references = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    of = opinions(references)
    assert of.tolist() == [0, 0, 0, 0, 1, 1]
    assert opinions(references, 0.9).tolist() == [0, 1, 2, 3, 4, 4]
    answer = references[[1]]
    assert pluralistic_coverage(answer @ references.T) == pytest.approx(2 / 6)
    assert opinion_coverage(answer @ references.T, of) == 0.5
    assert opinion_coverage(np.zeros((0, 6)), of) == 0
    assert math.isnan(opinion_coverage(np.zeros((2, 0)), opinions(np.zeros((0, 3)))))


def test_group_coverage_names_the_group_served_worst() -> None:
    similarity = np.array([[0.9, 0.2, 0.1]])
    names, weights = group_weights([{"a": 1.0, "b": 0.1}, {"a": 0.0, "b": 0.9}, {"b": 0.5}])
    assert names == ["a", "b"]
    shares = group_coverage(similarity, weights)
    assert shares == pytest.approx([1.0, 0.1 / 1.5])
    assert worst_group(shares) == pytest.approx(0.1 / 1.5)
    assert group_coverage(similarity, weights, None)[0] == pytest.approx(0.9)
    assert math.isnan(worst_group(group_coverage(similarity, np.zeros((2, 3)))))
    assert group_weights([{"a": -1.0}])[1].tolist() == [[0.0]]
    with pytest.raises(ValueError, match=r"group_scores\[0\]\['a'\]: expected a finite number, got nan"):
        group_weights([{"a": math.nan}])


points = st.lists(st.tuples(st.integers(-3, 5), st.integers(-3, 5)), max_size=9).map(
    lambda rows: np.array(rows, dtype=float).reshape(-1, 2)
)


@quick
@given(points=points)
def test_the_front_is_what_no_point_beats_and_its_area_is_that_of_all_cells(points: np.ndarray) -> None:
    beaten = [any((q >= p).all() and (q > p).any() for q in points) for p in points]
    assert pareto_front(points).tolist() == [not each for each in beaten]
    cells = sum(any(x < p[0] and y < p[1] for p in points) for x in range(6) for y in range(6))
    assert hypervolume(points) == cells


def test_a_point_that_is_not_defined_is_not_in_front() -> None:
    assert pareto_front(np.array([[1.0, np.nan], [0.5, 0.5]])).tolist() == [False, True]
    assert hypervolume(np.array([[1.0, np.nan], [0.5, 0.5]])) == 0.25


# --- where metrics are not defined ----------------------------------------------------------------------------------


def test_undefined_cases_are_nan_and_never_an_exception() -> None:
    nothing, one = np.zeros((0, 3)), unit([[1, 2, 2]])
    assert math.isnan(diversity(one))
    assert math.isnan(diversity(nothing))
    assert vendi_score(one) == 1
    assert math.isnan(vendi_score(nothing))
    assert math.isnan(self_bleu([["a", "b"]]))
    assert math.isnan(self_bleu([]))
    assert self_bleu([[], ["a"]]) == 0
    assert math.isnan(distinct_n([[], []], 1))
    assert math.isnan(distinct_n([["a"]], 2))
    assert math.isnan(expectation_adjusted_distinct([[]], 10))
    assert expectation_adjusted_distinct([["a", "a"]], 1) == 1
    assert pluralistic_coverage(nothing) == 0
    assert math.isnan(pluralistic_coverage(np.zeros((3, 0))))
    assert math.isnan(pl_score(nothing, [1, 2, 3]))
    assert math.isnan(pl_score(np.zeros((2, 0)), []))
    assert math.isnan(helpfulness(nothing, [1, 2, 3]))
    assert math.isnan(relevance(nothing, one[0]))
    assert math.isnan(distributional_alignment([0.3]))
    assert (group_coverage(nothing, np.ones((2, 3))) == 0).all()


def test_without_votes_every_reference_counts_the_same() -> None:
    similarity = np.array([[0.2, 0.6, 0.7]])
    for weights in ("log1p", "votes", "softmax"):
        assert pl_score(similarity, [0, 0, 0], weights) == pytest.approx(0.5)
    assert pl_score(similarity, [-1, -2, -3], "votes") == pytest.approx(0.5)
    assert helpfulness(similarity, [4, 4, 4]) == pytest.approx(50)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: pl_score(np.zeros((2, 3)), [1, 2]),
            r"similarity: expected \[n, 2\], one column per vote, got \[2, 3\]",
        ),
        (lambda: pl_score(np.zeros((1, 2)), [1, np.nan]), r"votes\[1\]: expected a finite number, got nan"),
        (lambda: vote_weights([1], "best"), "weights: expected one of log1p, votes, softmax, uniform, got 'best'"),
        (lambda: pluralistic_coverage(np.zeros((1, 1)), k=0), "k: expected an integer >= 1"),
        (lambda: distributional_alignment([1, 2], 0), "temperature: expected a number > 0, got 0"),
        (lambda: plackett_luce_loglik([1, 2], [1]), "feedback: expected 2 numbers, one per score, got 1"),
        (lambda: vendi_score(np.ones((2, 2))), r"answers\[0\]: expected a unit vector, got one of length 1.41421"),
        (lambda: vendi_score(np.eye(2), 0), "order: expected a number > 0, got 0"),
        (lambda: distinct_n([["a"]], 0), "n: expected an integer >= 1, got 0"),
        (lambda: hypervolume(np.zeros((2, 3))), r"points: expected \[n, 2\], got \[2, 3\]"),
        (lambda: covered(np.zeros(3)), r"similarity: expected \[n, M\], got \[3\]"),
    ],
)
def test_errors_name_the_argument(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- AlignScore -----------------------------------------------------------------------------------------------------


def overlap(pairs):
    """A stand-in aligner: share of the claim's words that the context has."""
    return [len(set(words(b)) & set(words(a))) / len(set(words(b))) for a, b in pairs]


def test_align_score_is_the_mean_over_sentences_of_the_best_chunk() -> None:
    context = "Cats sleep. " * 300 + "Dogs bark. " * 300
    chunks = context_chunks(context)
    assert " ".join(chunks) == context.strip()
    assert len(chunks) == -(-600 // (600 // (1200 // 350 + 1)))
    scores = align_scores([context, context, "x"], ["Cats sleep. Dogs sing.", " ", "x"], overlap)
    expected = np.mean([1.0, 0.5 + 1 / 6])  # "Dogs sing.": dogs and the full stop, of three tokens
    assert scores[0] == pytest.approx(expected)
    assert math.isnan(scores[1])
    assert scores[2] == 1
    assert align_scores([], [], overlap) == []


def test_sentences_end_at_marks_and_lines() -> None:
    text = 'One. Two!  He said "three."  Four\n\n- five\n'
    assert sentences(text) == ["One.", "Two!", 'He said "three."', "Four", "- five"]
    assert sentences("一。二？") == ["一。", "二？"]  # noqa: RUF001
    assert sentences(" \n ") == []


def test_align_fn_is_checked() -> None:
    with pytest.raises(ValueError, match="align_fn: expected 1 scores, got shape"):
        align_scores(["a"], ["b"], lambda pairs: [])
    with pytest.raises(ValueError, match=r"align_fn: expected probabilities in \[0, 1\], got 2"):
        align_scores(["a"], ["b"], lambda pairs: [2.0])
    with pytest.raises(ValueError, match="claims: expected 1, one per context, got 2"):
        align_scores(["a"], ["b", "c"], overlap)


def test_an_alignscore_checkpoint_gives_the_three_way_head_s_first_probability(tmp_path: Path, tiny_tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=200, type_vocab_size=1,
    )  # fmt: skip
    encoder, head = transformers.RobertaModel(config).eval(), torch.nn.Linear(16, 3)
    config.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    state = {f"base_model.{name}": value for name, value in encoder.state_dict().items()}
    state |= {"tri_layer.weight": head.weight.data, "tri_layer.bias": head.bias.data, "bin_layer.bias": torch.zeros(2)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "tiny.ckpt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.save_pretrained(tmp_path)
    align = load_alignscore(tmp_path / "tiny.ckpt", tmp_path, batch_size=2)
    pairs = [("a long context", "claim"), ("b", "another claim"), ("c c", "d")]
    expected = []
    for a, b in pairs:
        with torch.no_grad():
            logits = head(encoder(**tokenizer(a, b, return_tensors="pt")).pooler_output)
        expected.append(float(logits.softmax(-1)[0, 0]))
    assert align(pairs) == pytest.approx(expected, abs=1e-6)
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint: expected base_model.* got 0 encoder tensors"):
        load_alignscore(tmp_path / "empty.ckpt", tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a file, found none"):
        load_alignscore(tmp_path / "none.ckpt", tmp_path)


# --- words beyond ASCII ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में लिखना।", ["हिन्दी", "में", "लिखना", "।"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("De\u0301ja\u0300 vu", ["d\xe9j\xe0", "vu"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),  # noqa: RUF001
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("x!\u0301 \u0301y", ["x", "!\u0301", "\u0301", "y"]),
        ("👨\u200d👩\u200d👧 👍🏽🎉 🇩🇪🇫🇷 ❤\ufe0f!", ["👨\u200d👩\u200d👧", "👍🏽", "🎉", "🇩🇪", "🇫🇷", "❤\ufe0f", "!"]),
        ("ภาษาไทยเขียนติดกัน", ["ภาษาไทยเขียนติดกัน"]),  # no spaces: one token, as the page says
    ],
)
def test_marks_belong_to_their_letters(text: str, expected: list[str]) -> None:
    """At 1536b0c the marks were punctuation: eleven tokens of the first text."""
    assert words(text) == [unicodedata.normalize("NFC", token) for token in expected]


@given(st.text(st.characters(max_codepoint=127)))
@quick
def test_words_of_ascii_text_are_those_of_the_plain_expression(text: str) -> None:
    assert words(text) == re.findall(r"\w+|[^\w\s]", text.lower())


@given(st.text(st.characters(exclude_categories=["Cs"])))
@quick
def test_words_keep_every_sign_and_do_not_depend_on_composition(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert words(composed) == words(text) or unicodedata.normalize("NFC", text.lower()) != composed.lower()
    kept = "".join("".join(words(text)).split())
    assert kept == "".join(unicodedata.normalize("NFC", text.lower()).split())


def test_metrics_of_decomposed_french_are_those_of_composed() -> None:
    texts = ["Les élèves préfèrent l'été.", "L'été, les élèves espèrent être aimés.", "Préférez-vous l'été ?"]
    apart = [unicodedata.normalize("NFD", text) for text in texts]
    for metric in (self_bleu, lambda tokens: distinct_n(tokens, 1), lambda tokens: distinct_n(tokens, 2)):
        assert metric([words(text) for text in apart]) == metric([words(text) for text in texts])
    hindi = [words("यह किताब बहुत अच्छी है"), words("यह किताब मुझे पसंद नहीं आई")]
    assert distinct_n(hindi, 1) == 9 / 11


def test_models_of_static_vectors_read_every_text_whole(tmp_path: Path) -> None:
    """Their length is infinite and their tokenizer no function: an OverflowError at 1536b0c."""
    library = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    from pope_align.metrics.embeddings import Embedder
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "tea", "is", "good", "bad"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = library.SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")
    embedder = Embedder(model, cache_dir=tmp_path)
    texts = ["tea is good", "tea is bad " * 500, ""]
    vectors = embedder(texts)
    expected = model.encode(texts[:2], normalize_embeddings=True)
    assert np.abs(vectors[:2] - expected).max() < 1e-6
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(3))
    assert (embedder.report.truncated, embedder.report.max_tokens) == (0, None)
    assert "all read whole" in str(embedder.report)
    assert (Embedder(model, cache_dir=tmp_path)(texts) == vectors).all()
