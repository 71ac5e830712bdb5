"""Models whose rotary frequencies follow from the length: every sequence decides alone."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from pope_align.data import Slate, Tree, lay_out
from pope_align.data.tokenize import EncodedSlate
from pope_align.generation.decoding import decode_batch
from pope_align.generation.generate import Sampling, TransformersEngine, generate
from pope_align.models.causal_lm import response_hidden_states
from pope_align.models.rope import length_rule
from pope_align.models.sharing import sharing_obstacle
from pope_align.propensity.logging_policy import score_slates
from pope_align.propensity.scoring import score_responses
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
LIMIT = 32
CONFIGS = {
    "longrope": lambda: Phi3Config(
        max_position_embeddings=256,
        original_max_position_embeddings=LIMIT,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "long_factor": [4.0, 6.0, 8.0, 10.0],
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "original_max_position_embeddings": LIMIT,
        },
        **SMALL,
    ),
    "dynamic": lambda: LlamaConfig(
        max_position_embeddings=LIMIT,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        **SMALL,
    ),
}


def make(kind: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=CONFIGS)
def kind(request) -> str:
    return request.param


def ids(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (length,), generator=generator).tolist()


def slate(prompt: int, *lengths: int) -> EncodedSlate:
    return EncodedSlate(ids(prompt, prompt), [ids(length, length) for length in lengths])


def alone(kind: str, slate: EncodedSlate) -> list[float]:
    """Each response after its prompt in a model that has seen nothing else."""
    totals = []
    for response in slate.completion_ids:
        with torch.no_grad():
            logits = make(kind)(input_ids=torch.tensor([slate.prompt_ids + response]), use_cache=False).logits[0]
        logprobs = logits.double().log_softmax(-1)[len(slate.prompt_ids) - 1 : -1]
        totals.append(float(logprobs.gather(1, torch.tensor(response)[:, None]).sum()))
    return totals


SLATES = [slate(5, 3, 6), slate(10, 40, 12), slate(7, 60, 26, 25, 1), slate(60, 5, 9)]


def test_a_response_is_scored_as_it_is_alone_whatever_is_beside_it(kind, caplog) -> None:
    expected = [alone(kind, one) for one in SLATES]
    model = make(kind)
    with caplog.at_level(logging.WARNING):
        together = score_responses(SLATES, model)
    assert f"rotary frequencies ({kind}) follow from the length" in caplog.text
    for got, want in zip(together, expected, strict=True):
        assert got == pytest.approx(want, abs=1e-3)
    for one, want in zip(reversed(SLATES), reversed(expected)):  # and after what was before it
        assert score_responses([one], model)[0] == pytest.approx(want, abs=1e-3)


def test_short_sequences_still_share_their_prompts(kind) -> None:
    model = make(kind)
    short = [Tree(ids(10), [ids(LIMIT - 10), ids(4)])]
    assert sharing_obstacle(model, short) is None
    assert "follow from the length" in str(sharing_obstacle(model, [*short, Tree(ids(10), [ids(LIMIT - 9), ids(4)])]))


def test_the_gradient_of_a_batch_is_the_sum_of_those_alone(kind) -> None:
    def gradient(model, trees) -> torch.Tensor:
        hidden = response_hidden_states(model, lay_out(trees, share_prompt=False)).hidden
        weights = list(model.base_model.parameters())
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(hidden.square().sum(), weights)])

    trees = [Tree(one.prompt_ids, [response]) for one in SLATES for response in one.completion_ids]
    together = gradient(make(kind), trees)
    apart = sum(gradient(make(kind), [tree]) for tree in trees)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5 * float(apart.abs().max()))


def test_training_falls_back_for_long_slates_alone(kind, tiny_tokenizer, tmp_path) -> None:
    def shares(text: str) -> bool:
        args = PopeConfig(str(tmp_path), report_to="none", use_cpu=True, max_length=200)
        slates = [Slate("a", [text, "b"], [1.0, 0.0], logging_logprobs=[-9.0, -5.0])]
        return PopeTrainer(
            make(kind), args, train_dataset=slates, processing_class=tiny_tokenizer
        ).data_collator.collate.share_prompt

    assert shares("short")
    assert not shares("long " * 10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_batch(kind, temperature, tiny_tokenizer) -> None:
    """Prompts below, across and beyond the limit; the cache is left out where its keys would be stale."""
    model = make(kind)
    model.config.max_position_embeddings = 256 if kind == "longrope" else model.config.max_position_embeddings
    sampling = Sampling(max_new_tokens=8, temperature=temperature)
    engine = TransformersEngine(model, tiny_tokenizer)
    _, stops = engine._encode(["ab"], sampling)
    rows = [ids(length, length) for length in (5, 22, 26, 31, 50)]

    def decode(some: list[int], use_cache: bool) -> list[list[int]]:
        answers = decode_batch(model, [rows[i] for i in some], some, sampling, stops, use_cache=use_cache)
        return [answer.ids for answer in answers]

    one_by_one = [decode([i], False)[0] for i in range(len(rows))]
    assert decode(list(range(len(rows))), False) == one_by_one
    rule = length_rule(model)
    kept = [i for i, row in enumerate(rows) if rule.keeps_cache(len(row), 8)]
    assert kept == ([0, 1, 4] if kind == "longrope" else [0, 1])
    assert decode(kept, True) == [one_by_one[i] for i in kept]
    with torch.no_grad():  # the law of every token is that of a fresh model on what stands before it
        for row, answer in zip(rows, one_by_one):
            if temperature == 0:
                for at, token in enumerate(answer):
                    fresh = make(kind)(input_ids=torch.tensor([row + answer[:at]]), use_cache=False).logits[0, -1]
                    assert int(fresh.argmax()) == token


def test_batches_keep_what_changes_apart(tiny_tokenizer) -> None:
    engine = TransformersEngine(make("longrope"), tiny_tokenizer, batch_size=2)
    batches = list(engine._batches([5, 30, 50, 6, 20], Sampling(max_new_tokens=8)))
    assert batches == [(True, [2, 4]), (True, [3, 0]), (False, [1])]
    prompts = ["ab", "across the limit", "far beyond it, and then some more of it"]
    sampling = Sampling(max_new_tokens=16)
    model = make("longrope")
    assert generate(model, tiny_tokenizer, prompts, sampling=sampling, batch_size=3) == generate(
        model, tiny_tokenizer, prompts, sampling=sampling, batch_size=1
    )


def test_provenance_says_so(kind, tiny_tokenizer, make_tiny_model) -> None:
    slates = [Slate("a", ["b"], [1.0])]
    (scored,) = score_slates(slates, make(kind), tiny_tokenizer, how="proxy", max_length=64)
    assert scored.logging_policy["rope"] == f"{kind}: each sequence by its own length, unchanged up to {LIMIT} tokens"
    assert TransformersEngine(make(kind), tiny_tokenizer).about["rope"] == scored.logging_policy["rope"]
    (plain,) = score_slates(slates, make_tiny_model(), tiny_tokenizer, how="proxy", max_length=64)
    assert "rope" not in plain.logging_policy


def test_a_copy_decides_alone_too(kind) -> None:
    model = make(kind)
    score_responses(SLATES[:1], model)
    twin = copy.deepcopy(model)
    assert score_responses(SLATES, twin)[1] == pytest.approx(alone(kind, SLATES[1]), abs=1e-3)
    rotary = [module for module in twin.modules() if hasattr(module, "rope_type")]
    assert all(module.forward.__self__ is module for module in rotary)
