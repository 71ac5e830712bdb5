"""Trains on a device and compares with the CPU: fit-logger, score, train in every way, evaluate, generate.

    python scripts/gpu_training.py --device cuda                          # a tiny Llama with random weights
    python scripts/gpu_training.py --device cuda --model smollm2-135m     # or a folder or GGUF file, also in pieces
    python scripts/gpu_training.py --device cuda --steps score "train, LoRA"
    python scripts/gpu_training.py --device cpu                           # the same on a machine without a GPU

Every step runs on the device and, in float32 and without anything that saves time or memory, on the CPU, in a process
that sees no GPU. The numbers of both must agree: to float32 where the device computes in float32, else to bfloat16.
Each step is a row of ``benchmarks/results/pipeline-*.json``, written when it ends, with the numbers, the largest
difference, the time, the peak of memory, and the method of the linear operations. The slates are from the Polis log;
GGUF files need the package ``gguf``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "benchmarks")]

SLATES, RESPONSES, MAX_LENGTH = 8, 4, 256
OPTIMIZER_STEPS = 3
#: Largest difference of two numbers, relative to the larger of the CPU's and 1.
FLOAT32, BFLOAT16 = 2e-3, 3e-2

#: What a step gives: texts that must be equal, or numbers.
Found = dict[str, "list[str] | list[float]"]


@dataclass(frozen=True)
class Place:
    """Where a step runs, and on which model."""

    device: str
    model: str  # "tiny", or what `load_model` takes
    folder: Path


@dataclass(frozen=True)
class Step:
    """A step, with its options on the device and on the CPU."""

    work: Callable[..., Found]
    device: Mapping[str, Any] = field(default_factory=dict)
    cpu: Mapping[str, Any] = field(default_factory=dict)
    allowed: float = BFLOAT16
    on_cpu: bool = True  # whether "cpu" may be the device

    @property
    def reference(self) -> str:
        """The name of the step's numbers on the CPU, which steps share."""
        return json.dumps([self.work.__name__, dict(self.cpu)])


# --- model and data ---


def tiny_tokenizer() -> Any:
    """Bytes as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")


def tokenizer_of(at: Place) -> Any:
    from pope_align.models.loading import load_tokenizer

    return tiny_tokenizer() if at.model == "tiny" else load_tokenizer(at.model)


def model_of(at: Place, dtype: str = "float32", attention: str = "sdpa") -> Any:
    from pope_align.models.loading import load_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if at.model == "tiny":
        config = LlamaConfig(
            vocab_size=257, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            initializer_range=0.1,
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    else:
        model = load_model(at.model, dtype=dtype)
    model.set_attn_implementation(attention)
    return model.to(at.device)


def slates_of(at: Place) -> list[Any]:
    """Slates from all over the Polis log, a few responses each."""
    from pope_align.data import Slate, read_slates
    from pope_align.demo import POLIS

    log = list(read_slates(POLIS))
    return [
        Slate(slate.prompt, slate.completions[:RESPONSES], slate.scores[:RESPONSES], slate_id=slate.slate_id)
        for slate in log[:: len(log) // SLATES][:SLATES]
    ]


def scored_slates_of(at: Place) -> list[Any]:
    """The slates with the log-probabilities of the untrained model on the CPU, the same for every step."""
    from pope_align.data import read_slates, write_slates
    from pope_align.propensity.logging_policy import score_slates

    file = at.folder / "scored.jsonl"
    if not file.exists():
        cpu = Place("cpu", at.model, at.folder)
        slates = slates_of(at)
        write_slates(score_slates(slates, model_of(cpu), tokenizer_of(at), how="proxy", max_length=MAX_LENGTH), file)
    return list(read_slates(file))


# --- steps ---


def fit_logger(at: Place, **options: Any) -> Found:
    from pope_align.propensity.behaviour_cloning import fit_behaviour_policy
    from pope_align.propensity.fit_report import BehaviourConfig

    slates = slates_of(at)
    config = BehaviourConfig(max_length=MAX_LENGTH, epochs=1, batch_slates=2, evaluations_per_epoch=1, **options)
    report = fit_behaviour_policy(model_of(at), tokenizer_of(at), slates[:-2], slates[-2:], config).report
    return {"held-out nats per token": [score.heldout_nats_per_token for score in report.evaluations]}


def score(at: Place, dtype: str = "float32") -> Found:
    from pope_align.propensity.scores import score_model

    scores = score_model(slates_of(at), model_of(at, dtype), tokenizer_of(at), max_length=MAX_LENGTH)
    pairs = [(total, count) for each in zip(scores.totals, scores.tokens) for total, count in zip(*each)]
    return {"nats per token": [-total / count for total, count in pairs]}


def trained(at: Place, *, lora: bool, attention: str, **options: Any) -> Any:
    """The trainer after a few steps."""
    from peft import LoraConfig
    from pope_align.training.config import PopeConfig
    from pope_align.training.trainer import PopeTrainer

    args = PopeConfig(
        str(at.folder / "run"),
        use_cpu=at.device == "cpu",
        dataloader_pin_memory=at.device != "cpu",
        max_steps=OPTIMIZER_STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        max_length=MAX_LENGTH,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    adapter = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear") if lora else None
    model = model_of(at, attention=attention)
    trainer = PopeTrainer(
        model, args, train_dataset=scored_slates_of(at), processing_class=tokenizer_of(at), peft_config=adapter
    )
    trainer.train()
    return trainer


def train(at: Place, *, lora: bool = False, attention: str = "sdpa", **options: Any) -> Found:
    from torch._dynamo.utils import counters

    counters.clear()
    trainer = trained(at, lora=lora, attention=attention, **options)
    compiled = counters["stats"]["calls_captured"]
    if options.get("torch_compile") and not compiled:
        raise RuntimeError("torch_compile: expected compiled layers, got none")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {name: [float(entry[name]) for entry in history] for name in ("loss", "grad_norm")}


def evaluate(at: Place) -> Found:
    """The value of the trained model, scored on the device."""
    from pope_align.ope import Confidence, evaluate_policies
    from pope_align.propensity.scores import score_model

    from pope_core import Objective

    trainer = trained(at, lora=False, attention="sdpa", prompt_sharing="off")
    slates = scored_slates_of(at)
    scores = score_model(slates, trainer.unwrapped(), tokenizer_of(at), max_length=MAX_LENGTH)
    start = [slate.logging_logprobs for slate in slates]
    policies = {"start": start, "trained": scores}
    evaluation = evaluate_policies(
        slates,
        policies,
        baseline="start",
        estimators=["pope"],
        objective=replace(Objective.evaluation(), length_normalize=True),  # responses are too long for whole ones
        confidence=Confidence("bootstrap", draws=200, seed=0),
    )
    estimates = {name: evaluation.of(name) for name in policies}
    return {f"value, {name}": [each.value, each.low, each.high] for name, each in estimates.items()}


def generate(at: Place) -> Found:
    """Greedy answers, and by how much recorded log-probabilities of samples differ from those that the CPU computes."""
    from pope_align.data import EncodedSlate, encode_slates
    from pope_align.generation.generate import Request, Sampling, TransformersEngine, generate
    from pope_align.propensity.scoring import score_responses

    model, tokenizer = model_of(at), tokenizer_of(at)
    slates = slates_of(at)[:4]
    prompts = [slate.prompt for slate in slates]
    greedy = generate(model, tokenizer, prompts, sampling=Sampling(max_new_tokens=24, temperature=0))
    engine = TransformersEngine(model, tokenizer, logprobs=True)
    sampling = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9)
    answers = dict(engine.run([Request(prompt, seed) for seed, prompt in enumerate(prompts)], sampling))
    recorded = [answers[index].propensity for index in range(len(prompts))]
    encoded, _ = encode_slates(slates, tokenizer, max_length=2**31)
    drawn = [EncodedSlate(ids.prompt_ids, [each.token_ids]) for ids, each in zip(encoded, recorded)]
    totals = score_responses(drawn, model_of(Place("cpu", at.model, at.folder)))
    apart = [(each.model_logprob - total) / len(each.token_ids) for each, (total,) in zip(recorded, totals)]
    return {"greedy answers": [text for (text,) in greedy], "recorded less scored, nats per token": apart}


ALONE = {"prompt_sharing": "off"}
FAST = {"bf16": True, "prompt_sharing": "on"}
PACKED = {**FAST, "max_tokens_per_row": 1024}
FLEX = {**PACKED, "attention": "flex_attention"}
COMPILED, CHECKPOINTED = {"torch_compile": True}, {"gradient_checkpointing": True}
LORA = {"lora": True}

STEPS = {
    "fit-logger": Step(fit_logger, allowed=FLOAT32),
    "fit-logger, bfloat16": Step(fit_logger, {"bf16": True, "gradient_checkpointing": True}),
    "score": Step(score, allowed=FLOAT32),
    "score, bfloat16": Step(score, {"dtype": "bfloat16"}),
    "train": Step(train, {"prompt_sharing": "on"}, ALONE, FLOAT32),
    "train, bfloat16": Step(train, FAST, ALONE),
    "train, prompt per response": Step(train, {**ALONE, "bf16": True}, ALONE),
    "train, packed": Step(train, PACKED, ALONE),
    "train, flex_attention": Step(train, FLEX, ALONE, on_cpu=False),  # which has no backward on a CPU
    "train, torch.compile": Step(train, {**FAST, **COMPILED}, ALONE),
    "train, checkpointing": Step(train, {**FAST, **CHECKPOINTED}, ALONE),
    "train, LoRA": Step(train, {**FAST, **LORA}, {**ALONE, **LORA}),
    "train, everything": Step(train, {**FLEX, **LORA, **COMPILED, **CHECKPOINTED}, {**ALONE, **LORA}, on_cpu=False),
    "evaluate": Step(evaluate, allowed=FLOAT32),
    "generate": Step(generate, allowed=FLOAT32),
}


# --- running and comparing ---


def run(step: Step, at: Place, options: Mapping[str, Any]) -> Found:
    from accelerate.state import AcceleratorState

    try:
        return step.work(at, **options)
    finally:
        AcceleratorState._reset_state(True)  # a process keeps the device and precision of its first Accelerator


def references(names: Iterable[str], model: str, folder: Path) -> dict[str, Found]:
    """The numbers of the steps on the CPU, kept in ``folder`` as they are found."""
    known = known_references(folder)
    for name in names:
        step = STEPS[name]
        if step.reference not in known:
            known[step.reference] = run(step, Place("cpu", model, folder), step.cpu)
            (folder / "references.json").write_text(json.dumps(known, indent=1), encoding="utf-8")
    return known


def known_references(folder: Path) -> dict[str, Found]:
    file = folder / "references.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def reference_without_gpu(name: str, at: Place) -> Found:
    """`references` of one step by a process that sees no GPU, because libraries choose one wherever they see it."""
    key = STEPS[name].reference
    if key not in known_references(at.folder):
        place = ["--model", at.model, "--folder", str(at.folder)]
        command = [sys.executable, __file__, "--references", *place, "--steps", name]
        subprocess.run(command, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    return known_references(at.folder)[key]


def difference(found: Found, expected: Found) -> float:
    """The largest difference, relative to the larger of the expected number and 1; infinite for unequal texts."""
    if {name: len(values) for name, values in found.items()} != {name: len(all_) for name, all_ in expected.items()}:
        return float("inf")
    apart = [0.0]
    for name, values in found.items():
        for value, right in zip(values, expected[name], strict=True):
            if isinstance(value, str) or isinstance(right, str):
                apart.append(0.0 if value == right else float("inf"))
            else:
                each = abs(value - right) / max(1.0, abs(right))
                apart.append(each if each == each else float("inf"))
    return max(apart)


def measured(name: str, at: Place, expected: Found) -> dict[str, Any]:
    """The row of one step."""
    from pope_core.backends import linear_method, select

    step, gpu = STEPS[name], at.device == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    begin = time.monotonic()
    found = run(step, at, step.device)
    device = torch.device(at.device)
    backend = str(select(device, None, torch.bfloat16))
    apart = difference(found, expected)
    return {
        "name": name,
        "model": at.model,
        "device": at.device,
        "linear_in_bfloat16": f"{backend}, {linear_method(backend, device, torch.bfloat16).name}",
        "found": found,
        "on_cpu": expected,
        "difference": apart if apart < float("inf") else None,
        "allowed": step.allowed,
        "agrees": apart <= step.allowed,
        "seconds": round(time.monotonic() - begin, 1),
        "peak_bytes": torch.cuda.max_memory_allocated() if gpu else None,
    }


def joined(model: str) -> str:
    """``model``, put together if it is a GGUF file that came in pieces, or a folder with one."""
    from gpu_check import join_parts

    path = Path(model)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".gguf" or path.is_dir():
        join_parts(folder)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--model", default="tiny", help="tiny, or a folder, GGUF file or hub name")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), help="all if left out")
    parser.add_argument("--folder", type=Path, help="for scored slates and the CPU's numbers; a temporary one")
    parser.add_argument("--out", type=Path, help="file of the rows; default: benchmarks/results/pipeline-DEVICE.json")
    parser.add_argument("--references", action="store_true", help="only the CPU's numbers")
    arguments = parser.parse_args()
    model, gpu = joined(arguments.model), arguments.device == "cuda"
    names = [name for name in arguments.steps or STEPS if gpu or arguments.references or STEPS[name].on_cpu]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.references:
            references(names, model, folder)
            return 0
        return int(not all_agree(names, Place(arguments.device, model, folder), arguments.out))


def all_agree(names: Sequence[str], at: Place, out: Path | None) -> bool:
    """Run the steps, write a row for each, and say whether all agree with the CPU."""
    from gpu_timing import gpu_conditions
    from harness import add_row, conditions, results_file

    about = gpu_conditions() if at.device == "cuda" else conditions()
    out = out or results_file("pipeline", about["device"])
    agree = True
    for name in names:  # one by one, so that a run that is cut off has whole steps
        try:
            row = measured(name, at, reference_without_gpu(name, at))
        except Exception as error:  # the next step may work
            row = {"name": name, "model": at.model, "device": at.device, "error": f"{type(error).__name__}: {error}"}
        add_row(out, about, row)
        agree &= row.get("agrees", False)
        what = row.get("error") or f"{row['difference']} of {row['allowed']}, {row['seconds']} s"
        print(f"{'agrees' if row.get('agrees') else 'DIFFERS'}  {at.model}: {name}: {what}", flush=True)
    return agree


if __name__ == "__main__":
    sys.exit(main())
