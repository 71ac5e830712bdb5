"""The POPE loss on a GPU against what others offer for the same job, side by side in one run: time and peak memory.

``pytest benchmarks/bench_gpu.py`` writes ``results/gpu-*.json`` row by row, so that parts of it (``-k``) add up. Every
row is checked against its plain formula before it is timed, on a small problem and on the one that is timed, and its
error there is kept beside its time; a rival that does not import or does not agree is skipped with its reason, which
the results keep. Times are of CUDA events, the median of ten rounds after three of warm-up, with the quartiles; a round
takes the next of several problems that together exceed the last-level cache four times. The rates of a matrix product
and of a copy are measured in the same run, and floors are stated in them.

Without a GPU only the checks run, on CPU tensors, for the rivals that take them.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import rivals_gpu
import torch
from gpu_timing import device_rates, interleaved_times, spread
from harness import Problem, Shape
from hidden_states import FILE, HOW, States, load_states
from nearest_gpu import NEAREST
from rivals_gpu import Case, Loss

from pope_core import offsets_from_lengths, response_logprobs

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
RIVALS = {**rivals_gpu.RIVALS, "hidden": {**rivals_gpu.RIVALS["hidden"], **NEAREST}}


class Workload(NamedTuple):
    """A shape and how its tokens fall into responses: equal lengths, or the long-tailed ones of real answers.

    ``states`` says which model's hidden states on which text these are; random ones without it.
    """

    shape: Shape
    ragged: bool = False
    states: str = ""

    def __str__(self) -> str:
        return f"{self.shape}{', ragged' if self.ragged else ''}{', real' if self.states else ''}"


def real_workloads() -> list[Workload]:
    states = load_states()
    if states is None:
        return []
    (tokens, width), (vocab, _) = states["hidden"].shape, states["head"].shape
    return [Workload(Shape(tokens, vocab, width), ragged=True, states=states["model"])]


WORKLOADS = {
    "logits": [Workload(Shape(8192, 128256, 0)), Workload(Shape(8192, 128256, 0), ragged=True)],
    "hidden": [
        Workload(Shape(8192, 128256, 2048)),
        Workload(Shape(8192, 128256, 4096)),
        Workload(Shape(8192, 262144, 2304)),
        Workload(Shape(8192, 128256, 2048), ragged=True),
        *real_workloads(),
    ],
}
#: Divisible by what kernels that are chosen by shape want, so that what is checked is what is timed.
SMALL = Shape(512, 1024, 256)


def lengths_of(workload: Workload, generator: torch.Generator) -> list[int]:
    """Tokens per response: 128 each, or log-normal with median 100 and a tail to 1000, cut to the total."""
    total = workload.shape.tokens
    if not workload.ragged:
        return [min(128, total)] * (total // min(128, total))
    lengths: list[int] = []
    while (left := total - sum(lengths)) > 0:
        draw = float(torch.empty(()).log_normal_(4.6, 0.8, generator=generator))
        lengths.append(min(left, max(4, min(1000, int(draw * min(1.0, total / 1024))))))
    return lengths


def make_case(source: str, workload: Workload, trainable: bool, device: str, seed: int) -> Case:
    """bfloat16 leaves, as training has them; logits about as peaked as a trained model's, or those of one."""
    if workload.states:
        states = load_states()
        assert states is not None
        return real_case(states, trainable, device)
    shape = workload.shape
    host = torch.Generator().manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int, scale: float, grad: bool = True) -> torch.Tensor:
        values = torch.empty(size, dtype=torch.bfloat16, device=device)
        return values.normal_(0.0, scale, generator=generator).requires_grad_(grad)

    if source == "logits":
        leaves = [normal(shape.tokens, shape.vocab, scale=2.0)]
    else:
        hidden = normal(shape.tokens, shape.width, scale=1.0)
        leaves = [hidden, normal(shape.vocab, shape.width, scale=2.0 * shape.width**-0.5, grad=trainable)]
    lengths = lengths_of(workload, host)
    responses = len(lengths)
    sizes = [4] * (responses // 4) + [responses % 4] * (responses % 4 > 0)
    problem = Problem(
        leaves=leaves,
        labels=torch.randint(0, shape.vocab, (shape.tokens,), generator=generator, device=device),
        response_offsets=offsets_from_lengths(lengths).to(device),
        logging_logprobs=-13.0 * torch.as_tensor(lengths, dtype=torch.float32, device=device),
        utility=torch.rand(responses, generator=generator, device=device),
        slate_offsets=offsets_from_lengths(sizes).to(device),
    )
    return Case.of(problem)


def real_case(states: States, trainable: bool, device: str) -> Case:
    problem = Problem(
        leaves=[
            states["hidden"].to(device, copy=True).requires_grad_(),
            states["head"].to(device, copy=True).requires_grad_(trainable),
        ],
        labels=states["labels"].to(device),
        response_offsets=states["response_offsets"].to(device),
        logging_logprobs=states["logging_logprobs"].to(device),
        utility=states["utility"].to(device),
        slate_offsets=states["slate_offsets"].to(device),
    )
    return Case.of(problem)


# --- checks ---


def outcome(loss: Loss, case: Case) -> list[torch.Tensor]:
    """The loss, and its gradients in the leaves that want one."""
    value = loss(case)
    wanted = [leaf for leaf in case.problem.leaves if leaf.requires_grad]
    return [value.detach(), *torch.autograd.grad(value, wanted)]


@functools.lru_cache(maxsize=len({rival.plain for rival in RIVALS["hidden"].values()}))
def expected(
    plain: Loss, source: str, workload: Workload, trainable: bool, device: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a plain formula gives of precise copies (float64, or float32 of a large problem), and of bfloat16."""
    case, precise = (make_case(source, workload, trainable, device, seed=1) for _ in range(2))
    dtype = torch.float64 if workload.shape == SMALL else torch.float32
    precise.problem.leaves = [
        leaf.detach().to(dtype).requires_grad_(leaf.requires_grad) for leaf in case.problem.leaves
    ]
    return outcome(plain, precise), outcome(plain, case)


def check(source: str, name: str, workload: Workload, trainable: bool, device: str) -> dict[str, float]:
    """Loss and gradients against the plain formula of precise copies: no worse than three times bfloat16's own.

    Returns the relative errors: of the loss, and of the gradient by its norm, the larger of the leaves'.
    """
    rival = RIVALS[source][name]
    truth, plain = expected(rival.plain, source, workload, trainable, device)
    actual = outcome(rival.run, make_case(source, workload, trainable, device, seed=1))
    relative = []
    for exact, reference, got in zip(truth, plain, actual, strict=True):
        scale = float(exact.abs().max())
        error = float((got.to(exact.dtype) - exact).abs().max()) / scale
        allowed = 3 * float((reference.to(exact.dtype) - exact).abs().max()) / scale + 2e-2
        assert error <= allowed, f"{name}: error {error:.2e} of the largest element, allowed {allowed:.2e}"
        relative.append(float((got.to(exact.dtype) - exact).norm() / exact.norm()))
    return {"loss_error": relative[0], "gradient_error": max(relative[1:])}


@functools.cache
def entry(source: str, name: str, workload: Workload, trainable: bool) -> tuple[str | None, dict[str, float]]:
    """Why a rival cannot take part, or None; and its errors on this workload."""
    try:
        check(source, name, Workload(SMALL, workload.ragged), trainable, DEVICE)
        return None, check(source, name, workload, trainable, DEVICE)
    except Exception as error:  # whatever a rival raises is its reason
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300], {}


def stop_if_broken(name: str) -> None:
    """After an illegal access by one rival every later call fails: end here, and do not blame the others."""
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"{name} broke the CUDA context; go on without it (-k 'not ...'): {error}", returncode=3)


# --- measurements ---


def floor_ms(source: str, shape: Shape, trainable: bool, backward: bool) -> float:
    """The least that any implementation spends: bytes of the logits, or FLOP of the products."""
    rates = device_rates()
    if source == "logits":
        passes = 3 if backward else 1
        return passes * shape.tokens * shape.vocab * 2 / rates["copy_tbps"] / 1e9
    products = 1 + (backward and (2 if trainable else 1))
    return products * 2 * shape.tokens * shape.vocab * shape.width / rates["gemm_tflops"] / 1e9


def cases_beyond_cache(source: str, workload: Workload, trainable: bool) -> list[Case]:
    first = make_case(source, workload, trainable, DEVICE, seed=0)
    size = sum(leaf.nbytes for leaf in first.problem.leaves)
    copies = -(-4 * torch.cuda.get_device_properties("cuda").L2_cache_size // size)
    return [first, *(make_case(source, workload, trainable, DEVICE, seed) for seed in range(1, copies))]


def floor_of(source: str, case: Case, backward: bool) -> Callable[[int], object]:
    """The least work of a row: its products into memory that is there, or as many bytes as it reads and writes."""
    leaves = [leaf.detach() for leaf in case.problem.leaves]
    if source == "logits":  # a copy reads and writes, so half of it stands for the forward's one read
        some = leaves[0].flatten()[: leaves[0].numel() // (1 if backward else 2)]
        rest = leaves[0].flatten()[: leaves[0].numel() // 2] if backward else some[:0]
        out = torch.empty_like(some)
        return lambda _: (out.copy_(some), out[: rest.numel()].copy_(rest))
    hidden, weight = leaves
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    of_hidden, of_weight = torch.empty_like(hidden), torch.empty_like(weight)
    trained = case.problem.leaves[1].requires_grad

    def products(_: int) -> None:
        torch.mm(hidden, weight.t(), out=logits)
        if backward:
            torch.mm(logits, weight, out=of_hidden)
            if trained:
                torch.mm(logits.t(), hidden, out=of_weight)

    return products


def measure(source: str, name: str, cases: list[Case], backward: bool) -> dict[str, Any]:
    run = RIVALS[source][name].run

    def work(i: int) -> None:
        case = cases[i % len(cases)]
        if backward:
            outcome(run, case)
        else:
            with torch.no_grad():
                run(case)

    work(0)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work(0)
    torch.cuda.synchronize()
    held = sum(leaf.nbytes for leaf in cases[0].problem.leaves if leaf.requires_grad) if backward else 0
    times, floor = interleaved_times(work, floor_of(source, cases[0], backward))
    return {
        **spread(times),
        "floor_ms": statistics.median(floor),
        "peak_bytes": torch.cuda.max_memory_allocated() - before,
        "gradient_bytes": held,
    }


ROWS = [
    (source, workload, trainable, backward, name)
    for source, workloads in WORKLOADS.items()
    for workload in workloads
    for trainable in ((True,) if source == "logits" else (True, False))
    for backward in (False, True)
    if trainable or backward
    for name in RIVALS[source]
]


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no CUDA device")
@pytest.mark.parametrize(("source", "workload", "trainable", "backward", "name"), ROWS, ids=str)
def bench_gpu_loss(
    record_gpu: Callable[..., None], source: str, workload: Workload, trainable: bool, backward: bool, name: str
) -> None:
    # What was compiled for earlier shapes counts against the limit after which torch gives up compiling.
    torch._dynamo.reset()
    row = {
        "source": source,
        "name": name,
        "job": RIVALS[source][name].job,
        "shape": workload.shape._asdict(),
        "ragged": workload.ragged,
        "states": workload.states,
        "dtype": "bfloat16",
        "trainable": trainable,
        "backward": backward,
        "floor_ms": floor_ms(source, workload.shape, trainable, backward),
    }
    reason, errors = entry(source, name, workload, trainable)
    if reason is not None:
        record_gpu(**row, skipped=reason)
        stop_if_broken(name)
        pytest.skip(reason)
    cases = cases_beyond_cache(source, workload, trainable)
    try:
        row |= measure(source, name, cases, backward)
    except torch.cuda.OutOfMemoryError as error:
        record_gpu(**row, skipped="out of memory")
        pytest.skip(str(error).splitlines()[0])
    record_gpu(**row, **errors, fraction_of_floor=row["floor_ms"] / row["median_ms"])


@pytest.mark.parametrize("trainable", [True, False], ids=["trainable", "frozen"])
@pytest.mark.parametrize(("source", "name"), [(source, name) for source in RIVALS for name in RIVALS[source]], ids=str)
def bench_rivals_agree(source: str, name: str, trainable: bool) -> None:
    """Every rival that runs here computes its plain formula's loss and gradients."""
    if source == "logits" and not trainable:
        pytest.skip("logits have no head to freeze")
    if name.startswith("pope_core") and not GPU:
        pytest.skip("no CUDA device")
    same_job = not RIVALS[source][name].job  # the others take responses of one length
    try:
        check(source, name, Workload(SMALL, ragged=same_job), trainable, DEVICE)
    except AssertionError:
        raise
    except Exception as error:
        pytest.skip(f"{type(error).__name__}: {str(error)[:200]}")


def bench_real_states_are_what_they_say() -> None:
    """The file of a model's states holds the log-probabilities that its states and its head give."""
    states = load_states()
    if states is None:
        pytest.skip(f"no rows of a real model: {FILE} is not here; {HOW} makes it, where there is one")
    offsets = states["response_offsets"][:5]
    rows = slice(int(offsets[-1]))
    logits = states["hidden"][rows].float() @ states["head"].float().t()
    logprobs = response_logprobs(logits, states["labels"][rows], response_offsets=offsets, reduction="sum")
    torch.testing.assert_close(logprobs, states["logging_logprobs"][:4], rtol=1e-4, atol=1e-4)
