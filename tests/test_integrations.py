"""The scripts of examples/integrations/ with the real packages, where installed; versions are printed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "examples" / "integrations"

#: Each script, the module that it needs, and what its output must say.
EXPECTED = {
    "otel_spans": (
        "opentelemetry.sdk",
        [
            "opentelemetry-sdk ",
            "flat.jsonl: otel, 2 slates, without a response: {'span or log record of something else than a request for",
            "  Which tea is smoked? ",
        ],
    ),
    "inspect_eval": (
        "inspect_ai",
        ["inspect-ai ", "Inspect: success", "  pope_distinct_1: mean 83.750, ", "pope: 2 slates, 4 responses"],
    ),
    "lm_eval_samples": (
        "lm_eval",
        [
            "lm-eval ",
            "pope: 2 slates, 4 responses",
            "  Which tea is smoked? Lapsang 1, Matcha 0",
            "  Which tea is whisked? Lapsang 0, Matcha 1",
        ],
    ),
    "vllm_sample": (
        "vllm",
        [
            "vllm ",
            " answers whose text has the sampled tokens; largest difference of totals ",
            "propensities recorded by vllm",
        ],
    ),
}


def test_every_script_has_its_expectations() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == set(EXPECTED)
    page = (SCRIPTS.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in EXPECTED if f"`{name}.py`" not in page] == [], "docs/data.md lists the scripts"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_script_runs_with_the_real_package(name: str, tmp_path: Path) -> None:
    module, expected = EXPECTED[name]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"needs {module}")
    run = subprocess.run(
        [sys.executable, str(SCRIPTS / f"{name}.py"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    for line in expected:
        assert line in run.stdout


def test_both_forms_of_spans_give_the_same_slates(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.json.file", exc_type=ImportError)
    subprocess.run([sys.executable, str(SCRIPTS / "otel_spans.py"), str(tmp_path)], check=True, capture_output=True)
    found = []
    for name in ("flat", "otlp"):
        lines = (tmp_path / f"{name}.slates.jsonl").read_text(encoding="utf-8").splitlines()
        slates = [json.loads(line) for line in lines]
        found.append(
            {
                slate["slate_id"]: {
                    answer[0]["content"]: score
                    for answer, score in zip(slate["completions"], slate["scores"], strict=True)
                }
                for slate in slates
            }
        )
    assert found[0] == found[1]
    assert len(found[0]) == 2
