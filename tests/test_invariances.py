"""Arrangements that must not matter: layout, order, micro-batching, chunking, and constants that cancel."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from plain import plain

import pope_core
from pope_core.objective import CHOICES
from pope_core.testing import TARGETS, SlateProblem, Target, make_slates

# Properties of what is built on the kernels: an interpreter of these would add time, and nothing else.
every_target = pytest.mark.parametrize("target", [t for t in TARGETS if str(t) != "triton-interpreted"], ids=str)
WEIGHTINGS, NORMALIZATIONS = CHOICES["weighting"], CHOICES["normalization"]
FORMS = [("feedback", "neg_log_prob"), ("log_likelihood", "entropy")]
OPTIONS = [
    {
        "weighting": weighting,
        "normalization": normalization,
        "utility_form": utility_form,
        "diversity_form": diversity_form,
        "clip": clip,
        "diversity_weight": 0.3,
    }
    for weighting, normalization, (utility_form, diversity_form), clip in itertools.product(
        WEIGHTINGS, NORMALIZATIONS, FORMS, (None, 1.2)
    )
]
every_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))


def problem_on(target: Target, *sizes: int, **options: Any) -> SlateProblem:
    return make_slates(sizes or (3, 1, 2, 4), dtype=torch.float64, **options).to(target.device)


def take_responses(p: SlateProblem, order: list[int], slate_offsets: torch.Tensor) -> tuple[SlateProblem, torch.Tensor]:
    """The problem with its responses in another order, and the token order that this means."""
    starts, ends = p.response_offsets[:-1].tolist(), p.response_offsets[1:].tolist()
    tokens = torch.cat([torch.arange(starts[r], ends[r]) for r in order]).to(p.labels.device)
    responses = torch.tensor(order, device=p.labels.device)
    taken = SlateProblem(
        hidden=p.hidden[tokens],
        lm_head_weight=p.lm_head_weight,
        lm_head_bias=p.lm_head_bias,
        labels=p.labels[tokens],
        response_offsets=pope_core.offsets_from_lengths(p.response_offsets.diff()[responses]),
        logging_logprobs=p.logging_logprobs[responses],
        utility=p.utility[responses],
        slate_offsets=slate_offsets,
    )
    return taken, tokens


def take_slates(p: SlateProblem, order: list[int]) -> tuple[SlateProblem, torch.Tensor]:
    offsets = p.slate_offsets.tolist()
    responses = [r for q in order for r in range(offsets[q], offsets[q + 1])]
    return take_responses(p, responses, pope_core.offsets_from_lengths(p.slate_offsets.diff()[order]))


def linear(p: SlateProblem, target: Target, **options: Any) -> tuple[pope_core.PopeLossOutput, list[torch.Tensor]]:
    leaves = [t.clone().requires_grad_() for t in (p.hidden, p.lm_head_weight)]
    output = pope_core.linear_pope_loss(
        *leaves, p.labels, *p.log_data, response_offsets=p.response_offsets, backend=target.backend, **plain(**options)
    )
    return output, list(torch.autograd.grad(output.loss, leaves))


def from_logits(p: SlateProblem, target: Target, **options: Any) -> tuple[pope_core.PopeLossOutput, torch.Tensor]:
    logits = p.logits.requires_grad_()
    output = pope_core.pope_loss(
        logits, p.labels, *p.log_data, response_offsets=p.response_offsets, backend=target.backend, **plain(**options)
    )
    return output, torch.autograd.grad(output.loss, logits)[0]


@every_target
@pytest.mark.parametrize("prompt", [1, 5])
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "total"])
def test_packed_equals_padded(target: Target, prompt: int, mean: bool) -> None:
    p = problem_on(target)
    options: dict[str, Any] = {"length_normalize": mean, "clip": 2.0}
    packed, d_logits = from_logits(p, target, **options)
    logits, labels = p.padded(p.logits, prompt)
    logits.requires_grad_()
    padded = pope_core.pope_loss(logits, labels, *p.log_data, backend=target.backend, **plain(**options))
    torch.testing.assert_close(padded, packed)
    padded.loss.backward()
    torch.testing.assert_close(logits.grad, p.padded(d_logits, prompt)[0] * (logits.grad != 0))
    assert (logits.grad != 0).any(-1).sum() == p.labels.numel()

    expected, (d_hidden, d_weight) = linear(p, target, **options)
    hidden, _ = p.padded(p.hidden, prompt)
    hidden.requires_grad_()
    weight = p.lm_head_weight.clone().requires_grad_()
    output = pope_core.linear_pope_loss(hidden, weight, labels, *p.log_data, backend=target.backend, **plain(**options))
    torch.testing.assert_close(output, expected)
    output.loss.backward()
    torch.testing.assert_close(weight.grad, d_weight)
    torch.testing.assert_close(hidden.grad, p.padded(d_hidden, prompt)[0] * (hidden.grad != 0))


@every_target
def test_what_stands_at_ignored_positions_does_not_matter(target: Target) -> None:
    p = problem_on(target)
    hidden, labels = p.padded(p.hidden)
    expected = pope_core.linear_response_logprobs(hidden, p.lm_head_weight, labels, backend=target.backend)
    ignored = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) == -100
    for filling in (1e30, torch.nan):
        filled = hidden.masked_fill(ignored.unsqueeze(-1), filling)
        actual = pope_core.linear_response_logprobs(filled, p.lm_head_weight, labels, backend=target.backend)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@every_target
@every_option
def test_the_order_of_responses_inside_a_slate_does_not_matter(target: Target, options: dict[str, Any]) -> None:
    p = problem_on(target)
    order = [2, 0, 1, 3, 5, 4, 9, 6, 8, 7]
    other, tokens = take_responses(p, order, p.slate_offsets)
    (ours, (d_hidden, d_weight)), (theirs, (d_other, d_weight_other)) = (
        linear(x, target, **options) for x in (p, other)
    )
    torch.testing.assert_close(theirs.value, ours.value)
    torch.testing.assert_close(theirs.effective_sample_size, ours.effective_sample_size)
    torch.testing.assert_close(theirs.weights, ours.weights[order])
    torch.testing.assert_close(d_other, d_hidden[tokens])
    torch.testing.assert_close(d_weight_other, d_weight)


@every_target
@every_option
def test_the_order_of_slates_does_not_matter(target: Target, options: dict[str, Any]) -> None:
    p = problem_on(target)
    other, tokens = take_slates(p, [3, 1, 0, 2])
    (ours, (d_hidden, d_weight)), (theirs, (d_other, d_weight_other)) = (
        linear(x, target, **options) for x in (p, other)
    )
    for name in ("value", "utility_value", "diversity_value", "effective_sample_size", "clip_fraction"):
        torch.testing.assert_close(getattr(theirs, name), getattr(ours, name))
    torch.testing.assert_close(d_other, d_hidden[tokens])
    torch.testing.assert_close(d_weight_other, d_weight)


@every_target
@pytest.mark.parametrize("options", [o for o in OPTIONS if o["normalization"] != "batch"], ids=str)
def test_eight_micro_batches_add_up_to_the_batch(target: Target, options: dict[str, Any]) -> None:
    p = problem_on(target, 3, 1, 2, 4, 1, 1, 5, 2)
    whole, (d_hidden, d_weight) = linear(p, target, **options)
    parts = [take_slates(p, [q])[0] for q in range(8)]
    outputs, gradients = zip(*(linear(part, target, num_slates=8, **options) for part in parts))
    torch.testing.assert_close(sum(output.loss for output in outputs), whole.loss)
    torch.testing.assert_close(torch.cat([g[0] for g in gradients]), d_hidden)
    torch.testing.assert_close(sum(g[1] for g in gradients), d_weight)


@every_target
@every_option
def test_hidden_states_and_logits_give_the_same(target: Target, options: dict[str, Any]) -> None:
    p = problem_on(target)
    (by_hidden, (d_hidden, d_weight)), (by_logits, d_logits) = (
        linear(p, target, **options),
        from_logits(p, target, **options),
    )
    torch.testing.assert_close(by_hidden, by_logits)
    torch.testing.assert_close(d_hidden, d_logits @ p.lm_head_weight)
    torch.testing.assert_close(d_weight, d_logits.T @ p.hidden)


@every_target
@every_option
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_chunk_budget_does_not_change_the_result(
    target: Target, options: dict[str, Any], dtype: torch.dtype
) -> None:
    p = make_slates((3, 1, 2, 4), dtype=dtype).to(target.device)
    expected, gradients = linear(p, target, **options)
    for chunk_bytes in (1, 700, 2000, 1 << 30):
        output, found = linear(p, target, chunk_bytes=chunk_bytes, **options)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(found, gradients)


@every_target
def test_a_constant_added_to_a_row_of_logits_cancels(target: Target) -> None:
    p = problem_on(target)
    options = {"response_offsets": p.response_offsets, "backend": target.backend}
    shift = torch.linspace(-50, 50, p.labels.numel(), dtype=torch.float64, device=target.device).unsqueeze(1)
    torch.testing.assert_close(
        pope_core.response_logprobs(p.logits + shift, p.labels, **options),
        pope_core.response_logprobs(p.logits, p.labels, **options),
    )


@every_target
def test_a_total_is_the_mean_times_the_length(target: Target) -> None:
    p = problem_on(target)
    options = {"response_offsets": p.response_offsets, "backend": target.backend}
    mean, total = (
        pope_core.response_logprobs(p.logits, p.labels, reduction=reduction, **options) for reduction in ("mean", "sum")
    )
    torch.testing.assert_close(total, mean * p.tokens)


@every_target
def test_the_tokens_of_a_response_add_up_to_its_total_in_every_layout(target: Target) -> None:
    p = problem_on(target)
    offsets: dict[str, Any] = {"response_offsets": p.response_offsets, "backend": target.backend}
    totals = pope_core.response_logprobs(p.logits, p.labels, **offsets)
    padded_logits, padded_labels = p.padded(p.logits)
    padded_hidden, _ = p.padded(p.hidden)
    packed = pope_core.response_logprobs(p.logits, p.labels, reduction="none", **offsets)
    torch.testing.assert_close(torch.stack([run.sum() for run in packed.split(p.tokens.tolist())]), totals)
    of_hidden = pope_core.linear_response_logprobs(p.hidden, p.lm_head_weight, p.labels, reduction="none", **offsets)
    torch.testing.assert_close(of_hidden, packed)
    for padded in (
        pope_core.response_logprobs(padded_logits, padded_labels, reduction="none", backend=target.backend),
        pope_core.linear_response_logprobs(
            padded_hidden, p.lm_head_weight, padded_labels, reduction="none", backend=target.backend
        ),
    ):
        assert padded.shape == padded_labels.shape
        torch.testing.assert_close(padded[padded_labels >= 0], packed)
        assert not padded[padded_labels < 0].any()


@every_target
@pytest.mark.parametrize("trained", [True, False])
def test_gradients_of_single_tokens(target: Target, trained: bool) -> None:
    p = problem_on(target)
    hidden, labels = p.padded(p.hidden)
    upstream = torch.randn(labels.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    gradients = []
    for library in (pope_core, pope_core.reference):
        leaves = [hidden.clone().requires_grad_(), p.lm_head_weight.clone().requires_grad_(trained)]
        logprobs = library.linear_response_logprobs(*leaves, labels, reduction="none")
        value = (logprobs * upstream.to(target.device)).sum()
        gradients.append(torch.autograd.grad(value, leaves[: 1 + trained]))
    torch.testing.assert_close(*gradients)


@every_target
@every_option
def test_the_value_is_its_two_parts(target: Target, options: dict[str, Any]) -> None:
    output, _ = from_logits(problem_on(target), target, **options)
    torch.testing.assert_close(
        output.value, output.utility_value + 0.3 * output.diversity_value, rtol=1e-14, atol=1e-15
    )
    torch.testing.assert_close(output.loss.detach(), -output.value, rtol=0, atol=0)


def moved_from(logging_logprobs: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of another policy."""
    return logging_logprobs + torch.linspace(-1, 1, logging_logprobs.numel()).to(logging_logprobs)


def objective(p: SlateProblem, target: Target, **options: Any) -> tuple[pope_core.PopeLossOutput, torch.Tensor]:
    logprobs = moved_from(p.logging_logprobs).requires_grad_()
    options = {"length_normalize": False, **options}
    output = pope_core.slate_objective(logprobs, *p.log_data, backend=target.backend, **plain(**options))
    return output, torch.autograd.grad(output.loss, logprobs)[0]


@every_target
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("normalization", ["slate", "batch"])
def test_a_common_factor_of_the_weights_cancels_in_self_normalised_values(
    target: Target, weighting: str, normalization: str
) -> None:
    """Equal slates, so that a shift of every log-probability is one factor of the weights; as tiny as exp(-3000)."""
    p = problem_on(target, 3, 3, 3)
    options = {"weighting": weighting, "normalization": normalization}
    expected, gradient = objective(p, target, **options)
    for shift in (-10.0, 500.0):
        shifted = SlateProblem(**{**vars(p), "logging_logprobs": p.logging_logprobs + shift})
        logprobs = moved_from(p.logging_logprobs).requires_grad_()
        every = plain(length_normalize=False, **options)
        output = pope_core.slate_objective(logprobs, *shifted.log_data, backend=target.backend, **every)
        torch.testing.assert_close(output.value, expected.value)
        torch.testing.assert_close(output.effective_sample_size, expected.effective_sample_size)
        torch.testing.assert_close(torch.autograd.grad(output.loss, logprobs)[0], gradient)


@every_target
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("normalization", ["slate", "batch"])
def test_a_constant_added_to_the_utility_moves_a_self_normalised_value_by_it(
    target: Target, weighting: str, normalization: str
) -> None:
    p = problem_on(target)
    options = {"weighting": weighting, "normalization": normalization, "clip": 1.5}
    before, gradient = objective(p, target, **options)
    p.utility.add_(2.5)
    after, gradient_after = objective(p, target, **options)
    torch.testing.assert_close(after.value, before.value + 2.5)
    torch.testing.assert_close(gradient_after, gradient)


@every_target
@every_option
def test_slates_of_one_response_make_all_weightings_equal(target: Target, options: dict[str, Any]) -> None:
    p = problem_on(target, 1, 1, 1, 1)
    torch.testing.assert_close(
        objective(p, target, **options), objective(p, target, **{**options, "weighting": "response"})
    )
