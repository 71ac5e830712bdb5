"""Reviews a second of `pope convert`, and its memory, on synthetic reviews that must be joined with their metadata.

    POPE_BENCH_REVIEWS=1000000 python -m pytest benchmarks/bench_convert.py

The default is small, so that the test suite can run it once.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

REVIEWS = int(os.environ.get("POPE_BENCH_REVIEWS", "5000"))
WORDS = ["the", "a", "film", "album", "game", "was", "is", "not", "good", "great", "slow", "long", "loud", "plot"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Reviews of 300 to 900 characters in random order of their items, twenty an item, and the items' metadata."""
    folder = tmp_path_factory.mktemp("reviews")
    rng = random.Random(0)
    items = max(REVIEWS // 20, 1)
    sentences = [" ".join(rng.choices(WORDS, k=12)) + ". " for _ in range(1000)]
    reviews, metadata = folder / "reviews.jsonl", folder / "meta.jsonl"
    with reviews.open("w") as file:
        for number in range(REVIEWS):
            row = {
                "rating": 5.0,
                "title": "Fine",
                "text": "".join(rng.choices(sentences, k=rng.randrange(5, 15))) + str(number),
                "asin": f"B{rng.randrange(items):09d}",
                "user_id": f"U{rng.randrange(REVIEWS)}",
                "timestamp": 1_600_000_000_000 + number,
                "helpful_vote": int(rng.paretovariate(1.2)) - 1,
            }
            file.write(json.dumps({**row, "parent_asin": row["asin"]}) + "\n")
    with metadata.open("w") as file:
        for number in range(items):
            row = {"title": f"Item {number}", "features": [], "description": ["".join(rng.choices(sentences, k=8))]}
            file.write(json.dumps({**row, "parent_asin": f"B{number:09d}"}) + "\n")
    return [reviews, metadata]


def test_amazon_reviews_with_metadata(benchmark, files: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pope_align.cli", "convert", "--from", "amazon-2023", *map(str, files)]
    command += ["--out", str(tmp_path / "slates.parquet")]
    benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True, "capture_output": True}, rounds=1)
    report = json.loads((tmp_path / "slates.parquet.report.json").read_text())
    assert report["records_read"] == REVIEWS + max(REVIEWS // 20, 1)
    assert report["responses_read"] == REVIEWS
    assert report["responses_kept"] + sum(report["responses_dropped"].values()) == REVIEWS
    benchmark.extra_info["reviews"] = REVIEWS
    benchmark.extra_info["input_mib"] = sum(path.stat().st_size for path in files) >> 20
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    benchmark.extra_info["cpu_seconds"] = usage.ru_utime + usage.ru_stime
    benchmark.extra_info["peak_mib"] = usage.ru_maxrss >> 10
