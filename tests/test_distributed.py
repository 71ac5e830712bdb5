"""Two processes give the losses, metrics and weights of one, over gloo on CPUs: DDP, FSDP2, DeepSpeed if it is here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pope_align.data import write_slates
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("training_process.py")
CONFIGS = Path(__file__).parents[1] / "examples" / "accelerate"
HEAD = {"lm_head.weight", "model.embed_tokens.weight"}  # tied

#: 11 slates in 2 epochs: steps of 8 and of 3, so that the second process has padding alone in the last micro-batch.
OPTIONS = {
    "max_length": 64,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 1.0,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "eval_strategy": "epoch",
    "do_eval": True,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
OBJECTIVES = {
    "none": {"normalization": "none", "diversity_form": "neg_log_prob"},
    "slate, penalty": {"normalization": "slate", "kl_weight": 0.5},
    "batch": {"normalization": "batch", "diversity_form": "entropy"},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_slates) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(make_slates(11), folder / "slates.jsonl")
    return folder


def launch(work: Path, name: str, processes: int) -> None:
    """Train all objectives; a step has 8 slates, however many processes share them.

    "batch" normalises over what all processes compute at once: 4 slates.
    """
    runs = []
    for objective, options in OBJECTIVES.items():
        size = 4 // processes
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 2}
        folder = work / name / objective
        folder.mkdir(parents=True)
        runs.append(
            {
                "model": str(work / "model"),
                "slates": str(work / "slates.jsonl"),
                "options": {**OPTIONS, **batches, **options, "output_dir": str(folder)},
                "saved": str(folder / "final"),
                "history": str(folder / "history.json"),
            }
        )
    path = work / f"{name}.json"
    path.write_text(json.dumps(runs))
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{name}.yaml")]
    launcher += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *(launcher if processes > 1 else []), str(SCRIPT), str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def single(work: Path) -> Path:
    launch(work, "single", 1)
    return work / "single"


def logged(run: Path) -> dict[str, list]:
    return json.loads((run / "history.json").read_text())


def assert_equal_runs(ours: Path, theirs: Path) -> None:
    ours_log, theirs_log = logged(ours)["history"], logged(theirs)["history"]
    assert len(ours_log) == len(theirs_log) == 7  # 4 steps, 2 evaluations, a summary
    for mine, other in zip(ours_log, theirs_log, strict=True):
        names = [name for name in other if "second" not in name and "time" not in name and "flos" not in name]
        values = {name: mine[name] for name in names}
        assert values == pytest.approx({name: other[name] for name in names}, rel=1e-5, abs=1e-6)
    weights, expected = (load_file(run / "final" / "model.safetensors") for run in (ours, theirs))
    for name, tensor in expected.items():
        assert weights[name].sub(tensor).abs().max() < 1e-6, name


#: Configuration -> how often the head may be gathered: in forward for each of 3 micro-batches of 2 epochs, however many
#: chunks of logits, and for the evaluations. ZeRO-3 gathers for the embedding too, and again for backward; and for each
#: of the 6 batches of an evaluation.
GATHERS = {"ddp": 0, "fsdp2": 6 + 2, "deepspeed_zero2": 0, "deepspeed_zero3": 4 * 6 + 2 * 12}


@pytest.mark.parametrize("wrapper", GATHERS)
def test_two_processes_train_as_one(wrapper: str, work: Path, single: Path) -> None:
    """With the configurations of accelerate that we ship, but for their precision."""
    if wrapper.startswith("deepspeed") and not importlib.util.find_spec("deepspeed"):
        pytest.skip("deepspeed is not installed")
    launch(work, wrapper, 2)
    for objective in OBJECTIVES:
        assert_equal_runs(work / wrapper / objective, single / objective)
        gathers = [names for names in logged(work / wrapper / objective)["gathers"] if HEAD & set(names)]
        assert len(gathers) <= GATHERS[wrapper]
        assert bool(gathers) == bool(GATHERS[wrapper])


def test_deepspeed_in_16_bits_does_not_round_log_probabilities(work: Path, tmp_path: Path) -> None:
    """Trainer casts all floats of a batch to the dtype of DeepSpeed's model."""
    args = PopeConfig(str(tmp_path), max_length=64, report_to="none", use_cpu=True)
    trainer = PopeTrainer(str(work / "model"), args, train_dataset=str(work / "slates.jsonl"))
    trainer.is_deepspeed_enabled = True
    batch = trainer.data_collator([trainer.train_dataset[0]])
    moved = trainer._prepare_inputs(batch)["log"].logging_logprobs
    assert torch.equal(moved, batch["log"].logging_logprobs)
    assert moved.dtype == torch.float64
