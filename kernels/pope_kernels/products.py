"""The lm_head's matrix products on a GPU, by the vendor's library (within 2% of hand-written kernels)."""

from __future__ import annotations

import torch


def require_wide_product() -> None:
    """Raise RuntimeError if torch has no product of 16-bit matrices with a float32 result, which `add_outer` needs."""
    if "dtype_out" not in torch.ops.aten.addmm.overloads():
        raise RuntimeError(f"the head's gradient needs torch >= 2.8 (addmm with out_dtype), got {torch.__version__}")


def empty_large(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``."""
    return torch.empty(shape, dtype=dtype, device=device)


def project(
    hidden: torch.Tensor,  # [n, D]
    weight: torch.Tensor,  # [V, D]
    bias: torch.Tensor | None,  # [V]
    out: torch.Tensor,  # [n, V]
) -> torch.Tensor:
    """``F.linear(hidden, weight, bias)`` written to ``out``."""
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


def back_project(
    gradient: torch.Tensor,  # [n, V]
    weight: torch.Tensor,  # [V, D]
    out: torch.Tensor,  # [n, D]
) -> torch.Tensor:
    """``gradient @ weight`` written to ``out``."""
    return torch.mm(gradient, weight, out=out)


def add_outer(
    total: torch.Tensor,  # [V, D] float32 or float64; with a single chunk, the dtype of gradient
    gradient: torch.Tensor,  # [n, V]
    hidden: torch.Tensor,  # [n, D]
    first: bool,
) -> None:
    """``total += gradient.T @ hidden`` (``=`` for the first chunk), computed and summed in the dtype of ``total``."""
    if total.dtype == gradient.dtype:
        torch.addmm(total, gradient.t(), hidden, beta=0 if first else 1, out=total)
    elif not total.is_cuda:  # the interpreter's tensors: the CPU has no product with a wider result
        product = torch.mm(gradient.t().to(total.dtype), hidden.to(total.dtype))
        total.copy_(product if first else total + product)
    elif first:
        torch.mm(gradient.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        torch.addmm(total, gradient.t(), hidden, out_dtype=total.dtype, out=total)
