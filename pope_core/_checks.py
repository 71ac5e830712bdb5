"""Input checks. All errors have one form: the argument, what was expected, what came, and where.

Shape checks need no values and run in the public functions, also under ``torch.compile``. Value checks read the data
and run inside the operators, which are not traced.

Reading values of a GPU would synchronise, so there the kernels check: invalid input becomes NaN instead of an illegal
access, and one asynchronous assertion per operator stops the process with the reason, as ``torch`` does for an index
out of range. ``POPE_CHECK=1`` reads the values on the host instead and says where.
"""

from __future__ import annotations

import math
import numbers
import os

import torch
from torch.autograd import forward_ad

from .devices import device_type
from .types import IGNORE_INDEX, MAX_LOG_WEIGHT

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


#: Environment variable: "1" checks the values of GPU tensors on the host, with the row or slate in the message.
CHECK_VARIABLE = "POPE_CHECK"


def deferred(device: torch.device) -> bool:
    """Whether values on ``device`` are checked by the kernels instead of the host."""
    return device_type(device).asynchronous and os.environ.get(CHECK_VARIABLE) != "1"


def later(valid: torch.Tensor, what: str) -> None:
    """Assert a 0-d bool on the device without synchronising."""
    torch._assert_async(valid, f"pope_core: bad values in {what}; run with {CHECK_VARIABLE}=1 to be told where")


def finite_later(what: str, value: torch.Tensor) -> None:
    """Assert that ``value`` is finite; kernels write NaN into it where ``what`` is invalid."""
    later(value.isfinite().all(), what)


def _fail(name: str, expected: str, got: str) -> None:
    raise ValueError(f"{name}: expected {expected}, got {got}")


def tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        _fail(name, "a torch.Tensor", type(value).__name__)


def is_real(value: object) -> bool:
    """Whether an option is a number; in a trace it may be symbolic."""
    return isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)) and not isinstance(value, bool)


def is_integer(value: object) -> bool:
    """Whether an option is an integer; in a trace it may be symbolic."""
    return isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)


def rows_and_labels(name: str, rows: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor | None) -> None:
    """``rows`` [N, C] with ``labels`` [N] and ``response_offsets`` [R+1], or [R, L, C] with [R, L]."""
    tensor(name, rows)
    tensor("labels", labels)
    if rows.dtype not in FLOATS:
        _fail(name, "a float32, float64, bfloat16 or float16 tensor", str(rows.dtype))
    if rows.ndim not in (2, 3):
        _fail(name, "shape [N, C] (packed) or [R, L, C] (padded)", str(list(rows.shape)))
    if list(labels.shape) != list(rows.shape[:-1]):
        _fail("labels", f"shape {list(rows.shape[:-1])} to match {name}", str(list(labels.shape)))
    if labels.dtype not in (torch.int64, torch.int32):
        _fail("labels", "int64 or int32", str(labels.dtype))
    if rows.numel() == 0:
        _fail(name, "at least one token and one column", f"shape {list(rows.shape)}")
    if rows.ndim == 3 and response_offsets is not None:
        tensor("response_offsets", response_offsets)
        _fail("response_offsets", f"None with padded {name} [R, L, C]", f"shape {list(response_offsets.shape)}")
    if rows.ndim == 2:
        if response_offsets is None:
            raise ValueError(f"response_offsets: required with packed {name} [N, C]")
        offsets("response_offsets", response_offsets)


def offsets(name: str, value: torch.Tensor) -> None:
    tensor(name, value)
    if value.ndim != 1 or value.shape[0] < 2:
        _fail(name, "shape [n + 1] with n >= 1", str(list(value.shape)))
    if value.dtype not in (torch.int64, torch.int32):
        _fail(name, "int64 or int32", str(value.dtype))


def per_response(name: str, value: torch.Tensor, num_responses: int) -> None:
    tensor(name, value)
    if list(value.shape) != [num_responses]:
        _fail(name, f"shape [{num_responses}], one number per response", str(list(value.shape)))
    if not value.is_floating_point():
        _fail(name, "a floating-point tensor", str(value.dtype))


def data_only(name: str, value: torch.Tensor) -> None:
    if value.requires_grad:
        raise ValueError(f"{name}: is data to the objective and gets no gradient; pass {name}.detach()")


def same_device(anchor: str, device: torch.device, **others: torch.Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.device != device:
            _fail(name, f"a tensor on {device} like {anchor}", str(value.device))


def offsets_device(name: str, value: torch.Tensor, device: torch.device) -> None:
    """Offsets may be on the CPU, where the host can plan with them without synchronising."""
    if value.device.type != "cpu" and value.device != device:
        _fail(name, f"a tensor on {device} or on the CPU", str(value.device))


def head(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    tensor("lm_head_weight", weight)
    if bias is not None:
        tensor("lm_head_bias", bias)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        _fail("lm_head_weight", f"shape [V, {hidden.shape[-1]}] to match hidden", str(list(weight.shape)))
    if bias is not None and list(bias.shape) != [weight.shape[0]]:
        _fail("lm_head_bias", f"shape [{weight.shape[0]}]", str(list(bias.shape)))
    if weight.dtype not in FLOATS:
        _fail("lm_head_weight", "a float32, float64, bfloat16 or float16 tensor", str(weight.dtype))
    if bias is not None and bias.dtype not in FLOATS:
        _fail("lm_head_bias", "a float32, float64, bfloat16 or float16 tensor", str(bias.dtype))


def segments(name: str, value: torch.Tensor, total: int, what: str) -> None:
    """CSR offsets must start at 0, strictly increase and end at ``total``."""
    if int(value[0]) != 0 or int(value[-1]) != total:
        _fail(name, f"offsets from 0 to {total} ({what})", f"{int(value[0])} to {int(value[-1])}")
    empty = (value.diff() <= 0).nonzero()
    if empty.numel():
        at = int(empty[0])
        _fail(
            name,
            "strictly increasing offsets (no empty run)",
            f"{int(value[at])} then {int(value[at + 1])} at index {at}",
        )


def packed_values(labels: torch.Tensor, response_offsets: torch.Tensor, vocab: int) -> None:
    segments("response_offsets", response_offsets, labels.numel(), "the number of labels")
    kept = labels != IGNORE_INDEX
    bad = (kept & ((labels < 0) | (labels >= vocab))).nonzero()
    if bad.numel():
        at = int(bad[0])
        _fail("labels", f"token ids in [0, {vocab}) or {IGNORE_INDEX}", f"{int(labels[at])} at token {at}")
    seen = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.long().cumsum(0)])[response_offsets.long()]
    empty = (seen.diff() == 0).nonzero()
    if empty.numel():
        _fail("labels", "at least one response token in every response", f"none in response {int(empty[0])}")


def objective_data(
    logging_logprobs: torch.Tensor, utility: torch.Tensor, slate_offsets: torch.Tensor, num_responses: int
) -> None:
    """Check the values of the logged data."""
    segments("slate_offsets", slate_offsets, num_responses, "the number of responses")
    finite("logging_logprobs", logging_logprobs, slate_offsets)
    finite("utility", utility, slate_offsets)


def positive_tokens(tokens: torch.Tensor) -> None:
    """Check the numbers of tokens that totals are divided by."""
    bad = (tokens < 1).nonzero()
    if bad.numel():
        _fail("tokens", "numbers of tokens >= 1", f"{int(tokens[bad[0]])} at response {int(bad[0])}")


def finite(name: str, value: torch.Tensor, slate_offsets: torch.Tensor) -> None:
    bad = (~value.detach().isfinite()).nonzero()
    if bad.numel():
        at = int(bad[0])
        slate = int(torch.searchsorted(slate_offsets.long(), at, right=True)) - 1
        _fail(name, "finite numbers", f"{float(value[at].detach())} at response {at} (slate {slate})")


def finite_rows(name: str, lse: torch.Tensor, first_row: int = 0) -> None:
    """A log-sum-exp is not finite if its row of logits has NaN or +inf, or nothing above -inf."""
    bad = (~lse.isfinite()).nonzero()
    if bad.numel():
        row = int(bad[0])
        if float(lse[row]) == -math.inf:
            _fail(name, "a logit above -inf in every row", f"none in row {first_row + row}")
        _fail(name, "logits without NaN or +inf", f"one in row {first_row + row}")


def finite_value(value: torch.Tensor) -> None:
    """A value [] may overflow although every input is finite."""
    if not value.isfinite():
        _fail(
            "utility, diversity_weight",
            f"a finite value in {str(value.dtype).removeprefix('torch.')}",
            str(float(value)),
        )


def no_tangent(**inputs: torch.Tensor | None) -> None:
    """Refuse forward-mode differentiation, which would otherwise silently get a zero derivative."""
    if forward_ad._current_level < 0 or torch.compiler.is_compiling():
        return
    for name, value in inputs.items():
        if value is not None and forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(
                f"{name}: has a tangent, but forward-mode differentiation is not implemented; use backward, or "
                "backend='reference'"
            )


def log_weight_bound(largest: float, slate: int, clip: float | None) -> None:
    """Without a clip, a log-weight above MAX_LOG_WEIGHT is a mistake in the inputs, not a weight."""
    if clip is None and largest > MAX_LOG_WEIGHT:
        raise ValueError(
            f"clip: slate {slate} has log-weight {largest:.1f}, above {MAX_LOG_WEIGHT:.0f} nats, "
            "and clip=None; set a maximum weight (clip) or length_normalize=True, or check that logging_logprobs are "
            "totals over the same tokens"
        )
