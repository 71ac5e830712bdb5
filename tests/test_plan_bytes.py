"""With exponentials in the epilogue nothing passes over [N, V] but the products: bytes of E, counted one by one.

Triton's interpreter sees every address that a kernel loads from or stores to, and a dispatch mode every operation of
torch; what falls into the buffer of E is counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from plain import plain
from torch.utils._python_dispatch import TorchDispatchMode

from pope_core import _linear_ops, backends
from pope_core._ops import flattened
from pope_core.testing import TARGETS, Target, make_slates

exp_product = pytest.importorskip("pope_kernels.triton.exp_product")
interpreter = pytest.importorskip("triton.runtime.interpreter")
INTERPRETED = [target for target in TARGETS if str(target) == "triton-interpreted"]
VOCAB, WIDTH = 101, 16
#: What only makes another view of a tensor, or memory that nothing is written to yet.
FREE = ("slice", "t", "transpose", "view", "empty", "detach", "alias", "select", "as_strided", "new_empty")


class Traffic(TorchDispatchMode):
    """Bytes that are read from and written to the memory of E, and rows of logits that were formed."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.read = self.written = self.rows = 0
        self.range = (0, 0)
        load = interpreter.InterpreterBuilder.create_masked_load
        store = interpreter.InterpreterBuilder.create_masked_store
        product = exp_product.scaled_exp

        def counted_load(builder: Any, pointers: Any, mask: Any, *others: Any, **more: Any) -> Any:
            self.read += self.inside(pointers, mask)
            return load(builder, pointers, mask, *others, **more)

        def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *others: Any, **more: Any) -> Any:
            self.written += self.inside(pointers, mask)
            return store(builder, pointers, value, mask, *others, **more)

        def counted_product(hidden: torch.Tensor, *others: Any, **options: Any) -> Any:
            self.rows += hidden.shape[0]
            if (out := others[3]) is not None:
                storage = out.untyped_storage()
                self.range = (storage.data_ptr(), storage.data_ptr() + storage.nbytes())
            return product(hidden, *others, **options)

        patch.setattr(interpreter.InterpreterBuilder, "create_masked_load", counted_load)
        patch.setattr(interpreter.InterpreterBuilder, "create_masked_store", counted_store)
        patch.setattr(backends.kernels("triton"), "scaled_exp", counted_product)

    def inside(self, pointers: Any, mask: Any) -> int:
        first, end = self.range
        hits = (pointers.data >= first) & (pointers.data < end) & mask.data
        return int(np.count_nonzero(hits)) * 2

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        of_interpreter = name == "copy_" and args[0].data_ptr() == args[1].data_ptr()  # as if there were a device
        if name not in FREE and not of_interpreter:
            for value in args:
                if isinstance(value, torch.Tensor) and self.range[0] <= value.data_ptr() < self.range[1]:
                    self.read += value.numel() * value.element_size()
        return function(*args, **(kwargs or {}))


FORWARD, FROZEN, TRAINED, HEAD = (False,) * 3, (True, False, False), (True, True, False), (False, True, False)


@pytest.mark.parametrize("target", INTERPRETED, ids=str)
@pytest.mark.parametrize(
    ("needs", "rows", "options", "products", "reads"),
    [
        (FORWARD, 12, {}, 1, None),
        (FROZEN, 15, {}, 1, 1),
        (FROZEN, 12, {}, 1, 1),
        (HEAD, 15, {}, 1, 1),
        (TRAINED, 15, {}, 1, 2),
        (TRAINED, 12, {}, 1, 2),
        (TRAINED, 15, {"normalization": "batch"}, 1, 2),
        (TRAINED, 12, {"normalization": "batch"}, 1 + 8 / 15, 2),  # chunks of 8 and 7 tokens, the first of them twice
        (TRAINED, 15, {"softcap": 9.0}, 1, 2),
    ],
)
def test_bytes_of_every_plan(
    target: Target,
    needs: tuple[bool, bool, bool],
    rows: int,
    options: dict[str, Any],
    products: float,
    reads: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(backends.LINEAR_VARIABLE, "scaled_exp")
    monkeypatch.setattr(
        exp_product,
        "configuration",
        lambda *shape: exp_product.Configuration(16, 32, 16, 2, 4, 2, tma=True, persistent=True),
    )
    p = make_slates((1, 2, 3, 2), tokens=(1, 3), vocab=VOCAB, width=WIDTH, dtype=torch.bfloat16)
    assert p.labels.numel() == 15
    objective = flattened(plain(normalization=options.get("normalization", "none"))["objective"], None)
    head = (1.0, options.get("softcap"), rows * VOCAB * 2, "triton", True, torch.bfloat16)
    tokens = (p.hidden, p.lm_head_weight, None, p.labels, p.response_offsets)
    with Traffic(monkeypatch) as traffic:
        _linear_ops._linear_pope_loss(*tokens, *head, *needs, *p.log_data, *objective)
    assert traffic.rows == pytest.approx(products * 15)
    if reads is None:
        assert traffic.range == (0, 0)  # there is no E
        return
    element_at_label = 2 * traffic.rows
    assert traffic.written == traffic.rows * VOCAB * 2 + element_at_label
    assert traffic.read == reads * 15 * VOCAB * 2
