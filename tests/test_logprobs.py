"""Log-probabilities from logits: as exact as plain PyTorch in the same dtype, whatever the shape, layout and CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pope_core
from pope_core.testing import TARGETS, SlateProblem, Target, assert_no_worse_than_reference, make_slates
from pope_kernels import native
from pope_kernels.values import accumulation_dtype

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)

SHAPES = {
    "one token": {"slate_sizes": (1,), "tokens": (1, 1)},
    "one response": {"slate_sizes": (1,), "tokens": (9, 9)},
    "k = 1": {"slate_sizes": (1, 1, 1, 1)},
    "k = 64": {"slate_sizes": (64, 3), "tokens": (1, 3)},
    "one word": {"vocab": 1},
    "two words": {"vocab": 2},
    "one block of the kernel": {"vocab": 2048},
    "one more than a block": {"vocab": 2049},
    "a prime vocabulary": {"vocab": 4099},
    "many tokens": {"slate_sizes": (2, 3), "tokens": (60, 90), "vocab": 131},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def plain_response_logprobs(logits: torch.Tensor, labels: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The composition people write, in the dtype of the logits."""
    token = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return torch.stack([run.mean() for run in token.split(offsets.diff().tolist())])


def with_gradient(function: Any, logits: torch.Tensor, upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.detach().clone().requires_grad_()
    result = function(logits)
    return result.detach(), torch.autograd.grad(result, logits, upstream.to(result.dtype))[0]


def assert_exact(target: Target, p: SlateProblem, logits: torch.Tensor) -> None:
    """Forward and gradient against float64, measured by the plain composition in the same dtype."""
    upstream = torch.linspace(-2.0, 3.0, p.utility.numel(), device=logits.device)
    offsets = p.response_offsets
    truth = with_gradient(lambda x: plain_response_logprobs(x, p.labels, offsets), logits.double(), upstream)
    plain = with_gradient(lambda x: plain_response_logprobs(x, p.labels, offsets), logits, upstream)
    actual = with_gradient(
        lambda x: pope_core.response_logprobs(
            x, p.labels, response_offsets=offsets, reduction="mean", backend=target.backend
        ),
        logits,
        upstream,
    )
    assert actual[0].dtype == torch.float32
    assert actual[1].dtype == logits.dtype
    for ours, theirs, exact in zip(actual, plain, truth):
        assert_no_worse_than_reference(ours, theirs, exact)


@every_target
@every_dtype
@every_shape
def test_no_worse_than_plain_pytorch(target: Target, dtype: torch.dtype, shape: dict[str, Any]) -> None:
    p = make_slates(**shape).to(target.device)
    assert_exact(target, p, (3 * p.logits).to(dtype))


@every_target
@every_dtype
def test_no_worse_than_plain_pytorch_for_large_logits(target: Target, dtype: torch.dtype) -> None:
    p = make_slates(vocab=301).to(target.device)
    assert_exact(target, p, (300 * p.logits).to(dtype))
    assert_exact(target, p, (3 * p.logits + 1000).to(dtype))


@pytest.fixture
def restore_isa() -> Iterator[None]:
    yield
    native.use_isa("auto")


@pytest.mark.usefixtures("restore_isa")
@every_dtype
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_no_worse_than_plain_pytorch_on_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    if not native.use_isa(isa):
        pytest.skip(f"this CPU has no {isa}")
    assert native.isa() == isa
    for vocab in (5, 37, 2049):
        p = make_slates(vocab=vocab)
        assert_exact(Target("cpu"), p, (3 * p.logits).to(dtype))


@pytest.mark.usefixtures("restore_isa")
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_sixteen_bit_conversions_are_those_of_torch(isa: str) -> None:
    """The gradient of ``[x, y]`` with one label is ``c (1 - p)`` and ``-c (1 - p)``: any number, rounded once."""
    if not native.use_isa(isa):
        pytest.skip(f"this CPU has no {isa}")
    coefficients = torch.cat([10.0 ** torch.arange(-9, 5), torch.rand(200, generator=torch.Generator().manual_seed(0))])
    labels = torch.zeros(coefficients.numel(), dtype=torch.int64)
    for dtype in (torch.bfloat16, torch.float16):
        logits = torch.zeros(coefficients.numel(), 2, dtype=dtype)
        lse = torch.full_like(coefficients, math.log(2), dtype=torch.float64)
        out = native.logit_gradient(logits, labels, lse, coefficients, torch.empty_like(logits))
        assert torch.equal(out[:, 0], (coefficients / 2).to(dtype))
        assert torch.equal(out[:, 1], (-coefficients / 2).to(dtype))


def test_an_unknown_instruction_set_is_refused() -> None:
    before = native.isa()
    assert not native.use_isa("sse9")
    assert native.isa() == before


@every_target
def test_gradcheck(target: Target) -> None:
    p = make_slates(dtype=torch.float64, vocab=11).to(target.device)
    logits = p.logits.requires_grad_()
    for reduction in ("sum", "mean", "none"):
        torch.autograd.gradcheck(
            lambda x, reduction=reduction: pope_core.response_logprobs(
                x, p.labels, response_offsets=p.response_offsets, reduction=reduction, backend=target.backend
            ),
            logits,
            fast_mode=str(target) == "triton-interpreted",  # along one direction, not along every logit
        )


@every_target
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_gradient_of_a_nearly_certain_token_is_not_lost(target: Target, dtype: torch.dtype) -> None:
    """At p = 0.999, rounding p to bfloat16 before subtracting it from 1 would leave a gradient of zero."""
    p = torch.tensor([0.9, 0.99, 0.999, 0.9999], dtype=torch.float64)
    logits = torch.stack([(p / (1 - p)).log(), torch.zeros_like(p)], 1).to(target.device, dtype).requires_grad_()
    labels = torch.zeros(4, dtype=torch.int64, device=target.device)
    offsets = torch.arange(5, device=target.device)
    pope_core.response_logprobs(logits, labels, response_offsets=offsets, backend=target.backend).sum().backward()
    exact = 1 - logits.detach().double().softmax(-1)[:, 0]
    torch.testing.assert_close(logits.grad[:, 0].double(), exact, rtol=torch.finfo(dtype).eps + 1e-3, atol=0)
    torch.testing.assert_close(logits.grad[:, 1], -logits.grad[:, 0], rtol=torch.finfo(dtype).eps + 1e-3, atol=0)


@every_target
def test_a_certain_token_has_logprob_zero_and_no_gradient(target: Target) -> None:
    logits = torch.tensor([[200.0, 0.0, -50.0]], device=target.device, requires_grad=True)
    labels, offsets = (torch.tensor(x, device=target.device) for x in ([0], [0, 1]))
    result = pope_core.response_logprobs(logits, labels, response_offsets=offsets, backend=target.backend)
    result.backward()
    assert result.item() == 0.0
    assert logits.grad.abs().max() < 1e-30


@every_target
@every_dtype
def test_forbidden_words_take_no_part(target: Target, dtype: torch.dtype) -> None:
    """A mask of -inf over the vocabulary, as constrained decoding leaves it."""
    p = make_slates(vocab=40).to(target.device)
    allowed = p.logits.to(dtype)
    masked = torch.cat([allowed, allowed.new_full((allowed.shape[0], 29), -torch.inf)], 1).requires_grad_()
    arguments = {"response_offsets": p.response_offsets, "backend": target.backend}
    result = pope_core.response_logprobs(masked, p.labels, **arguments)
    torch.testing.assert_close(result, pope_core.response_logprobs(allowed, p.labels, **arguments))
    result.sum().backward()
    assert masked.grad.isfinite().all()
    assert masked.grad[:, 40:].abs().max().item() < 1e-30


def transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous().t()


def strided_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x + 1], 1)[:, : x.shape[1]]


def every_other_column(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 1)[:, ::2]


def misaligned(x: torch.Tensor) -> torch.Tensor:
    """Starts one element after an allocation, so no row is aligned to a vector or even to 4 bytes."""
    storage = x.new_empty(x.numel() + 1)
    storage[1:] = x.flatten()
    return storage[1:].view(x.shape)


def same_numbers(target: Target, dtype: torch.dtype) -> dict[str, float]:
    """Bits where docs/kernels.md promises them for equal numbers at other addresses, else a few units of rounding."""
    if target.device == "cpu":
        return {"rtol": 0, "atol": 0}
    return {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(accumulation_dtype(dtype)).eps}


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [transposed, strided_rows, every_other_column, misaligned])
def test_the_memory_layout_of_the_logits_does_not_matter(target: Target, dtype: torch.dtype, layout: Any) -> None:
    p = make_slates().to(target.device)
    logits = p.logits.to(dtype)
    arguments = {"response_offsets": p.response_offsets, "backend": target.backend}
    upstream = torch.linspace(-1, 1, p.utility.numel(), device=target.device)

    def call(x: torch.Tensor) -> torch.Tensor:
        return pope_core.response_logprobs(layout(x), p.labels, **arguments)

    expected = with_gradient(lambda x: pope_core.response_logprobs(x, p.labels, **arguments), logits, upstream)
    torch.testing.assert_close(with_gradient(call, logits, upstream), expected, **same_numbers(target, dtype))


@every_target
def test_one_row_may_stand_for_many(target: Target) -> None:
    p = make_slates(tokens=(2, 2), slate_sizes=(2, 1)).to(target.device)
    row = p.logits[:1].clone().requires_grad_()
    arguments = {"response_offsets": p.response_offsets, "backend": target.backend}
    upstream = torch.tensor([1.0, 2.0, 4.0], device=target.device)
    expanded = pope_core.response_logprobs(row.expand(6, -1), p.labels, **arguments)
    copied = pope_core.response_logprobs(row.repeat(6, 1), p.labels, **arguments)
    gradients = [torch.autograd.grad(result @ upstream, row)[0] for result in (expanded, copied)]
    torch.testing.assert_close(expanded, copied, **same_numbers(target, torch.float32))
    torch.testing.assert_close(*gradients)


@every_target
def test_indices_may_be_int32_and_strided(target: Target) -> None:
    p = make_slates().to(target.device)
    expected = pope_core.response_logprobs(p.logits, p.labels, response_offsets=p.response_offsets)
    labels = torch.stack([p.labels, p.labels * 0], 1).int()[:, 0]
    actual = pope_core.response_logprobs(
        p.logits, labels, response_offsets=p.response_offsets.int(), backend=target.backend
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads: int) -> None:
    p = make_slates(vocab=301)
    before = torch.get_num_threads()
    upstream = torch.linspace(-1, 1, p.utility.numel())

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return with_gradient(
            lambda x: pope_core.response_logprobs(x, p.labels, response_offsets=p.response_offsets, backend="cpu"),
            p.logits,
            upstream,
        )

    expected = run()
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected))
    finally:
        torch.set_num_threads(before)
