"""Kernels that several threads call at once, each with threads of its own, compute what one thread alone computes.

`make sanitize` runs this file under ThreadSanitizer, which also sees two threads that write the same value.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pope_core
from pope_core.testing import make_slates
from pope_kernels import native

#: The kernels use one thread for each 32,768 logits, so three need a large vocabulary.
LARGE = {"slate_sizes": (3, 4), "tokens": (5, 9), "vocab": 4099}


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def step(dtype: torch.dtype) -> list[torch.Tensor]:
    """Losses and gradients from logits and from hidden states: every kernel runs."""
    p = make_slates(**LARGE, dtype=dtype)
    results = []
    for source, loss in (("logits", pope_core.pope_loss), ("hidden", pope_core.linear_pope_loss)):
        rows = getattr(p, source).detach().clone().requires_grad_()
        head = () if source == "logits" else (p.lm_head_weight,)
        out = loss(rows, *head, p.labels, *p.log_data, response_offsets=p.response_offsets, backend="cpu")
        out.loss.backward()
        results += [out.loss.detach(), rows.grad]
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_callers_do_not_disturb_one_another(three_threads: None, dtype: torch.dtype) -> None:
    alone = step(dtype)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(step, [dtype] * 8))
    assert all(torch.equal(ours, theirs) for results in together for ours, theirs in zip(results, alone))


def test_the_instruction_set_may_change_while_kernels_run(three_threads: None) -> None:
    alone = step(torch.float32)
    try:
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(step, torch.float32) for _ in range(6)]
            while not all(task.done() for task in running):
                native.use_isa("baseline")
                native.use_isa("auto")
    finally:
        native.use_isa("auto")
    for task in running:
        for ours, theirs in zip(task.result(), alone):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
