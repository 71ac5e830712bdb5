"""Scoring a log: the plain computation's numbers, whatever the batches, the interruptions and the mode of the model."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pope_align.propensity.scores as scores_module
import pope_align.propensity.scoring as scoring
import pytest
import torch
from pope_align.data import Slate, TokenRows, encode_slate, read_slates, write_slates
from pope_align.propensity.logging_policy import check_token_counts, score_slates
from pope_align.propensity.scores import score_model
from pope_align.propensity.scoring import model_fingerprint
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SLATES = [
    Slate("Why is the sky blue?", ["Air scatters blue light.", "It is not.", "No idea"], [3, 0, 1], slate_id="sky"),
    Slate("Name a fruit.", ["Pear"], [1]),
    Slate("Count.", ["1, 2, 3, 4, 5, 6, 7, 8, 9, 10", "1", "1", "one two", "1, 2"], [5, 4, 3, 2, 1]),
]
RESPONSES = 8  # distinct ones: "1" stands twice in the last slate
TOKENS = sum(len(text) + 1 for slate in SLATES for text in dict.fromkeys(slate.completions))  # bytes, and the ends


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    )


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=256))


@pytest.fixture(params=[llama, gpt2], ids=["llama", "gpt2"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return request.param()


def plain_totals(slate: Slate, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[float]:
    """One response at a time: log_softmax of the logits, gathered at the response, summed."""
    encoded = encode_slate(slate, tokenizer, max_length=128)
    totals = []
    for ids in encoded.completion_ids:
        whole = torch.tensor([encoded.prompt_ids + ids])
        with torch.no_grad():
            log_pi = model.eval()(whole).logits[0].double().log_softmax(-1)
        start = len(encoded.prompt_ids)
        totals.append(sum(float(log_pi[start + t - 1, token]) for t, token in enumerate(ids)))
    return totals


def totals_of(slates: list[Slate]) -> list[float]:
    return [total for slate in slates for total in slate.logging_logprobs or []]


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_scores_are_the_plain_log_softmax_in_the_order_of_the_log(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_tokens: int
) -> None:
    scored = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, batch_tokens=batch_tokens)
    expected = [total for slate in SLATES for total in plain_totals(slate, model, tokenizer)]
    np.testing.assert_allclose(totals_of(scored), expected, rtol=1e-5)
    for before, after in zip(SLATES, scored, strict=True):
        empty = replace(after, logging_logprobs=None, completion_tokens=None, logging_policy=None)
        assert empty == before
        assert after.completion_tokens == [len(text) + 1 for text in before.completions]  # bytes, and the end


def test_provenance_says_where_the_numbers_came_from_and_survives_the_file(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = llama().to(torch.bfloat16)
    scored = score_slates(SLATES, model, tokenizer, how="behaviour_cloned", max_length=128)
    policy = scored[0].logging_policy
    assert policy is not None
    assert set(policy) == {
        "how",
        "model",
        "model_fingerprint",
        "tokenizer",
        "tokenizer_fingerprint",
        "chat_template",
        "dtype",
        "max_length",
        "versions",
    }
    assert (policy["how"], policy["dtype"], policy["max_length"]) == ("behaviour_cloned", "bfloat16", 128)
    assert (policy["model"], policy["chat_template"]) == ("LlamaForCausalLM", None)
    assert policy["versions"]["torch"] == torch.__version__
    for ending in ("jsonl", "parquet"):
        write_slates(scored, tmp_path / f"log.{ending}")
        assert list(read_slates(tmp_path / f"log.{ending}")) == scored


def test_a_killed_run_goes_on_where_it_stopped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, batch_tokens=60)

    class Killed(Exception):
        pass

    def kill_after_two_batches(done: int, of: int) -> None:
        reports.append((done, of))
        if len(reports) == 3:
            raise Killed

    reports: list[tuple[int, int]] = []
    options = {"how": "proxy", "max_length": 128, "batch_tokens": 60, "cache_dir": tmp_path}
    with pytest.raises(Killed):
        score_slates(SLATES, model, tokenizer, progress=kill_after_two_batches, **options)
    saved = reports[-1][0]
    assert reports[0] == (0, TOKENS)
    assert 0 < saved < TOKENS

    (cache,) = tmp_path.glob("*.jsonl")
    assert len(cache.read_text().splitlines()) == 1 + 2  # what it is of, and two batches
    with cache.open("a") as file:
        file.write('{"half a ke')  # as a kill in the middle of a write leaves it

    reports.clear()
    resumed = score_slates(SLATES, model, tokenizer, progress=lambda *r: reports.append(r), **options)
    assert reports[0] == (saved, TOKENS)
    assert reports[-1] == (TOKENS, TOKENS)
    assert totals_of(resumed) == totals_of(whole)  # to the last bit
    _, *batches = [json.loads(line) for line in cache.read_text().splitlines()]
    assert sum(len(batch["value"]) for batch in batches) == RESPONSES

    reports.clear()
    again = score_slates(SLATES, model, tokenizer, progress=lambda *r: reports.append(r), **options)
    assert reports == [(TOKENS, TOKENS)]
    assert again == resumed


def test_a_log_that_grew_pays_for_the_new_responses_only(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"how": "proxy", "max_length": 128, "cache_dir": tmp_path}
    before = score_slates(SLATES, model, tokenizer, **options)
    grown = [replace(SLATES[0], completions=[*SLATES[0].completions, "Because."], scores=[3, 0, 1, 2]), *SLATES[1:]]
    scored: list[int] = []
    compute = scoring.response_logprobs

    def counting(model: PreTrainedModel, rows: TokenRows, **options: bool) -> torch.Tensor:
        scored.append(len(rows["response_offsets"]) - 1)
        return compute(model, rows, **options)

    monkeypatch.setattr(scoring, "response_logprobs", counting)
    after = score_slates(grown, model, tokenizer, **options)
    assert scored == [1]
    assert totals_of(after)[:3] + totals_of(after)[4:] == totals_of(before)
    np.testing.assert_allclose(
        totals_of(after), totals_of(score_slates(grown, model, tokenizer, **{**options, "cache_dir": None})), rtol=1e-5
    )


def test_a_prompt_is_computed_once_for_its_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    compute = scoring.response_logprobs

    def watching(model: PreTrainedModel, rows: TokenRows, **options: bool) -> torch.Tensor:
        shapes.append(tuple(rows["input_ids"].shape))
        return compute(model, rows, **options)

    monkeypatch.setattr(scoring, "response_logprobs", watching)
    shared = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    longest = len("Why is the sky blue?") + sum(len(text) + 1 for text in SLATES[0].completions)
    assert shapes == [(3, longest)]  # bytes, and the end of each response
    monkeypatch.setattr(scoring, "_TREE_TOKENS", 1)
    apart = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    assert sum(rows for rows, _ in shapes[1:]) == RESPONSES
    np.testing.assert_allclose(totals_of(shared), totals_of(apart), rtol=1e-5)


def test_batches_hold_little_padding_once_they_are_large() -> None:
    """A log with one long prompt group and many short ones: 2 rows of 1,000 tokens padded a row of 50 to 1,000."""
    rng = np.random.default_rng(0)
    requests = [
        scoring._Request.of([prompt] * int(length), [1] * int(rng.integers(1, 40)), f"{number}")
        for prompt, length in enumerate(rng.choice([5, 40, 300, 900], 80))
        for number in range(3)
    ]
    batches = list(scoring._plan(requests, 8192))
    assert sorted(request.key for batch in batches for row in batch for request in row) == sorted(
        request.key for request in requests
    )
    sizes = [[scoring._length(row) for row in batch] for batch in batches]
    together = [length for lengths in sizes for length in lengths]
    assert together == sorted(together, reverse=True)
    for lengths in sizes:
        assert len(lengths) * lengths[0] <= 8192
        filled = sum(lengths)
        assert filled >= 0.9 * len(lengths) * lengths[0] or filled - lengths[-1] < 512
    assert len(batches) < 20


def test_a_model_that_cannot_share_a_prompt_is_scored_all_the_same(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    expected = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "sharing_obstacle", lambda model, trees: "its layers carry a state")
        scored = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    assert "every response computes its prompt again: its layers carry a state" in caplog.text
    np.testing.assert_allclose(totals_of(scored), totals_of(expected), rtol=1e-5)


def test_another_model_does_not_read_this_models_cache(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = llama()
    before = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, cache_dir=tmp_path)
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 5] += 1.0
    after = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, cache_dir=tmp_path)
    assert all(a != b for a, b in zip(totals_of(before), totals_of(after), strict=True))
    assert len(list(tmp_path.glob("*.jsonl"))) == 2


def test_a_cache_that_is_none_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = llama()
    score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, cache_dir=tmp_path)
    (cache,) = tmp_path.glob("*.jsonl")
    cache.write_text("something else\n" + cache.read_text())
    with pytest.raises(ValueError, match=r"expected a journal of this version, .* delete it"):
        score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, cache_dir=tmp_path)


def test_a_fingerprint_follows_weights_dtype_and_configuration_only() -> None:
    model = llama()
    assert model_fingerprint(model) == model_fingerprint(llama())
    model.config.use_cache = not model.config.use_cache  # as gradient checkpointing does
    assert model_fingerprint(model) == model_fingerprint(llama())
    prints = {model_fingerprint(m) for m in (llama(), gpt2(), llama().bfloat16())}
    changed = llama()
    changed.config.rms_norm_eps = 1e-3
    prints.add(model_fingerprint(changed))
    with torch.no_grad():
        changed.model.norm.weight[0] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    prints.add(model_fingerprint(changed))
    assert len(prints) == 5


def test_random_states_and_the_models_modes_are_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    model = gpt2()  # with dropout, which training mode would apply
    model.train()
    model.transformer.h[0].eval()  # a part that its owner froze
    modes = [module.training for module in model.modules()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    first = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert modes == [module.training for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert totals_of(first) == totals_of(score_slates(SLATES, model, tokenizer, how="proxy", max_length=128))

    def fail(done: int, of: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        score_slates(SLATES, model, tokenizer, how="proxy", max_length=128, progress=fail)
    assert modes == [module.training for module in model.modules()]


def test_recorded_log_probabilities_are_not_overwritten_unasked(tokenizer: PreTrainedTokenizerFast) -> None:
    model = llama()
    log = [SLATES[1], replace(SLATES[0], logging_logprobs=[-3.0, -4.0, -5.0])]
    with pytest.raises(ValueError, match=r"slate 2 \(sky\): logging_logprobs: .* got recorded ones; .*overwrite"):
        score_slates(log, model, tokenizer, how="proxy", max_length=128)
    scored = score_slates(log, model, tokenizer, how="proxy", max_length=128, overwrite=True)
    assert scored[1].logging_logprobs != log[1].logging_logprobs
    with pytest.raises(ValueError, match="got proxy ones"):
        score_slates(scored, model, tokenizer, how="behaviour_cloned", max_length=128)
    with pytest.raises(ValueError, match="how: expected one of recorded, behaviour_cloned, proxy, got 'guess'"):
        score_slates(log, model, tokenizer, how="guess", max_length=128)  # type: ignore[arg-type]


def test_what_is_cut_is_reported(tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pope_align.propensity.scores"):
        score_slates(SLATES, llama(), tokenizer, how="proxy", max_length=128)
        score_slates(SLATES, llama(), tokenizer, how="proxy", max_length=20)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "max_length 20: cut 1 of 3 prompts (10 tokens on the left) and 3 of 9 responses" in caplog.text


def test_log_probabilities_of_other_tokens_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    scored = score_slates(SLATES, llama(), tokenizer, how="proxy", max_length=128)[0]
    check_token_counts(scored, encode_slate(scored, tokenizer, max_length=128), "slate 1")
    shorter = encode_slate(scored, tokenizer, max_length=20)
    with pytest.raises(ValueError, match=r"slate 1: completion_tokens\[0\]: expected the 25 .* got 10; .*\(128\)"):
        check_token_counts(scored, shorter, "slate 1")
    check_token_counts(replace(scored, completion_tokens=None), shorter, "unknown counts cannot disagree")
    check_token_counts(SLATES[0], shorter, "a log without provenance")
    other = {**(scored.logging_policy or {}), "tokenizer_fingerprint": "another"}
    check_token_counts(replace(scored, logging_policy=other), shorter, "another tokenizer counts differently")


def test_rounding_leaves_no_log_probability_above_zero(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or a written log would not pass its own validation."""
    monkeypatch.setattr(scoring, "response_logprobs", lambda *args, **options: torch.tensor([3e-8]))
    (scored,) = score_slates(SLATES[1:2], llama(), tokenizer, how="proxy", max_length=128)
    write_slates([scored], tmp_path / "log.jsonl")
    assert read_slates(tmp_path / "log.jsonl")[0].logging_logprobs == [0.0]


@pytest.mark.parametrize("wrong", ["NaN", "5.0", "-Infinity", "true", '"-3"', "-12.5"])
def test_a_changed_number_of_the_cache_is_computed_again(
    wrong: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = llama()
    options = {"how": "proxy", "max_length": 128, "cache_dir": tmp_path}
    before = score_slates(SLATES, model, tokenizer, **options)
    (cache,) = tmp_path.glob("*.jsonl")
    number = str(totals_of(before)[0])
    assert number in cache.read_text()
    cache.write_text(cache.read_text().replace(number, wrong))
    after = score_slates(SLATES, model, tokenizer, **options)
    assert totals_of(after) == totals_of(before)
    assert "unfinished or changed; their parts are done again" in caplog.text


def test_any_model_is_scored_without_touching_what_the_slates_carry(tokenizer: PreTrainedTokenizerFast) -> None:
    """A target's scores are its own: no ``how``, no slate relabelled, tokens and parameters read once."""
    model, logged = llama(), [replace(slate, logging_logprobs=[-9.0] * len(slate.completions)) for slate in SLATES]
    scores = score_model(logged, model, tokenizer, max_length=128)
    scored = score_slates(SLATES, model, tokenizer, how="proxy", max_length=128)
    assert scores.totals == [slate.logging_logprobs for slate in scored]
    assert scores.tokens == [slate.completion_tokens for slate in scored]
    assert {"how": "proxy", **scores.provenance} == scored[0].logging_policy
    assert all(slate.logging_logprobs == [-9.0] * len(slate.completions) for slate in logged)
    tokens, nats = sum(map(sum, scores.tokens)), -sum(map(sum, scores.totals))
    assert scores.nats_per_token == nats / tokens


def test_a_command_reads_tokens_and_parameters_once(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    encoded = [encode_slate(slate, tokenizer, max_length=128) for slate in SLATES]
    first = score_model(encoded, model, tokenizer, max_length=128, cache_dir=tmp_path)
    monkeypatch.setattr(scores_module, "encode_slates", None)
    monkeypatch.setattr(scores_module, "model_fingerprint", None)
    monkeypatch.setattr(scoring, "model_fingerprint", None)
    monkeypatch.setattr(scoring, "response_logprobs", None)  # all of it from the cache
    again = score_model(encoded, model, tokenizer, max_length=128, cache_dir=tmp_path, provenance=first.provenance)
    assert again == first
    other = [replace(slate, tokenizer="another") for slate in encoded]
    with pytest.raises(ValueError, match=r"slates: slate 1: expected tokens of tokenizer .*, got those of 'another'"):
        score_model(other, model, tokenizer, max_length=128)
