"""Kills commands at random moments and repeats them: nothing may be lost or doubled, and the end must be the same.

    python scripts/kill_commands.py [convert score fit-logger ...] [--runs 3] [--kills 3] [--seed 0]

Every command is run once without interruption. Then, in each of the runs, it is killed several times, by SIGKILL,
SIGTERM or SIGINT at a moment drawn from the time that it took, and repeated as its own messages say (with ``--resume``
or ``--overwrite``, if it asks for that). After every kill an output is either not there or readable. At the end the
files must be those of the first run, byte for byte but for times, and no temporary file may be left; the judge's
endpoint must not have been paid for a reply that was already stored.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["OPENAI_API_KEY"] = "key-of-a-test"

#: One process imports the libraries; the commands are its children and start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PRELOADED = [
    *("pope_align.cli", "pope_align.cli.console", "pope_align.training.run", "pope_align.judging.match", "letters"),
    *("pope_align.propensity.behaviour_cloning", "pope_align.metrics.evaluate", "pope_align.metrics.page"),
    *("pope_align.report.page", "transformers.models.llama.modeling_llama", "sentence_transformers", "duckdb"),
]

#: What a clock decides, and what counts the requests of one run.
TIMED = ("tokens_per_second", "_runtime", "_per_second", "seconds", "spent", "train_loss", "made", "times")
#: Requests that `pope judge` has under way at a time.
CONCURRENCY = 4
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Case:
    """A command to kill.

    Attributes:
        text: what is written after `pope`, with {work} and {out} for the folders of inputs and outputs.
        outputs: files and folders in the latter that are compared; of a folder, those that match ``compared``.
        light: with counts of letters in place of a model for embeddings.
        twice: how many requests were answered a second time since the last call.
    """

    text: str
    outputs: tuple[str, ...]
    compared: str = r".*"
    light: bool = False
    twice: Callable[[], int] = lambda: 0

    def argv(self, work: Path, out: Path) -> list[str]:
        return shlex.split(self.text.format(work=work, out=out))


def pope(argv: list[str], errors: str, light: bool) -> None:
    """`pope` in this process."""
    file = os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 2)
    os.dup2(file, 1)
    import pope_align.metrics.embeddings as embeddings
    from letters import Letters
    from pope_align.cli import main

    if light:
        embeddings.Embedder = Letters
    sys.argv = ["pope", *argv]
    main()


def start(argv: list[str], errors: Path, light: bool) -> Any:
    process = PROCESSES.Process(target=pope, args=(argv, str(errors), light))
    process.start()
    return process


def repeated(argv: list[str], errors: Path) -> list[str] | None:
    """The command as its last message says it can be repeated; None if it says no such thing."""
    text = errors.read_text(errors="replace")
    asked = re.search(r"pass (--resume\S*(?: last)?) to continue", text) or re.search(r"pass (--overwrite)", text)
    return None if asked is None else [*argv, *asked[1].split()]


def to_the_end(argv: list[str], errors: Path, light: bool) -> float:
    """Run the command, as often as its messages ask for another flag; seconds of the last run."""
    for _ in range(3):
        began = time.monotonic()
        process = start(argv, errors, light)
        process.join()
        if process.exitcode == 0:
            return time.monotonic() - began
        more = repeated(argv, errors)
        if more is None:
            break
        argv = more
    raise SystemExit(f"pope {' '.join(argv)}: exit code {process.exitcode}\n{errors.read_text(errors='replace')}")


def killed(argv: list[str], errors: Path, light: bool, moment: float, number: int) -> str:
    """Start the command and kill it after some seconds; how it ended."""
    process = start(argv, errors, light)
    process.join(moment)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    if process.is_alive():
        process.kill()
        raise SystemExit(f"pope {' '.join(argv)}: still there a minute after {signal.Signals(number).name}")
    text = errors.read_text(errors="replace")
    if "Traceback" in text:
        raise SystemExit(f"pope {' '.join(argv)}: a traceback after {signal.Signals(number).name}\n{text}")
    if process.exitcode == 2:
        more = repeated(argv, errors)
        if more is None:
            raise SystemExit(f"pope {' '.join(argv)}: refused after a kill\n{text}")
        return killed(more, errors, light, moment, number)
    return "done" if process.exitcode == 0 else signal.Signals(number).name


def contents(folder: Path, case: Case) -> dict[str, str]:
    """A hash of every file of the outputs, without what a clock decides."""
    found = {}
    for name in case.outputs:
        path = folder / name
        files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
        for each in files:
            if re.fullmatch(case.compared, str(each.relative_to(folder))):
                found[str(each.relative_to(folder))] = digest(each, folder)
    return found


def digest(path: Path, folder: Path) -> str:
    data = path.read_bytes().replace(os.fsencode(folder), b"OUT")
    if path.suffix == ".json":
        data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
    elif path.suffix == ".jsonl":
        data = b"\n".join(sorted(data.splitlines())) if path.name == "calls.jsonl" else data
    return hashlib.sha256(data).hexdigest()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if not name.endswith(TIMED)}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def leftovers(folder: Path) -> list[str]:
    """Temporary files, locks and journals."""
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if re.search(r"\.tmp\b|\.lock$|\.journal$|\.fits$|/checkpoints$", str(path))
    ]


def check_readable(folder: Path, case: Case) -> None:
    """What is there under its final name is whole."""
    for name in case.outputs:
        path = folder / name
        for each in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
            if each.name.startswith(".") or "checkpoint" in str(each):
                continue
            if each.suffix == ".json":
                json.loads(each.read_text())
            elif each.suffix == ".jsonl" and each.name != "calls.jsonl":
                assert each.read_bytes().endswith(b"\n"), each
                for line in each.read_text().splitlines():
                    json.loads(line)
            elif each.suffix == ".parquet":
                import pyarrow.parquet

                pyarrow.parquet.read_table(each)


def sweep(name: str, case: Case, work: Path, *, runs: int, kills: int, moments: random.Random) -> None:
    whole = work / "out" / name
    whole.mkdir(parents=True)
    argv = case.argv(work, whole)
    lasted = to_the_end(argv, work / f"{name}.log", case.light)
    lasted = min(lasted, to_the_end(case.argv(work, again := _new(work, name)), work / f"{name}.log", case.light))
    expected = contents(whole, case)
    assert expected, f"{name}: no output to compare"
    _compare(name, "a second run", expected, contents(again, case))
    case.twice()
    for run in range(runs):
        folder = _new(work, name)
        ends = []
        for _ in range(kills):
            moment = moments.uniform(0, lasted * 1.02)
            number = moments.choice(SIGNALS)
            end = killed(case.argv(work, folder), work / f"{name}.log", case.light, moment, number)
            ends.append(f"{end} {moment:.2f}s")
            check_readable(folder, case)
            if end == "done":
                break
        to_the_end(case.argv(work, folder), work / f"{name}.log", case.light)
        _compare(name, f"run {run + 1} ({', '.join(ends)})", expected, contents(folder, case))
        if left := leftovers(folder):
            raise SystemExit(f"{name}, run {run + 1} ({', '.join(ends)}): left behind: {left}")
        if (twice := case.twice()) > len(ends) * CONCURRENCY:  # those under way when it was killed
            raise SystemExit(f"{name}, run {run + 1} ({', '.join(ends)}): {twice} requests were answered again")
        print(
            f"{name}, run {run + 1} of {runs}: {', '.join(ends)}; {lasted:.1f} s undisturbed: the same files",
            flush=True,
        )


def _new(work: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work / "out"))


def _compare(name: str, what: str, expected: dict[str, str], found: dict[str, str]) -> None:
    differing = sorted(path for path in {*expected, *found} if expected.get(path) != found.get(path))
    if differing:
        raise SystemExit(f"{name}, {what}: other or missing files: {', '.join(differing)}")


# --- the commands ---------------------------------------------------------------------------------------------------


def make_inputs(work: Path) -> None:
    import conftest
    from pope_align.data import Slate, write_slates
    from pope_align.generation.generations import Generation, GenerationSet, write_generations
    from test_reproduce import described, write_writer

    tokenizer = conftest.tiny_tokenizer.__wrapped__()
    make = conftest.make_tiny_model.__wrapped__()
    slates = conftest.make_slates.__wrapped__()
    for seed, name in enumerate(("model", "other", "third")):
        write_writer(work / name, make, tokenizer, seed)
    write_slates([replace(slate, prompt=f"Colour {i}?") for i, slate in enumerate(slates(60))], work / "scored.jsonl")
    unscored = slates(60, scored=False, sizes=(2, 3, 4))
    write_slates([replace(slate, prompt=f"Colour {i}?") for i, slate in enumerate(unscored)], work / "log.jsonl")
    write_slates([replace(slate, prompt=f"Colour {i}?") for i, slate in enumerate(unscored[:40])], work / "short.jsonl")
    write_slates(described(30), work / "described.jsonl")
    write_slates(list(slates(12)), work / "few.jsonl")
    rows = [
        {"question": f"Question {i % 4000}?", "answer": f"Answer {i} " * 5, "votes": i % 7, "user": f"u{i % 50}"}
        for i in range(16_000)
    ]
    (work / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a", "b"):
        texts = [[f"{name} says {'abc'[(i + j) % 3]} {j}" for j in range(4)] for i in range(24)]
        answers = tuple(Generation(f"k{i}", f"Prompt {i}?", each) for i, each in enumerate(texts))
        write_generations(GenerationSet(name, answers), work / f"{name}.jsonl")
    people = [[f"people say {j} {'xyz'[i % 3]}" for j in range(3)] for i in range(24)]
    refs = [Slate(f"Prompt {i}?", each, [3.0, 2.0, 1.0], slate_id=f"k{i}") for i, each in enumerate(people)]
    write_slates(refs, work / "refs.jsonl")


def cases(server: Any) -> dict[str, Case]:
    def twice() -> int:
        count = sum(times - 1 for times in server.served.values())
        server.served.clear()
        return count

    model = "--model {work}/model"
    split = tuple(f"log.{name}.jsonl" for name in ("train", "validation", "test"))
    files = "model.safetensors|metrics.json|config.json|tokenizer.json|README.md|training_objective.json"
    sizes = [
        "train=6",
        "test=4",
        "candidates=3",
        "answers=3",
        "max_new_tokens=5",
        "max_length=96",
        "batch=3",
        "draws=60",
    ]
    return {
        "convert": Case(
            """convert --from table {work}/table.jsonl --map prompt=question,completion=answer,score=votes
            --split-by slate -o {out}/log.jsonl""",
            (*split, "log.jsonl.report.json"),
        ),
        "score": Case(
            f"""score {{work}}/log.jsonl {model} --how proxy --batch-tokens 100 --cache {{out}}/cache
            -o {{out}}/scored.parquet""",
            ("scored.parquet",),
        ),
        "fit-logger": Case(
            f"""fit-logger {{work}}/short.jsonl {model} --folds 2 --epochs 1 --max-length 96 --cache {{out}}/cache
            -o {{out}}/scored.jsonl""",
            ("scored.jsonl",),
        ),
        "fit-logger-one": Case(
            f"fit-logger {{work}}/short.jsonl {model} --epochs 1 --max-length 96 -o {{out}}/fitted", ("fitted",)
        ),
        "train": Case(
            f"""train {{work}}/few.jsonl {model} --max-length 96 --num-train-epochs 2 --save-steps 2 --logging-steps 2
            --learning-rate 1e-3 --gradient-accumulation-steps 4 --report-to none --use-cpu --disable-tqdm true
            -o {{out}}/policy""",
            ("policy",),
            compared=rf"policy/({files})",
        ),
        "generate": Case(
            f"generate {{work}}/short.jsonl {model} -n 3 --max-new-tokens 6 --batch-size 8 -o {{out}}/gens.parquet",
            ("gens.parquet",),
        ),
        "metrics": Case(
            """metrics {work}/a.jsonl {work}/b.jsonl --refs {work}/refs.jsonl --draws 50 --cache {out}/cache
            -o {out}/report""",
            ("report",),
        ),
        "judge": Case(
            f"""judge {{work}}/a.jsonl {{work}}/b.jsonl --refs {{work}}/refs.jsonl --model m --base-url {server.url}
            --concurrency {CONCURRENCY} -o {{out}}/judge""",
            ("judge",),
            twice=twice,
        ),
        "compare": Case(
            """compare {work}/short.jsonl --policy=old={work}/model --policy=new={work}/other --answers 2
            --max-new-tokens 4 -o {out}/report.html""",
            ("report.html", "report.run/evaluation.json"),
            light=True,
        ),
        "reproduce": Case(
            f"""reproduce figure1 --quick --method pope-paper {model} --data {{work}}/described.jsonl
            {" ".join(f"--set={each}" for each in sizes)} -o {{out}}/figure""",
            ("figure",),
            compared=r"figure/figure1\.(md|png)",
            light=True,
        ),
    }


@contextmanager
def judge_endpoint() -> Iterator[Any]:
    from faulty_server import FaultyServer, running

    def answer(messages: list[dict[str, str]]) -> str:
        time.sleep(0.02)
        number = int(hashlib.sha256(messages[1]["content"].encode()).hexdigest(), 16) % 3
        return json.dumps({"winner": ["1", "2", "tie"][number], "reason": "a test"})

    with running(FaultyServer(answer)) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commands", nargs="*")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    PROCESSES.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory(prefix="pope-kill-") as folder, judge_endpoint() as server:
        work = Path(folder)
        (work / "out").mkdir()
        make_inputs(work)
        for name, case in cases(server).items():
            if not arguments.commands or name in arguments.commands:
                moments = random.Random(f"{arguments.seed} {name}")
                sweep(name, case, work, runs=arguments.runs, kills=arguments.kills, moments=moments)


if __name__ == "__main__":
    main()
