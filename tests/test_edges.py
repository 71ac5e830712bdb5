"""Numbers at the edges of their range: every backend gives what the float64 reference gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

import pope_core
from pope_core import Objective, reference
from pope_core.testing import TARGETS, Target, make_slates

#: The interpreter would take minutes.
COMPILED = [each for each in TARGETS if not str(each).startswith("triton")]
every_target = pytest.mark.parametrize("target", COMPILED, ids=str)
#: With fewer numbers where the kernels are interpreted, which still takes most of a minute.
also_interpreted = pytest.mark.parametrize(
    "target",
    [each if each in COMPILED else pytest.param(each, marks=pytest.mark.release) for each in TARGETS],
    ids=str,
)

#: Everything is computed with these; the head's log-probabilities are divided by no length, so weights are whole ones.
WHOLE = Objective(length_normalize=False)


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


# --- gradients --------------------------------------------------------------------------------------------------------


def with_gradients(
    function: Callable[..., torch.Tensor], *leaves: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A scalar and its gradients, in float64 on the CPU."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    value = function(*leaves)
    gradients = torch.autograd.grad(value, leaves)
    return value.detach().cpu().double(), [gradient.cpu().double() for gradient in gradients]


def assert_near(found: Sequence[torch.Tensor], truth: Sequence[torch.Tensor], tolerance: float) -> None:
    """Errors are small in comparison with the largest entry of each tensor, and nothing is NaN."""
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()) + 1e-30)


def is_interpreted(target: Target) -> bool:
    return str(target) == "triton-interpreted"


@also_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_of_one_token_and_of_8192_outliers_and_subnormals(target: Target, dtype: torch.dtype) -> None:
    rows = 33 if is_interpreted(target) else 8193
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 17, generator=generator)
    logits[5, 3], logits[6, 3], logits[7] = 3e4, -3e4, 1e-40 * torch.arange(17)
    given, labels = logits.to(dtype), torch.randint(0, 17, (rows,), generator=generator)
    labels[5], labels[6] = 4, 3  # the one far above and the label far below: log-probabilities of -30,000
    offsets, upstream = torch.tensor([0, 1, rows]), torch.tensor([1.0, -0.5])
    data = [each.to(target.device) for each in (labels, offsets, upstream)]
    _, truth = with_gradients(
        lambda x: (reference.response_logprobs(x, labels, response_offsets=offsets) * upstream).sum(), given.double()
    )
    _, found = with_gradients(
        lambda x: (
            pope_core.response_logprobs(x, data[0], response_offsets=data[1], backend=target.backend) * data[2]
        ).sum(),
        given.to(target.device),
    )
    assert_near(found, truth, 1e-6 if dtype == torch.float32 else 2**-8)


@every_target
def test_the_gradient_in_a_vocabulary_of_262144(target: Target) -> None:
    logits = torch.randn(3, 262_144, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    labels, offsets = torch.tensor([0, 262_143, 77]), torch.arange(4)
    data = [each.to(target.device) for each in (labels, offsets)]
    _, truth = with_gradients(lambda x: -x.log_softmax(-1).gather(1, labels[:, None]).sum(), logits.double())
    _, found = with_gradients(
        lambda x: -pope_core.response_logprobs(x, data[0], response_offsets=data[1], backend=target.backend).sum(),
        logits.to(target.device),
    )
    # Entries beside the labels are 1e-6 of theirs, so each is compared with itself.
    torch.testing.assert_close(found[0], truth[0], rtol=2**-8, atol=1e-12)


# --- the linear loss --------------------------------------------------------------------------------------------------


@also_interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_linear_loss_with_weights_of_a_thousand_outliers_subnormals_and_8192_tokens(
    target: Target, dtype: torch.dtype
) -> None:
    long = 40 if is_interpreted(target) else 8192
    generator = torch.Generator().manual_seed(0)
    lengths = torch.ones(128, dtype=torch.int64)
    lengths[70] = long
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    hidden = torch.randn(int(offsets[-1]), 8, generator=generator)
    hidden[3, 2], hidden[9], hidden[75] = 3e3, 1e-40, 0.0  # logits in the thousands, subnormal ones, and equal ones
    hidden, head = hidden.to(dtype), torch.randn(37, 8, generator=generator).to(dtype)
    labels = torch.randint(0, 37, (hidden.shape[0],), generator=generator)
    own = reference.linear_response_logprobs(hidden.double(), head.double(), labels, response_offsets=offsets)
    shift = torch.linspace(-1000, 1000, 128, dtype=torch.float64)[torch.randperm(128, generator=generator)]
    utility, slates = torch.rand(128, generator=generator), torch.tensor([0, 64, 128])
    log_data = ((own - shift).float(), utility, slates)

    def loss(module, device: str, **backend) -> Callable[..., torch.Tensor]:
        data = [each.to(device) for each in (labels, *log_data)]
        return lambda h, w: (
            module.linear_pope_loss(h, w, *data, response_offsets=offsets.to(device), objective=WHOLE, **backend).loss
        )

    value, truth = with_gradients(loss(reference, "cpu"), hidden.double(), head.double())
    assert all(torch.isfinite(each).all() for each in (value, *truth))
    ours, found = with_gradients(
        loss(pope_core, target.device, backend=target.backend), hidden.to(target.device), head.to(target.device)
    )
    tolerance = 1e-4 if dtype == torch.float32 else 2**-6
    assert_near([ours, *found], [value, *truth], tolerance)


@every_target
def test_the_linear_loss_in_a_vocabulary_of_262144(target: Target) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(4, 8, generator=generator), torch.randn(262_144, 8, generator=generator)
    labels, slates = torch.tensor([0, 262_143, 77, 131_072]), torch.tensor([0, 2, 4])
    log_data = torch.full((4,), -12.0), torch.tensor([0.0, 1.0, 0.3, 0.9]), slates

    def loss(module, device: str, **backend) -> Callable[..., torch.Tensor]:
        data = [each.to(device) for each in (labels, *log_data)]
        return lambda h, w: (
            module.linear_pope_loss(
                h, w, *data, response_offsets=torch.arange(5, device=device), objective=WHOLE, **backend
            ).loss
        )

    value, truth = with_gradients(loss(reference, "cpu"), hidden.double(), head.double())
    ours, found = with_gradients(
        loss(pope_core, target.device, backend=target.backend), hidden.to(target.device), head.to(target.device)
    )
    assert_near([ours, *found], [value, *truth], 1e-4)


@also_interpreted
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_row_of_a_later_chunk_that_is_not_finite_is_named(target: Target, value: float) -> None:
    p = make_slates().to(target.device)
    p.hidden[13, 2] = value
    given = p.hidden.requires_grad_(), p.lm_head_weight, p.labels, *p.log_data
    with pytest.raises(ValueError, match=r"expected logits without NaN or \+inf, got one in row 13"):
        pope_core.linear_pope_loss(*given, response_offsets=p.response_offsets, chunk_bytes=1, backend=target.backend)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [37, 1031])
def test_threads_change_the_linear_loss_by_rounding_of_matrix_products_only(
    threads: Callable[[int], None], vocab: int, dtype: torch.dtype
) -> None:
    """PyTorch's products are divided among threads; the same number of them gives the same bits."""
    p = make_slates((3, 1, 2, 4), vocab=vocab, width=64, tokens=(1, 7), dtype=dtype)

    def run(count: int) -> list[torch.Tensor]:
        threads(count)
        value, gradients = with_gradients(
            lambda h, w: (
                pope_core.linear_pope_loss(
                    h, w, p.labels, *p.log_data, response_offsets=p.response_offsets, chunk_bytes=50_000, backend="cpu"
                ).loss
            ),
            p.hidden,
            p.lm_head_weight,
        )
        return [value, *gradients]

    one = run(1)
    for count in (1, 2):
        found = run(count)
        assert_near(found, one, 1e-5 if dtype == torch.float32 else 2**-7)
        assert all(torch.equal(a, b) for a, b in zip(found, run(count), strict=True))
