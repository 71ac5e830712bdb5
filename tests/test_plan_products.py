"""The planner forms as many matrix products as docs/kernels.md says, counted in FLOP; rows without weight join none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain import plain
from torch.utils.flop_counter import FlopCounterMode

import pope_core
from pope_core import _linear, _linear_ops
from pope_core._offsets import Offsets, both
from pope_core._ops import flattened
from pope_core._plan import front_order
from pope_core.testing import SlateProblem, make_slates
from pope_kernels import native

VOCAB, WIDTH = 37, 8


@pytest.fixture(autouse=True)
def _countable_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter knows torch.mm, not oneDNN's linear."""
    monkeypatch.setattr(native, "PREFER_ONEDNN", False)


def products(p: SlateProblem, *, rows: int = 12, needs: tuple[bool, bool, bool], **options: Any) -> float:
    """Products of ``[N, D]`` with ``[D, V]`` (2NDV FLOP each) that one call of the operator forms."""
    objective = flattened(plain(**options)["objective"], None)
    head = (1.0, None, rows * VOCAB * 4, "cpu", True, torch.float32)
    tokens = (p.hidden, p.lm_head_weight, None, p.labels, p.response_offsets)
    with FlopCounterMode(
        display=False
    ) as counter:  # around the implementation: the counter does not see into operators
        _linear_ops._linear_pope_loss(*tokens, *head, *needs, *p.log_data, *objective)
    return counter.get_total_flops() / (2 * p.labels.numel() * VOCAB * WIDTH)


FORWARD, FROZEN, TRAINABLE = (False, False, False), (True, False, False), (True, True, False)


@pytest.mark.parametrize(
    ("needs", "options", "expected"),
    [
        (FORWARD, {}, 1),
        (FROZEN, {}, 2),
        (TRAINABLE, {}, 3),
        ((False, True, False), {}, 2),
        (TRAINABLE, {"weighting": "slate"}, 3),
        (TRAINABLE, {"normalization": "slate"}, 3),
        (TRAINABLE, {"normalization": "batch"}, 3 + 8 / 15),  # chunks of 8 and 7 tokens, the first of them twice
        (FROZEN, {"normalization": "batch"}, 2),
    ],
)
def test_number_of_products(needs: tuple[bool, bool, bool], options: dict[str, Any], expected: int) -> None:
    p = make_slates((1, 2, 3, 2), tokens=(1, 3), vocab=VOCAB, width=WIDTH)
    assert products(p, needs=needs, **options) == pytest.approx(expected)


def test_in_one_chunk_everything_is_known_at_once_and_batch_normalisation_costs_no_product() -> None:
    p = make_slates((1, 2, 3, 2), tokens=(1, 3), vocab=VOCAB, width=WIDTH)
    rows = p.labels.numel()
    assert products(p, rows=rows, needs=TRAINABLE, normalization="batch") == pytest.approx(3)
    assert products(p, rows=rows - 1, needs=TRAINABLE, normalization="batch") == pytest.approx(3 + 8 / 15)


def test_only_the_first_chunks_of_an_oversized_slate_are_computed_twice() -> None:
    p = make_slates((1, 4, 1), tokens=(5, 5), vocab=VOCAB, width=WIDTH)  # 5 + 20 + 5 tokens; 20 = 10 + 10 in the buffer
    assert products(p, rows=10, needs=TRAINABLE, weighting="slate") == pytest.approx(3 + 10 / 30)


def test_a_frozen_head_pays_nothing_for_an_oversized_slate() -> None:
    p = make_slates((1, 4, 1), tokens=(5, 5), vocab=VOCAB, width=WIDTH)
    assert products(p, rows=10, needs=FROZEN, weighting="slate") == pytest.approx(2)


@pytest.mark.parametrize("needs", [FROZEN, TRAINABLE])
def test_unrewarded_responses_join_no_gradient_product(needs: tuple[bool, bool, bool]) -> None:
    p = make_slates((3, 1, 4), tokens=(4, 4), vocab=VOCAB, width=WIDTH)
    p.utility[1::2] = 0.0
    assert products(p, needs=needs, diversity_weight=0.0) == pytest.approx(1 + sum(needs) / 2)


def test_a_batch_without_rewards_has_no_gradient_product_and_zero_gradients() -> None:
    p = make_slates((2, 2), tokens=(2, 4), vocab=VOCAB, width=WIDTH)
    p.utility.zero_()
    assert products(p, needs=TRAINABLE, diversity_weight=0.0) == pytest.approx(1)
    hidden, head = p.hidden.requires_grad_(), p.lm_head_weight.requires_grad_()
    arguments = (p.labels, *p.log_data)
    pope_core.linear_pope_loss(
        hidden, head, *arguments, response_offsets=p.response_offsets, **plain(diversity_weight=0.0)
    ).loss.backward()
    for leaf in (hidden, head):
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("chunk_rows", [3, 5, 64])
@pytest.mark.parametrize("normalization", ["none", "slate", "batch"])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_with_clipped_and_unrewarded_responses(chunk_rows: int, normalization: str, bias: bool) -> None:
    p = make_slates((3, 1, 2, 5), tokens=(1, 6), vocab=VOCAB, width=WIDTH, dtype=torch.float64)
    p.utility[::3] = 0.0
    options: dict[str, Any] = {"diversity_weight": 0.0, "clip": 0.8, "normalization": normalization}
    grads = []
    for backend in ("reference", "cpu"):
        inputs = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head_weight, p.lm_head_bias)]
        output = pope_core.linear_pope_loss(
            *inputs[:2],
            p.labels,
            *p.log_data,
            lm_head_bias=inputs[2] if bias else None,
            response_offsets=p.response_offsets,
            chunk_bytes=chunk_rows * VOCAB * 8,
            backend=backend,
            **plain(**options),
        )
        (1.7 * output.loss).backward()
        grads.append([t.grad for t in inputs[: 2 + bias]])
    for actual, expected in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_the_operator_sees_the_callers_own_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Host copies of device offsets are kept per tensor object: a copy made on the way would be read back each time."""
    seen: list[torch.Tensor] = []

    def spy(offsets: torch.Tensor, device: torch.device) -> Offsets:
        seen.append(offsets)
        return both(offsets, device)

    monkeypatch.setattr(_linear, "both", spy)
    monkeypatch.setattr(_linear_ops, "both", spy)
    p = make_slates(vocab=VOCAB, width=WIDTH)
    hidden = p.hidden.requires_grad_()
    arguments = (p.labels, *p.log_data)
    pope_core.linear_pope_loss(hidden, p.lm_head_weight, *arguments, response_offsets=p.response_offsets)
    assert len(seen) == 2
    assert {id(offsets) for offsets in seen} == {id(p.response_offsets), id(p.slate_offsets)}


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_front_order_moves_kept_rows_to_the_front_with_the_fewest_moves(keep: list[bool]) -> None:
    rows = torch.arange(len(keep))
    mask = torch.tensor(keep)
    order, holes, movers = front_order(mask)
    moved = rows.clone()
    moved[holes] = rows[movers]
    assert moved[: order.numel()].equal(order)
    assert sorted(order.tolist()) == rows[mask].tolist()
    assert holes.numel() == movers.numel() == int((~mask[: order.numel()]).sum())
