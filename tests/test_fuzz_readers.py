"""A bounded run of scripts/fuzz_readers.py: every reader, and every kind of damage."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from pope_align.data.formats import FORMATS


@pytest.fixture(scope="module")
def fuzz():
    path = Path(__file__).parents[1] / "scripts" / "fuzz_readers.py"
    spec = importlib.util.spec_from_file_location("fuzz_readers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_readers"] = module
    spec.loader.exec_module(module)
    return module


def test_no_reader_breaks_and_just_the_bad_rows_are_skipped(fuzz) -> None:
    results = fuzz.fuzz(rows=24, files=7, seed=1, clock=False)
    assert {name for name, *_ in results} == set(FORMATS)
    assert all(bad > rows / 3 for name, rows, bad, _ in results if name != "polis")


def test_the_script_finds_a_reader_that_breaks(fuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(source, feedback):
        for record in source.records():
            yield record.values["no such field"]

    monkeypatch.setitem(FORMATS, "shp", fuzz.FORMATS["shp"].__class__("shp", "", ("votes",), breaks, scattered=False))
    monkeypatch.setattr(fuzz, "samples", lambda name: [{"a": "x"}])
    with pytest.raises(fuzz.Failure, match=r"shp, (truncation|type_swap)"):
        fuzz.fuzz_rows("shp", 8, 0, Path(fuzz.tempfile.mkdtemp()), fuzz.Meter(clock=False))
