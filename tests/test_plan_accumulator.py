"""The sum of the head's gradient over chunks: which bytes of it are read and written, counted for every plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import plain
from torch.utils._python_dispatch import TorchDispatchMode

from pope_core import _linear, _linear_ops
from pope_core._ops import flattened
from pope_core.testing import make_slates

VOCAB, WIDTH, TOKENS = 101, 16, 15
ENTRIES = VOCAB * WIDTH
#: Operations that overwrite their first argument without reading it.
OVERWRITE = ("copy_", "zero_", "fill_")


class Sums(TorchDispatchMode):
    """Bytes of the gradient's sum that operations of torch read and write."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.read = self.written = 0
        self.sums: list[torch.Tensor] = []
        start = _linear.HeadGradient.__init__

        def watched(gradient: _linear.HeadGradient, *arguments: Any) -> None:
            start(gradient, *arguments)
            self.sums.append(gradient.weight)

        patch.setattr(_linear.HeadGradient, "__init__", watched)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        written, views = (
            set(),
            any(result.alias_info and not result.alias_info.is_write for result in returns(function)),
        )
        for position, argument in enumerate(function._schema.arguments):
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            if views or not self.is_sum(value):
                continue
            nbytes = value.numel() * value.element_size()
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written += nbytes
                written.add(argument.name)
                self.read += 0 if argument.is_out or name in OVERWRITE else nbytes
            elif not (argument.name == "self" and kwargs.get("beta") == 0):
                self.read += nbytes
        return function(*args, **kwargs)

    def is_sum(self, value: Any) -> bool:
        storages = [each.untyped_storage().data_ptr() for each in self.sums]
        return isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() in storages


def returns(function: Any) -> Any:
    return function._schema.returns


@pytest.mark.parametrize(
    ("rows", "chunks", "normalization"),
    [(TOKENS, 1, "none"), (TOKENS, 1, "batch"), (8, 2, "batch"), (5, 3, "batch"), (4, 4, "batch")],
)
def test_the_first_chunk_writes_the_sum_and_others_add_to_it(
    rows: int, chunks: int, normalization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one chunk there is no sum: its product is the gradient, in bfloat16, and is not read again."""
    p = make_slates((1, 2, 3, 2), tokens=(1, 3), vocab=VOCAB, width=WIDTH, dtype=torch.bfloat16)
    assert p.labels.numel() == TOKENS
    objective = flattened(plain(normalization=normalization)["objective"], None)
    head = (1.0, None, rows * VOCAB * 2, "cpu", True, torch.bfloat16)
    tokens = (p.hidden, p.lm_head_weight, None, p.labels, p.response_offsets)
    with Sums(monkeypatch) as sums:
        *_, d_weight, _ = _linear_ops._linear_pope_loss(*tokens, *head, True, True, False, *p.log_data, *objective)
    (total,) = sums.sums
    assert d_weight.dtype == torch.bfloat16
    if chunks == 1:
        assert total.data_ptr() == d_weight.data_ptr()
        assert (sums.written, sums.read) == (2 * ENTRIES, 0)
        return
    assert total.dtype == torch.float32
    assert sums.written == chunks * 4 * ENTRIES
    assert sums.read == (chunks - 1) * 4 * ENTRIES + 4 * ENTRIES  # to add, and once to round


def test_without_a_trained_head_there_is_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    p = make_slates((1, 2, 3, 2), tokens=(1, 3), vocab=VOCAB, width=WIDTH, dtype=torch.bfloat16)
    head = (1.0, None, 8 * VOCAB * 2, "cpu", True, torch.bfloat16)
    tokens = (p.hidden, p.lm_head_weight, None, p.labels, p.response_offsets)
    objective = flattened(plain(normalization="batch")["objective"], None)
    with Sums(monkeypatch) as sums:
        *_, d_weight, _ = _linear_ops._linear_pope_loss(*tokens, *head, True, False, False, *p.log_data, *objective)
    assert sums.sums == []
    assert d_weight.numel() == 0
