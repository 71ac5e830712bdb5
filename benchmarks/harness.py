"""What every benchmark shares: problems, rivals that compute the same loss, peak memory, and the record of a run.

A rival is a function from a problem to the POPE loss (response weights, length-normalised), a 0-d tensor that autograd
can differentiate; a floor does only what no implementation can avoid, and returns nothing comparable.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

import pope_core

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
TOKENS_PER_RESPONSE, RESPONSES_PER_SLATE = 32, 4

#: What makes two rows the same measurement.
IDENTITY = ("source", "name", "model", "shape", "ragged", "states", "dtype", "trainable", "lora", "backward")


class Shape(NamedTuple):
    """Response tokens, vocabulary, hidden width."""

    tokens: int
    vocab: int
    width: int

    def __str__(self) -> str:
        return f"{self.tokens}x{self.vocab}x{self.width}"


@dataclass
class Problem:
    """Inputs of one benchmark. ``leaves`` get gradients: the logits, or the hidden states and the head."""

    leaves: list[torch.Tensor]
    labels: torch.Tensor
    response_offsets: torch.Tensor
    logging_logprobs: torch.Tensor
    utility: torch.Tensor
    slate_offsets: torch.Tensor

    @property
    def log_data(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.logging_logprobs, self.utility, self.slate_offsets

    def backward(self, loss: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of the leaves, as a training step takes them: into ``.grad``, which is taken out."""
        loss.backward()
        gradients = [leaf.grad for leaf in self.leaves]
        for leaf in self.leaves:
            leaf.grad = None
        return gradients  # type: ignore[return-value]


def make_problem(source: str, shape: Shape, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Problem:
    """Random tokens in responses of 32 and slates of 4; ``source`` is "logits" or "hidden"."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, scale: float) -> torch.Tensor:
        values = torch.empty(size, dtype=dtype, device=device)
        return values.normal_(0.0, scale, generator=generator).requires_grad_()

    if source == "logits":
        leaves = [normal(shape.tokens, shape.vocab, scale=2.0)]
    else:
        leaves = [normal(shape.tokens, shape.width, scale=1.0), normal(shape.vocab, shape.width, scale=0.05)]
    responses = shape.tokens // TOKENS_PER_RESPONSE
    labels = torch.randint(0, shape.vocab, (shape.tokens,), generator=generator, device=device)
    return Problem(
        leaves=leaves,
        labels=labels,
        response_offsets=torch.arange(0, shape.tokens + 1, TOKENS_PER_RESPONSE, device=device),
        logging_logprobs=torch.full((responses,), -11.0 * TOKENS_PER_RESPONSE, device=device),
        utility=torch.rand(responses, generator=generator, device=device),
        slate_offsets=torch.arange(0, responses + 1, RESPONSES_PER_SLATE, device=device),
    )


def loss_of(p: Problem, token_logprobs: torch.Tensor) -> torch.Tensor:
    """The rest of the loss in plain PyTorch; its cost is nothing beside that of the log-probabilities."""
    logprobs = token_logprobs.float().view(-1, TOKENS_PER_RESPONSE).mean(1)
    weights = (logprobs - p.logging_logprobs / TOKENS_PER_RESPONSE).exp()
    return -(weights * (p.utility - 0.1 * logprobs)).view(-1, RESPONSES_PER_SLATE).mean(1).mean()


Rival = Callable[[Problem], torch.Tensor]


def gathered(p: Problem, logits: torch.Tensor) -> torch.Tensor:
    return loss_of(p, logits.log_softmax(-1).gather(-1, p.labels.unsqueeze(1)).squeeze(1))


def cross_entropy(p: Problem, logits: torch.Tensor) -> torch.Tensor:
    return loss_of(p, -F.cross_entropy(logits, p.labels, reduction="none"))


def linear_cross_entropy(p: Problem) -> torch.Tensor:
    return loss_of(p, -F.linear_cross_entropy(*p.leaves, p.labels, reduction="none"))


#: The plainest objective, which a rival's user would write in a few lines: unnormalised weights without a maximum.
OBJECTIVE = pope_core.Objective(normalization="none", clip=None, diversity_form="neg_log_prob")


def pope_from_logits(p: Problem) -> torch.Tensor:
    options = {"response_offsets": p.response_offsets, "objective": OBJECTIVE}
    return pope_core.pope_loss(*p.leaves, p.labels, *p.log_data, **options).loss


def pope_from_hidden(p: Problem) -> torch.Tensor:
    options = {"response_offsets": p.response_offsets, "objective": OBJECTIVE}
    return pope_core.linear_pope_loss(*p.leaves, p.labels, *p.log_data, **options).loss


RIVALS: dict[str, dict[str, Rival]] = {
    "logits": {
        "pope_core.pope_loss": pope_from_logits,
        "log_softmax + gather": lambda p: gathered(p, p.leaves[0]),
        "F.cross_entropy": lambda p: cross_entropy(p, p.leaves[0]),
    },
    "hidden": {
        "pope_core.linear_pope_loss": pope_from_hidden,
        "F.linear, log_softmax + gather": lambda p: gathered(p, F.linear(*p.leaves)),
        "F.linear, F.cross_entropy": lambda p: cross_entropy(p, F.linear(*p.leaves)),
    },
}
if hasattr(F, "linear_cross_entropy"):
    RIVALS["hidden"]["F.linear_cross_entropy"] = linear_cross_entropy

#: The first of each, against which the others are compared and checked.
OURS = {source: next(iter(rivals)) for source, rivals in RIVALS.items()}
FLOORS = {"logits": "floor: one read (and one write)", "hidden": "floor: the matrix products"}


def floor(source: str, p: Problem, backward: bool) -> Callable[[], object]:
    """What cannot be avoided: reading the logits (and writing their gradient), or the products with the head."""
    leaves = [leaf.detach() for leaf in p.leaves]
    if source == "logits":
        out = torch.empty_like(leaves[0])
        return lambda: (leaves[0].sum(), out.copy_(leaves[0]) if backward else None)
    hidden, weight = leaves
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device)

    def products() -> None:
        torch.mm(hidden, weight.t(), out=logits)
        if backward:
            torch.mm(logits, weight)
            torch.mm(logits.t(), hidden)

    return products


def step(source: str, name: str, p: Problem, backward: bool) -> Callable[[], object]:
    """The thing to time: one forward, or one forward and backward."""
    if name == FLOORS[source]:
        return floor(source, p, backward)
    rival = RIVALS[source][name]
    if backward:
        return lambda: p.backward(rival(p))

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return rival(p)

    return forward


def check(source: str, name: str, p: Problem) -> None:
    """The rival's loss and gradients are those of the plain composition, before anything is timed."""
    (plain,) = (rival for other, rival in RIVALS[source].items() if other.endswith("log_softmax + gather"))
    expected, actual = plain(p), RIVALS[source][name](p)
    dtype = p.leaves[0].dtype
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(actual, expected, **tolerance)
    for ours, theirs in zip(p.backward(actual), p.backward(expected), strict=True):
        scale = float(theirs.abs().max())
        bound = 1e-3 if dtype == torch.float32 else 3e-2
        assert float((ours.float() - theirs.float()).abs().max()) <= bound * scale


# --- memory on a CPU ---


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_of_child(source: str, name: str, shape: Shape, dtype: torch.dtype, backward: bool) -> int:
    """Most bytes that a fresh process held during one step beyond its inputs, gradients of the leaves included.

    The resident set counts every page that was touched, by torch's allocator and by the scratch space of MKL and oneDNN
    alike; a process of its own has no freed pages of earlier work to reuse.
    """
    spec = {
        "source": source,
        "name": name,
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "back": backward,
    }
    done = subprocess.run(
        [sys.executable, __file__, "--peak", json.dumps(spec)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def measure_peak(spec: dict[str, Any]) -> int:
    dtype = getattr(torch, spec["dtype"])
    warm = make_problem(spec["source"], Shape(128, 512, spec["shape"][2]), dtype)
    step(spec["source"], spec["name"], warm, spec["back"])()  # thread pools, code of oneDNN
    problem = make_problem(spec["source"], Shape(*spec["shape"]), dtype)
    work = step(spec["source"], spec["name"], problem, spec["back"])
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
    work()
    (high,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(high.split()[1]) * 1024 - before


# --- the record of a run ---


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def conditions() -> dict[str, Any]:
    """Device, versions and commit: what a number means nothing without."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return done.stdout.strip()

    from pope_kernels import native

    # Results that this run has written are no change of what it measures.
    changed = git("status", "--porcelain", "-uno", "--", ".", ":!benchmarks/results")

    return {
        "device": f"{cpu_name()}, {torch.get_num_threads()} threads, {native.isa()}",
        "system": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
        | {"pope-core": pope_core.__version__, "python": platform.python_version()},
        # A copy of the files without their history is told its commit, wherever it lies: the history that git finds
        # around it may be another project's.
        "commit": os.environ.get("POPE_COMMIT")
        or git("rev-parse", "HEAD") + (" with changes" if changed else "")
        or "unknown",
    }


def add_row(file: Path, about: dict[str, Any], row: dict[str, Any]) -> None:
    """Write a row to the results of the same device, driver, versions and commit; results of others are replaced.

    So a run may come in parts, and one that is killed keeps what it has measured.
    """
    run = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if any(run.get(name) != about.get(name) for name in ("device", "driver", "versions", "commit")):
        run = {**about, "rows": []}

    def identity(row: dict[str, Any]) -> str:
        return json.dumps([row.get(name) for name in IDENTITY])

    rows = {identity(row): row for row in [*run["rows"], row]}
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**run, "rows": list(rows.values())}, indent=1) + "\n", encoding="utf-8")


def results_file(kind: str, device: str) -> Path:
    return RESULTS / f"{kind}-{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", type=json.loads, required=True)
    print(measure_peak(parser.parse_args().peak))
