"""From hidden states: any chunking, any objective and any set of wanted gradients agree with the logits held whole."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import plain

import pope_core
from pope_core.testing import TARGETS, SlateProblem, Target, assert_no_worse_than_reference, make_slates
from pope_kernels import native

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
ROW = 37 * 4  # bytes of one row of float32 logits of the default problem
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"logit_scale": 0.7},
    "capped": {"logit_softcap": 2.0},
    "scaled and capped": {"logit_scale": 1.9, "logit_softcap": 3.0},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "response": {},
    "response, clipped": {"clip": 1.1},
    "response, self-normalised": {"normalization": "slate", "diversity_form": "entropy"},
    "response, batch": {"normalization": "batch", "diversity_weight": 0.3},
    "response, batch, clipped": {"normalization": "batch", "clip": 1.0, "utility_form": "log_likelihood"},
    "slate": {"weighting": "slate", "clip": 3.0},
    "slate, batch": {"weighting": "slate", "normalization": "batch"},
    "geometric": {"weighting": "geometric", "num_slates": 7},
    "geometric, self-normalised": {"weighting": "geometric", "normalization": "slate"},
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def leaves_of(p: SlateProblem, wanted: tuple[bool, bool, bool] = (True, True, True)) -> list[torch.Tensor]:
    tensors = (p.hidden, p.lm_head_weight, p.lm_head_bias)
    return [t.detach().clone().requires_grad_(need) for t, need in zip(tensors, wanted)]


def whole_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> torch.Tensor:
    logits = logit_scale * F.linear(hidden, weight, bias)
    return logits if logit_softcap is None else logit_softcap * torch.tanh(logits / logit_softcap)


def loss_of_whole_logits(
    p: SlateProblem, leaves: list[torch.Tensor], head: dict[str, Any], objective: dict[str, Any]
) -> pope_core.PopeLossOutput:
    """The specification in the dtype of the leaves: float64 leaves give the truth, others the plain composition."""
    logits = whole_logits(*leaves, **head)
    token = logits.log_softmax(-1).gather(-1, p.labels.unsqueeze(-1)).squeeze(-1)
    totals = torch.stack([run.sum() for run in token.split(p.tokens.tolist())])
    return pope_core.reference.slate_objective(totals, *p.log_data, tokens=p.tokens, **plain(**objective))


def linear_loss(
    p: SlateProblem, leaves: list[torch.Tensor], target: Target, **options: Any
) -> pope_core.PopeLossOutput:
    hidden, weight, bias = leaves
    return pope_core.linear_pope_loss(
        hidden,
        weight,
        p.labels,
        *p.log_data,
        lm_head_bias=bias,
        response_offsets=p.response_offsets,
        backend=target.backend,
        **plain(**options),
    )


def gradients(loss: torch.Tensor, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]))


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("widened", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_of_either_library_are_as_exact_as_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, onednn: bool, widened: bool, dtype: torch.dtype
) -> None:
    """Many blocks of the head, of rows and columns that are no multiple of anything."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch was built without oneDNN")
    monkeypatch.setattr(native, "PREFER_ONEDNN", onednn)
    monkeypatch.setattr(native, "WIDENED", {dtype} if widened and dtype != torch.float32 else set())
    monkeypatch.setattr(native, "HEAD_BLOCK_BYTES", 4000)
    p = make_slates(vocab=211, width=13, dtype=dtype)
    acc = torch.float32
    logits, gradient = p.logits, (p.logits / 7)[1:]
    bias, hidden = p.lm_head_bias, p.hidden[1:]
    out = native.project(p.hidden, p.lm_head_weight, bias, torch.empty_like(logits))
    exact = F.linear(p.hidden.double(), p.lm_head_weight.double(), bias.double())
    assert_no_worse_than_reference(out, F.linear(p.hidden, p.lm_head_weight, bias), exact)
    back = native.back_project(gradient, p.lm_head_weight, torch.empty_like(hidden))
    exact = gradient.double() @ p.lm_head_weight.double()
    assert_no_worse_than_reference(back, gradient @ p.lm_head_weight, exact)
    total = torch.full((211, 13), 1e9, dtype=acc)
    native.add_outer(total, gradient, hidden, True)
    native.add_outer(total, gradient, hidden, False)
    exact = 2 * gradient.double().T @ hidden.double()
    assert_no_worse_than_reference(total, 2 * (gradient.T @ hidden).to(acc), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_widened_products_are_rounded_once(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """However many blocks are summed, and never into a 16-bit gradient of the head of several chunks."""
    monkeypatch.setattr(native, "WIDENED", {dtype})
    monkeypatch.setattr(native, "HEAD_BLOCK_BYTES", 4000)
    hidden, weight, gradient = (torch.randn(shape).to(dtype) for shape in ((50, 40), (3000, 40), (50, 3000)))
    logits = native.project(hidden, weight, None, torch.empty(50, 3000, dtype=dtype))
    backward = native.back_project(gradient, weight, torch.empty(50, 40, dtype=dtype))
    total = torch.empty(3000, 40)
    native.add_outer(total, gradient, hidden, True)
    native.add_outer(total, gradient, hidden, False)
    exact = hidden.double() @ weight.double().T, gradient.double() @ weight.double()
    for rounded, product in zip((logits, backward), exact, strict=True):
        half_a_digit = torch.finfo(dtype).eps / 2 * product.abs() + 1e-4  # and float32's own sums
        assert ((rounded.double() - product).abs() <= half_a_digit).all()
    torch.testing.assert_close(total.double(), 2 * gradient.double().T @ hidden.double(), rtol=1e-5, atol=1e-4)


@every_target
@every_head
@every_objective
@pytest.mark.parametrize("rows", [1, 5, 1000], ids=lambda r: f"{r}-rows")
def test_loss_and_gradients_equal_those_of_whole_logits(
    target: Target, head: dict[str, Any], objective: dict[str, Any], rows: int
) -> None:
    p = make_slates((3, 1, 2, 4), dtype=torch.float64).to(target.device)
    leaves, others = leaves_of(p), leaves_of(p)
    expected = loss_of_whole_logits(p, others, head, objective)
    output = linear_loss(p, leaves, target, chunk_bytes=2 * ROW * rows, **head, **objective)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(output.loss, leaves), gradients(expected.loss, others), rtol=1e-9, atol=1e-11)


@every_target
@every_head
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "total"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trained-head", "frozen-head"])
def test_logprobs_and_gradients_equal_those_of_whole_logits(
    target: Target, head: dict[str, Any], mean: bool, frozen: bool
) -> None:
    p = make_slates((3, 1, 2, 4), dtype=torch.float64).to(target.device)
    upstream = torch.linspace(-1, 2, p.utility.numel(), dtype=torch.float64, device=target.device)
    wanted = (True, not frozen, not frozen)
    options = {"response_offsets": p.response_offsets, "reduction": "mean" if mean else "sum"}
    others = leaves_of(p, wanted)
    expected = pope_core.reference.response_logprobs(whole_logits(*others, **head), p.labels, **options)
    for rows in (1, 5, 1000):
        hidden, weight, bias = leaves = leaves_of(p, wanted)
        actual = pope_core.linear_response_logprobs(
            hidden,
            weight,
            p.labels,
            lm_head_bias=bias,
            chunk_bytes=2 * ROW * rows,
            backend=target.backend,
            **options,
            **head,
        )
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            gradients(actual @ upstream, leaves),
            list(torch.autograd.grad(expected @ upstream, [x for x in others if x.requires_grad], retain_graph=True)),
            rtol=1e-9,
            atol=1e-11,
        )


@every_target
@every_head
@pytest.mark.parametrize("rows", [1, 5, 1000], ids=lambda r: f"{r}-rows")
@torch.no_grad()
def test_without_gradients_it_is_the_same(target: Target, head: dict[str, Any], rows: int) -> None:
    """The vocabulary comes in blocks then; ignored labels lie among the others, and a response has one alone."""
    p = make_slates((3, 1, 2, 4), dtype=torch.float64, tokens=(2, 5)).to(target.device)
    leaves = leaves_of(p)
    expected = loss_of_whole_logits(p, leaves, head, {})
    options = {"chunk_bytes": ROW * rows, **head}
    torch.testing.assert_close(linear_loss(p, leaves, target, **options), expected, rtol=1e-10, atol=1e-10)
    ignored = p.response_offsets[:-1].to(p.labels.device)
    p.labels[ignored] = -100
    logits = whole_logits(*leaves, **head)
    options.update(lm_head_bias=leaves[2], response_offsets=p.response_offsets)
    torch.testing.assert_close(
        pope_core.linear_response_logprobs(*leaves[:2], p.labels, backend=target.backend, **options),
        pope_core.reference.response_logprobs(logits, p.labels, response_offsets=p.response_offsets),
        rtol=1e-10,
        atol=1e-10,
    )


@every_target
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_head
def test_no_worse_than_plain_pytorch(target: Target, dtype: torch.dtype, head: dict[str, Any]) -> None:
    largest, fewest_rows = (12, 20) if str(target) == "triton-interpreted" else (64, 7)  # of slates, of chunks
    p = make_slates((4, 1, largest), dtype=dtype, width=24, vocab=101).to(target.device)
    exact = [t.double().requires_grad_() for t in leaves_of(p, (False, False, False))]
    truth = loss_of_whole_logits(p, exact, head, {})
    plain_leaves = leaves_of(p)
    plain = loss_of_whole_logits(p, plain_leaves, head, {})
    for rows in (fewest_rows, 1000):
        leaves = leaves_of(p)
        output = linear_loss(p, leaves, target, chunk_bytes=rows * 101 * dtype.itemsize, **head)
        for name in ("response_logprobs", "weights"):
            assert_no_worse_than_reference(getattr(output, name), getattr(plain, name), getattr(truth, name))
        for ours, theirs, right in zip(
            gradients(output.loss, leaves),
            torch.autograd.grad(plain.loss, plain_leaves, retain_graph=True),
            torch.autograd.grad(truth.loss, exact, retain_graph=True),
        ):
            assert ours.dtype == dtype
            # BLAS sums hundreds of tokens one after the other, torch.sum in pairs: a few units more in the last place.
            assert_no_worse_than_reference(ours, theirs, right, ulps=8)


@every_target
@pytest.mark.parametrize("objective", [{}, {"weighting": "slate", "normalization": "batch"}], ids=["none", "batch"])
@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=3) if any(w)], ids=str)
def test_only_the_wanted_gradients_are_formed(
    target: Target, objective: dict[str, Any], wanted: tuple[bool, bool, bool]
) -> None:
    p = make_slates(dtype=torch.float64).to(target.device)
    everything = leaves_of(p)
    all_gradients = gradients(linear_loss(p, everything, target, **objective).loss, everything)
    some = leaves_of(p, wanted)
    linear_loss(p, some, target, chunk_bytes=10 * ROW, **objective).loss.backward()
    for leaf, need, expected in zip(some, wanted, all_gradients):
        assert (leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(leaf.grad, expected)


@every_target
@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=3) if any(w)], ids=str)
def test_only_the_wanted_gradients_of_logprobs_are_formed(target: Target, wanted: tuple[bool, bool, bool]) -> None:
    p = make_slates(dtype=torch.float64).to(target.device)
    upstream = torch.linspace(-1, 2, p.utility.numel(), dtype=torch.float64, device=target.device)
    options = {"response_offsets": p.response_offsets, "backend": target.backend}

    def logprobs(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return pope_core.linear_response_logprobs(hidden, weight, p.labels, lm_head_bias=bias, **options)

    everything = leaves_of(p)
    all_gradients = gradients(logprobs(*everything) @ upstream, everything)
    some = leaves_of(p, wanted)
    (logprobs(*some) @ upstream).backward()
    for leaf, need, expected in zip(some, wanted, all_gradients):
        assert (leaf.grad is not None) == need
        if need:
            torch.testing.assert_close(leaf.grad, expected)


@every_target
def test_tied_embeddings_collect_both_gradients(target: Target) -> None:
    """In SmolLM2 and its like the lm_head is the embedding: its gradient is the sum of both uses."""
    p = make_slates(dtype=torch.float64).to(target.device)
    inputs = p.labels.roll(1)

    def tied(weight: torch.Tensor, *, chunked: bool) -> torch.Tensor:
        hidden = torch.tanh(F.embedding(inputs, weight))
        if chunked:
            return linear_loss(p, [hidden, weight, None], target, chunk_bytes=4 * ROW).loss
        return loss_of_whole_logits(p, [hidden, weight, None], {}, {}).loss

    weights = [p.lm_head_weight.clone().requires_grad_() for _ in range(2)]
    losses = [tied(weight, chunked=chunked) for weight, chunked in zip(weights, (True, False))]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss, weight in zip(losses, weights)))


@every_target
def test_gradients_do_not_keep_the_graph(target: Target) -> None:
    """A sum of gradients over many batches would hold all of them."""
    p = make_slates().to(target.device)
    leaves = leaves_of(p)
    loss = linear_loss(p, leaves, target).loss
    logprobs = pope_core.linear_response_logprobs(
        *leaves[:2], p.labels, response_offsets=p.response_offsets, backend=target.backend
    )
    for value, given in ((loss, leaves), (logprobs.sum(), leaves[:2])):
        gradients = torch.autograd.grad(value, given)
        assert not any(gradient.requires_grad for gradient in gradients)


@every_target
def test_gradcheck(target: Target) -> None:
    p = make_slates((2, 1), dtype=torch.float64, vocab=7, width=3, tokens=(1, 3)).to(target.device)

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return linear_loss(p, list(leaves), target, chunk_bytes=100, logit_softcap=4.0, normalization="batch").loss

    # Interpreted, along one direction, not along every number.
    torch.autograd.gradcheck(loss, leaves_of(p), fast_mode=str(target) == "triton-interpreted")


@every_target
@pytest.mark.parametrize("trained", [True, False], ids=["trained-head", "frozen-head"])
def test_autocast_sets_the_dtype_of_the_product_and_keeps_that_of_the_gradients(target: Target, trained: bool) -> None:
    p = make_slates(width=32, vocab=101).to(target.device)
    low = SlateProblem(*(t.bfloat16() if t is p.hidden or t is p.lm_head_weight else t for t in vars(p).values()))
    results = []
    for problem, autocast in ((p, True), (low, False)):
        leaves = [*leaves_of(problem, (True, trained, False))[:2], None]
        with torch.autocast(target.device, dtype=torch.bfloat16, enabled=autocast):
            output = linear_loss(problem, leaves, target)
        found = gradients(output.loss, leaves)
        assert [g.dtype for g in found] == [problem.hidden.dtype] * len(found)
        results.append((output.value, *(g.float() for g in found)))
    tolerance = {"rtol": 2**-7, "atol": 1e-5} if target.backend != "reference" else {"rtol": 0.1, "atol": 0.02}
    torch.testing.assert_close(results[0], results[1], **tolerance)


@every_target
def test_non_contiguous_inputs(target: Target) -> None:
    p = make_slates().to(target.device)
    expected_leaves = leaves_of(p)
    expected = linear_loss(p, expected_leaves, target)
    hidden, weight, bias = leaves = leaves_of(p)
    strided = [
        hidden.t().contiguous().t(),
        torch.cat([weight, weight], 1)[:, : weight.shape[1]],
        bias.repeat_interleave(2)[::2],
    ]
    assert not any(t.is_contiguous() for t in strided)
    output = linear_loss(p, strided, target)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(gradients(output.loss, leaves), gradients(expected.loss, expected_leaves))


@every_target
@pytest.mark.parametrize(
    "shape",
    [
        {"slate_sizes": (1,), "tokens": (1, 1)},
        {"slate_sizes": (64,), "tokens": (1, 2)},
        {"vocab": 1},
        {"vocab": 4099, "width": 1},
        {"slate_sizes": (1, 1, 1), "width": 7},
    ],
    ids=str,
)
def test_odd_shapes(target: Target, shape: dict[str, Any]) -> None:
    p = make_slates(dtype=torch.float64, **shape).to(target.device)
    leaves, others = leaves_of(p), leaves_of(p)
    output = linear_loss(p, leaves, target, chunk_bytes=1)
    expected = loss_of_whole_logits(p, others, {}, {})
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output.loss, leaves), gradients(expected.loss, others))


@every_target
@pytest.mark.parametrize("utility", [0.0, 0.5], ids=["zero-utility", "equal-utility"])
@every_objective
def test_utility_that_says_nothing(target: Target, utility: float, objective: dict[str, Any]) -> None:
    p = make_slates(dtype=torch.float64).to(target.device)
    p.utility.fill_(utility)
    leaves, others = leaves_of(p), leaves_of(p)
    output, expected = linear_loss(p, leaves, target, **objective), loss_of_whole_logits(p, others, {}, objective)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients(output.loss, leaves), gradients(expected.loss, others))
    if utility == 0.0:
        assert output.utility_value == 0


@every_target
def test_rows_without_a_coefficient_get_exact_zeros(target: Target) -> None:
    """Clipped responses with nothing but utility to gain do not move."""
    p = make_slates((2, 2), dtype=torch.float64).to(target.device)
    p.logging_logprobs[0] -= 10 * p.tokens[0]
    leaves = leaves_of(p)
    output = linear_loss(p, leaves, target, clip=2.0, diversity_weight=0.0)
    assert output.weights[0] == 2.0
    d_hidden, *_ = gradients(output.loss, leaves)
    assert not d_hidden[: int(p.response_offsets[1])].any()
    assert d_hidden.any(1).sum() == p.labels.numel() - int(p.response_offsets[1])


@every_target
@pytest.mark.parametrize("weighting", ["response", "slate", "geometric"])
def test_batch_normalisation_has_a_value_where_every_weight_underflows(target: Target, weighting: str) -> None:
    """exp(-900) is 0 in float64; the quotient of such weights is not 0 / 0, in one chunk or in many."""
    p = make_slates((2, 1, 3), dtype=torch.float64).to(target.device)
    p.logging_logprobs.add_(900)
    options = {"normalization": "batch", "weighting": weighting}
    for chunk_bytes in (3 * 2 * ROW, None):
        leaves, others = leaves_of(p), leaves_of(p)
        output = linear_loss(p, leaves, target, chunk_bytes=chunk_bytes, **options)
        expected = loss_of_whole_logits(p, others, {}, options)
        torch.testing.assert_close(output.value, expected.value)
        torch.testing.assert_close(gradients(output.loss, leaves), gradients(expected.loss, others))
