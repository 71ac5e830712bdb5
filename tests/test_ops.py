"""Every ``torch.ops.pope`` operator behaves as torch expects: schema, fake, autograd, compilation, second backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain import plain
from torch._dynamo.testing import CompileCounterWithBackend

import pope_core
import pope_core.loss  # registers the operators
from pope_core.testing import TARGETS, SlateProblem, Target, make_slates

OBJECTIVE = (0.3, "response", "none", 2.0, "feedback", "neg_log_prob", True, None)
NATIVE = [target for target in TARGETS if target.backend != "reference"]
every_native = pytest.mark.parametrize("target", NATIVE, ids=str)


def problem_on(target: Target, **options: Any) -> SlateProblem:
    return make_slates(**options).to(target.device)


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_()


def linear_head(p: SlateProblem, *, trains: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    head = [p.lm_head_weight, p.lm_head_bias]
    return (leaf(p.hidden), *(map(leaf, head) if trains else head))


def operator_calls(p: SlateProblem, backend: str) -> dict[str, list[tuple[Any, ...]]]:
    """At least one call of each operator, with the gradients it may be asked for."""
    logits = leaf(p.logits)
    _, lse = torch.ops.pope.response_logprobs(logits, p.labels, p.response_offsets, "mean", backend)
    grad = torch.randn(p.utility.shape, generator=torch.Generator().manual_seed(1)).to(logits.device)
    each = torch.randn(p.labels.shape, generator=torch.Generator().manual_seed(2)).to(logits.device)
    tokens = (p.labels, p.response_offsets)
    head_options = (1.3, 20.0, 4 * 37 * 4, backend, True, torch.float32)
    low = (p.hidden.bfloat16(), p.lm_head_weight.bfloat16(), None)
    low_options = (1.0, None, None, backend, True, torch.bfloat16)
    return {
        "response_logprobs": [(logits, *tokens, reduction, backend) for reduction in ("sum", "mean", "none")],
        "response_logprobs_backward": [
            (grad, logits.detach(), *tokens, lse.detach(), "mean", backend),
            (each, logits.detach(), *tokens, lse.detach(), "none", backend),
        ],
        "slate_objective": [
            (leaf(p.logging_logprobs + 0.1), *p.log_data, p.tokens, backend, *OBJECTIVE),
            (leaf(p.logging_logprobs + 0.1), *p.log_data, None, backend, *OBJECTIVE[:-2], False, 5),
        ],
        "linear_response_logprobs": [
            (*linear_head(p, trains=trains), *tokens, *head_options, True, trains, trains, reduction)
            for trains, reduction in ((True, "mean"), (False, "sum"), (True, "none"), (False, "none"))
        ],
        "linear_response_logprobs_backward": [
            (p.hidden, p.lm_head_weight, p.lm_head_bias, *tokens, *head_options, *needs, reduction, lse.detach(), g)
            for needs in ((True, True, True), (False, True, False), (True, False, False))
            for reduction, g in (("mean", grad), ("none", each))
        ],
        "linear_pope_loss": [
            (hidden, *head, *tokens, *head_options, hidden.requires_grad, True, True, *p.log_data, *OBJECTIVE)
            for _, *head in [linear_head(p, trains=True)]
            for hidden in (leaf(p.hidden), p.hidden)
        ]
        + [
            (*low, *tokens, *low_options, *needs, *p.log_data, *OBJECTIVE)
            for needs in ((True, True, False), (True, False, False), (False, False, False))
        ],
    }


def names_of_all_operators() -> set[str]:
    registered = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("pope::") for name in registered if name.startswith("pope::")}


def test_every_operator_is_checked_here() -> None:
    assert set(operator_calls(make_slates(), "cpu")) == names_of_all_operators()


@every_native
@pytest.mark.parametrize("name", sorted(names_of_all_operators()))
def test_opcheck(target: Target, name: str) -> None:
    for arguments in operator_calls(problem_on(target), target.backend)[name]:
        # Comparing what a compiled and an eager call returned after backward only makes sense where no output is
        # scratch that an eager backward overwrites; the compiled public functions are compared below in any case.
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        frozen = not arguments[1].requires_grad
        scratch = {"linear_pope_loss": arguments[0].requires_grad, "linear_response_logprobs": frozen}
        if not scratch.get(name, False):
            checks.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(getattr(torch.ops.pope, name).default, arguments, test_utils=checks)


Leaves = dict[str, torch.Tensor]
Call = Callable[[Leaves], torch.Tensor]


def public_calls(p: SlateProblem, backend: Any) -> dict[str, tuple[Call, Leaves]]:
    """Every public function as a scalar of its differentiable inputs, with upstream gradients that differ."""
    padded_logits, padded_labels = p.padded(p.logits)
    padded_hidden, _ = p.padded(p.hidden)
    uneven = torch.linspace(-1.0, 2.0, p.utility.numel(), device=p.hidden.device)
    offsets = {"response_offsets": p.response_offsets, "backend": backend}
    options = plain(clip=1.5, normalization="slate", diversity_form="entropy")
    head = {"hidden": p.hidden, "lm_head_weight": p.lm_head_weight, "lm_head_bias": p.lm_head_bias}
    module = pope_core.PopeLoss(**plain(weighting="geometric"), backend=backend)
    return {
        "response_logprobs": (
            lambda x: uneven @ pope_core.response_logprobs(x["logits"], p.labels, **offsets),
            {"logits": p.logits},
        ),
        "linear_response_logprobs": (
            lambda x: uneven @ pope_core.linear_response_logprobs(labels=p.labels, chunk_bytes=600, **x, **offsets),
            head,
        ),
        "linear_response_logprobs, frozen head": (
            lambda x: uneven @ pope_core.linear_response_logprobs(x["hidden"], p.lm_head_weight, p.labels, **offsets),
            {"hidden": p.hidden},
        ),
        "slate_objective": (
            lambda x: (
                -3 * pope_core.slate_objective(x["l"], *p.log_data, tokens=p.tokens, backend=backend, **options).loss
            ),
            {"l": p.logging_logprobs + 0.2},
        ),
        "pope_loss": (
            lambda x: 0.5 * pope_core.pope_loss(x["logits"], p.labels, *p.log_data, **offsets, **options).loss,
            {"logits": p.logits},
        ),
        "pope_loss, padded": (
            lambda x: 2 * pope_core.pope_loss(x["logits"], padded_labels, *p.log_data, backend=backend).loss,
            {"logits": padded_logits},
        ),
        "PopeLoss": (lambda x: module(x["logits"], padded_labels, *p.log_data).loss, {"logits": padded_logits}),
        "linear_pope_loss": (
            lambda x: (
                0.7
                * pope_core.linear_pope_loss(
                    x["hidden"],
                    x["lm_head_weight"],
                    p.labels,
                    *p.log_data,
                    lm_head_bias=x["lm_head_bias"],
                    logit_scale=1.2,
                    logit_softcap=9.0,
                    chunk_bytes=600,
                    **offsets,
                    **options,
                ).loss
            ),
            head,
        ),
        "linear_pope_loss, padded": (
            lambda x: (
                pope_core.linear_pope_loss(
                    x["hidden"], x["lm_head_weight"], padded_labels, *p.log_data, backend=backend
                ).loss
            ),
            {"hidden": padded_hidden, "lm_head_weight": p.lm_head_weight},
        ),
    }


def value_and_gradients(call: Call, inputs: Leaves) -> list[torch.Tensor]:
    leaves = {name: leaf(value) for name, value in inputs.items()}
    value = call(leaves)
    return [value.detach(), *torch.autograd.grad(value, list(leaves.values()))]


PUBLIC = sorted(public_calls(make_slates(), "cpu"))


@every_native
@pytest.mark.parametrize("name", PUBLIC)
def test_compiled_without_graph_break_it_equals_eager(target: Target, name: str) -> None:
    call, inputs = public_calls(problem_on(target), target.backend)[name]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(call, inputs))


@every_native
def test_a_compiled_training_step_equals_eager(target: Target) -> None:
    call, inputs = public_calls(problem_on(target), target.backend)["linear_pope_loss"]
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(value_and_gradients(compiled, inputs), value_and_gradients(call, inputs))


@every_native
def test_a_trace_serves_other_numbers_of_tokens(target: Target) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def loss(
        logits: torch.Tensor, labels: torch.Tensor, offsets: torch.Tensor, *log_data: torch.Tensor
    ) -> torch.Tensor:
        return pope_core.pope_loss(logits, labels, *log_data, response_offsets=offsets, backend=target.backend).loss

    compiled = torch.compile(loss, fullgraph=True, backend=counter, dynamic=True)
    graphs = []
    for sizes in ((3, 1, 2), (5, 2), (7, 1, 1, 9)):
        p = problem_on(target, slate_sizes=sizes)
        arguments = (p.logits, p.labels, p.response_offsets, *p.log_data)
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
        graphs.append(counter.frame_count)
    assert graphs == graphs[:1] * 3


@every_native
def test_a_changed_option_is_traced_again_without_a_graph_break(target: Target) -> None:
    torch.compiler.reset()
    p = problem_on(target)

    def loss(l: torch.Tensor, alpha: float, clip: float | None, num_slates: int | None) -> torch.Tensor:  # noqa: E741
        objective = pope_core.Objective(
            diversity_weight=alpha, clip=clip, normalization="none", diversity_form="neg_log_prob"
        )
        return pope_core.slate_objective(
            l, *p.log_data, tokens=p.tokens, objective=objective, num_slates=num_slates, backend=target.backend
        ).loss

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for options in ((0.1, None, None), (0.2, 1.5, None), (0.3, 1.7, 8), (0.4, 1.9, 9)):
        torch.testing.assert_close(compiled(p.utility, *options), loss(p.utility, *options))


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("name", PUBLIC)
def test_backward_may_run_again_while_the_graph_is_kept(target: Target, name: str) -> None:
    call, inputs = public_calls(problem_on(target), target.backend)[name]
    _, *expected = value_and_gradients(call, inputs)
    leaves = {key: leaf(value) for key, value in inputs.items()}
    value = call(leaves)
    for times in (1, 2, 3):  # .grad accumulates; it must not share memory with what the graph has saved
        value.backward(retain_graph=times < 3)
        for parameter, once in zip(leaves.values(), expected):
            torch.testing.assert_close(parameter.grad, times * once)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


@every_native
def test_a_gradient_changed_in_place_does_not_change_the_next_one(target: Target) -> None:
    call, inputs = public_calls(problem_on(target), target.backend)["linear_pope_loss"]
    leaves = {key: leaf(value) for key, value in inputs.items()}
    value = call(leaves)
    first = torch.autograd.grad(value, list(leaves.values()), retain_graph=True)
    expected = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    torch.testing.assert_close(list(torch.autograd.grad(value, list(leaves.values()))), expected)


@every_native
@pytest.mark.parametrize("name", PUBLIC)
def test_a_second_derivative_is_refused_not_wrong(target: Target, name: str) -> None:
    call, inputs = public_calls(problem_on(target), target.backend)[name]
    leaves = {key: leaf(value) for key, value in inputs.items()}
    for upstream in (1.0, torch.ones((), device=target.device, requires_grad=True)):
        with pytest.raises(RuntimeError, match="create_graph=True: second derivatives are not implemented"):
            torch.autograd.grad(upstream * call(leaves), list(leaves.values()), create_graph=True)


# An interpreter runs one program after another: nothing to see there, at great length.
@pytest.mark.parametrize("target", [t for t in NATIVE if str(t) != "triton-interpreted"], ids=str)
@pytest.mark.parametrize("name", PUBLIC)
def test_results_are_bitwise_the_same_every_time(target: Target, name: str) -> None:
    call, inputs = public_calls(problem_on(target, slate_sizes=(4,) * 8, tokens=(5, 30)), target.backend)[name]
    first = value_and_gradients(call, inputs)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, value_and_gradients(call, inputs)))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_only_the_loss_is_part_of_the_graph(target: Target) -> None:
    p = problem_on(target)
    offsets = {"response_offsets": p.response_offsets, "backend": target.backend}
    for output in (
        pope_core.pope_loss(leaf(p.logits), p.labels, *p.log_data, **offsets),
        pope_core.linear_pope_loss(leaf(p.hidden), p.lm_head_weight, p.labels, *p.log_data, **offsets),
    ):
        assert [name for name, field in output._asdict().items() if field.requires_grad] == ["loss"]


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_no_graph_is_made_without_gradients(target: Target) -> None:
    p = problem_on(target)
    offsets = {"response_offsets": p.response_offsets, "backend": target.backend}
    with torch.no_grad():
        output = pope_core.linear_pope_loss(leaf(p.hidden), leaf(p.lm_head_weight), p.labels, *p.log_data, **offsets)
    assert not output.loss.requires_grad
    data_only = pope_core.linear_pope_loss(p.hidden, p.lm_head_weight, p.labels, *p.log_data, **offsets)
    assert not data_only.loss.requires_grad
    torch.testing.assert_close(data_only.loss, output.loss)
