"""NeMo-RL's ranked completions are written from slates, and read back as the same order and rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pope_align.data import Slate, read_slates, write_slates
from pope_align.data.convert import ConvertOptions, convert
from pope_align.data.ranked import ranked_completions


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def test_completions_stand_best_first_and_equal_scores_share_a_rank() -> None:
    row = ranked_completions(Slate("Which tea?", ["Black", "Green", "Any"], [0.5, 2.0, 0.5]))
    assert row == {
        "context": turn("user", "Which tea?"),
        "completions": [
            {"rank": 0, "completion": turn("assistant", "Green"), "reward": 2.0},
            {"rank": 1, "completion": turn("assistant", "Black"), "reward": 0.5},
            {"rank": 1, "completion": turn("assistant", "Any"), "reward": 0.5},
        ],
    }
    assert ranked_completions(Slate("Which tea?", ["Black", "Green"], [1.0, 1.0])) is None


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_is_written_reads_back(ending: str, tmp_path: Path) -> None:
    log, ranked, again = tmp_path / "log.jsonl", tmp_path / f"ranked.{ending}", tmp_path / "again.jsonl"
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    slates = [
        Slate("Which tea?", ["Black", "Green"], [0.5, 2.0]),
        Slate(turns, [turn("assistant", c) for c in "ab"], [3.0, 1.0]),
    ]
    write_slates([*slates, Slate("Equal?", ["a", "b"], [1.0, 1.0])], log)
    convert("slates", [log], ranked, to="nemo-rl")
    if ending == "parquet":
        assert pq.read_schema(ranked).names == ["context", "completions"]
    else:
        assert [json.loads(line)["completions"][0]["rank"] for line in ranked.read_text().splitlines()] == [0, 0]
    report = convert("auto", [ranked], again, ConvertOptions(feedback="reward"))
    assert report.format == "nemo-rl"
    found = read_slates(again)
    assert [slate.scores for slate in found] == [[2.0, 0.5], [3.0, 1.0]]
    assert [slate.ranks for slate in found] == [[1, 2], [1, 2]]
    assert found[0].prompt == turn("user", "Which tea?")
    assert found[1].prompt == turns
    convert("nemo-rl", [ranked], again, overwrite=True)
    assert [slate.scores for slate in read_slates(again)] == [[0.0, -1.0], [0.0, -1.0]]


def test_an_unknown_form_and_a_mapping_without_use_are_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write_slates([Slate("Which tea?", ["Black", "Green"], [0.5, 2.0])], log)
    with pytest.raises(ValueError, match=r"to: expected one of slates, preference, nemo-rl, got 'trl'"):
        convert("slates", [log], tmp_path / "out.jsonl", to="trl")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mapping: expected none, which slates has no use for, got score"):
        convert("slates", [log], tmp_path / "out.jsonl", ConvertOptions(mapping={"score": "stars"}))
