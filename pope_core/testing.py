"""Random slates and error bounds for tests and benchmarks of this library and of code built on it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from .backends import BACKENDS, availability
from .slates import offsets_from_lengths
from .types import IGNORE_INDEX, Backend


class Target(NamedTuple):
    """A backend, and the device of the tensors it is tested with."""

    backend: Backend
    device: str = "cpu"

    def __str__(self) -> str:
        return "triton-interpreted" if self == ("triton", "cpu") else self.backend


@functools.cache
def _targets() -> list[Target]:
    every = [Target("reference")]
    every += [Target(name, device) for name, backend in BACKENDS.items() for device in backend.device_types]
    return [target for target in every if availability(target.backend, target.device).usable]


#: The backends and devices on which every op is tested: all that run here. Triton supports the CPU only in its
#: interpreter mode, and then no GPU.
TARGETS: list[Target]


def __getattr__(name: str) -> list[Target]:  # lazy: it imports every backend and runs a kernel
    if name == "TARGETS":
        return _targets()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True)
class SlateProblem:
    """All arguments of the public functions, in the packed layout."""

    hidden: torch.Tensor  # [N, D]
    lm_head_weight: torch.Tensor  # [V, D]
    lm_head_bias: torch.Tensor  # [V]
    labels: torch.Tensor  # [N]
    response_offsets: torch.Tensor  # [R + 1]
    logging_logprobs: torch.Tensor  # [R] nats, totals
    utility: torch.Tensor  # [R] in [0, 1]
    slate_offsets: torch.Tensor  # [S + 1]

    @property
    def logits(self) -> torch.Tensor:
        """``hidden @ lm_head_weight.T``, ``[N, V]``, about standard normal; computed at each access."""
        return self.hidden @ self.lm_head_weight.T

    @property
    def tokens(self) -> torch.Tensor:
        """Number of tokens of each response, ``[R]``."""
        return self.response_offsets.diff()

    @property
    def log_data(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The logged data ``logging_logprobs``, ``utility``, ``slate_offsets``, in the order of the arguments."""
        return self.logging_logprobs, self.utility, self.slate_offsets

    def to(self, device: str) -> SlateProblem:
        """The same problem with its tensors on ``device``."""
        return SlateProblem(*(getattr(self, field.name).to(device) for field in fields(self)))

    def padded(self, rows: torch.Tensor, prompt: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
        """Packed ``rows`` [N, C] and the labels in the Hugging Face layout: ``[R, L, C]`` and ``[R, L]``.

        ``prompt`` (>= 1) positions without a label come first; the last of them predicts the first response token.
        Other rows are filled with ones.
        """
        lengths = self.response_offsets.diff().tolist()
        labels = self.labels.new_full((len(lengths), prompt + max(lengths) + 1), IGNORE_INDEX)
        out = rows.new_ones(*labels.shape, rows.shape[1])
        for r, (start, length) in enumerate(zip(self.response_offsets.tolist(), lengths)):
            labels[r, prompt : prompt + length] = self.labels[start : start + length]
            out[r, prompt - 1 : prompt - 1 + length] = rows[start : start + length]
        return out, labels


def make_slates(
    slate_sizes: Sequence[int] = (3, 1, 2),
    *,
    tokens: tuple[int, int] = (1, 7),
    vocab: int = 37,
    width: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> SlateProblem:
    """Ragged random slates on the CPU, determined by the arguments alone, not by the global random state.

    Logits are about standard normal and logging log-probabilities near those of the policy, so weights are of order 1.
    All log-probabilities are totals.

    Args:
        slate_sizes: responses per slate.
        tokens: minimum and maximum number of tokens of a response.
        vocab, width: V and D.
        dtype: of ``hidden``, the head and the bias; log data are float32, or float64 for float64.
        seed: of all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    data_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=data_dtype)

    num_responses = sum(slate_sizes)
    lengths = torch.randint(tokens[0], tokens[1] + 1, (num_responses,), generator=generator)
    num_tokens = int(lengths.sum())
    logging_logprobs = 0.4 * normal(num_responses) - math.log(vocab) - 0.3
    return SlateProblem(
        hidden=normal(num_tokens, width).to(dtype),
        lm_head_weight=(normal(vocab, width) / math.sqrt(width)).to(dtype),
        lm_head_bias=(0.3 * normal(vocab)).to(dtype),
        labels=torch.randint(0, vocab, (num_tokens,), generator=generator),
        response_offsets=offsets_from_lengths(lengths),
        logging_logprobs=logging_logprobs * lengths,
        utility=torch.rand(num_responses, generator=generator, dtype=data_dtype),
        slate_offsets=offsets_from_lengths(slate_sizes),
    )


def assert_no_worse_than_reference(
    actual: torch.Tensor, plain: torch.Tensor, truth: torch.Tensor, *, factor: float = 2.0, ulps: float = 2.0
) -> None:
    """The error of ``actual`` against ``truth`` is at most ``factor`` times that of ``plain``, plus rounding.

    Equivalent: ``(actual - truth).abs().max() <= factor * (plain - truth).abs().max() + small``, where ``small`` is
    ``ulps`` units in the last place of the dtype of ``actual`` at the largest magnitude of ``truth``.

    Args:
        actual: the result to judge.
        plain: the plain PyTorch composition in the same dtype.
        truth: the same in float64.

    Raises:
        AssertionError: the bound does not hold, or ``actual`` is NaN or infinite; the message has the three numbers.
    """
    assert truth.dtype == torch.float64, f"truth: expected float64, got {truth.dtype}"
    assert actual.shape == plain.shape == truth.shape, f"{actual.shape=}, {plain.shape=}, {truth.shape=}"
    error = float((actual.detach().double() - truth).abs().max())
    plain_error = float((plain.detach().double() - truth).abs().max())
    bound = factor * plain_error + ulps * torch.finfo(actual.dtype).eps * float(truth.abs().max())
    assert error <= bound, f"error {error:.3e} exceeds {bound:.3e}; the plain composition's error is {plain_error:.3e}"
