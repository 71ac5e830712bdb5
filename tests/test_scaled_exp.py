"""Exponentials in the epilogue of the logits product: against float64, at the ends of their range, twice the same."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch

import pope_core
from pope_core import _linear, _linear_ops, backends
from pope_core.objective import CHOICES
from pope_core.testing import TARGETS, SlateProblem, Target, assert_no_worse_than_reference, make_slates

exp_product = pytest.importorskip("pope_kernels.triton.exp_product")
ON = [target for target in TARGETS if target.backend == "triton"]
pytestmark = pytest.mark.parametrize("target", ON, ids=str)


@pytest.fixture(autouse=True)
def _method(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setenv(backends.LINEAR_VARIABLE, "scaled_exp")
    if request.getfixturevalue("target").device == "cpu":  # tiles of a size for an interpreter, and several of them
        monkeypatch.setattr(
            exp_product,
            "configuration",
            lambda rows, softcap, aligned, hopper: exp_product.Configuration(
                16, 32, 16, 2, 4, 2, tma=aligned, persistent=True
            ),
        )


class Rows(NamedTuple):
    """Inputs of the product, on the device of a target."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor

    def truth(
        self, scale: float = 1.0, softcap: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probabilities, log-sum-exps, and gradients of the former in the logits, in float64."""
        logits = self.hidden.double() @ self.weight.double().T
        if self.bias is not None:
            logits = logits + self.bias.double()
        logits.requires_grad_()
        z = logits * scale
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        logprobs = z.log_softmax(-1).gather(1, self.labels.clamp(min=0)[:, None])[:, 0]
        kept = self.labels >= 0
        (gradient,) = torch.autograd.grad(logprobs[kept].sum(), logits)
        return logprobs.detach() * kept, z.detach().logsumexp(-1) * kept, gradient


def make_rows(target: Target, rows: int = 37, width: int = 24, vocab: int = 101, *, bias: bool = False) -> Rows:
    generator = torch.Generator().manual_seed(rows + vocab)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().to(target.device)

    labels = torch.randint(0, vocab, (rows,), generator=generator).to(target.device)
    return Rows(normal(rows, width), normal(vocab, width) / 2, normal(vocab) if bias else None, labels)


def run(x: Rows, **options: Any) -> tuple[Any, torch.Tensor]:
    """What the kernels give with room for E, and E as a gradient."""
    vocab = x.weight.shape[0]
    out = torch.full((x.hidden.shape[0], exp_product.padded_columns(vocab)), 7.0, device=x.hidden.device).bfloat16()
    found = exp_product.scaled_exp(*x, out[:, :vocab], **options)
    assert bool((out[:, vocab:] == 7.0).all())
    return found, found.factor.double().unsqueeze(1) * out[:, :vocab].double()


def rounding(on: torch.Tensor) -> float:
    """Of one number to bfloat16, which the interpreter does towards zero, and a little for float32."""
    return (2**-7 if on.device.type == "cpu" else 2**-8) + 1e-4


def assert_exact(x: Rows, *, rescued: int = 0, **options: Any) -> None:
    found, gradient = run(x, **options)
    logprobs, lse, exact = x.truth(**options)
    assert int(found.rescued) == rescued
    small = 1e-5 + 2e-7 * (options.get("softcap") or 0.0)  # tanh in float32
    torch.testing.assert_close(found.logprobs.double(), logprobs, rtol=2e-6, atol=small)
    torch.testing.assert_close(found.lse, lse, rtol=2e-6, atol=small)
    assert float(found.logprobs.max()) <= 0
    # E is rounded to bfloat16, as is the element at the label; nothing else is lost.
    torch.testing.assert_close(gradient, exact, rtol=rounding(x.hidden) + small, atol=1e-7)
    scored = exp_product.scaled_exp(*x, None, **options)
    assert torch.equal(scored.logprobs, found.logprobs)
    assert torch.equal(scored.lse, found.lse)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.7}, {"softcap": 5.0}, {"scale": 1.9, "softcap": 30.0}],
    ids=["plain", "scale", "cap", "both"],
)
@pytest.mark.parametrize("shape", [(37, 24, 101), (1, 1, 1), (16, 16, 32), (33, 17, 104), (5, 40, 7)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_against_float64(target: Target, options: dict[str, Any], shape: tuple[int, ...], bias: bool) -> None:
    """Shapes that are aligned and not, that fill tiles and do not."""
    assert_exact(make_rows(target, *shape, bias=bias), **options)


def test_unaligned_addresses(target: Target) -> None:
    x = make_rows(target, width=16)
    storage = x.hidden.new_empty(x.hidden.numel() + 1)
    storage[1:] = x.hidden.flatten()
    assert_exact(x._replace(hidden=storage[1:].view(x.hidden.shape)))


@pytest.mark.parametrize("softcap", [None, 400.0])
@pytest.mark.parametrize(("below", "rescued"), [(91.0, 0), (93.0, 3), (200.0, 3)])
def test_labels_at_and_beyond_the_end_of_the_range(
    target: Target, below: float, rescued: int, softcap: float | None
) -> None:
    """Three rows whose label lies ``below`` nats under the only likely word; others are as they were."""
    x = make_rows(target, width=16)
    x.weight[:, 0] = 0
    x.weight[50, :] = 0
    x.weight[50, 0] = 1
    rows = torch.tensor([3, 17, 36], device=target.device)
    x.labels[rows] = 7
    x.weight[7] = 0
    x.hidden[:, 0] = 0
    top = below if softcap is None else softcap * math.atanh(below / softcap)
    x.hidden[rows] = 0
    x.hidden[rows, 0] = top
    assert_exact(x, rescued=rescued, softcap=softcap)


def test_a_certain_token_keeps_its_gradient(target: Target) -> None:
    x = make_rows(target, width=16)
    x.weight[:, 0] = 0
    for row, gap in enumerate([8.0, 12.0, 16.0, 30.0, 60.0, 100.0]):
        x.weight[x.labels[row], 0] = 1
        x.hidden[row] = 0
        x.hidden[row, 0] = gap
    found, gradient = run(x)
    logprobs, _, exact = x.truth()
    assert_exact(x)
    own = x.labels[:5].unsqueeze(1)
    torch.testing.assert_close(gradient[:5].gather(1, own), exact[:5].gather(1, own), rtol=rounding(x.hidden), atol=0)
    torch.testing.assert_close(found.logprobs[:5].double(), logprobs[:5], rtol=2e-5, atol=0)


def test_a_masked_vocabulary_takes_no_part(target: Target) -> None:
    x = make_rows(target, bias=True)
    assert x.bias is not None
    masked = torch.ones(101, dtype=torch.bool, device=target.device)
    masked[x.labels] = False
    assert masked.any()
    x.bias[masked] = -torch.inf
    assert_exact(x)
    _, gradient = run(x)
    assert not gradient[:, masked].any()


def test_ignored_rows_have_no_logprob_and_no_gradient_whatever_they_hold(target: Target) -> None:
    x = make_rows(target)
    x.labels[5] = -100
    x.hidden[5] = 1000
    assert_exact(x)
    found, gradient = run(x)
    assert found.logprobs[5] == 0
    assert not gradient[5].any()


@pytest.mark.parametrize("what", ["NaN", "label", "no word", "label without probability"])
def test_bad_rows_are_told_and_leave_the_others_alone(target: Target, what: str) -> None:
    x = make_rows(target, bias=True)
    expected, _ = run(x)
    if what == "NaN":
        x.hidden[4] = torch.nan
    elif what == "label":
        x.labels[4] = 101
    elif what == "no word":
        x.bias.fill_(-torch.inf)
    else:
        x.bias[x.labels[4]] = -torch.inf
    found, _ = run(x)
    if what == "no word":
        assert bool((found.lse == -torch.inf).all())
        assert bool(found.logprobs.isnan().all())
        return
    assert (found.logprobs[4] == -torch.inf) if what == "label without probability" else found.logprobs[4].isnan()
    if what in ("NaN", "label"):
        others = torch.arange(37, device=target.device) != 4
        assert torch.equal(found.logprobs[others], expected.logprobs[others])


def test_twice_the_same_bits(target: Target) -> None:
    x = make_rows(target)
    (first, gradient), (second, again) = run(x), run(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(gradient, again)


# --- through the public functions ---

OBJECTIVES: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing divided": {"normalization": "none", "clip": None, "diversity_form": "neg_log_prob"},
    "batch": {"normalization": "batch", "clip": None},
    "slate weights": {"weighting": "slate", "normalization": "none"},
    "geometric weights, batch": {"weighting": "geometric", "normalization": "batch"},
    "log-likelihood, totals": {"utility_form": "log_likelihood", "length_normalize": False, "normalization": "slate"},
    "no diversity": {"diversity_weight": 0.0, "clip": 1.0, "normalization": "none"},
}


def loss(
    p: SlateProblem, leaves: list[torch.Tensor], backend: Any, objective: dict[str, Any], rows: int, **head: Any
) -> list[torch.Tensor]:
    """The loss, log-probabilities, and gradients of the leaves that want one."""
    output = pope_core.linear_pope_loss(
        *leaves[:2],
        p.labels,
        *p.log_data,
        lm_head_bias=leaves[2],
        response_offsets=p.response_offsets,
        objective=pope_core.Objective(**objective),
        chunk_bytes=rows * 101 * 2,
        backend=backend,
        **head,
    )
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    gradients = torch.autograd.grad(1.7 * output.loss, wanted) if wanted else []
    return [output.loss.detach(), output.response_logprobs, *gradients]


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("rows", [12, 1000], ids=["chunks", "one chunk"])
def test_every_objective_is_no_worse_than_plain_pytorch(target: Target, objective: dict[str, Any], rows: int) -> None:
    p = make_slates((3, 1, 4), dtype=torch.bfloat16, width=24, vocab=101).to(target.device)
    p.utility[::3] = 0.0
    head = {"logit_scale": 1.3, "logit_softcap": 9.0}

    def leaves(dtype: torch.dtype) -> list[torch.Tensor]:
        return [t.to(dtype, copy=True).requires_grad_() for t in (p.hidden, p.lm_head_weight, p.lm_head_bias)]

    truth = loss(p, leaves(torch.float64), "reference", objective, rows, **head)
    plain = loss(p, leaves(torch.bfloat16), "reference", objective, rows, **head)
    actual = loss(p, leaves(torch.bfloat16), "triton", objective, rows, **head)
    assert_no_worse_than_reference(actual[1], plain[1], truth[1].double())
    for ours, theirs, right in zip(actual[2:], plain[2:], truth[2:], strict=True):
        assert_no_worse_than_reference(ours, theirs, right, ulps=8)


def every_objective() -> list[dict[str, Any]]:
    """Every combination of the options that are chosen by name, with and without a maximum weight and length."""
    combinations = [dict(zip(CHOICES, values)) for values in itertools.product(*CHOICES.values())]
    others = [{"clip": 1.5}, {"clip": None, "length_normalize": False, "diversity_weight": 0.3}]
    return [{**combination, **others[number % 2]} for number, combination in enumerate(combinations)]


@pytest.mark.parametrize("objective", every_objective(), ids=lambda o: "-".join(str(value) for value in o.values()))
def test_every_option_of_the_objective(target: Target, objective: dict[str, Any]) -> None:
    """Against float64 on the same numbers; some of these degenerate as training objectives, none as formulas."""
    p = make_slates((2, 1, 3), tokens=(1, 4), dtype=torch.bfloat16, width=16, vocab=101).to(target.device)
    results = [
        loss(p, [t.to(dtype, copy=True).requires_grad_() for t in (p.hidden, p.lm_head_weight, p.lm_head_bias)],
             backend, objective, 6)
        for dtype, backend in ((torch.float64, "reference"), (torch.bfloat16, "triton"))
    ]  # fmt: skip
    for actual, right in zip(results[1][:2], results[0][:2], strict=True):
        torch.testing.assert_close(actual.double(), right.double(), rtol=2e-5, atol=2e-5)
    for actual, right in zip(results[1][2:], results[0][2:], strict=True):
        atol = 2**-7 * float(right.abs().max())
        torch.testing.assert_close(actual.double(), right, rtol=2**-6, atol=atol)


@pytest.mark.parametrize("below", [91.0, 93.0, 200.0])
def test_the_loss_of_unlikely_labels_is_that_of_the_classic_method(
    target: Target, below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels ``below`` nats under the only likely vocabulary entry, and a bias of -inf on entries that are no label."""
    p = make_slates((2, 1, 3), tokens=(2, 4), dtype=torch.bfloat16, width=16, vocab=101).to(target.device)
    p.hidden[:3], p.lm_head_weight[:, 0] = 0, 0
    p.hidden[:3, 0], p.labels[:3] = 1, 7
    p.lm_head_weight[50], p.lm_head_weight[7], p.lm_head_bias[50] = 0, 0, 0
    p.lm_head_weight[50, 0] = below
    p.lm_head_bias[7] = 0
    unused = torch.ones(101, dtype=torch.bool, device=target.device)
    unused[p.labels], unused[50] = False, False
    p.lm_head_bias[unused] = -torch.inf
    objective = {"normalization": "none", "length_normalize": True, "diversity_form": "neg_log_prob", "clip": 2.0}

    def leaves(dtype: torch.dtype) -> list[torch.Tensor]:
        return [t.to(dtype, copy=True).requires_grad_() for t in (p.hidden, p.lm_head_weight, p.lm_head_bias)]

    actual = loss(p, leaves(torch.bfloat16), "triton", objective, 6)
    again = loss(p, leaves(torch.bfloat16), "triton", objective, 6)
    assert all(torch.equal(a, b) for a, b in zip(actual, again, strict=True))
    monkeypatch.setenv(backends.LINEAR_VARIABLE, "classic")
    classic = loss(p, leaves(torch.bfloat16), "triton", objective, 6)
    truth = loss(p, leaves(torch.float64), "reference", objective, 6)
    assert float(truth[1].min()) < -below  # a response has such a token
    torch.testing.assert_close(actual[1].double(), truth[1].double(), rtol=1e-5, atol=1e-4)
    for ours, theirs, right in zip(actual[2:], classic[2:], truth[2:], strict=True):
        largest = float(right.abs().max())
        assert largest > 0
        assert ours.shape[0] != 101 or not ours[unused].any()
        torch.testing.assert_close(ours.double(), right, rtol=2**-6, atol=2**-6 * largest)
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=2**-5, atol=2**-5 * largest)


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3], ids=str
)
def test_any_gradients_may_be_wanted(target: Target, wanted: tuple[bool, ...]) -> None:
    p = make_slates((3, 1, 4), dtype=torch.bfloat16, width=24, vocab=101).to(target.device)
    tensors = (p.hidden, p.lm_head_weight, p.lm_head_bias)
    every = loss(p, [t.clone().requires_grad_() for t in tensors], "triton", {}, 1000)
    some = loss(p, [t.clone().requires_grad_(need) for t, need in zip(tensors, wanted)], "triton", {}, 12)
    expected = [*every[:2], *(gradient for gradient, need in zip(every[2:], wanted) if need)]
    for actual, right in zip(some, expected, strict=True):
        torch.testing.assert_close(actual, right, rtol=2**-6, atol=1e-4)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_logprobs_and_their_gradients(target: Target, trained: bool) -> None:
    p = make_slates((3, 1, 4), dtype=torch.bfloat16, width=24, vocab=101).to(target.device)
    p.labels[1] = -100
    upstream = torch.linspace(-1, 2, p.utility.numel(), device=target.device)
    results = []
    for dtype, backend in ((torch.float64, "reference"), (torch.bfloat16, "triton")):
        leaves = [p.hidden.to(dtype, copy=True).requires_grad_(), p.lm_head_weight.to(dtype).requires_grad_(trained)]
        logprobs = pope_core.linear_response_logprobs(
            *leaves, p.labels, response_offsets=p.response_offsets, chunk_bytes=12 * 101 * 2, backend=backend
        )
        wanted = leaves if trained else leaves[:1]
        results.append([logprobs, *torch.autograd.grad(logprobs @ upstream.to(logprobs.dtype), wanted)])
    for actual, right in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(
            actual.double(), right, rtol=2**-6, atol=2e-2 if actual.dtype == torch.bfloat16 else 1e-4
        )


def test_other_dtypes_and_the_classic_method_stay(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[type] = []
    start = _linear.ChunkedHead.__init__

    def spy(self: Any, *arguments: Any) -> None:
        made.append(type(self))
        start(self, *arguments)

    monkeypatch.setattr(_linear.ChunkedHead, "__init__", spy)

    def score(dtype: torch.dtype) -> None:
        p = make_slates((1,), dtype=dtype).to(target.device)
        pope_core.linear_response_logprobs(
            p.hidden, p.lm_head_weight, p.labels, response_offsets=p.response_offsets, backend="triton"
        )

    score(torch.bfloat16)
    score(torch.float16)
    monkeypatch.setenv(backends.LINEAR_VARIABLE, "classic")
    score(torch.bfloat16)
    assert made == [_linear.ScaledExpHead, _linear.ChunkedHead, _linear.ChunkedHead]
    monkeypatch.setenv(backends.LINEAR_VARIABLE, "fast")
    with pytest.raises(ValueError, match=r"^POPE_TRITON_LINEAR: expected classic or scaled_exp, got 'fast'"):
        score(torch.bfloat16)
    assert _linear_ops.linear_method("cuda", torch.device("cuda"), torch.bfloat16).name == "classic"
