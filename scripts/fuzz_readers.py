"""Fuzzes every reader with damaged input, seeded: no traceback, bounded time and memory, every bad row counted once.

    python scripts/fuzz_readers.py [--rows 120] [--files 40] [--seed 0]

Rows: records of each format's sample (tests/formats) are damaged one by one. Each damaged row is read alone to find out
whether it is bad, and then all of them between good ones, where the conversion must skip exactly the bad ones. Some
kinds of damage must always be bad, which is checked.

Files: the bytes of samples in every container are damaged anywhere. Reading them must give records or errors that name
the file.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from pope_align.data.checks import SlateError
from pope_align.data.convert import ConvertOptions, convert
from pope_align.data.formats import FORMATS, Source
from pope_align.data.readers import read_records
from pope_align.data.records import Record

TESTS = Path(__file__).parents[1] / "tests"
SAMPLES = TESTS / "formats"
MAPPINGS = {
    "table": {"prompt": "question", "completion": "answer", "score": "stars", "key": "ticket"},
    "otel": {"score": "thumb"},
    "inspect": {"score": "includes"},
    "lm-eval": {"filter": "none"},
    "tinker": {"tokenizer": str(TESTS / "golden" / "chatml")},
}
MAX_SECONDS, MAX_BYTES = 5.0, 512 << 20

Row = dict[str, Any]


class Failure(Exception):
    """A reader failed a check."""


# --- damage to one row, as the line it becomes ------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container of a row with each of its keys."""
    found: list[tuple[Any, Any]] = []
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        found += [(value, key), *places(value[key])]
    return found


def replaced(row: Row, rng: random.Random, value: Any) -> Row:
    changed = copy.deepcopy(row)
    container, key = rng.choice(places(changed))
    container[key] = value
    return changed


def truncation(row: Row, rng: random.Random) -> bytes:
    line = json.dumps(row).encode()
    return line[: rng.randrange(1, len(line))]


def type_swap(row: Row, rng: random.Random) -> bytes:
    values = (7, -0.5, True, "", "x", [], [1], ["a", "b"], [{}], {}, {"a": 1}, float("nan"), "1_000", "2.9")
    return json.dumps(replaced(row, rng, rng.choice(values))).encode()


def null(row: Row, rng: random.Random) -> bytes:
    return json.dumps(replaced(row, rng, None)).encode()


def surrogate(row: Row, rng: random.Random) -> bytes:
    return json.dumps(replaced(row, rng, rng.choice(("\ud83d", "text \udc00 text", "\udfff")))).encode()


def depth(row: Row, rng: random.Random) -> bytes:
    levels = rng.choice((101, 2_000, 20_000))
    nested = rng.choice(("[" * levels + "]" * levels, "[" * levels, '{"a":' * levels + "1" + "}" * levels))
    return spliced(row, rng, nested)


def huge_number(row: Row, rng: random.Random) -> bytes:
    return spliced(row, rng, rng.choice(("9" * 401, "-" + "9" * 4_000, "1e999", "9" * 5_000, "1" + "0" * 300_000)))


def duplicate_key(row: Row, rng: random.Random) -> bytes:
    key = rng.choice(list(row))
    return (json.dumps(row)[:-1] + f", {json.dumps(key)}: 1}}").encode()


def wrong_encoding(row: Row, rng: random.Random) -> bytes:
    line = json.dumps(row, ensure_ascii=False).encode()
    at = rng.randrange(1, len(line))
    return line[:at] + rng.choice((b"\xff", b"\xed\xa0\xbd", b"\xc3")) + b" " + line[at:]


def spliced(row: Row, rng: random.Random, text: str) -> bytes:
    return json.dumps(replaced(row, rng, "@here@")).replace('"@here@"', text, 1).encode()


#: Each kind of damage, and whether every reader must reject the row.
DAMAGES: list[tuple[Callable[[Row, random.Random], bytes], bool]] = [
    (truncation, True),
    (type_swap, False),
    (null, False),
    (surrogate, False),
    (depth, True),
    (huge_number, False),
    (duplicate_key, True),
    (wrong_encoding, True),
]


# --- checks -----------------------------------------------------------------------------------------------------------


class Meter:
    """Time of every step and memory above idle."""

    def __init__(self, clock: bool) -> None:
        self.clock = clock
        self.idle = peak()
        self.slowest = 0.0

    def run(self, what: str, step: Callable[[], Any]) -> Any:
        start = time.process_time()
        try:
            return step()
        except (SlateError, ValueError):
            raise
        except Exception as error:
            raise Failure(f"{what}: {type(error).__name__}: {error}") from error
        finally:
            seconds = time.process_time() - start
            self.slowest = max(self.slowest, seconds)
            if self.clock and seconds > MAX_SECONDS:
                raise Failure(f"{what}: {seconds:.1f} s")
            if peak() - self.idle > MAX_BYTES:
                raise Failure(f"{what}: {(peak() - self.idle) >> 20} MiB above idle")


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def samples(name: str) -> list[Row]:
    """The records of a format's sample."""
    paths = sorted(path for path in (SAMPLES / name).rglob("*") if path.is_file())
    return [dict(record.values) for path in paths for record in read_records(path) if isinstance(record, Record)]


def write_samples(name: str, folder: Path) -> list[Path]:
    """A file of the sample's rows."""
    path = folder / "sample.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in samples(name)), encoding="utf-8")
    return [path]


def options(name: str) -> ConvertOptions:
    return ConvertOptions(skip_bad_rows=True, min_k=1, missing_prompt="item {key}", mapping=MAPPINGS.get(name, {}))


def fuzz_rows(name: str, count: int, seed: int, folder: Path, meter: Meter) -> tuple[int, int]:
    """Damage ``count`` rows of a format; returns how many were bad, and checks that as many are skipped."""
    rng = random.Random(f"{seed}/{name}")
    kind, good = FORMATS[name], samples(name)
    wanted = options(name)
    one = folder / "one.jsonl"
    lines: list[bytes] = [json.dumps(row).encode() for row in good]
    bad = 0
    for number in range(count):
        damage, certain = DAMAGES[number % len(DAMAGES)]
        line = damage(rng.choice(good), rng)
        one.write_bytes(line + b"\n")
        what = f"{name}, {damage.__name__}, {line[:200]!r}"
        source = Source([one], skip_bad_rows=True, mapping=dict(wanted.mapping))
        meter.run(what, lambda source=source: list(kind.read(source, kind.feedback[0])))
        if certain and source.bad_row_count != 1:
            raise Failure(f"{what}: taken, or counted {source.bad_row_count} times")
        if source.records_read != 1:
            raise Failure(f"{what}: read as {source.records_read} records")
        bad += source.bad_row_count
        lines.insert(rng.randrange(len(lines) + 1), line)
    whole = folder / "whole.jsonl"
    whole.write_bytes(b"\n".join(lines) + b"\n")
    out = folder / "out.jsonl"
    report = meter.run(name, lambda: convert(name, [whole], out, wanted, overwrite=True))
    if report.records_read != len(lines):
        raise Failure(f"{name}: {len(lines)} rows were put in, {report.records_read} were read")
    skipped = {message.partition(": ")[0] for message in report.bad_rows}
    if report.bad_row_count != bad or len(skipped) != bad:
        raise Failure(f"{name}: {bad} bad rows were put in, {report.bad_row_count} were skipped")
    if report.responses_read != report.responses_kept + sum(report.responses_dropped.values()):
        raise Failure(f"{name}: {report.responses_read} responses were read, and not all are accounted for")
    return count, bad


def containers(name: str) -> Iterator[tuple[str, bytes]]:
    """The sample of a format in other containers."""
    rows = samples(name)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    yield "in.json", json.dumps(rows).encode()
    yield "in.jsonl", lines
    yield "in.jsonl.gz", gzip.compress(lines, mtime=0)
    yield "in.jsonl.zst", zstandard.ZstdCompressor().compress(lines)
    buffer = io.BytesIO()
    pq.write_table(pa.table({"row": [json.dumps(row) for row in rows]}), buffer)
    yield "in.parquet", buffer.getvalue()
    for path in sorted((SAMPLES / name).rglob("*")):
        if path.is_file():
            yield path.name, path.read_bytes()


def damaged(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(max(len(content), 1))
    insertion = rng.choice((b"\xff", b"\0", b'"', b"]", b"{", b"\n", b"<", b"&a;", b"[" * 30_000, b'"' * 30_000))
    return rng.choice(
        (
            content[:at],
            content[at:],
            content[:at] + insertion + content[at:],
            content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :],
            content[:at] + content[rng.randrange(len(content) + 1) :],
        )
    )


def fuzz_files(name: str, count: int, seed: int, folder: Path, meter: Meter) -> int:
    """Damage the files of a format anywhere; returns how many were read."""
    rng = random.Random(f"{seed}/{name}/files")
    kinds = list(containers(name))
    for number in range(count):
        ending, content = kinds[number % len(kinds)]
        path = folder / ending
        path.write_bytes(damaged(content, rng))
        what = f"{name}, damaged {ending} number {number}"
        source = Source([path], skip_bad_rows=True, mapping=dict(options(name).mapping))
        try:
            meter.run(what, lambda source=source: list(FORMATS[name].read(source, FORMATS[name].feedback[0])))
        except SlateError as error:
            if str(path) not in str(error):
                raise Failure(f"{what}: an error that does not name the file: {error}") from error
    return count


def fuzz(rows: int, files: int, seed: int, *, clock: bool = True) -> list[tuple[str, int, int, int]]:
    """Every format: rows damaged, bad among them, files damaged.

    Raises:
        Failure: a traceback, too much time or memory, a row that is counted wrongly.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="pope-fuzz-") as made:
        folder = Path(made)
        for name in FORMATS:  # what readers import is neither time nor memory of a row
            if name != "polis":
                convert(name, write_samples(name, folder), folder / "first.jsonl", options(name), overwrite=True)
        meter = Meter(clock)
        for name in FORMATS:
            if name == "polis":  # a folder of tables: its files are damaged as tables
                results.append((name, 0, 0, fuzz_polis(max(files, rows), seed, folder, meter)))
                continue
            count, bad = fuzz_rows(name, rows, seed, folder, meter)
            results.append((name, count, bad, fuzz_files(name, files, seed, folder, meter)))
    print(f"slowest step {meter.slowest:.2f} s of CPU, peak {(peak() - meter.idle) >> 20} MiB above idle")
    return results


def fuzz_polis(count: int, seed: int, folder: Path, meter: Meter) -> int:
    rng = random.Random(f"{seed}/polis")
    export = next(path for path in sorted((SAMPLES / "polis").iterdir()) if path.is_dir())
    target = folder / export.name
    target.mkdir()
    contents = {path.name: path.read_bytes() for path in export.iterdir()}
    for number in range(count):
        name = rng.choice(sorted(contents))
        for each, content in contents.items():
            (target / each).write_bytes(damaged(content, rng) if each == name else content)
        source = Source([target], skip_bad_rows=True)
        try:
            meter.run(f"polis {name} {number}", lambda source=source: list(FORMATS["polis"].read(source, "agreement")))
        except SlateError as error:
            if str(target) not in str(error):
                raise Failure(f"polis {name} {number}: an error that does not name the file: {error}") from error
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=120, help="damaged rows of every format")
    parser.add_argument("--files", type=int, default=40, help="damaged files of every format")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, rows, bad, files in fuzz(given.rows, given.files, given.seed):
        print(f"{name:18} {rows} rows damaged, {bad} bad and skipped, {files} files damaged")


if __name__ == "__main__":
    main()
