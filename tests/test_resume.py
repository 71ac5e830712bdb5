"""A run that is killed and resumed ends with the bits of one that was not; order and noise have their own seeds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pope_align.data import write_slates
from pope_align.training.checkpoint import last_checkpoint
from pope_align.training.config import PopeConfig
from pope_align.training.examples import PADDING, SlateDataset, SlateSampler
from pope_align.training.trainer import PopeTrainer

SCRIPT = Path(__file__).with_name("training_process.py")
#: What a clock decides.
TIMED = {"tokens_per_second", "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss"}

#: Dropout draws from the random generator; logs, checkpoints and epochs end at different steps.
OPTIONS = {
    "max_length": 64,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "disable_dropout": False,
    "num_train_epochs": 3,
    "logging_steps": 2,
    "save_steps": 3,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_slates) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    make_tiny_model(attention_dropout=0.2).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(make_slates(9), folder / "slates.jsonl")  # 5 steps an epoch
    return folder


def start(work: Path, name: str, **death: object) -> subprocess.Popen[str]:
    """A process of the run ``name``, resumed from its last checkpoint if it has one."""
    plan = {
        "model": str(work / "model"),
        "slates": str(work / "slates.jsonl"),
        "options": {**OPTIONS, "output_dir": str(work / name), "resume_from_checkpoint": "last"},
        "saved": str(work / name / "final"),
        "history": str(work / name / "history.json"),
        **death,
    }
    path = work / f"{name}.json"
    path.write_text(json.dumps([plan]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(path)], env=environment, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def history(work: Path, name: str) -> list[dict[str, float]]:
    entries = json.loads((work / name / "history.json").read_text())["history"]
    return [{key: value for key, value in entry.items() if key not in TIMED} for entry in entries]


def test_a_killed_run_resumes_to_the_same_bits(work: Path) -> None:
    """Killed after a step that no checkpoint holds, then while a checkpoint is written, then left to end."""
    whole = start(work, "whole")
    step = random.Random(os.urandom(4)).randrange(4, 9)
    code, errors = end(start(work, "killed", die_after=step))
    assert code == -signal.SIGKILL, (step, errors)
    code, errors = end(start(work, "killed", die_writing="checkpoint-12/slate_window_0.pt"))
    assert code == -signal.SIGKILL, (step, errors)
    code, errors = end(start(work, "killed"))
    assert code == 0, (step, errors)
    assert "checkpoint-12: passed over" in errors
    code, errors = end(whole)
    assert code == 0, errors
    ours, theirs = ((work / name / "final" / "model.safetensors").read_bytes() for name in ("killed", "whole"))
    assert ours == theirs, step
    assert history(work, "killed") == history(work, "whole"), step
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        ours, theirs = ((work / of / "checkpoint-15" / name).read_bytes() for of in ("killed", "whole"))
        assert ours == theirs, name


def config(path: Path, **options) -> PopeConfig:
    return PopeConfig(str(path), **{**OPTIONS, "save_strategy": "no", **options})


def test_other_slates_are_refused_on_resume(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    args = config(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    PopeTrainer(make_tiny_model(), args, train_dataset=make_slates(4), processing_class=tiny_tokenizer).train()
    args.max_steps = 2
    other = PopeTrainer(make_tiny_model(), args, train_dataset=make_slates(4, seed=1), processing_class=tiny_tokenizer)
    with pytest.raises(ValueError, match="made while training on other slates"):
        other.train("last")


def test_last_begins_anew_where_there_is_no_checkpoint(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    args = config(tmp_path, max_steps=1)
    trainer = PopeTrainer(make_tiny_model(), args, train_dataset=make_slates(2), processing_class=tiny_tokenizer)
    assert trainer.train("last").global_step == 1
    with pytest.raises(ValueError, match="No valid checkpoint"):
        trainer.train(True)
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-7" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_step"')
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-7")


def test_noise_depends_on_neither_evaluation_nor_order(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """Dropout draws the same numbers with and without evaluation; the order of slates ignores the global generator."""
    slates = make_slates(5)
    histories = []
    for evaluate in (False, True):
        args = config(tmp_path, num_train_epochs=1, eval_strategy="steps" if evaluate else "no", eval_steps=1)
        model = make_tiny_model(attention_dropout=0.2)
        trainer = PopeTrainer(
            model,
            args,
            train_dataset=slates,
            eval_dataset=slates if evaluate else None,
            processing_class=tiny_tokenizer,
        )
        torch.manual_seed(int(evaluate))  # does not reach the order
        order = [index for batch in trainer.get_train_dataloader() for index in batch["slate_index"].tolist()]
        torch.manual_seed(0)
        trainer.train()
        histories.append((order, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
    assert histories[0] == histories[1]


def test_every_epoch_has_its_own_order_padded_for_all_devices() -> None:
    dataset = SlateDataset([{}] * 10, [])
    sampler = SlateSampler(dataset, multiple=4, seed=3)
    first = list(sampler)
    assert first[10:] == [PADDING, PADDING]
    assert sorted(first[:10]) == list(range(10))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(list(SlateSampler(dataset, multiple=4, seed=3, drop_last=True))) == 8
    assert list(SlateSampler(dataset, multiple=1, seed=None)) == list(range(10))
