"""What only a GPU can show: nothing waits for it, graphs, streams, devices, large sizes, errors that surface."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import plain

import pope_core
from pope_core import backends
from pope_core.testing import TARGETS, SlateProblem, Target, make_slates

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ON_GPU = [target for target in TARGETS if target.device == "cuda"] or [Target("cuda", "cuda")]
every_target = pytest.mark.parametrize("target", ON_GPU, ids=str)
CLIP = plain(clip=2.0)


def problem(device: str = "cuda") -> SlateProblem:
    return make_slates((3, 1, 2), vocab=1031, width=64, dtype=torch.bfloat16).to(device)


def from_logits(p: SlateProblem, target: Target) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    logits = p.logits.detach().requires_grad_()
    arguments = (p.labels, *p.log_data)
    options = {"response_offsets": p.response_offsets, "backend": target.backend, **CLIP}
    return lambda: pope_core.pope_loss(logits, *arguments, **options).loss, [logits]


def from_hidden(p: SlateProblem, target: Target) -> tuple[Callable[[], torch.Tensor], list[torch.Tensor]]:
    leaves = [p.hidden.clone().requires_grad_(), p.lm_head_weight.clone().requires_grad_()]
    arguments = (p.labels, *p.log_data)
    options = {"response_offsets": p.response_offsets, "backend": target.backend, "chunk_bytes": 8 * 1031 * 2, **CLIP}
    return lambda: pope_core.linear_pope_loss(*leaves, *arguments, **options).loss, leaves


both_sources = pytest.mark.parametrize("source", [from_logits, from_hidden])


def step(loss: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def test_auto_takes_the_cuda_kernels_where_they_fit() -> None:
    usable, reason = backends.availability("cuda", "cuda")
    assert backends.select(torch.device("cuda"), None) == ("cuda" if usable else "triton"), reason


@every_target
@both_sources
def test_nothing_waits_for_the_device(source: Any, target: Target) -> None:
    p = problem()
    loss, leaves = source(p, target)
    step(loss, leaves)  # compiles, and reads the offsets once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_target
def test_offsets_on_the_cpu_spare_even_the_first_wait(target: Target) -> None:
    p = problem()
    loss, leaves = from_hidden(p, target)
    expected = step(loss, leaves)
    torch.cuda.synchronize()
    fresh = problem()
    moved = make_slates((3, 1, 2), vocab=1031, width=64, dtype=torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        actual = pope_core.linear_pope_loss(
            *leaves,
            fresh.labels,
            fresh.logging_logprobs,
            fresh.utility,
            moved.slate_offsets,
            response_offsets=moved.response_offsets,
            backend=target.backend,
            **CLIP,
        ).loss
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual.detach(), expected[0])


@every_target
@both_sources
def test_a_captured_graph_replays_with_new_numbers(source: Any, target: Target) -> None:
    p = problem()
    loss, leaves = source(p, target)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step(loss, leaves)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(loss, leaves)
    with torch.no_grad():
        leaves[0].mul_(0.5)
    graph.replay()
    for actual, expected in zip(captured, step(loss, leaves), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@every_target
@both_sources
def test_a_stream_of_ones_own(source: Any, target: Target) -> None:
    p = problem()
    loss, leaves = source(p, target)
    expected = step(loss, leaves)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(20_000_000)  # a kernel on the default stream would run before this ends
        with torch.no_grad():
            for leaf in leaves:
                leaf.add_(1.0)
                leaf.sub_(1.0)
        actual = step(loss, leaves)
    side.synchronize()
    assert all(tensor.isfinite().all() for tensor in actual)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-2, atol=1e-2)


@every_target
def test_the_upstream_gradient_multiplies_in_float32(target: Target) -> None:
    """A tensor without dimensions would be rounded to bfloat16 first, and shift the whole gradient of the head."""
    p = problem("cuda")
    grads = []
    for upstream in (0.5, 1 / 3):
        hidden, weight = (t.detach().clone().requires_grad_() for t in (p.hidden, p.lm_head_weight))
        loss = pope_core.linear_pope_loss(
            hidden, weight, p.labels, *p.log_data, response_offsets=p.response_offsets, backend=target.backend
        ).loss
        (upstream * loss).backward()
        assert weight.grad is not None
        grads.append(weight.grad.double())
    ratio = float((grads[1] * grads[0]).sum() / (grads[0] ** 2).sum())
    assert ratio == pytest.approx(2 / 3, rel=6e-4)  # 2e-4 on a CPU; with the factor rounded 1.8e-3


@every_target
@both_sources
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_tensors_of_another_device_than_the_current(source: Any, target: Target) -> None:
    expected = step(*source(problem("cuda:0"), target))
    actual = step(*source(problem("cuda:1"), target))
    for other, one in zip(actual, expected, strict=True):
        assert other.device.index == 1
        torch.testing.assert_close(other.cpu(), one.cpu())


@every_target
def test_more_logits_than_32_bits_count(target: Target) -> None:
    rows, cols = 16_500, 131_072  # 2.16e9 elements, 4.3 GB
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("needs 14 GB")
    logits = torch.zeros(rows, cols, dtype=torch.bfloat16, device="cuda")
    labels = torch.full((rows,), 7, device="cuda")
    logits[-1, 7] = 3.0
    logits.requires_grad_()
    offsets = torch.tensor([0, rows - 1, rows], device="cuda")
    logprobs = pope_core.response_logprobs(
        logits, labels, response_offsets=offsets, reduction="mean", backend=target.backend
    )
    last = 3.0 - torch.tensor(cols - 1 + torch.e**3).log()
    torch.testing.assert_close(logprobs.cpu().detach(), torch.stack([-torch.tensor(float(cols)).log(), last]))
    logprobs[1].backward()
    assert logits.grad is not None
    assert not logits.grad[:-1].any()
    torch.testing.assert_close(logits.grad[-1, 7].float().cpu(), 1 - last.exp(), rtol=1e-2, atol=0)


BAD_LABEL = """
import torch, pope_core
from pope_core.testing import make_slates
p = make_slates().to("cuda")
p.labels[2] = 10**6
out = pope_core.pope_loss(p.logits, p.labels, *p.log_data, response_offsets=p.response_offsets, backend=BACKEND)
torch.cuda.synchronize()
"""


@every_target
@pytest.mark.parametrize("checked", [False, True])
def test_bad_labels_stop_the_process_with_the_reason(target: Target, checked: bool) -> None:
    code = BAD_LABEL.replace("BACKEND", repr(target.backend))
    environment = {**os.environ, "POPE_CHECK": str(int(checked))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    reason = "got 1000000 at token 2" if checked else "run with POPE_CHECK=1 to be told where"
    assert reason in done.stderr
