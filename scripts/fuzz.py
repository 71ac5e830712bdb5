"""Fuzzes readers of logs, the configuration of a training run and the argument checks of pope_core with bytes.

    python scripts/fuzz.py readers|config|arguments [--seconds 60]

atheris (on Linux for x86-64, `pip install atheris`) follows which lines an input reaches and changes those that reach
new ones; without it hypothesis makes up inputs. Inputs of tests/fuzz come first. An input that fails is written to
tests/fuzz/TARGET/, where tests/test_fuzz.py tries it from then on: commit it with the correction.

`scripts/fuzz_readers.py` damages records of known structure instead, and counts that just the bad ones are skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
SEEDS = TESTS / "fuzz"


class Fault(Exception):
    """An input that was answered wrongly."""


# --- readers ----------------------------------------------------------------------------------------------------------

#: Endings that select a reader of files.
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".xml", ".jsonl.gz", ".jsonl.zst", ".eval", ".ndjson")


def readers(data: bytes) -> None:
    """A file in one of the formats: records, or an error that names it. Two bytes choose format and ending."""
    from fuzz_readers import FORMATS, Source, options
    from pope_align.data.checks import SlateError

    if len(data) < 2:
        return
    names = [name for name in FORMATS if name != "polis"]  # a folder
    name, ending = names[data[0] % len(names)], ENDINGS[data[1] % len(ENDINGS)]
    with tempfile.TemporaryDirectory(prefix="pope-fuzz-") as folder:
        path = Path(folder) / f"log{ending}"
        path.write_bytes(data[2:])
        source = Source([path], skip_bad_rows=True, mapping=dict(options(name).mapping))
        try:
            list(FORMATS[name].read(source, FORMATS[name].feedback[0]))
        except SlateError as error:
            if str(path) not in str(error):
                raise Fault(f"{name}: an error that does not name the file: {error}") from error


def reader_seeds() -> Iterator[bytes]:
    """The samples of all formats."""
    from fuzz_readers import FORMATS, containers

    for number, name in enumerate(name for name in FORMATS if name != "polis"):
        for file, content in containers(name):
            ending = next((index for index, end in enumerate(ENDINGS) if file.endswith(end)), 0)
            if len(content) < 20_000:
                yield bytes([number, ending]) + content


# --- configuration ----------------------------------------------------------------------------------------------------


def config(data: bytes) -> None:
    """A file for ``pope train --config``, and flags after a zero byte: arguments, or a ValueError that says which."""
    from pope_align.cli.train_arguments import read_arguments

    text, _, flags = data.partition(b"\0")
    given = [flag.decode(errors="replace") for flag in flags.split(b"\0") if flag]
    if any("h" in flag for flag in given if flag.startswith("-")):  # --help, and all that argparse takes for it, ends
        return
    with tempfile.TemporaryDirectory(prefix="pope-fuzz-") as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(text)
        try:
            with contextlib.redirect_stderr(None):
                read_arguments(["--config", str(path), *given])
        except ValueError as error:
            if not re.search(r"[\w-]+", str(error)):
                raise Fault(f"an error that says nothing: {error!r}") from error
        except ImportError as error:
            if "extra" not in str(error) and "pip install" not in str(error):
                raise Fault(f"an error that does not say what to install: {error}") from error


# --- arguments of pope_core -------------------------------------------------------------------------------------------


class Choices:
    """Decisions read from bytes; at their end, always the first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def below(self, limit: int) -> int:
        self.at += 1
        return self.data[self.at - 1] % limit if self.at <= len(self.data) else 0

    def of(self, values: Any) -> Any:
        return values[self.below(len(values))]

    @property
    def left(self) -> bool:
        return self.at < len(self.data)


NUMBERS = (0.0, 1.0, -1.0, 0.5, -100.0, 1e3, -1e3, 1e30, -1e30, 1e-30, 3e38, 1e300, math.inf, -math.inf, math.nan)
INDICES = (0, 1, 2, 3, 5, 6, 7, 18, 19, 36, 37, -1, -100, -101, 2**31, 2**62, -(2**63))
OPTIONS: dict[str, tuple[Any, ...]] = {
    "diversity_weight": (0.1, 0, 1, *NUMBERS, "0.1", None),
    "weighting": ("response", "slate", "geometric", "product", 1, None),
    "normalization": ("none", "slate", "batch", "sum", True, None),
    "clip": (None, 5.0, 1, *NUMBERS, "5"),
    "utility_form": ("feedback", "log_likelihood", "votes", 0, None),
    "diversity_form": ("entropy", "neg_log_prob", "kl", 0, None),
    "length_normalize": (True, False, 0, 1, None, "yes"),
}
CALL_OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_slates": (None, 1, 3, 0, -1, 2**62, 1.5, True, "3"),
    # At 1e30, logits in float32 overflow and those of the reference in float64 do not.
    "logit_scale": (1.0, 0.5, 0.0, -1.0, 1e-30, 1e31, math.inf, math.nan, None, "1"),
    "logit_softcap": (None, 5.0, *NUMBERS, "1"),
    "chunk_bytes": (None, 1, 100, 10_000, 0, -1, 2**62, 1.5, "1"),
    "reduction": ("sum", "mean", "none", "max", None, 1),
}
#: Arguments of each function that are tensors, and the options of its call.
FUNCTIONS = {
    "slate_objective": (
        ("response_logprobs", "logging_logprobs", "utility", "slate_offsets", "tokens"),
        ["num_slates"],
    ),
    "response_logprobs": (("logits", "labels", "response_offsets"), ["reduction"]),
    "linear_response_logprobs": (
        ("hidden", "lm_head_weight", "labels", "response_offsets", "lm_head_bias"),
        ["reduction", "logit_scale", "logit_softcap", "chunk_bytes"],
    ),
    "pope_loss": (
        ("logits", "labels", "logging_logprobs", "utility", "slate_offsets", "response_offsets"),
        ["num_slates"],
    ),
    "linear_pope_loss": (
        (
            *("hidden", "lm_head_weight", "labels", "logging_logprobs", "utility", "slate_offsets"),
            *("response_offsets", "lm_head_bias"),
        ),
        ["num_slates", "logit_scale", "logit_softcap", "chunk_bytes"],
    ),
}


def changed(tensor: Any, choose: Choices) -> Any:
    """A tensor of another shape, dtype, layout or content, or no tensor."""
    import torch

    kind = choose.below(9)
    if kind == 0 and tensor.numel():  # one value
        out = tensor.clone()
        values = NUMBERS if tensor.is_floating_point() else INDICES
        at, value = choose.below(tensor.numel()), choose.of(values)
        wide = torch.float64 if tensor.is_floating_point() else torch.int64  # overflows of other types become inf
        out.view(-1)[at] = torch.tensor(value, dtype=wide).to(tensor.dtype)
        return out
    if kind == 1:
        dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.bool)
        return tensor.to(choose.of((*dtypes, torch.int8, torch.complex64)))
    if kind == 2:
        return tensor[choose.below(4) :]
    if kind == 3:
        return tensor[: choose.below(4)]
    if kind == 4:
        return tensor.unsqueeze(choose.below(tensor.ndim + 1))
    if kind == 5:  # the same values with other strides
        return torch.stack([tensor, tensor], -1)[..., 0]
    if kind == 6:
        return tensor.repeat_interleave(2, 0)
    if kind == 7:
        return choose.of((None, 3, "x", tensor.tolist()))
    return tensor.flip(0)


def arguments(data: bytes) -> None:
    """A call of a public function with changed arguments: the CPU backend refuses or computes as the reference does."""
    import torch

    import pope_core
    from pope_core.testing import make_slates

    choose = Choices(data)
    name = choose.of(list(FUNCTIONS))
    tensors, options = FUNCTIONS[name]
    p = make_slates()  # 3 slates, 6 responses, 18 tokens, 37 vocabulary entries
    values = {
        **{field: getattr(p, field) for field in p.__dataclass_fields__},
        "logits": p.logits,
        "tokens": p.tokens,
        "response_logprobs": p.logging_logprobs + 0.1,
    }
    call = {argument: values[argument] for argument in tensors}
    objective: dict[str, Any] = {}
    while choose.left and len(call) < 64:
        kind = choose.below(3)
        if kind == 0:
            argument = choose.of(tensors)
            if isinstance(call[argument], torch.Tensor):
                call[argument] = changed(call[argument], choose)
        elif kind == 1:
            option = choose.of(list(OPTIONS))
            objective[option] = choose.of(OPTIONS[option])
        else:
            option = choose.of(options)
            call[option] = choose.of(CALL_OPTIONS[option])

    def answer(backend: str) -> Any:
        given = dict(call)
        try:
            if "slate_offsets" in tensors:
                given["objective"] = pope_core.Objective(**objective)
            out = getattr(pope_core, name)(**given, backend=backend)
        except (ValueError, TypeError) as error:
            return error
        return out

    compare(name, answer("cpu"), answer("reference"), f"{name}: {call}, {objective}")


def compare(name: str, ours: Any, reference: Any, what: str) -> None:
    """Both refuse with an error of the form "argument: ...", or both give the same numbers."""
    import torch

    if isinstance(ours, Exception) or isinstance(reference, Exception):
        if type(ours) is not type(reference):
            raise Fault(f"{what}: the CPU backend: {ours!r}; the reference: {reference!r}")
        if not re.match(r"[a-z_]+([,@. ]+\w+)*: ", str(ours)):
            raise Fault(f"{what}: an error that does not begin with the argument: {ours!r}")
        return
    pairs = [(ours, reference)] if isinstance(ours, torch.Tensor) else list(zip(ours, reference))
    for one, other in pairs:
        one, other = one.double(), other.double()
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise Fault(f"{what}: the CPU backend: {one}; the reference: {other}")


TARGETS: dict[str, Callable[[bytes], None]] = {"readers": readers, "config": config, "arguments": arguments}


# --- drivers ----------------------------------------------------------------------------------------------------------


def saved(target: str) -> list[Path]:
    """Inputs in the repository."""
    return sorted(path for path in (SEEDS / target).glob("*") if path.is_file())


def kept(target: str, data: bytes) -> Path:
    """Write an input that failed to the corpus."""
    path = SEEDS / target / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def with_hypothesis(target: str, *, seconds: float, examples: int = 10**9) -> int:
    """Seeds with a few bytes changed, and bytes alone, for a time; returns how many were tried.

    Raises:
        Exception: that of the smallest input that was found to fail.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    begin, count = time.monotonic(), 0
    bases = [path.read_bytes() for path in saved(target)]
    if target == "readers":
        bases += reader_seeds()
    edits = st.lists(st.tuples(st.integers(0, 5_000), st.binary(max_size=4)), max_size=4)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 10**9,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(st.binary(max_size=60), st.tuples(st.sampled_from(bases or [b""]), edits)))
    def every(drawn: Any) -> None:
        nonlocal count
        if time.monotonic() - begin > seconds:
            return
        count += 1
        if isinstance(drawn, tuple):
            data, changes = drawn
            for at, piece in changes:
                at %= len(data) + 1
                data = data[:at] + piece + data[at + 1 :]
        else:
            data = drawn
        try:
            TARGETS[target](data)
        except Exception:
            every.failed = data
            raise

    try:
        every()
    except Exception:
        print(f"the input is in {kept(target, every.failed)}", file=sys.stderr)
        raise
    return count


def with_atheris(target: str, seconds: int) -> int:
    """Run atheris in a process of its own, which it ends at the first fault; returns the exit status."""
    with tempfile.TemporaryDirectory(prefix="pope-fuzz-") as folder:
        corpus, found = Path(folder) / "corpus", Path(folder) / "found"
        corpus.mkdir(), found.mkdir()
        for path in saved(target):
            (corpus / path.name).write_bytes(path.read_bytes())
        if target == "readers":
            for number, data in enumerate(reader_seeds()):
                (corpus / f"sample-{number}").write_bytes(data)
        options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=4096", "-max_len=20000"]
        command = [sys.executable, __file__, target, "--inside-atheris", str(corpus), f"-artifact_prefix={found}/"]
        status = subprocess.run([*command, *options], check=False).returncode
        for path in found.iterdir():
            print(f"the input is in {kept(target, path.read_bytes())}", file=sys.stderr)
    return status


def inside_atheris(target: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["pope_align", "pope_core", "fuzz_readers"]):
        TARGETS[target](b"\0\0")  # imports what the target needs
        if target == "readers":  # the rest is imported by the first row of a format: too slow for one input's time
            for data in reader_seeds():
                readers(data)
    atheris.Setup([sys.argv[0], *options], TARGETS[target])
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--inside-atheris", action="store_true", help=argparse.SUPPRESS)
    given, others = parser.parse_known_args()
    if given.inside_atheris:
        inside_atheris(given.target, others)
        return
    for path in saved(given.target):
        TARGETS[given.target](path.read_bytes())
    if importlib.util.find_spec("atheris"):
        status = with_atheris(given.target, given.seconds)
        if status:
            raise SystemExit(f"{given.target}: a fault was found")
        print(f"{given.target}: no fault in {given.seconds} s of atheris")
    else:
        count = with_hypothesis(given.target, seconds=given.seconds)
        print(f"{given.target}: no fault in {count} inputs of hypothesis")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
