"""The studies behind the documents: no slate is chosen on and reported, and they run from the log to their tables."""

from __future__ import annotations

import json

import pytest
from pope_align.data import write_slates
from pope_align.demo import POLIS, DemoConfig, demo_slates
from pope_align.experiments import defaults, methods
from pope_align.experiments.methods import COMPARED
from pope_align.experiments.parts import three_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_tiny_model, tiny_tokenizer, make_slates):
    """A model and a log in files, as a user has them."""
    folder = tmp_path_factory.mktemp("study")
    make_tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    write_slates(make_slates(24, scored=False), folder / "log.jsonl")
    return folder


def test_the_parts_of_a_log_share_no_group_and_the_test_part_is_the_demos() -> None:
    parts = [{slate.slate_id.partition("#")[0] for slate in part} for part in three_parts(POLIS, seed=1)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 14
    demo = demo_slates(DemoConfig())[1]
    assert parts[2] == {slate.slate_id.partition("#")[0] for slate in demo}


def test_the_ablation_measures_every_setting_on_the_validation_part_alone(folder, monkeypatch, capsys) -> None:
    settings = [defaults.SETTINGS[0], defaults.SETTINGS[5]]
    monkeypatch.setattr(defaults, "SETTINGS", settings)
    arguments = ["defaults", str(folder / "log.jsonl"), "--model", str(folder / "model")]
    monkeypatch.setattr(
        "sys.argv", [*arguments, "--out", str(folder / "defaults.json"), "--max-length", "64", "--bf16"]
    )
    defaults.main()
    result = json.loads((folder / "defaults.json").read_text())
    parts = three_parts(folder / "log.jsonl", 1)
    assert result["slates"] == {
        "train": len(parts.train),
        "validation": len(parts.validation),
        "test (not read)": len(parts.test),
    }
    utilities = [row["self_normalized"]["utility"]["value"] for row in result["settings"]]
    assert utilities[0] != utilities[1]
    rows = capsys.readouterr().out.splitlines()[-len(settings) :]
    assert [row.split(" | ")[4] for row in rows] == ["7e-05", "7e-05"]
    assert all(f"{utility:+.3f}" in row for utility, row in zip(utilities, rows, strict=True))


@pytest.mark.release
def test_the_methods_are_compared_on_the_test_part(folder, monkeypatch, capsys) -> None:
    pytest.importorskip("trl")
    arguments = ["methods", str(folder / "log.jsonl"), "--model", str(folder / "model"), "--max-length", "64"]
    monkeypatch.setattr("sys.argv", [*arguments, "--out", str(folder / "methods"), "--learning-rate", "1e-3", "--bf16"])
    methods.main()
    written = json.loads((folder / "methods" / "methods.json").read_text())
    assert list(written["evaluation"]["policies"]) == ["cloned", *COMPARED]
    assert written["evaluation"]["log"]["slates"] == len(three_parts(folder / "log.jsonl", 1).test)
    rows = capsys.readouterr().out.splitlines()[-1 - len(COMPARED) :]
    assert [row.split(" | ")[0] for row in rows] == ["| cloned", *(f"| {method}" for method in COMPARED)]
    assert len({row.split(" | ")[2] for row in rows}) > 2  # they were trained, each in its way
