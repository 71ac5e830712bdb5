"""The energy distance: 0 for equal distributions, more for cooled and for noisy ones; and the worth of a set."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pope_align.metrics.energy import distances, energy_distance, energy_reward
from pope_align.metrics.set_utility import marginal_contributions, set_utility
from pope_align.metrics.similarity import vote_weights

import pope_core
from pope_core import Objective

quick = settings(max_examples=60, deadline=None)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def people(generator: np.random.Generator, count: int, spread: float = 0.4) -> np.ndarray:
    """Texts of three opinions, as vectors."""
    centres = np.eye(8)[:3]
    return unit(centres[generator.integers(3, size=count)] + spread * generator.normal(size=(count, 8)))


def uniform(count: int) -> np.ndarray:
    return np.full(count, 1 / count)


def test_it_is_the_sum_over_all_pairs() -> None:
    generator = np.random.default_rng(0)
    x, y = people(generator, 5), people(generator, 7)
    p = vote_weights([9.0, 0, 3, 1, 0, 40, 2])
    between = math.fsum(p[j] * math.dist(x[i], y[j]) / 5 for i in range(5) for j in range(7))
    own = math.fsum(math.dist(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
    theirs = math.fsum(p[i] * p[j] * math.dist(y[i], y[j]) for i in range(7) for j in range(7) if i != j)
    expected = 2 * between - own - theirs / (1 - math.fsum(p**2))
    assert energy_distance(x, y, p) == pytest.approx(expected, abs=1e-12)
    for i, reward in enumerate(energy_reward(x, y, p)):
        far = math.fsum(math.dist(x[i], x[j]) for j in range(5)) / 4
        assert reward == pytest.approx(far - math.fsum(p[j] * math.dist(x[i], y[j]) for j in range(7)), abs=1e-12)


def test_equal_distributions_are_at_distance_zero_on_average_and_others_are_not() -> None:
    generator = np.random.default_rng(1)

    def mean(spread: float) -> tuple[float, float]:
        draws = [energy_distance(people(generator, 6, spread), people(generator, 8), uniform(8)) for _ in range(3000)]
        return float(np.mean(draws)), float(np.std(draws) / math.sqrt(len(draws)))

    value, error = mean(0.4)
    assert abs(value) < 4 * error
    previous = value
    for spread in (0.2, 0.05):  # cooler and cooler
        value, error = mean(spread)
        assert value > previous + 4 * error
        previous = value
    previous = 0.0
    for spread in (0.8, 1.6):  # noisier and noisier
        value, error = mean(spread)
        assert value > previous + 4 * error
        previous = value


def test_one_minus_cosine_would_not_see_spread() -> None:
    """Two opposite opinions against silence between them: equal means, and only the Euclidean distance tells them."""
    y = np.array([[1.0, 0, 0], [-1.0, 0, 0]] * 50)
    x = np.array([[0, 1.0, 0], [0, -1.0, 0]] * 50)
    cosine = 2 * (1 - x @ y.T).mean() - (1 - x @ x.T).mean() - (1 - y @ y.T).mean()
    assert abs(cosine) < 1e-12
    assert energy_distance(x, y, uniform(100)) > 0.8


def test_votes_move_the_target() -> None:
    generator = np.random.default_rng(2)
    y = unit(np.eye(4)[[0, 0, 0, 1, 1, 1]] + 0.1 * generator.normal(size=(6, 4)))
    x = unit(np.eye(4)[[0] * 6] + 0.1 * generator.normal(size=(6, 4)))
    liked = vote_weights([9.0, 9, 9, 0, 0, 0], "votes")
    disliked = vote_weights([0.0, 0, 0, 9, 9, 9], "votes")
    assert energy_distance(x, y, liked) < 0.1 < energy_distance(x, y, uniform(6)) < energy_distance(x, y, disliked)


def test_the_policy_gradient_of_the_reward_is_minus_half_that_of_the_distance() -> None:
    """All slates of three that a policy over four texts can draw, weighted by their probabilities."""
    generator = np.random.default_rng(3)
    texts, y = unit(generator.normal(size=(4, 5))), unit(generator.normal(size=(3, 5)))
    p = vote_weights([1.0, 5, 2])
    logits = torch.tensor(generator.normal(size=4), requires_grad=True)
    policy = logits.softmax(0)
    d_own, d_theirs = (torch.tensor(distances(texts, other)) for other in (texts, y))
    distance = 2 * policy @ d_theirs @ torch.tensor(p) - policy @ d_own @ policy
    (expected,) = torch.autograd.grad(distance, logits, retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for slate in itertools.product(range(4), repeat=3):
        rewards = energy_reward(texts[list(slate)], y, p)
        chance = policy[list(slate)].prod().detach()
        logs = policy[list(slate)].log()
        surrogate = surrogate + chance * (torch.tensor(rewards) * logs).mean()
    (gradient,) = torch.autograd.grad(surrogate, logits)
    # The mean over a slate's answers: each is one draw of y, so the sum over both slots of d is counted once.
    assert torch.allclose(gradient, -expected / 2, atol=1e-12)


def test_undefined_cases_are_nan_and_bad_weights_are_named() -> None:
    x = np.eye(3)
    assert math.isnan(energy_distance(x[:1], x, uniform(3)))
    assert math.isnan(energy_distance(x, x[:1], uniform(1)))
    assert math.isnan(energy_distance(x, x, np.array([1.0, 0, 0])))
    assert np.isnan(energy_reward(x[:1], x, uniform(3))).all()
    with pytest.raises(ValueError, match="weights: expected 3 numbers >= 0 that sum to one"):
        energy_distance(x, x, np.ones(3))


values = arrays.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(0, 1))


@given(values)
@quick
def test_a_contribution_is_what_the_set_loses_without_the_answer(values: np.ndarray) -> None:
    weights = np.arange(1.0, values.shape[1] + 1)
    weights /= weights.sum()
    gains = marginal_contributions(values, weights)
    whole = set_utility(values, weights)
    for index, gain in enumerate(gains):
        assert gain == pytest.approx(whole - set_utility(np.delete(values, index, axis=0), weights), abs=1e-12)
    assert (gains >= 0).all()
    assert gains.sum() <= whole + 1e-12
    doubled = marginal_contributions(np.vstack([values, values]), weights)
    assert np.abs(doubled).max() < 1e-12


def test_set_utility_refuses_what_has_no_reading() -> None:
    assert marginal_contributions(np.array([[0.2, 0.9], [0.5, 0.1]])).tolist() == pytest.approx([0.4, 0.15])
    with pytest.raises(ValueError, match=r"values: expected \[answers, people\] of finite numbers >= 0"):
        set_utility(np.array([[-0.1]]))
    with pytest.raises(ValueError, match="weights: expected 2 numbers"):
        set_utility(np.ones((1, 2)), np.ones(2))


def test_it_leads_the_table_of_metrics() -> None:
    from pope_align.data import Slate
    from pope_align.generation.generations import Generation, GenerationSet
    from pope_align.metrics.evaluate import MetricOptions, evaluate_generations
    from pope_align.metrics.registry import BY_NAME

    def embed(texts: list[str], progress: object = None) -> np.ndarray:
        return unit(np.array([[1 + text.count("a"), 1 + text.count("b"), 1.0] for text in texts]))

    texts, references, votes = ["a", "bb", "aab"], ["aa", "b"], [3.0, 0.0]
    generations = GenerationSet("m", (Generation("s", "Why?", texts),))
    slates = [Slate("Why?", references, votes, slate_id="s")]
    assert next(iter(BY_NAME)) == "energy"
    assert BY_NAME["energy"].better == "lower"
    for weights, p in (("log1p", [0.8, 0.2]), ("uniform", [0.5, 0.5])):
        table = evaluate_generations(generations, slates, embedder=embed, options=MetricOptions(vote_weights=weights))
        expected = energy_distance(embed(texts), embed(references), np.array(p))
        assert next(iter(table.values)) == "energy"
        assert table.values["energy"].tolist() == [pytest.approx(expected, abs=1e-12)]


def gradients(weighting: str, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a policy over four texts, by enumeration of all slates of ``k``: those of the expected POPE loss with energy
    rewards, of the energy distance, and of the expected mean reward.
    """
    generator = np.random.default_rng(5)
    texts, y, p = unit(generator.normal(size=(4, 3))), people(generator, 5)[:, :3], vote_weights([3.0, 1, 0, 8, 2])
    y = unit(y)
    theta = torch.randn(4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    own, theirs = torch.from_numpy(distances(texts, texts)), torch.from_numpy(distances(texts, y) @ p)
    probabilities = theta.softmax(0)
    distance = 2 * probabilities @ theirs - probabilities @ own @ probabilities
    (of_distance,) = torch.autograd.grad(distance, theta, retain_graph=True)
    (of_mean,) = torch.autograd.grad(probabilities @ own @ probabilities - probabilities @ theirs, theta)
    objective = Objective(
        normalization="none", weighting=weighting, diversity_weight=0.0, clip=None, length_normalize=False
    )
    of_loss = torch.zeros(4, dtype=torch.float64)
    for slate in itertools.product(range(4), repeat=k):
        drawn = theta.log_softmax(0)[list(slate)]
        rewards = torch.from_numpy(energy_reward(texts[list(slate)], y, p))
        loss = pope_core.slate_objective(drawn, drawn.detach(), rewards, torch.tensor([0, k]), objective=objective).loss
        of_loss += drawn.detach().sum().exp() * torch.autograd.grad(loss, theta)[0]
    return of_loss, of_distance, of_mean


@pytest.mark.parametrize("k", [2, 3])
def test_on_its_own_answers_pope_with_energy_rewards_follows_the_energy_distance(k: int) -> None:
    of_loss, of_distance, _ = gradients("response", k)
    assert of_distance.abs().max() > 0.05
    torch.testing.assert_close(of_loss, of_distance / 2)


def test_weights_of_slates_follow_the_mean_reward_instead() -> None:
    """Which counts the distances between own answers twice: it is larger for answers that are only far apart."""
    of_loss, of_distance, of_mean = gradients("slate", 3)
    torch.testing.assert_close(of_loss, -of_mean)
    assert not torch.allclose(of_loss, of_distance / 2, atol=1e-3)
