"""What docs/method.md claims of the objective: Theorem 4.1 by enumeration, its bounds and our kernels by property."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plain import plain

import pope_core
from pope_core.objective import CHOICES
from pope_core.testing import TARGETS, Target, make_slates

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
REFERENCE = Target("reference")


def total(**options: Any) -> dict[str, Any]:
    """The plain estimator on totals: true importance weights."""
    return plain(length_normalize=False, **options)


class World:
    """A query with finitely many responses: probabilities under both policies and a reward for each."""

    def __init__(self, pi_0: list[float], pi: list[float], reward: list[float]) -> None:
        self.pi_0, self.pi, self.reward = (torch.tensor(x, dtype=torch.float64) for x in (pi_0, pi, reward))

    def estimates(self, k: int, weighting: Any, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
        """Probability of every slate of ``k`` independent responses, and the library's estimate from it alone."""
        slates = torch.tensor(list(itertools.product(range(len(self.pi)), repeat=k)))  # [all slates, k]
        drawn = slates.flatten()
        offsets = torch.arange(0, drawn.numel() + 1, k)
        data = (self.pi.log()[drawn], self.pi_0.log()[drawn], self.reward[drawn], offsets)
        output = pope_core.slate_objective(
            *(tensor.to(target.device) for tensor in data),
            backend=target.backend,
            **total(diversity_weight=0.0, weighting=weighting),
        )
        return self.pi_0[slates].prod(1), (output.weights.cpu() * self.reward[drawn]).view(-1, k).mean(1)

    def moments(self, k: int, weighting: Any, target: Target = REFERENCE) -> tuple[float, float]:
        """Expectation and variance of the estimate over slates logged by ``pi_0``."""
        probability, estimate = self.estimates(k, weighting, target)
        mean = probability @ estimate
        return float(mean), float(probability @ (estimate - mean) ** 2)

    @property
    def value(self) -> float:
        return float(self.pi @ self.reward)

    def condition_of_b(self, k: int) -> float:
        """``Cov_0(wR, w) + (k - 1) / 2 * V_1 * Var_0(w)``; Theorem 4.1 b asks for it to be >= 0."""
        w = self.pi / self.pi_0
        variance = self.pi_0 @ (w - 1) ** 2
        covariance = self.pi_0 @ (w * self.reward * w) - self.value
        return float(covariance + (k - 1) / 2 * self.value * variance)


MOVED = World([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.1, 0.4, 0.9])
#: The reward falls steeply where the target policy puts more mass.
FALLING = World([0.5, 0.5], [0.45, 0.55], [1.0, 0.0])


@every_target
@pytest.mark.parametrize("world", [MOVED, FALLING], ids=["moved", "falling"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_theorem_a_both_estimators_have_the_value_as_expectation(target: Target, world: World, k: int) -> None:
    for weighting in ("response", "slate"):
        mean, _ = world.moments(k, weighting, target)
        assert mean == pytest.approx(world.value, rel=1e-12)


@every_target
@pytest.mark.parametrize("k", [2, 3])
def test_theorem_b_the_decomposed_estimator_varies_less(target: Target, k: int) -> None:
    assert MOVED.condition_of_b(k) > 0
    assert MOVED.moments(k, "response", target)[1] < MOVED.moments(k, "slate", target)[1]


@every_target
def test_theorem_b_can_fail_where_its_condition_does(target: Target) -> None:
    assert FALLING.condition_of_b(2) < 0
    assert FALLING.moments(2, "response", target)[1] > FALLING.moments(2, "slate", target)[1]


def distributions(size: int) -> st.SearchStrategy[list[float]]:
    masses = st.lists(st.floats(0.05, 1.0), min_size=size, max_size=size)
    return masses.map(lambda xs: [x / sum(xs) for x in xs])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 3).flatmap(
        lambda m: st.tuples(*[distributions(m)] * 2, st.lists(st.floats(0, 1), min_size=m, max_size=m))
    )
)
@pytest.mark.parametrize("k", [2, 3])
def test_theorem_b_holds_wherever_its_condition_does(
    k: int, world: tuple[list[float], list[float], list[float]]
) -> None:
    w = World(*world)
    assume(w.condition_of_b(k) >= 0)
    assert w.moments(k, "response")[1] <= w.moments(k, "slate")[1] + 1e-12


log_weights = st.floats(-5, 5)
rewards = st.floats(0, 3)
slates = st.lists(st.tuples(log_weights, rewards), min_size=1, max_size=8)


def library_weights(log_w: torch.Tensor, sizes: list[int], weighting: Any) -> torch.Tensor:
    offsets = pope_core.offsets_from_lengths(sizes)
    zeros = torch.zeros_like(log_w)
    options = total(weighting=weighting, diversity_weight=0.0)
    return pope_core.slate_objective(log_w, zeros, zeros, offsets, **options).weights


@settings(max_examples=200, deadline=None)
@given(slates)
def test_theorem_c_weighted_means_bound_a_slate_from_below(slate: list[tuple[float, float]]) -> None:
    log_w, r = torch.tensor(slate, dtype=torch.float64).T
    assume(float(r.sum()) > 1e-9)
    w = library_weights(log_w.contiguous(), [len(slate)], "response")
    assert float(w @ r) >= float(r.sum() * ((r / r.sum()) @ log_w).exp()) * (1 - 1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(slates.filter(lambda slate: sum(r for _, r in slate) > 1e-6), min_size=1, max_size=5))
def test_theorem_c_the_log_of_the_joint_value_is_bounded_by_mean_logs(logged: list[list[tuple[float, float]]]) -> None:
    sizes = [len(slate) for slate in logged]
    log_w, r = torch.tensor([pair for slate in logged for pair in slate], dtype=torch.float64).T
    per_response = library_weights(log_w.contiguous(), sizes, "slate")
    first = pope_core.offsets_from_lengths(sizes)[:-1]
    joint = per_response[first]
    mean_reward = torch.stack([part.mean() for part in r.split(sizes)])
    log_slate = torch.stack([part.sum() for part in log_w.split(sizes)])
    bound = (log_slate + mean_reward.log()).mean()
    assert float((joint * mean_reward).mean().log()) >= float(bound) - 1e-9


def test_the_joint_weight_times_the_sum_of_rewards_is_not_an_upper_bound() -> None:
    """A tempting reading of the paper's line, ``W sum R >= sum w R``, fails for k = 2, w = (1/2, 1/2), R = (1, 1)."""
    log_w = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    decomposed = library_weights(log_w, [2], "response").sum()
    joint = library_weights(log_w, [2], "slate")[0] * 2
    assert (float(joint), float(decomposed)) == (pytest.approx(0.5), pytest.approx(1.0))


def enumerate_toy_language_model(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every sequence of a language model of two words and an end token, at most four tokens long.

    Returns the logits of logging and target policy ``[N, 3]``, the labels and the response offsets.
    """
    generator = torch.Generator().manual_seed(seed)
    tables: dict[tuple[int, ...], torch.Tensor] = {}
    sequences: list[list[int]] = []

    def grow(prefix: tuple[int, ...]) -> None:
        if len(prefix) == 4 or (prefix and prefix[-1] == 2):
            sequences.append(list(prefix))
            return
        tables[prefix] = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        if len(prefix) == 3:  # only the end token may follow
            tables[prefix][:, :2] = -torch.inf
        for word in range(3) if len(prefix) < 3 else [2]:
            grow((*prefix, word))

    grow(())
    rows = [tables[tuple(s[:t])] for s in sequences for t in range(len(s))]
    labels = torch.tensor([word for s in sequences for word in s])
    both = torch.stack(rows, 1)
    return both[0], both[1], labels, pope_core.offsets_from_lengths([len(s) for s in sequences])


@every_target
def test_weights_from_totals_average_to_one_and_recover_the_value_and_weights_from_means_do_not(target: Target) -> None:
    logging, policy, labels, offsets = (x.to(target.device) for x in enumerate_toy_language_model(0))
    options: dict[str, Any] = {"response_offsets": offsets, "backend": target.backend}
    reward = torch.linspace(0, 1, offsets.numel() - 1, dtype=torch.float64, device=target.device)
    total_0, total = (pope_core.response_logprobs(x, labels, **options) for x in (logging, policy))
    p_0, p = total_0.exp(), total.exp()
    assert float(p_0.sum()) == pytest.approx(1.0)
    assert float(p.sum()) == pytest.approx(1.0)
    w = (total - total_0).exp()
    assert float(p_0 @ w) == pytest.approx(1.0)
    assert float(p_0 @ (w * reward)) == pytest.approx(float(p @ reward))
    mean_0, mean = (pope_core.response_logprobs(x, labels, reduction="mean", **options) for x in (logging, policy))
    biased = (mean - mean_0).exp()
    assert abs(float(p_0 @ biased) - 1) > 0.01
    assert abs(float(p_0 @ (biased * reward) - p @ reward)) > 0.01


OBJECTIVES = st.fixed_dictionaries(
    {
        "diversity_weight": st.sampled_from([0.0, 0.1, 1.0]),
        **{name: st.sampled_from(values) for name, values in CHOICES.items()},
        "clip": st.sampled_from([None, 0.5, 2.0]),
    }
)


@pytest.mark.parametrize("target", [t for t in TARGETS if t.backend != "reference"], ids=str)
@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000), options=OBJECTIVES)
def test_kernels_agree_with_the_specification(
    target: Target, sizes: list[int], seed: int, options: dict[str, Any]
) -> None:
    p = make_slates(sizes, dtype=torch.float64, seed=seed)
    start = p.logging_logprobs + torch.randn(
        p.utility.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    results = []
    for backend, device in (("reference", "cpu"), target):
        logprobs = start.to(device, copy=True).requires_grad_()
        output = pope_core.slate_objective(
            logprobs, *p.to(device).log_data, tokens=p.tokens.to(device), backend=backend, **plain(**options)
        )
        results.append([x.cpu() for x in (*output, torch.autograd.grad(output.loss, logprobs)[0])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


@every_target
@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000), options=OBJECTIVES)
def test_diagnostics_keep_their_bounds(target: Target, sizes: list[int], seed: int, options: dict[str, Any]) -> None:
    p = make_slates(sizes, dtype=torch.float64, seed=seed).to(target.device)
    policy = p.logging_logprobs + p.utility
    output = pope_core.slate_objective(policy, *p.log_data, backend=target.backend, **total(**options))
    units = sum(sizes) if options["weighting"] == "response" else len(sizes)
    assert 1 - 1e-9 <= float(output.effective_sample_size) <= units + 1e-9
    assert 0 <= float(output.clip_fraction) <= 1
    assert float(output.weights.max()) <= (options["clip"] or math.inf) * (1 + 1e-12)
    torch.testing.assert_close(output.log_weights, p.utility)
    alpha = options["diversity_weight"]
    torch.testing.assert_close(output.value, output.utility_value + alpha * output.diversity_value)


@every_target
@pytest.mark.parametrize("weighting", ["response", "slate", "geometric"])
@pytest.mark.parametrize("normalization", ["none", "slate"])
def test_on_policy_the_value_is_the_mean_reward(target: Target, weighting: Any, normalization: Any) -> None:
    p = make_slates(dtype=torch.float64).to(target.device)
    output = pope_core.slate_objective(
        p.logging_logprobs,
        *p.log_data,
        backend=target.backend,
        **total(weighting=weighting, normalization=normalization, diversity_weight=0.5),
    )
    reward = p.utility - 0.5 * p.logging_logprobs
    expected = torch.stack([part.mean() for part in reward.split(p.slate_offsets.diff().tolist())]).mean()
    torch.testing.assert_close(output.value, expected)
    torch.testing.assert_close(output.weights, torch.ones_like(reward))
    assert float(output.effective_sample_size) == pytest.approx(6 if weighting == "response" else 3)


@every_target
def test_a_clipped_weight_has_no_derivative_but_its_reward_has(target: Target) -> None:
    p = make_slates((2,), dtype=torch.float64).to(target.device)
    logprobs = (p.logging_logprobs + torch.tensor([2.0, -2.0]).to(p.utility)).requires_grad_()
    options = total(clip=1.5, diversity_weight=0.3)
    output = pope_core.slate_objective(logprobs, *p.log_data, backend=target.backend, **options)
    (gradient,) = torch.autograd.grad(-output.loss, logprobs)
    assert float(gradient[0]) == pytest.approx(1.5 * -0.3 / 2)
    w, reward = math.exp(-2.0), float(p.utility[1] - 0.3 * logprobs[1].detach())
    assert float(gradient[1]) == pytest.approx(w * (reward - 0.3) / 2)
    assert float(output.clip_fraction) == 0.5


@every_target
def test_a_weight_that_would_overflow_is_clipped_in_log_space(target: Target) -> None:
    p = make_slates((2, 1), dtype=torch.float64).to(target.device)
    for weighting in ("response", "slate", "geometric"):
        logprobs = (p.logging_logprobs + 5000.0).requires_grad_()
        options = total(clip=7.0, weighting=weighting)
        output = pope_core.slate_objective(logprobs, *p.log_data, backend=target.backend, **options)
        torch.testing.assert_close(output.weights, torch.full_like(output.weights, 7.0))
        assert torch.autograd.grad(output.loss, logprobs)[0].isfinite().all()
        assert float(output.effective_sample_size) > 0.999


@every_target
@pytest.mark.parametrize("utility", [0.0, 0.3, 1.0])
def test_the_optimum_of_one_response_is_where_the_method_page_says(target: Target, utility: float) -> None:
    """Without normalisation, ``w (u - alpha l)`` is largest at ``l = u / alpha - 1``."""
    alpha, optimum = 0.5, utility / 0.5 - 1
    points = [optimum - 1e-3, optimum, optimum + 1e-3]
    logprobs = torch.tensor(points, dtype=torch.float64, device=target.device, requires_grad=True)
    data = (torch.full((3,), -2.0), torch.full((3,), utility), torch.tensor([0, 1, 2, 3]))
    data = tuple(tensor.to(target.device) for tensor in data)
    loss = pope_core.slate_objective(logprobs, *data, backend=target.backend, **total(diversity_weight=alpha)).loss
    before, at, after = (-torch.autograd.grad(loss, logprobs)[0]).tolist()
    assert before > 0 > after
    assert at == pytest.approx(0.0, abs=1e-7)
