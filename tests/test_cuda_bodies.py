"""The bodies of the CUDA kernels give the CPU kernels' results when CPU threads run them: needs nvcc, but no GPU."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pope_core.testing import make_slates
from pope_kernels import native
from pope_kernels.values import (
    DIVERSITY_FORMS,
    DTYPE_CODES,
    NORMALIZATIONS,
    UTILITY_FORMS,
    WEIGHTINGS,
    ObjectiveOptions,
    accumulation_dtype,
)

ROOT = Path(__file__).parents[1]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    library = tmp_path_factory.mktemp("bodies") / "emulate.so"
    source = ROOT / "tests" / "native" / "emulate.cpp"
    include = [f"-I{ROOT / 'csrc' / folder}" for folder in ("include", "cuda")]
    flags = ["-std=c++20", "-O1", "-shared", "-Xcompiler=-fPIC,-pthread,-Wno-unknown-pragmas"]
    subprocess.run(["nvcc", *flags, *include, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def matrix(x: torch.Tensor) -> tuple[object, ...]:
    return pointer(x), DTYPE_CODES[x.dtype], *(ctypes.c_int64(n) for n in (*x.shape, x.stride(0)))


def rows(count: int, cols: int, dtype: torch.dtype, shift: int) -> torch.Tensor:
    """Logits whose rows start ``shift`` elements after a 16-byte boundary, if ``cols`` is a multiple of eight."""
    generator = torch.Generator().manual_seed(cols)
    flat = 4 * torch.randn(count * cols + shift, generator=generator)
    return flat.to(dtype)[shift:].view(count, cols)


COLS = [1, 5, 8, 37, 1000, 4099, 32771]  # the last two exceed a block's stride, and 64 KiB even in 16 bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_forward(bodies: ctypes.CDLL, dtype: torch.dtype, cols: int, softcap: float | None) -> None:
    for shift, threads in [(0, 64), (3, 64), (0, 7)]:
        logits = rows(3, cols, dtype, shift)
        labels = torch.tensor([0, cols - 1, cols // 2])
        expected = native.token_logprobs(logits, labels, scale=0.7, softcap=softcap)
        logprobs, lse = torch.empty(3, dtype=accumulation_dtype(dtype)), torch.empty(3, dtype=torch.float64)
        transform = (ctypes.c_double(0.7), ctypes.c_double(softcap or 0.0))
        bodies.emulate_forward(*matrix(logits), pointer(labels), *transform, pointer(logprobs), pointer(lse), threads)
        tolerance = 1e-12 if dtype == torch.float64 else 4e-6
        torch.testing.assert_close(logprobs, expected[0], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(lse, expected[1], rtol=tolerance, atol=tolerance)


def test_a_label_out_of_range_is_nan(bodies: ctypes.CDLL) -> None:
    logits, labels = rows(3, 37, torch.float32, 0), torch.tensor([37, -1, 2**40])
    logprobs, lse = torch.empty(3), torch.empty(3, dtype=torch.float64)
    transform = (ctypes.c_double(1.0), ctypes.c_double(0.0))
    bodies.emulate_forward(*matrix(logits), pointer(labels), *transform, pointer(logprobs), pointer(lse), 8)
    assert logprobs.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("layout", ["in place", "out of place", "out of place, aligned differently", "unaligned"])
def test_backward(bodies: ctypes.CDLL, dtype: torch.dtype, cols: int, softcap: float | None, layout: str) -> None:
    acc = accumulation_dtype(dtype)
    logits = rows(5, cols, dtype, 3 if layout == "unaligned" else 0)
    labels = torch.tensor([0, cols - 1, cols // 2, -100, cols // 3])
    coefficients = torch.tensor([1.5, -2.0, 1e-3, 1.0, 0.0], dtype=acc)
    _, lse = native.token_logprobs(logits, labels, scale=0.7, softcap=softcap)
    expected = native.logit_gradient(
        logits, labels, lse, coefficients, torch.empty_like(logits), scale=0.7, softcap=softcap
    )
    source = logits.clone() if layout == "in place" else logits
    out = source if layout == "in place" else rows(5, cols, dtype, 1 if "differently" in layout else 0)
    transform = (ctypes.c_double(0.7), ctypes.c_double(softcap or 0.0))
    bodies.emulate_backward(
        *matrix(source),
        pointer(labels),
        *transform,
        pointer(lse),
        pointer(coefficients),
        pointer(out),
        ctypes.c_int64(out.stride(0)),
        64,
    )
    # In 16 bits the two may round an element to neighbours.
    rtol = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
    torch.testing.assert_close(out, expected, rtol=rtol, atol=2e-7)
    assert not out[3:].any()


OPTIONS = list(itertools.product(WEIGHTINGS, NORMALIZATIONS, (None, 0.9), UTILITY_FORMS, DIVERSITY_FORMS))


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: "-".join(map(str, o)))
def test_objective(bodies: ctypes.CDLL, option: tuple[str, str, float | None, str, str]) -> None:
    weighting, normalization, clip, utility_form, diversity_form = option
    options = ObjectiveOptions(0.3, weighting, normalization, clip, utility_form, diversity_form, 9)
    p = make_slates((3, 1, 2, 7, 1), tokens=(1, 9), dtype=torch.float64, seed=3)
    p.labels[p.response_offsets[4] + 1 : p.response_offsets[5]] = -100
    token_logprobs = native.token_logprobs(p.logits, p.labels)[0]
    logprobs = native.response_sums(token_logprobs, p.labels, p.response_offsets, True)
    data = (p.logging_logprobs / p.tokens, *p.log_data[1:])  # kernels take means where the objective does
    expected = native.slate_objective(logprobs, *data, options, torch.float64)
    _, expected_coefficients = native.group_coefficients(
        token_logprobs, p.labels, p.response_offsets, *data, None, True, options
    )
    got = run_objective(bodies, options, token_logprobs, p.labels, p.response_offsets, *data)
    scalars = [expected.value, expected.utility_value, expected.diversity_value]
    scalars += [expected.effective_sample_size, expected.clip_fraction, expected.largest_log_weight]
    near = {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(got["scalars"], torch.stack(scalars), **near)
    torch.testing.assert_close(got["response_logprobs"], logprobs, **near)
    torch.testing.assert_close(got["log_weights"], expected.log_weights, **near)
    torch.testing.assert_close(got["weights"], expected.weights, **near)
    torch.testing.assert_close(got["coefficients"], expected.coefficients, **near)
    torch.testing.assert_close(got["token_coefficients"], expected_coefficients, **near)
    assert got["largest_slate"].item() == expected.largest_slate.item()
    assert got["valid"].item()


def run_objective(
    bodies: ctypes.CDLL,
    options: ObjectiveOptions,
    token_logprobs: torch.Tensor,
    labels: torch.Tensor,
    response_offsets: torch.Tensor,
    logging_logprobs: torch.Tensor,
    utility: torch.Tensor,
    slate_offsets: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """By 3 warps of 4 lanes, fewer than there are responses in a slate and slates in the batch."""
    empty = torch.empty_like(utility)
    out = {name: empty.clone() for name in ("log_weights", "weights", "coefficients")}
    out |= {"scalars": empty.new_empty(6), "token_coefficients": torch.empty_like(token_logprobs)}
    out |= {"largest_slate": torch.empty((), dtype=torch.int64), "valid": torch.empty((), dtype=torch.bool)}
    out["response_logprobs"] = empty.clone()
    bodies.emulate_objective(
        pointer(token_logprobs),
        pointer(labels),
        pointer(response_offsets),
        ctypes.c_int64(labels.numel()),
        True,
        pointer(out["response_logprobs"]),
        pointer(logging_logprobs),
        pointer(utility),
        pointer(slate_offsets),
        ctypes.c_int64(slate_offsets.numel() - 1),
        ctypes.c_int64(utility.numel()),
        *(ctypes.c_double(value) if isinstance(value, float) else value for value in options.native),
        *(pointer(out[name]) for name in ("scalars", "log_weights", "weights", "coefficients", "token_coefficients")),
        pointer(out["largest_slate"]),
        pointer(out["valid"]),
        3,
        4,
    )
    return out


@pytest.mark.parametrize(
    "fault",
    ["utility", "logging", "label", "empty response", "response offsets", "slate offsets", "slate order", "log-weight"],
)
def test_invalid_input_gives_nan_and_says_so(bodies: ctypes.CDLL, fault: str) -> None:
    p = make_slates((3, 1, 2), dtype=torch.float64)
    options = ObjectiveOptions(0.3, "response", "none", None, "feedback", "neg_log_prob", 3)
    token_logprobs = native.token_logprobs(p.logits, p.labels)[0]
    if fault == "utility":
        p.utility[2] = torch.inf
    elif fault == "logging":
        p.logging_logprobs[5] = torch.nan
    elif fault == "label":
        token_logprobs[3] = torch.nan  # as the forward leaves it
    elif fault == "empty response":
        p.labels[p.response_offsets[1] : p.response_offsets[2]] = -100
    elif fault == "response offsets":
        p.response_offsets[-1] += 1
    elif fault == "slate offsets":
        p.slate_offsets[0] = 1
    elif fault == "slate order":
        p.slate_offsets[1] = 5
    else:
        p.logging_logprobs[4] = -200.0
    got = run_objective(bodies, options, token_logprobs, p.labels, p.response_offsets, *p.log_data)
    assert not got["valid"].item()
    assert got["scalars"][0].isnan()
