"""Numbers at the edges of their range: every backend gives what the float64 reference gives."""

from __future__ import annotations

import pytest
import torch

import pope_core
from pope_core import Objective, reference
from pope_core.testing import TARGETS, Target

#: The interpreter would take minutes.
COMPILED = [each for each in TARGETS if not str(each).startswith("triton")]
every_target = pytest.mark.parametrize("target", COMPILED, ids=str)


@every_target
@pytest.mark.parametrize("normalization", ["slate", "batch", "none"])
@pytest.mark.parametrize("utilities", ["spread", "equal"])
def test_log_weights_of_a_thousand_in_slates_of_64(target: Target, normalization: str, utilities: str) -> None:
    """exp(1000) is no float64 either; clipped weights and quotients of weights are finite all the same."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.linspace(-1000, 1000, 128, dtype=torch.float64)[torch.randperm(128, generator=generator)]
    logging = torch.full((128,), -1500.0, dtype=torch.float64)
    utility = torch.rand(128, dtype=torch.float64, generator=generator)
    if utilities == "equal":
        utility = torch.ones_like(utility)
    offsets = torch.tensor([0, 64, 128])
    tiny = torch.finfo(torch.float32).tiny  # what underflows to 0 may be 0
    objective = Objective(normalization=normalization, length_normalize=False)  # type: ignore[arg-type]

    def run(function, dtype: torch.dtype, device: str, **backend):
        logprobs = (logging + shift).to(device, dtype).requires_grad_()
        data = (each.to(device, dtype) for each in (logging, utility))
        output = function(logprobs, *data, offsets.to(device), objective=objective, **backend)
        (gradient,) = torch.autograd.grad(output.loss, logprobs)
        return output.loss.detach().cpu().double(), gradient.cpu().double()

    truth = run(reference.slate_objective, torch.float64, "cpu")
    assert all(torch.isfinite(each).all() for each in truth)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = run(pope_core.slate_objective, dtype, target.device, backend=target.backend)
        for ours, exact in zip(found, truth, strict=True):
            torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()) + tiny)


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_token_and_8192_tokens_outliers_and_subnormals(target: Target, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8193, 17, generator=generator)
    logits[5, 3], logits[6, 3], logits[7] = 3e4, -3e4, 1e-40 * torch.arange(17)
    labels = torch.randint(0, 17, (8193,), generator=generator)
    offsets = torch.tensor([0, 1, 8193])
    given = logits.to(dtype)
    exact = given.double().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    data = [each.to(target.device) for each in (given, labels, offsets)]
    found = pope_core.response_logprobs(*data[:2], response_offsets=data[2], backend=target.backend)
    truth = torch.stack([exact[:1].sum(), exact[1:].sum()])
    torch.testing.assert_close(found.cpu().double(), truth, rtol=1e-5, atol=1e-5)


@every_target
def test_a_vocabulary_of_262144(target: Target) -> None:
    logits = torch.randn(3, 262_144, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    labels = torch.tensor([0, 262_143, 77])
    exact = logits.double().log_softmax(-1).gather(1, labels[:, None])[:, 0]
    data = [each.to(target.device) for each in (logits, labels, torch.arange(4))]
    found = pope_core.response_logprobs(*data[:2], response_offsets=data[2], backend=target.backend)
    torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-6, atol=1e-5)
