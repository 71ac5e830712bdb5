"""The demo on a tiny model: every file it promises, no conversation on both sides, the same numbers twice."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from pope_align import demo
from pope_align.data import slate_group
from pope_align.demo import DemoConfig, demo_slates, run_demo
from pope_align.models.loading import load_model


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory, make_tiny_model, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "model"
    make_tiny_model(max_position_embeddings=1024).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def no_progress(what: str, unit: str):
    yield lambda done, of: None


def test_the_shipped_log_is_split_by_conversation() -> None:
    train, heldout = demo_slates(DemoConfig(responses_per_slate=4))
    assert len(train) + len(heldout) == 158
    assert not {slate_group(slate) for slate in train} & {slate_group(slate) for slate in heldout}
    assert all(len(slate.completions) == len(slate.scores) == 4 for slate in train + heldout)
    assert demo_slates(DemoConfig(responses_per_slate=4)) == (train, heldout)
    attribution = (demo.POLIS.parent / "ATTRIBUTION.md").read_text()
    assert "Data was gathered using the Polis software (compdemocracy.org/polis)" in attribution


def test_the_demo_leaves_what_it_promises_and_gives_the_same_numbers_twice(tiny_folder, tmp_path) -> None:
    numbers = []
    for run in ("one", "two"):
        torch.manual_seed(len(numbers))  # whatever happened before must not matter
        config = DemoConfig(
            output_dir=tmp_path / run,
            model=str(tiny_folder),
            responses_per_slate=2,
            max_length=160,
            learning_rate=1e-3,
            slates_per_step=32,
            prompts=1,
        )
        lines: list[str] = []
        result = run_demo(config, say=lines.append, progress=no_progress)
        numbers.append(json.loads((tmp_path / run / "evaluation.json").read_text()))
        numbers[-1]["config"].pop("output_dir")
        assert any("whole conversations are held out" in line for line in lines)
        # The cloned policy is the logging policy: every weight is 1, and both values are the plain mean.
        cloned = result.estimate("cloned", "none")
        assert cloned.diagnostics.ess == pytest.approx(2 * len(result.heldout))
        assert cloned.utility.value == pytest.approx(result.estimate("cloned", "batch").utility.value)
        plain = sum(sum(slate.scores) for slate in result.heldout) / (2 * len(result.heldout))
        assert cloned.utility.value == pytest.approx(plain)  # scores are shares of people, and utilities as they are
        gain = result.gain("aligned", "base", "none")
        assert gain.difference.value == pytest.approx(
            result.estimate("aligned", "none").value - result.estimate("base", "none").value
        )
        assert set(result.generations[0].by_policy) == {"base", "cloned", "aligned"}
    for name in ("training.png", "metrics.json", "model.safetensors"):
        assert (tmp_path / "one" / "model" / name).stat().st_size > 1000
    for name in ("evaluation.png", "train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "one" / name).stat().st_size > 1000
    load_model(tmp_path / "one" / "model")
    assert numbers[0] == numbers[1]
