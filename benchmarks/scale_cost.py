"""What `pope score` costs into one file, into shards, and on Ray with 1 and 2 workers: the table of docs/scale.md.

    python benchmarks/scale_cost.py --model MODEL --slates 256

Prints wall seconds, and the CPU seconds of this process and of all processes that Ray started, which other work on the
machine does not change. Runs of Ray are two: its start and that of its workers with their models (one shard), and the
rest.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pope_align.data import Slate, write_slates
from pope_align.scale import Scorer
from pope_align.scale.ray_engine import RayEngine
from pope_align.scale.run import Engine, local_engine, run_shards

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """CPU seconds of this process, its living descendants, and the ended children of these."""
    parents, used = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(entry.name)] = int(fields[1])
        used[int(entry.name)] = sum(map(int, fields[11:15])) / _TICKS
    ours = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(used[pid] for pid in ours)


def measured(work: Callable[[], object]) -> str:
    wall, cpu = time.monotonic(), cpu_seconds()
    work()
    return f"{time.monotonic() - wall:8.1f} s wall {cpu_seconds() - cpu:8.1f} s CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--slates", type=int, default=256)
    parser.add_argument("--responses", type=int, default=4)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--shard-rows", type=int, default=32)
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {args}")
    rng = random.Random(0)
    names = ["red", "green", "blue", "house", "water", "people", "think", "often", "never", "because"]

    def text(words: int) -> str:
        return " ".join(rng.choice(names) for _ in range(words))

    slates = [
        Slate(text(2 * args.words), [text(args.words) for _ in range(args.responses)], [0.0] * args.responses)
        for _ in range(args.slates)
    ]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        write_slates(slates[: args.shard_rows], where / "first.parquet")
        write_slates(slates, where / "all.parquet")
        engines: dict[str, Engine] = {"local": local_engine, "ray 1": RayEngine(1), "ray 2": RayEngine(2)}
        for name, engine in engines.items():
            step = Scorer(args.model, how="proxy")
            for log in ("first", "all"):
                out = where / f"{log}-{name}"

                def score(out: Path = out, log: str = log, step: Scorer = step, engine: Engine = engine) -> None:
                    run_shards(step, where / f"{log}.parquet", out, engine=engine, shard_rows=args.shard_rows)

                print(f"{name:6} {'one shard' if log == 'first' else 'all':10} {measured(score)}", flush=True)
        same = {
            name: [path.read_bytes() for path in sorted((where / f"all-{name}").glob("*.parquet"))] for name in engines
        }
        # The source's time of writing is in each shard, and it is the same file for all three.
        print("shards byte for byte the same:", all(content == same["local"] for content in same.values()))


if __name__ == "__main__":
    main()
