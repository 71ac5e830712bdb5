"""Logs of Inspect: what breaks off or is something else is refused with the file's name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from pope_align.data import SlateError, streams
from pope_align.data.convert import ConvertOptions, convert
from pope_align.data.readers import read_records

LOG = Path(__file__).parent / "formats" / "inspect" / "tea.eval"  # written by inspect-ai 0.3.285


def test_the_samples_of_a_log_know_its_task_and_model_and_leave_out_its_events() -> None:
    records = list(read_records(LOG))
    assert [(r.row, r.values["id"], r.values["epoch"]) for r in records] == [
        (1, "green", 1),
        (2, "smoked", 1),
        (3, "green", 2),
        (4, "smoked", 2),
    ]
    assert records[0].values["eval"] == {"task": "tea", "model": "tea/one", "model_generate_config": {}}
    assert "events" not in records[0].values


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_older_logs_are_read_too(method: int, tmp_path: Path) -> None:
    again = tmp_path / "old.eval"
    with zipfile.ZipFile(again, "w", method) as archive:
        archive.writestr("_journal/start.json", json.dumps({"eval": {"task": "t", "model": "m"}}))
        sample = {
            "id": 1,
            "epoch": 1,
            "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
        }
        for epoch, answer, grade in ((1, "Yes.", "C"), (2, "No.", "I")):
            sample["messages"][1]["content"] = answer
            archive.writestr(f"samples/1_epoch_{epoch}.json", json.dumps({**sample, "scores": {"s": {"value": grade}}}))
    report = convert("auto", [again], tmp_path / "out.jsonl")
    assert (report.format, report.responses_kept) == ("inspect", 2)


def test_what_is_no_whole_log_is_refused(tmp_path: Path) -> None:
    content, broken = LOG.read_bytes(), tmp_path / "broken.eval"
    for damaged in (content[:-40], content[3000:], b"", b"not a zip"):
        broken.write_bytes(damaged)
        with pytest.raises(SlateError, match=r"broken\.eval, row \d+: row: expected a whole log of Inspect"):
            list(read_records(broken))
    at = content.index(b"samples/green_epoch_1.json") + 200
    broken.write_bytes(content[:at] + b"\0\0\0\0" + content[at + 4 :])
    with pytest.raises(SlateError, match=r"broken\.eval, row 1: row: expected a whole log of Inspect"):
        list(read_records(broken))
    with zipfile.ZipFile(broken, "w") as archive:
        archive.writestr("header.json", json.dumps({"eval": {}}))
        archive.writestr("samples/1_epoch_1/sample.json", "{}")
    with pytest.raises(SlateError, match="expected a sample in one file; `inspect log convert` writes such logs"):
        list(read_records(broken))


def test_a_sample_that_is_too_large_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_RECORD_BYTES", 2_000)  # the header has 1,758 bytes, the samples have more
    records = list(read_records(LOG))
    assert len(records) == 4
    assert all(isinstance(r, SlateError) and "expected at most 2000 bytes" in str(r) for r in records)


def test_one_of_several_scorers_must_be_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    scores = {"a": {"value": 1}, "b": {"value": {"x": 0.5, "y": 2}}}
    rows = [
        {"id": 1, "epoch": epoch, "messages": [messages[0], {**messages[1], "content": f"{epoch}"}], "scores": scores}
        for epoch in (1, 2)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SlateError, match=r"scores: expected one scorer, or --map score=NAME to choose, got 'a, b'"):
        convert("inspect", [log], tmp_path / "out.jsonl")
    convert("inspect", [log], tmp_path / "out.jsonl", ConvertOptions(mapping={"score": "b.y"}))
    (slate,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert slate["scores"] == [2.0, 2.0]
