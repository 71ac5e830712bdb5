"""Answers as a log: propensities of what was sampled are exact, and feedback makes slates of them."""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from pope_align import cli
from pope_align.data import EncodedSlate, Slate, SlateCollator, encode_slates, read_slates, write_slates
from pope_align.generation.decoding import decode_batch, propensities
from pope_align.generation.generate import TransformersEngine, generate_for_slates
from pope_align.generation.generations import (
    Generation,
    GenerationSet,
    of_slates,
    read_generations,
    write_generations,
)
from pope_align.generation.labelled import labelled_slates, relabelled, rescaled
from pope_align.generation.labels import ByAggregation, ByCommand, ByFunction, ByReferences
from pope_align.generation.sampling import Sampling
from pope_align.judging.asking import open_calls
from pope_align.judging.rating import ByJudge
from pope_align.metrics.energy import energy_reward
from pope_align.metrics.set_utility import marginal_contributions
from pope_align.propensity.scores import score_model
from pope_align.propensity.scoring import score_responses
from pope_align.training.config import PopeConfig
from pope_align.training.methods import LISTWISE
from pope_align.training.run import run_training
from pope_align.training.utilities import log_transform, utilities_of

sys.path.insert(0, str(Path(__file__).parent))
from faulty_server import FaultyServer, running

WARPED = [
    Sampling(9),
    Sampling(9, temperature=0.6),
    Sampling(9, temperature=1.4, top_p=0.8),
    Sampling(9, temperature=0.8, top_k=3),
    Sampling(9, top_k=4, top_p=0.7),
]


# --- propensities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", WARPED)
def test_propensities_are_those_of_the_warped_distribution_and_sum_to_one(sampling: Sampling) -> None:
    logits = 2 * torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    processors = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        processors.append(transformers.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    expected = processors(None, logits.clone()).log_softmax(-1)
    columns = [propensities(logits, torch.full((6,), token), sampling) for token in range(11)]
    drawn, own, kept = (torch.stack(each, dim=1) for each in zip(*columns))
    assert torch.allclose(drawn.exp(), expected.exp(), atol=1e-6)
    assert torch.allclose(drawn[expected > -torch.inf], expected[expected > -torch.inf], atol=1e-5)
    assert torch.allclose(drawn.double().exp().sum(1), torch.ones(6, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(own, logits.log_softmax(-1), atol=1e-6)
    assert (kept == (expected > -torch.inf).sum(1, keepdim=True)).all()


@pytest.mark.parametrize("sampling", [Sampling(3), Sampling(3, temperature=0.7), Sampling(3, 1.3, top_p=0.75)])
def test_the_probabilities_of_all_answers_of_a_tiny_vocabulary_sum_to_one(sampling: Sampling) -> None:
    """Every answer of up to three tokens out of four, the first of which ends it."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32, initializer_range=0.6, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    prompt = [1, 2, 3]

    def total(answer: tuple[int, ...]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        return float(propensities(logits, torch.tensor(answer), sampling)[0].double().sum())

    answers = [
        answer
        for length in (1, 2, 3)
        for answer in itertools.product(range(4), repeat=length)
        if 0 not in answer[:-1] and (answer[-1] == 0 or length == 3)
    ]
    totals = {answer: total(answer) for answer in answers}
    assert math.fsum(math.exp(each) for each in totals.values()) == pytest.approx(1, abs=1e-6)
    drawn = decode_batch(model, [prompt] * 400, range(400), sampling, [0], logprobs=True)
    for decoded in drawn:
        assert decoded.sampled is not None
        assert math.fsum(decoded.sampled) == pytest.approx(totals[tuple(decoded.ids)], abs=1e-4)
    likeliest = max(totals, key=totals.__getitem__)
    share = np.mean([tuple(decoded.ids) == likeliest for decoded in drawn])
    chance = math.exp(totals[likeliest])
    assert abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / 400)


@pytest.fixture(scope="module")
def writer(make_tiny_model: Callable[..., object], tiny_tokenizer) -> transformers.PreTrainedModel:
    """A model that writes lower-case letters and ends its turns now and then."""
    model = make_tiny_model(3)
    allowed = [tiny_tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghij"]
    end = tiny_tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        head = torch.nn.Linear(32, 257, bias=True)
        head.weight.copy_(0.7 * model.lm_head.weight)
        head.bias.fill_(-40.0)
        head.bias[allowed] = 0.0
        head.bias[end] = 1.0
    model.config.tie_word_embeddings = False
    model.lm_head = head
    return model.eval()


def prompts() -> list[Slate]:
    return [Slate(f"Say {word}", ["abc", "hij"], [3.0, 1.0], slate_id=word) for word in ("one", "three hundred", "x")]


def sampled(writer, tokenizer, sampling: Sampling, **options) -> GenerationSet:
    engine = TransformersEngine(writer, tokenizer, batch_size=5, logprobs=True, about={"model": "writer"})
    return generate_for_slates(engine, prompts(), name="w", n=6, sampling=sampling, seed=2, **options)


@pytest.mark.parametrize("sampling", WARPED)
def test_our_scorer_gives_the_recorded_totals(writer, tiny_tokenizer, sampling: Sampling) -> None:
    generations = sampled(writer, tiny_tokenizer, sampling)
    recorded = [each for row in generations.rows for each in row.propensities]
    finished = [done for row in generations.rows for done in row.finished]
    assert 0 < sum(finished) < len(finished)  # both kinds are tested
    assert all(
        len(each.token_ids) == count for row in generations.rows for each, count in zip(row.propensities, row.tokens)
    )
    scores = [[0.0] * len(row.texts) for row in generations.rows]
    slates, report = labelled_slates(generations, scores, {})
    assert report.answers > 12
    totals = score_responses(encode_slates(slates, tiny_tokenizer, max_length=999)[0], writer)
    model_scores = score_model(slates, writer, tiny_tokenizer, max_length=999)
    assert model_scores.tokens == [slate.completion_tokens for slate in slates]
    rows = generations.rows
    kept = iter(each for row in rows for each, text in zip(row.propensities, row.texts) if text.strip())
    for slate, of_slate in zip(slates, totals):
        for logged, total in zip(slate.logging_logprobs, of_slate):
            each = next(kept)
            assert logged == each.logging_logprob == pytest.approx(math.fsum(each.token_logging_logprobs), abs=1e-9)
            assert total == pytest.approx(each.model_logprob, abs=2e-4)
            if sampling == WARPED[0]:
                assert total == pytest.approx(logged, abs=2e-4)
    if sampling.top_k:
        assert max(max(each.candidates) for each in recorded) <= sampling.top_k
    if sampling.temperature != 1:
        assert any(abs(each.model_logprob - each.logging_logprob) > 0.1 for each in recorded)


def test_recorded_propensities_survive_batches_kills_and_files(writer, tiny_tokenizer, tmp_path: Path) -> None:
    made = sampled(writer, tiny_tokenizer, WARPED[2], journal=tmp_path / "journal")
    again = sampled(writer, tiny_tokenizer, WARPED[2], journal=tmp_path / "journal")  # all from the journal
    assert again == made
    for ending in ("jsonl", "parquet"):
        write_generations(made, tmp_path / f"g.{ending}")
        assert read_generations(tmp_path / f"g.{ending}") == made
    engine = TransformersEngine(writer, tiny_tokenizer, batch_size=1)
    plain = generate_for_slates(engine, prompts(), name="w", n=6, sampling=WARPED[2], seed=2)
    assert [row.texts for row in plain.rows] == [row.texts for row in made.rows]
    assert plain.rows[0].propensities is None
    with pytest.raises(ValueError, match="temperature: expected > 0 with logprobs, got 0"):
        sampled(writer, tiny_tokenizer, Sampling(9, temperature=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logging_logprob": -1.0}, r"propensities\[0\]: logging_logprob: expected -3.0, the sum over the tokens"),
        ({"token_model_logprobs": [-1.0]}, "token_model_logprobs: expected 2 numbers, one per token"),
        ({"candidates": ["x", 1]}, "candidates: expected 2 numbers"),
        ({"extra": 1}, "expected the fields of a recorded propensity"),
    ],
)
def test_propensities_that_do_not_add_up_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    each = {
        "logging_logprob": -3.0, "model_logprob": -2.0, "token_ids": [1, 2], "token_logging_logprobs": [-1.0, -2.0],
        "token_model_logprobs": [-1.0, -1.0], "candidates": [3, 3], "exact": True, **change,
    }  # fmt: skip
    (tmp_path / "g.jsonl").write_text(json.dumps({"prompt": "A?", "texts": ["x"], "propensities": [each]}))
    with pytest.raises(ValueError, match=message):
        read_generations(tmp_path / "g.jsonl")


def test_answers_that_no_slate_can_hold_are_left_out_and_counted(writer, tiny_tokenizer) -> None:
    made = sampled(writer, tiny_tokenizer, WARPED[0])
    row = made.rows[0]
    texts = [row.texts[0], " ", *row.texts[2:]]
    changed = GenerationSet("w", (replace(row, texts=texts),), made.settings)
    (slate,), report = labelled_slates(changed, [[0.0, 1, 2, 3, 4, 5]], {"labeller": "x"})
    blank = sum(not text.strip() for text in texts)
    assert (report.blank, report.answers) == (blank, 6 - blank)
    assert slate.scores[:2] == [0.0, 2.0]
    assert slate.logging_policy["how"] == "recorded"
    assert slate.logging_policy["sampling"]["temperature"] == 1
    assert slate.logging_policy["model"] == "writer"
    assert slate.origin == {"format": "generations", "feedback": "x", "labeller": "x"}
    assert f"left out: {blank} blank answers" in str(report)


# --- labellers ------------------------------------------------------------------------------------------------------


def vectors(texts: list[str], progress: object = None) -> np.ndarray:
    counts = np.array([[1e-3 + text.count(letter) for letter in "abcdefghij"] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


class Letters:
    """An embedder of letters."""

    report = type("Report", (), {"model": "letters"})()

    def __call__(self, texts: list[str], progress: object = None) -> np.ndarray:
        return vectors(texts)


def answered() -> GenerationSet:
    rows = (Generation("one", "Say one", ["abc", "hij", "abcd"]), Generation("x", "Say x", ["j", "a b"]))
    return GenerationSet("m", rows)


def silent(done: int, of: int) -> None:
    pass


def test_feedback_by_references_is_that_of_the_functions() -> None:
    p = np.array([4, 2]) / 6  # 1 + votes
    x, y = vectors(["abc", "hij", "abcd"]), vectors(["abc", "hij"])
    for name, expected in (
        ("similarity", x @ y.T @ p),
        ("energy", energy_reward(x, y, p)),
        ("set-utility", marginal_contributions(x @ y.T, p)),
    ):
        labeller = ByReferences(name, prompts(), Letters())
        first, second = labeller(answered(), silent)
        assert first == pytest.approx(expected.tolist(), abs=1e-12)
        assert len(second) == 2
        assert labeller.about["labeller"] == name
    stranger = GenerationSet("m", (Generation("who", "What?", ["a", "b"]),))
    with pytest.raises(ValueError, match=r"row 1 \(who\): expected references with its key or prompt, got none"):
        ByReferences("energy", prompts(), Letters())(stranger, silent)
    alone = GenerationSet("m", (Generation("one", "Say one", ["a"]),))
    with pytest.raises(ValueError, match=r"row 1 \(one\): energy: expected at least two answers"):
        ByReferences("energy", prompts(), Letters())(alone, silent)


def test_rescaling_is_one_line_for_the_whole_log() -> None:
    scores, line = rescaled([[-1.0, 3.0], [1.0]])
    assert scores == [[0.0, 1.0], [0.5]]
    assert line == {"low": -1.0, "high": 3.0}
    assert rescaled([[2.0], [2.0]])[0] == [[0.0], [0.0]]


def command(tmp_path: Path, body: str) -> ByCommand:
    script = tmp_path / "score it.py"
    script.write_text("import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n" + body)
    return ByCommand(f"'{sys.executable}' '{script}'")


def test_feedback_by_a_command(tmp_path: Path) -> None:
    lengths = command(tmp_path, "for row in rows: print(json.dumps({'score': len(row['completion']) + row['index']}))")
    assert lengths(answered(), silent) == [[3, 4, 6], [1, 4]]
    assert command(tmp_path, "for row in rows: print(2.5)")(answered(), silent) == [[2.5] * 3, [2.5] * 2]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print(1)", "command: expected 5 lines, one per answer, got 1"),
        ("for row in rows: print('good')", "command: line 1: expected a finite number, got 'good'"),
        ("for row in rows: print('NaN')", "command: line 1: expected a finite number, got nan"),
        ("for row in rows: print('true')", "command: line 1: expected a finite number, got True"),
        ("sys.exit('no licence')", "ended with 1: no licence"),
    ],
)
def test_a_command_that_fails_is_named(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(tmp_path, body)(answered(), silent)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="command: expected a program that can be started, got 'no-such-program'"):
        ByCommand("no-such-program")(answered(), silent)


def test_feedback_by_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_scores.py").write_text(
        "import numpy as np\ndef length(prompt, completions): return np.array([len(c) for c in completions])\n"
        "def short(prompt, completions): return [1.0]\ndef text(prompt, completions): return ['a'] * len(completions)\n"
    )
    assert ByFunction("my_scores:length")(answered(), silent) == [[3, 3, 4], [1, 3]]
    with pytest.raises(ValueError, match=r"function: row 1 \(one\): expected 3 numbers, one per completion, got 1"):
        ByFunction("my_scores:short")(answered(), silent)
    with pytest.raises(ValueError, match=r"row 1 \(one\): \[0\]: expected a finite number, got 'a'"):
        ByFunction("my_scores:text")(answered(), silent)
    for name in ("my_scores", "my_scores:none", "no_module_of_this_name:f", ":f"):
        with pytest.raises(ValueError, match="function: expected"):
            ByFunction(name)


def test_feedback_by_a_judge_is_asked_for_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pope_align.generation.endpoint import Endpoint

    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    ill = [True]

    def answer(messages: list[dict[str, str]]) -> str:
        text = messages[1]["content"].partition("# Answer\n\n")[2].partition("\n")[0]
        if ill[0] and text == "a b":
            return '{"score": 11}'
        return f'<think>{{"score": 1}}?</think>{{"reason": "r", "score": {len(text)}}}'

    calls = str(tmp_path / "calls.jsonl")
    with running(FaultyServer(answer, lambda number: ["500"] if number == 1 else [])) as server:
        one = Endpoint("j", server.url, max_wait=0.02)
        with pytest.raises(
            ValueError, match=r"expected a rating of all 5 answers, got none of 1, the first: expected a"
        ):
            ByJudge(one, open_calls(calls))(answered(), silent)
        asked = len(server.requests)
        ill[0] = False
        with pytest.raises(ValueError, match="expected a score from 1 to 10, got '11'"):
            ByJudge(one, open_calls(calls))(answered(), silent)  # what was said stays said
        assert len(server.requests) == asked
        labeller = ByJudge(one, open_calls(str(tmp_path / "new.jsonl")))
        assert labeller(answered(), silent) == [[3, 3, 4], [1, 3]]
        assert labeller.about["base_url"] == server.url


def test_a_log_with_groups_is_credited_by_what_each_response_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    groups = [{"a": 0.9, "b": -1.0}, {"a": 0.5, "b": 0.8}, {"a": 0.1}]
    log = [
        Slate("Why?", ["x", "y", "z"], [1.0, 2.0, 3.0], group_scores=groups, logging_logprobs=[-1.0, -2.0, -3.0],
              ranks=[3, 2, 1]),
        Slate("How?", ["x"], [1.0], group_scores=[{"b": 1.0}], logging_logprobs=[-1.0]),
    ]  # fmt: skip
    for ending in ("jsonl", "parquet"):
        write_slates(log, f"log.{ending}")
        assert pope(monkeypatch, "label", f"log.{ending}", "--with", "set-utility", "-o", f"new.{ending}") == 0
        first, second = read_slates(f"new.{ending}")
        raw = marginal_contributions(np.array([[0.9, 0], [0.5, 0.8], [0.1, 0]]))
        assert raw.tolist() == pytest.approx([0.2, 0.4, 0.0])
        assert first.scores == pytest.approx((raw / 1.0).tolist())  # the second slate's one response adds 1
        assert second.scores == [1.0]
        assert first.logging_logprobs == [-1.0, -2.0, -3.0]
        assert first.ranks is None
        assert first.origin["rescaled"] == {"low": 0.0, "high": 1.0}
    write_slates([Slate("Why?", ["x"], [1.0])], "log.jsonl")
    assert pope(monkeypatch, "label", "log.jsonl", "--with", "set-utility", "-o", "none.jsonl") == 2
    assert "slate 1: group_scores: expected feedback by group, got none; or give --refs" in capsys.readouterr().err


# --- the command line -----------------------------------------------------------------------------------------------


def pope(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_from_prompts_to_a_log_to_training(
    writer, tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """generate --logprobs, then label, as a user runs them; what comes out is a log that training reads."""
    from pope_align.training.examples import slate_examples

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pope_align.models.loading.load_model", lambda *_, **__: writer)
    monkeypatch.setattr("pope_align.models.loading.load_tokenizer", lambda *_: tiny_tokenizer)
    writer.config.save_pretrained("writer")
    write_slates(prompts(), "log.jsonl")
    (tmp_path / "scores.py").write_text("def f(prompt, completions): return [c.count('a') for c in completions]\n")
    command = ["generate", "log.jsonl", "--model", "writer", "-n", 12, "--max-new-tokens", 6, "--logprobs"]
    assert pope(monkeypatch, *command, "-o", "gens.jsonl", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 36
    assert pope(monkeypatch, *command, "-o", "gens.jsonl") == 2
    assert "exists already; pass --overwrite" in capsys.readouterr().err
    label = ["label", "gens.jsonl", "--with", "python", "--function", "scores:f", "-o", "labelled.jsonl"]
    assert pope(monkeypatch, *label, "--json", "-") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["answers"] + counts["blank"] == 36
    slates = read_slates("labelled.jsonl")
    assert all(slate.logging_policy["how"] == "recorded" for slate in slates)
    assert all(slate.logging_logprobs is not None for slate in slates)
    assert any(not done for slate in slates for done in slate.finished or [])
    examples = slate_examples(
        "log", list(slates), tiny_tokenizer, PopeConfig(output_dir="out", max_length=99, use_cpu=True)
    )
    for slate, example in zip(slates, examples):
        totals = score_responses([EncodedSlate(example["prompt_ids"], example["completion_ids"])], writer)[0]
        assert slate.logging_logprobs == pytest.approx(totals, abs=2e-4)  # on its own answers a policy has weight 1


@pytest.mark.parametrize("how", ["energy", "set-utility"])
def test_scores_of_own_answers_are_the_utilities_of_every_method(
    how: str, writer, tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """generate, label, train: rewards on one scale are not stretched within slates unless that is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pope_align.metrics.embeddings.Embedder", lambda *_, **__: Letters())
    for module in ("models.loading", "training.policy_trainer"):
        monkeypatch.setattr(f"pope_align.{module}.load_model", lambda *_, **__: copy.deepcopy(writer))
    for module in ("models.loading", "training.arguments", "training.run"):
        monkeypatch.setattr(f"pope_align.{module}.load_tokenizer", lambda *_: tiny_tokenizer)
    writer.config.save_pretrained("model")
    write_slates(prompts(), "log.jsonl")
    sample = ["generate", "log.jsonl", "--model", "model", "-n", 4, "--max-new-tokens", 5, "--logprobs"]
    assert pope(monkeypatch, *sample, "-o", "gens.jsonl") == 0
    assert pope(monkeypatch, "label", "gens.jsonl", "--with", how, "--refs", "log.jsonl", "-o", "own.jsonl") == 0
    scores = [score for slate in read_slates("own.jsonl") for score in slate.scores]
    assert (min(scores) < 0) == (how == "energy")
    seen = []
    collate = SlateCollator.__call__

    def noted(self: SlateCollator, examples: list[dict]) -> dict:
        seen.extend(utility for example in examples for utility in example["utility"])
        return collate(self, examples)

    monkeypatch.setattr(SlateCollator, "__call__", noted)
    for method in ("pope", *LISTWISE):
        options = ["--method", method, "--max-steps", 1, "--use-cpu", "--report-to", "none", "-o", method]
        train = ["train", "own.jsonl", "--model", "model", *options]
        seen.clear()
        if method == "weighted-sft" and how == "energy":
            assert pope(monkeypatch, *train) == 2
            assert "scores: expected utilities >= 0" in capsys.readouterr().err
            assert pope(monkeypatch, *train, "--overwrite", "--utility-transform", "minmax") == 0
            assert {0.0, 1.0} <= set(seen)
            continue
        assert pope(monkeypatch, *train) == 0
        assert set(seen) == set(scores)
        written = json.loads((tmp_path / method / "training_objective.json").read_text())
        assert written["utility_transform"] == {"energy": "reward", "set-utility": "none"}[how]


def test_what_a_log_says_about_its_scale_decides_the_transform() -> None:
    slate = Slate("Why?", ["x", "y"], [-1.0, 3.0], logging_logprobs=[-1.0, -1.0])
    reward = replace(slate, origin={"utility_transform": "reward"})
    assert log_transform("log", [slate], "auto") == "minmax"
    assert log_transform("log", [reward], "auto") == "reward"
    assert log_transform("log", [reward, slate], "rank") == "rank"
    assert utilities_of(reward, "reward") == [-1.0, 3.0]
    assert utilities_of(reward, "minmax") == [0.0, 1.0]
    with pytest.raises(ValueError, match="expected one for all of log, whose slates' origins name minmax, reward"):
        log_transform("log", [reward, slate], "auto")
    (again,) = relabelled([reward], [[1.0, 2.0]], {"labeller": "python"})
    assert "utility_transform" not in again.origin  # it was that of the old scores


# --- opinion groups -------------------------------------------------------------------------------------------------

#: For each response the agreement of two groups: one favourite, and one that both can accept.
AGREEMENT = [{"a": 0.95, "b": 0.2}, {"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.3}]


def test_group_scores_are_aggregated_in_the_ways_of_the_convert_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_slates([Slate("Why?", ["x", "y", "z"], [0.0, 1.0, 2.0], group_scores=AGREEMENT)], "log.jsonl")
    for how, expected in (
        ("utilitarian", [0.575, 0.5, 0.2]),
        ("maximin", [0.2, 0.5, 0.1]),
        ("nash", [math.sqrt(0.19), 0.5, math.sqrt(0.03)]),
    ):
        assert pope(monkeypatch, "label", "log.jsonl", "--with", how, "-o", f"{how}.jsonl") == 0
        (slate,) = read_slates(f"{how}.jsonl")
        assert slate.scores == pytest.approx(expected)
        assert slate.group_scores == AGREEMENT
        assert slate.origin["feedback"] == how
    write_slates([Slate("Why?", ["x"], [0.0], group_scores=[{}])], "none.jsonl")
    assert pope(monkeypatch, "label", "none.jsonl", "--with", "maximin", "-o", "no.jsonl") == 2
    assert "slate 1: group_scores[0]: expected feedback of at least one group, got none" in capsys.readouterr().err
    write_slates([Slate("Why?", ["x"], [0.0], group_scores=[{"a": 5.0}])], "stars.jsonl")
    assert pope(monkeypatch, "label", "stars.jsonl", "--with", "nash", "-o", "no.jsonl") == 2
    assert "slate 1: group_scores[0]: group_scores: expected numbers in [0, 1]" in capsys.readouterr().err


def test_training_on_maximin_serves_the_group_that_the_mean_forgets(
    make_tiny_model, tiny_tokenizer, tmp_path: Path
) -> None:
    """By mean agreement the favourite of one group is best, by maximin the response that both can accept."""
    log = [
        Slate(f"Q{n}?", ["x", "y", "z"], [0.0] * 3, group_scores=AGREEMENT, logging_logprobs=[-9.0] * 3)
        for n in range(4)
    ]
    preferred = {}
    for how in ("utilitarian", "maximin"):
        labeller = ByAggregation(log, how)
        slates = relabelled(log, labeller(of_slates(log, "log"), silent), labeller.about)
        args = PopeConfig(
            str(tmp_path / how), max_steps=12, learning_rate=3e-3, use_cpu=True, report_to="none", save_strategy="no"
        )
        trainer = run_training(make_tiny_model(), args, slates, processing_class=tiny_tokenizer)
        totals = np.array(score_model(slates, trainer.model, tiny_tokenizer, max_length=99).totals)
        start = np.array(score_model(slates, make_tiny_model(), tiny_tokenizer, max_length=99).totals)
        preferred[how] = (totals - start).mean(0).argmax()
    assert preferred == {"utilitarian": 0, "maximin": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "none.jsonl", "--model", "m", "-o", "g.jsonl"], "log: expected a file of slates, found none"),
        (["generate", "--model", "m", "-o", "g.jsonl"], "Missing argument 'log'"),
        (["generate", "log.jsonl", "--data", "log.jsonl", "--model", "m", "-o", "g.jsonl"], "extra argument"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.csv"], "expected a file ending in .jsonl or .parquet"),
        (["generate", "log.jsonl", "--model", "m", "-o", "no/g.jsonl"], "expected a folder that exists"),
        (["generate", "log.jsonl", "--model", "./no", "-o", "g.jsonl"], "expected a model"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.jsonl", "--top-p", "nan"], "top_p: expected a number"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.jsonl", "--temperature", "0", "--logprobs"], "got 0"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.jsonl", "--engine", "ray", "--server", "vllm"], "--engine"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.jsonl", "--engine", "openai"], "expected an API key"),
        (["generate", "log.jsonl", "--model", "m", "-o", "g.jsonl", "--adapter", "no"], "adapter_config.json"),
        (["label", "none.jsonl", "--with", "python", "--function", "a:b", "-o", "l.jsonl"], "gens: expected a file"),
        (["label", "log.jsonl", "--with", "energy", "-o", "l.jsonl"], "--refs (for --with energy): expected a value"),
        (["label", "log.jsonl", "--with", "energy", "--refs", "none", "-o", "l.jsonl"], "--refs: expected a file"),
        (["label", "log.jsonl", "--with", "python", "--function", "a:b", "--model", "m", "-o", "l.jsonl"], "only"),
        (["label", "log.jsonl", "--with", "judge", "--model", "m", "-o", "l.jsonl"], "expected an API key"),
        (["label", "log.jsonl", "--with", "command", "--command", "x", "-o", "log.jsonl"], "exists already"),
        (["judge", "--gens", "a=log.jsonl", "--refs", "log.jsonl", "--model", "m"], "expected at least two sets"),
        (["judge", "--gens", "log.jsonl", "--gens", "no", "--refs", "log.jsonl", "--model", "m"], "got 'no'"),
        (["judge", "--gens", "log.jsonl", "--gens", "log.jsonl", "--refs", "no", "--model", "m"], "--refs: expected"),
        (["judge", "--gens", "log.jsonl", "--gens", "log.jsonl", "--refs", "log.jsonl", "--model", "m"], "API key"),
        (
            ["judge", "--gens", "log.jsonl", "--gens", "log.jsonl", "--refs", "log.jsonl", "--model", "m",
             "--base-url", "http://x", "-o", "full"],
            "holds files already",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_any_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_slates(prompts(), "log.jsonl")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()

    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("pope_align.models.loading.load_model", load)
    assert pope(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_checks_of_arguments_import_no_torch(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys; sys.argv = ['pope', *sys.argv[1:]]\nfrom pope_align import cli\n"
        "try: cli.main()\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules, 'openai' in sys.modules)"
    )
    for arguments in (
        ["generate", "none.jsonl", "--model", "m", "-o", "g.jsonl"],
        ["label", "none.jsonl", "--with", "python", "--function", "a:b", "-o", "l.jsonl"],
        ["judge", "--gens", "a", "--gens", "b", "--refs", "c", "--model", "m"],
    ):
        run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert run.stdout == "2 False False\n", run.stderr


def test_the_old_spelling_of_the_log_works_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_slates(prompts(), "log.jsonl")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-0123456789")
    with running(FaultyServer(lambda messages: "abc")) as server:
        command = ["generate", "--data", "log.jsonl", "--model", "m", "--engine", "openai", "--base-url", server.url]
        assert pope(monkeypatch, *command, "-n", 1, "-o", "g.jsonl") == 0
    assert "pope generate: --data is now the first argument, without a name" in capsys.readouterr().err
    assert read_generations("g.jsonl").rows[0].texts == ["abc"]


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("generate", "label", "judge"):
        assert pope(monkeypatch, command, "--help") == 0
        shown = capsys.readouterr().out
        assert "\u2026" not in shown  # no name of an option is cut
        assert max(map(len, shown.splitlines())) <= 80


def test_a_response_that_was_cut_has_no_end_of_turn(
    tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Slate("Hm?", ["abc", "de"], [1.0, 2.0])
    cut = Slate("Hm?", ["abc", "de"], [1.0, 2.0], finished=[False, True])
    (expected,), _ = encode_slates([whole], tiny_tokenizer, max_length=99)
    (encoded,), _ = encode_slates([cut], tiny_tokenizer, max_length=99)
    assert encoded.prompt_ids == expected.prompt_ids
    assert encoded.completion_ids == [expected.completion_ids[0][:-1], expected.completion_ids[1]]
    for ending in ("jsonl", "parquet"):
        write_slates([cut], tmp_path / f"cut.{ending}")
        assert list(read_slates(tmp_path / f"cut.{ending}")) == [cut]
    monkeypatch.chdir(tmp_path)
    assert pope(monkeypatch, "convert", "cut.jsonl", "--from", "slates", "-o", "again.jsonl") == 0
    assert read_slates("again.jsonl")[0].finished == [False, True]
    row = {"prompt": "Hm?", "completions": ["x"], "scores": [1.0], "finished": [1]}
    with pytest.raises(ValueError, match=r"finished\[0\]: expected true or false, got 1"):
        read_slates([row])


def test_the_command_knows_every_aggregation() -> None:
    from typing import get_args

    from pope_align.cli.label import _BY_GROUPS
    from pope_align.data.transforms import Aggregation

    assert get_args(Aggregation) == _BY_GROUPS
