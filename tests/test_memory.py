"""What the ``linear_*`` operations hold, read from torch's own record of allocations: one chunk, whatever N is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import plain
from torch.profiler import ProfilerActivity, profile

import pope_core
from pope_core import _linear
from pope_core.devices import DEVICES
from pope_core.testing import SlateProblem, make_slates
from pope_kernels import native

VOCAB, WIDTH, CHUNK_BYTES = 3001, 8, 1 << 20


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the head as small beside the chunk as they are with the default budget."""
    monkeypatch.setattr(native, "HEAD_BLOCK_BYTES", CHUNK_BYTES // 16)
    monkeypatch.setattr(_linear, "SCALED_ROWS", 16)


def allocations(work: Callable[[], Any]) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) of CPU tensors in ``work``, in order.

    The result of ``work`` stays alive until the end.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    del kept
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    return [size for _, size in sorted(changes, key=lambda change: change[0])]


def peak(changes: list[int]) -> int:
    live = highest = 0
    for size in changes:
        live += size
        highest = max(highest, live)
    return highest


def problem(num_slates: int, dtype: torch.dtype = torch.float32, k: int = 4) -> SlateProblem:
    return make_slates((k,) * num_slates, tokens=(8, 16), vocab=VOCAB, width=WIDTH, dtype=dtype)


def step(p: SlateProblem, *, trains: bool = True, upstream: float = 1.0, **options: Any) -> Callable[[], Any]:
    hidden = p.hidden.clone().requires_grad_()
    weight = p.lm_head_weight.clone().requires_grad_(trains)
    arguments = plain(**{"response_offsets": p.response_offsets, "chunk_bytes": CHUNK_BYTES, **options})

    def run() -> None:
        output = pope_core.linear_pope_loss(hidden, weight, p.labels, *p.log_data, backend="cpu", **arguments)
        (output.loss * upstream).backward()

    run()  # what is made once stays out of the count
    hidden.grad = weight.grad = None  # and so do these: the record may know an address from before
    return run


def beyond_gradients(p: SlateProblem, *, trains: bool = True, heads: float = 1.0, **options: Any) -> int:
    """Peak bytes of a training step less its gradients; ``heads`` counts accumulators of the size of the head."""
    gradients = p.hidden.nbytes + (heads * p.lm_head_weight.nbytes if trains else 0)
    return peak(allocations(step(p, trains=trains, **options))) - int(gradients)


#: What may grow with N: label copies, log-probabilities, log-sum-exps, coefficients, but nothing of width D or V.
BYTES_PER_TOKEN = 100


@pytest.mark.parametrize("num_slates", [8, 64])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trains": False},
        {"weighting": "slate"},
        {"normalization": "slate"},
        {"normalization": "batch"},
        {"upstream": 0.5},
        {"diversity_weight": 0.0, "clip": 1.0},
        {"logit_softcap": 5.0},
    ],
    ids=str,
)
def test_a_training_step_holds_one_chunk_whatever_the_number_of_tokens(
    num_slates: int, options: dict[str, Any]
) -> None:
    p = problem(num_slates)
    rows = CHUNK_BYTES // (4 * VOCAB)
    # Rows being moved, a block of logits being computed, hidden states and their products.
    scratch = 2 * CHUNK_BYTES // 16 + 8 * rows * WIDTH * 4 + 64 * 1024
    assert beyond_gradients(p, **options) <= CHUNK_BYTES + scratch + BYTES_PER_TOKEN * p.labels.numel()


@pytest.mark.parametrize("weighting", ["response", "slate"])
def test_an_oversized_slate_computes_its_logits_twice_and_never_holds_them(weighting: str) -> None:
    p = problem(1, k=64)
    assert p.labels.numel() * VOCAB * 4 > 8 * CHUNK_BYTES
    assert beyond_gradients(p, weighting=weighting) <= CHUNK_BYTES + 300_000


def test_the_gradient_of_a_sixteen_bit_head_costs_one_float32_accumulator() -> None:
    p = problem(8, torch.bfloat16)
    assert beyond_gradients(p, heads=3) <= CHUNK_BYTES + 300_000  # the gradient, and the accumulator of twice its size


@pytest.mark.parametrize(("function", "buffers"), [("linear_pope_loss", 1), ("linear_response_logprobs", 2)])
def test_larger_chunks_of_a_sixteen_bit_head_raise_no_peak(
    function: str, buffers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DEVICES, "cpu", DEVICES["cpu"]._replace(chunk_bytes=1 << 16))
    p = make_slates((4,) * 16, tokens=(8, 16), vocab=VOCAB, width=192, dtype=torch.bfloat16)
    assert p.labels.numel() * 2 * VOCAB > 2 * p.lm_head_weight.nbytes > 4 << 16
    hidden, weight = p.hidden.clone().requires_grad_(), p.lm_head_weight.clone().requires_grad_()

    def run(chunk_bytes: int | None) -> None:
        arguments: dict[str, Any] = {"response_offsets": p.response_offsets, "chunk_bytes": chunk_bytes}
        if function == "linear_pope_loss":
            loss = pope_core.linear_pope_loss(hidden, weight, p.labels, *p.log_data, **plain(**arguments)).loss
        else:
            loss = pope_core.linear_response_logprobs(hidden, weight, p.labels, **arguments).sum()
        (0.5 * loss).backward()

    def measured(chunk_bytes: int | None) -> list[int]:
        hidden.grad = weight.grad = None
        return allocations(lambda: run(chunk_bytes))

    run(None)
    small, default = measured(1 << 16), measured(None)
    about_the_head = [sum(0.8 < size / weight.nbytes <= 1 for size in each) for each in (small, default)]
    assert about_the_head[1] == about_the_head[0] + buffers  # logits of about the size of the head
    assert peak(default) <= peak(small) + 400_000


def test_few_tokens_take_the_room_of_the_accumulator_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "cpu", DEVICES["cpu"]._replace(chunk_bytes=1 << 16))
    p = make_slates((4,) * 8, tokens=(14, 14), vocab=VOCAB, width=256, dtype=torch.bfloat16)
    accumulator = 4 * VOCAB * 256
    logits = 2 * VOCAB * p.labels.numel()
    assert accumulator / 2 < logits < accumulator
    small, default = (allocations(step(p, chunk_bytes=size)) for size in (1 << 16, None))
    assert accumulator in small
    assert accumulator not in default
    assert logits in default
    scaled = p.hidden.nbytes  # by its coefficients: of all rows, not of a chunk's
    assert peak(default) <= peak(small) + scaled


def test_logprobs_hold_one_chunk_in_forward_and_backward() -> None:
    p = problem(64)
    for trains in (True, False):
        hidden, weight = p.hidden.clone().requires_grad_(), p.lm_head_weight.clone().requires_grad_(trains)

        def run(hidden: torch.Tensor = hidden, weight: torch.Tensor = weight) -> None:
            pope_core.linear_response_logprobs(
                hidden, weight, p.labels, response_offsets=p.response_offsets, chunk_bytes=CHUNK_BYTES, backend="cpu"
            ).sum().backward()

        run()
        hidden.grad = weight.grad = None
        # With a frozen head the gradient is formed in the forward and scaled in backward.
        gradients = 2 * p.hidden.nbytes + p.lm_head_weight.nbytes * trains
        assert peak(allocations(run)) - gradients <= CHUNK_BYTES + 300_000 + BYTES_PER_TOKEN * p.labels.numel()


@pytest.mark.parametrize("trains", [True, False], ids=["trained-head", "frozen-head"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_makes_no_second_copy_of_a_gradient(trains: bool, dtype: torch.dtype) -> None:
    """Not even zeros in place of the gradients of outputs that nobody uses."""
    p = make_slates((4,) * 8, tokens=(40, 40), vocab=2000, width=200, dtype=dtype)
    scratch = 2 * _linear.SCALED_ROWS * 200 * 4 + 100_000 + BYTES_PER_TOKEN * p.labels.numel()
    hidden, weight = p.hidden.clone().requires_grad_(), p.lm_head_weight.clone().requires_grad_(trains)
    arguments = {"response_offsets": p.response_offsets, "backend": "cpu"}
    loss = pope_core.linear_pope_loss(hidden, weight, p.labels, *p.log_data, **plain(**arguments)).loss
    assert scratch < min(hidden.nbytes, weight.nbytes) / 1.2
    assert peak(allocations(loss.backward)) <= scratch
    logprobs = pope_core.linear_response_logprobs(hidden, p.lm_head_weight, p.labels, **arguments).sum()
    assert peak(allocations(logprobs.backward)) <= scratch


def test_no_allocation_has_the_size_of_all_logits() -> None:
    p = problem(64)
    whole = p.labels.numel() * VOCAB * 4
    assert max(allocations(step(p))) <= CHUNK_BYTES < whole / 8


def test_scoring_without_gradients_holds_nothing_but_the_chunk() -> None:
    p = problem(64)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return pope_core.linear_pope_loss(
                p.hidden,
                p.lm_head_weight,
                p.labels,
                *p.log_data,
                response_offsets=p.response_offsets,
                chunk_bytes=CHUNK_BYTES,
                backend="cpu",
            ).loss

    run()
    assert peak(allocations(run)) <= CHUNK_BYTES + 64 * 1024 + BYTES_PER_TOKEN * p.labels.numel()


def test_from_logits_the_forward_allocates_nothing_of_their_size_and_backward_only_their_gradient() -> None:
    p = problem(8)
    logits = p.logits.requires_grad_()

    def run() -> torch.Tensor:
        return pope_core.pope_loss(
            logits, p.labels, *p.log_data, response_offsets=p.response_offsets, backend="cpu"
        ).loss

    loss = run()
    assert peak(allocations(run)) < logits.nbytes / 100
    assert peak(allocations(loss.backward)) < 1.01 * logits.nbytes


def test_ignored_positions_of_a_padded_batch_never_reach_the_head() -> None:
    p = problem(8)
    hidden, labels = p.padded(p.hidden, prompt=200)
    hidden.requires_grad_()
    weight = p.lm_head_weight.clone().requires_grad_()

    def run() -> torch.Tensor:
        hidden.grad = weight.grad = None
        pope_core.linear_pope_loss(hidden, weight, labels, *p.log_data, backend="cpu").loss.backward()

    run()
    changes = allocations(run)
    assert max(changes) <= max(p.labels.numel() * VOCAB * 4, hidden.nbytes)
    assert len([size for size in changes if size >= hidden.nbytes]) < 8
