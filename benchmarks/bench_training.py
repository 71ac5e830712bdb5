"""One step of training (forward and backward of one micro-batch) on the same slates: ours, eager loops, TRL's DPO.

    pytest benchmarks/bench_training.py

Random models of SmolLM2-135M's shape and, on a GPU, of Llama-3.2-1B's; slates with a prompt of 160 tokens and 4
responses of 32: two in float32 on a CPU, eight under bfloat16 autocast on a GPU. ``results/training-*`` has the time of
a step, the responses that it scored (DPO: the best and the worst of each slate; its reference is computed beforehand
and costs nothing here), and the memory of the head: the peak of a step, less the peak of one whose loss is the sum of
the hidden states. On a CPU a process of its own measures each peak; on a GPU torch's allocator counts.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from harness import resident_bytes
from pope_align.data import EncodedSlate, Slate
from pope_align.data.collate import SlateCollator, SlateExample
from pope_align.models.causal_lm import response_hidden_states
from pope_align.training.baselines import dpo_rows, make_baseline
from pope_align.training.config import PopeConfig
from pope_align.training.examples import IndexedCollator, Item
from pope_align.training.policy_loss import policy_loss, pope_share
from transformers import LlamaConfig, LlamaForCausalLM

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PROMPT, RESPONSE, SIZE = 160, 32, 4
SLATES = 8 if GPU else 2  # of a micro-batch

Step = Callable[[], torch.Tensor]

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
LLAMA = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SMALL = {**SMOLLM2, "vocab_size": 997, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2}
SHAPES = {"SmolLM2-135M": SMOLLM2, "Llama-3.2-1B": LLAMA, "small": SMALL}

#: Name and the responses it scores of a slate.
STEPS = {
    "pope": SIZE,
    "pope, prompt per response": SIZE,
    "eager POPE loop": SIZE,
    "eager POPE loop, response logits": SIZE,
    "TRL DPO": 2,
}


def examples() -> list[SlateExample]:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> list[int]:
        return torch.randint(0, SMALL["vocab_size"], (count,), generator=generator).tolist()

    return [
        SlateExample(
            prompt_ids=tokens(PROMPT),
            completion_ids=[tokens(RESPONSE) for _ in range(SIZE)],
            utility=[index / (SIZE - 1) for index in range(SIZE)],
            logging_logprobs=[-11.0 * RESPONSE] * SIZE,
        )
        for _ in range(SLATES)
    ]


@functools.lru_cache(maxsize=1)
def make_model(shape: str, lora: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape]))
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model.train()


def make_step(name: str, model: torch.nn.Module, *, body_only: bool = False) -> Step:
    """The loss of one micro-batch; with ``body_only`` the sum of the hidden states that the head would read."""
    folder = tempfile.gettempdir()
    if name == "TRL DPO":
        return _dpo(model, folder, body_only)
    collate = IndexedCollator(SlateCollator(0, share_prompt=name == "pope"))
    items = [Item(index, example, None) for index, example in enumerate(examples())]
    batch = send_to_device(collate(items), DEVICE)
    if body_only:
        return lambda: response_hidden_states(model, batch).hidden.sum()
    if name == "eager POPE loop":
        return lambda: eager_loss(model, batch)
    if name == "eager POPE loop, response logits":
        return lambda: eager_loss_of_responses(model, batch)
    objective = {"normalization": "none", "diversity_form": "neg_log_prob", "diversity_weight": 0.1, "clip": 10.0}
    args = PopeConfig(folder, use_cpu=not GPU, report_to="none", **objective)
    accelerator = Accelerator(cpu=not GPU)
    share = functools.partial(pope_share, batch=batch, args=args, processes=1, slates_of_step=SLATES)
    return lambda: policy_loss(model, batch, accelerator, share).loss


def eager_loss(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What one writes by hand: logits of everything, log_softmax, gather."""
    mask = (batch["tree"] >= 0).long()
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits[:, :-1]
    labels = batch["input_ids"][:, 1:]
    token = logits.float().log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    response = (batch["branch"][:, 1:] > 0) & (batch["tree"][:, 1:] >= 0)
    return eager_objective((token * response).sum(-1) / response.sum(-1), batch)


def eager_loss_of_responses(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same with care: no logits of prompts, and the fused cross entropy. Works for responses of one length."""
    mask = (batch["tree"] >= 0).long()
    kept = RESPONSE + 1
    logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False, logits_to_keep=kept).logits
    labels = batch["input_ids"][:, -RESPONSE:]
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    return eager_objective(-losses.mean(-1), batch)


def eager_objective(logprobs: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = (logprobs - batch["log"].logging_logprobs / RESPONSE).exp().clamp(max=10.0)
    return -(weights * (batch["log"].utility - 0.1 * logprobs)).mean()


def _dpo(model: torch.nn.Module, folder: str, body_only: bool) -> Step:
    from trl import DPOConfig

    slates = [Slate(prompt="-", completions=["-"] * SIZE, scores=example["utility"]) for example in examples()]
    encoded = [EncodedSlate(example["prompt_ids"], example["completion_ids"]) for example in examples()]
    rows = [{**row, "ref_chosen_logps": -350.0, "ref_rejected_logps": -350.0} for row in dpo_rows(slates, encoded)]
    options = {"bf16": False, "gradient_checkpointing": False, "use_cpu": not GPU, "report_to": "none"}
    args = DPOConfig(folder, max_length=1024, precompute_ref_log_probs=True, **options)
    trainer = make_baseline("dpo", model, args, slates, processing_class=_tokenizer())
    batch = send_to_device(trainer.data_collator(rows), DEVICE)
    if body_only:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        return lambda: base.base_model(**inputs, use_cache=False).last_hidden_state.sum()
    return lambda: trainer.compute_loss(model, batch)


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"-": 0, "<end>": 1}, unk_token="-"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def run(step: Step, model: torch.nn.Module) -> float:
    with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU):
        loss = step()
    loss.backward()
    model.zero_grad(set_to_none=True)
    if GPU:
        torch.cuda.synchronize()
    return float(loss.detach())


@pytest.mark.parametrize("name", STEPS, ids=lambda name: name.replace(",", "").replace(" ", "-"))
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("shape", ["SmolLM2-135M", *(["Llama-3.2-1B"] if GPU else [])])
def bench_step(benchmark: Any, record: Callable[..., None], smoke: bool, name: str, lora: bool, shape: str) -> None:
    if name == "TRL DPO":
        pytest.importorskip("trl")
    benchmark.group = f"{shape}, {'LoRA' if lora else 'all weights'}"
    shape = "small" if smoke else shape
    model = make_model(shape, lora)
    by_hand = run(make_step("eager POPE loop", model), model)
    step = make_step(name, model)
    if name != "TRL DPO":
        assert run(step, model) == pytest.approx(by_hand, rel=2e-2 if GPU else 1e-3)
    benchmark.pedantic(run, (step, model), rounds=10 if GPU else 3, warmup_rounds=3 if GPU else 1)
    memory = {} if smoke else {"head_bytes": peak(name, lora, shape) - peak(name, lora, shape, body_only=True)}
    library = "trl" if name == "TRL DPO" else "transformers"
    about = {"name": name, "lora": lora, "model": shape, "device": DEVICE, "library": f"{library} {version(library)}"}
    record("training", benchmark, **about, responses=STEPS[name] * SLATES, **memory)


def peak(name: str, lora: bool, shape: str, *, body_only: bool = False) -> int:
    """Most bytes held beyond the model during one step."""
    return peak_on_gpu(name, lora, shape, body_only) if GPU else peak_of_child(name, lora, shape, body_only)


def peak_on_gpu(name: str, lora: bool, shape: str, body_only: bool) -> int:
    make_model.cache_clear()  # TRL adds a reference to an adapted model, once
    model = make_model(shape, lora)
    step = make_step(name, model, body_only=body_only)
    run(step, model)  # workspaces of libraries
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(step, model)
    return torch.cuda.max_memory_allocated() - before


def peak_of_child(name: str, lora: bool, shape: str, body_only: bool) -> int:
    """In a fresh process, which has no freed pages of earlier work to reuse."""
    command = [sys.executable, __file__, "--peak", name, "--shape", shape, *(["--lora"] if lora else [])]
    done = subprocess.run(
        [*command, *(["--body-only"] if body_only else [])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def measure_peak(name: str, lora: bool, shape: str, body_only: bool) -> int:
    small = make_model("small", lora)
    run(make_step(name, small, body_only=body_only), small)  # pools, compiled code
    make_model.cache_clear()
    model = make_model(shape, lora)
    step = make_step(name, model, body_only=body_only)
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    run(step, model)
    (high,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) * 1024 - before


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--body-only", action="store_true")
    given = parser.parse_args()
    print(json.dumps(measure_peak(given.peak, given.lora, given.shape, given.body_only)))
