"""The native kernels on CUDA tensors: the functions of ``native.py``, on the current stream of their device.

Nothing here synchronises with the device or reads from it, so calls may be captured in a CUDA graph. Kernels check
their inputs: where these are invalid, results are NaN and ``SlateValues.valid`` is false.
"""

from __future__ import annotations

import torch

from . import _C
from .products import add_outer, back_project, empty_large, project, require_wide_product
from .values import (
    DTYPE_CODES,
    ObjectiveOptions,
    SlateValues,
    accumulation_dtype,
    new_slate_values,
)

__all__ = [
    "add_outer",
    "back_project",
    "empty_large",
    "group_coefficients",
    "logit_gradient",
    "probe",
    "project",
    "response_sums",
    "slate_objective",
    "token_coefficients",
    "token_logprobs",
]


def probe(device: torch.device) -> str:
    """A description of what runs on ``device``; raises RuntimeError if this build cannot run there."""
    if torch.version.cuda is None:
        raise RuntimeError("this torch was built without CUDA")
    require_wide_product()
    if _C.cuda_devices() is None:
        raise RuntimeError("the native extension was built without CUDA (POPE_CUDA=OFF, or no nvcc at build time)")
    with torch.cuda.device(device):
        reason = _C.cuda_unfit()
    if reason:
        raise RuntimeError(f"the kernels of this build do not fit {torch.cuda.get_device_name(device)}: {reason}")
    return f"native CUDA kernels, {torch.cuda.get_device_name(device)}"


def _stream(tensor: torch.Tensor) -> int:
    return int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _address(tensor: torch.Tensor) -> int:
    assert tensor.is_contiguous(), "the kernels read consecutive elements"
    return tensor.data_ptr()


def _matrix(logits: torch.Tensor) -> tuple[int, int, int, int, int]:
    rows, cols = logits.shape
    return logits.data_ptr(), DTYPE_CODES[logits.dtype], rows, cols, logits.stride(0)


def token_logprobs(
    logits: torch.Tensor, labels: torch.Tensor, *, scale: float = 1.0, softcap: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``native.token_logprobs``; a label out of range or NaN in the row gives NaN."""
    logprobs = labels.new_empty(labels.shape, dtype=accumulation_dtype(logits.dtype))
    lse = labels.new_empty(labels.shape, dtype=torch.float64)
    with torch.cuda.device(logits.device):
        _C.cuda_token_logprobs(
            *_matrix(logits),
            _address(labels),
            scale,
            softcap or 0.0,
            _address(logprobs),
            _address(lse),
            _stream(logits),
        )
    return logprobs, lse


def logit_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    lse: torch.Tensor,
    coefficients: torch.Tensor | None,
    out: torch.Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
) -> torch.Tensor:
    """As ``native.logit_gradient``."""
    with torch.cuda.device(logits.device):
        _C.cuda_logit_gradient(
            *_matrix(logits),
            _address(labels),
            scale,
            softcap or 0.0,
            _address(lse),
            0 if coefficients is None else _address(coefficients),
            out.data_ptr(),
            out.stride(0),
            _stream(logits),
        )
    return out


def response_sums(
    logprobs: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor, mean: bool
) -> torch.Tensor:
    """As ``native.response_sums``; NaN where the offsets are invalid or a response has no token."""
    out = logprobs.new_empty(response_offsets.numel() - 1)
    with torch.cuda.device(logprobs.device):
        _C.cuda_response_sums(
            _address(logprobs),
            logprobs.dtype == torch.float64,
            _address(labels),
            _address(response_offsets),
            labels.numel(),
            out.numel(),
            mean,
            _address(out),
            _stream(logprobs),
        )
    return out


def token_coefficients(
    grad: torch.Tensor, labels: torch.Tensor, response_offsets: torch.Tensor, mean: bool
) -> torch.Tensor:
    """As ``native.token_coefficients``."""
    out = grad.new_empty(labels.shape)
    with torch.cuda.device(grad.device):
        _C.cuda_token_coefficients(
            _address(grad),
            grad.dtype == torch.float64,
            _address(labels),
            _address(response_offsets),
            labels.numel(),
            grad.numel(),
            mean,
            _address(out),
            _stream(grad),
        )
    return out


def slate_objective(
    response_logprobs: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    options: ObjectiveOptions,
    dtype: torch.dtype,
) -> SlateValues:
    """As ``native.slate_objective``; invalid inputs give NaN and ``valid`` false."""
    values = new_slate_values(response_logprobs, dtype)
    _objective(response_logprobs, logging_logprobs, utility, slate_offsets, options, values, _NO_SEAM)
    return values


def group_coefficients(
    token_logprobs: torch.Tensor,
    labels: torch.Tensor,
    response_offsets: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    share: torch.Tensor | None,
    mean: bool,
    options: ObjectiveOptions,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``seam.composed``, in one launch."""
    response_logprobs = torch.empty_like(logging_logprobs)
    coefficients = torch.empty_like(token_logprobs)
    seam = (
        _address(token_logprobs),
        0 if share is None else _address(share),
        _address(coefficients),
        _address(labels),
        _address(response_offsets),
        labels.numel(),
        mean,
    )
    values = new_slate_values(logging_logprobs, token_logprobs.dtype)
    _objective(response_logprobs, logging_logprobs, utility, slate_offsets, options, values, seam)
    return response_logprobs, coefficients


_NO_SEAM = (0, 0, 0, 0, 0, 0, False)


def _objective(
    response_logprobs: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
    options: ObjectiveOptions,
    values: SlateValues,
    seam: tuple[int, int, int, int, int, int, bool],
) -> None:
    assert values.valid is not None
    with torch.cuda.device(response_logprobs.device):
        _C.cuda_slate_objective(
            _address(response_logprobs),
            _address(logging_logprobs),
            _address(utility),
            _address(slate_offsets),
            slate_offsets.numel() - 1,
            response_logprobs.numel(),
            *options.native,
            values.value.dtype == torch.float64,
            _address(values.value),
            _address(values.utility_value),
            _address(values.diversity_value),
            _address(values.log_weights),
            _address(values.weights),
            _address(values.effective_sample_size),
            _address(values.clip_fraction),
            _address(values.coefficients),
            _address(values.largest_log_weight),
            _address(values.largest_slate),
            _address(values.valid),
            *seam,
            _stream(response_logprobs),
        )
