"""Worlds of many kinds with known truth: some to set the thresholds of verdicts, others to test them.

A world is a table: a few hundred prompts with tens of responses each, their probabilities under the logging policy and
under two targets, and the probability that a response is liked. Every value is an exact sum. Thresholds may be set on
the kinds of `DEVELOPMENT`; those of `HELD_OUT` were committed before, with other kinds and ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from ..ope import FreshScores, LoggedSlates, Predictions

#: Names of the policies of every world; the first is the logging policy itself.
POLICIES = ("logging", "first", "second")


@dataclass(frozen=True, eq=False)
class TableWorld:
    """Probabilities and mean rewards of every response, and the settings of logs.

    Attributes:
        policies: ``[Q, N]`` log-probabilities by name; rows sum to one.
        reward: ``[Q, N]`` probability that a response is liked.
        model: ``[Q, N]`` predictions of a wrong reward model.
        recorded: ``[Q, N]`` log-probabilities that the log records; those of "logging" unless they are recorded
            wrongly.
        slates, size: of a log.
        cluster_sizes: shares of the slates that belong to one cluster each; the others are clusters of their own.
    """

    policies: Mapping[str, Floats]
    reward: Floats
    model: Floats
    recorded: Floats
    slates: int
    size: int
    cluster_sizes: tuple[float, ...] = ()

    def value(self, policy: str) -> float:
        """The expected utility of one response."""
        return float((np.exp(self.policies[policy]) * self.reward).sum(1).mean())

    def support_share(self, policy: str, log: LoggedSlates) -> float:
        """The policy's exact mass on responses that outweigh every logged one."""
        weights = self.policies[policy] - self.recorded
        largest = float(np.subtract(*log.logprobs(policy, length_normalize=False)).max())
        return float((np.exp(self.policies[policy]) * (weights > largest + 1e-9)).sum(1).mean())

    def sample(self, random: np.random.Generator, fresh: int = 4) -> tuple[LoggedSlates, dict[str, Predictions]]:
        """A log, with fresh responses of every policy; and a wrong reward model's predictions for each."""
        query = self._queries(random)
        clusters, query = self._clusters(query, random)
        rows = np.repeat(query, self.size)
        chosen = _draw(self.policies["logging"], rows, random)
        own_rows = np.repeat(query, fresh)
        own = {name: _draw(log_pi, own_rows, random) for name, log_pi in self.policies.items()}
        log = LoggedSlates.from_arrays(
            (random.random(rows.size) < self.reward[rows, chosen]).astype(np.float64),
            self.recorded[rows, chosen],
            {name: log_pi[rows, chosen] for name, log_pi in self.policies.items()},
            np.arange(0, rows.size + 1, self.size),
            clusters=clusters,
            how="recorded",
            written_by="model",
            fresh={
                name: FreshScores(
                    np.repeat(np.arange(self.slates), fresh),
                    self.policies[name][own_rows, own[name]],
                    self.recorded[own_rows, own[name]],
                )
                for name in self.policies
            },
        )
        predictions = {
            name: Predictions(
                self.model[rows, chosen], self.model[own_rows, own[name]].reshape(self.slates, fresh).mean(1)
            )
            for name in self.policies
        }
        return log, predictions

    def _queries(self, random: np.random.Generator) -> Integers:
        return random.integers(0, len(self.reward), self.slates)

    def _clusters(self, query: Integers, random: np.random.Generator) -> tuple[Integers, Integers]:
        """Clusters of slates; a large cluster has only a few prompts."""
        clusters = np.arange(self.slates)
        start = 0
        for share in self.cluster_sizes:
            stop = start + int(share * self.slates)
            clusters[start:stop] = start
            query[start:stop] = random.integers(0, len(self.reward))
            start = stop
        return clusters, query


Kind = Callable[[np.random.Generator], TableWorld]


def _draw(log_pi: Floats, rows: Integers, random: np.random.Generator) -> Integers:
    """One response per row by the Gumbel-max rule."""
    return np.asarray((log_pi[rows] + random.gumbel(size=(rows.size, log_pi.shape[1]))).argmax(1), dtype=np.int64)


def _normalised(logits: Floats) -> Floats:
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


def _base(random: np.random.Generator, *, spread: float, prompts: int = 200, responses: int = 40) -> tuple[Floats, ...]:
    """Log-probabilities of the logging policy, tastes in nats, and rewards that follow them."""
    logging = _normalised(spread * random.normal(size=(prompts, responses)))
    taste = random.normal(size=(prompts, responses))
    level = random.normal(0, random.uniform(0, 1), size=(prompts, 1))
    reward = 1 / (1 + np.exp(-(random.uniform(0.3, 1.5) * taste + level)))
    return logging, taste, reward


def _world(
    random: np.random.Generator,
    logging: Floats,
    reward: Floats,
    first: Floats,
    second: Floats,
    *,
    slates: tuple[int, int] = (100, 1500),
    sizes: tuple[int, ...] = (1, 2, 4, 8),
    recorded: Floats | None = None,
    cluster_sizes: tuple[float, ...] = (),
) -> TableWorld:
    believed = 0.2 + 0.6 * reward.mean(0, keepdims=True) + 0 * reward
    return TableWorld(
        dict(zip(POLICIES, (logging, first, second))),
        reward,
        believed,
        logging if recorded is None else recorded,
        int(np.exp(random.uniform(*np.log(slates)))),
        int(random.choice(sizes)),
        cluster_sizes,
    )


def tilted(least: float, most: float) -> Kind:
    """Targets that prefer liked responses, and unrelated ones, by ``least`` to ``most`` nats per unit."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.5, 1.5))
        noise = random.normal(size=taste.shape)
        strength, aside = random.uniform(least, most, 2)
        first = _normalised(logging + strength * taste)
        return _world(random, logging, reward, first, _normalised(logging + aside * noise))

    return make


def tempered(coldest: float, hottest: float) -> Kind:
    """Targets that are the logging policy at other temperatures."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, _, reward = _base(random, spread=random.uniform(0.5, 1.5))
        one, two = random.uniform(coldest, hottest, 2)
        return _world(random, logging, reward, _normalised(logging / one), _normalised(logging / two))

    return make


def rare(least: float, most: float, reward_there: tuple[float, float]) -> Kind:
    """Targets with some mass on responses that are almost never logged, better or worse than the rest."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.5, 1.2))
        hidden = np.zeros(logging.shape, dtype=bool)
        hidden[:, :2] = True
        rest = _normalised(np.where(hidden, -np.inf, logging))
        seen = 10 ** random.uniform(-5, -3.5)
        logging = np.logaddexp(np.log1p(-seen) + rest, np.where(hidden, np.log(seen / 2), -np.inf))
        reward = np.where(hidden, random.uniform(*reward_there), reward)
        mass = random.uniform(least, most)
        tilt = _normalised(np.where(hidden, -np.inf, rest + random.uniform(0, 0.5) * taste))
        first = np.logaddexp(np.log1p(-mass) + tilt, np.where(hidden, np.log(mass / 2), -np.inf))
        return _world(random, logging, reward, first, np.where(hidden, logging, np.log1p(-seen) + tilt))

    return make


def nearly_equal(least: float, most: float) -> Kind:
    """Targets that differ from the logging policy on a few percent of the responses only, by a little."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, _, reward = _base(random, spread=random.uniform(0.5, 1.2))
        few = random.random(logging.shape) < random.uniform(least, most)
        first = _normalised(logging + np.where(few, random.uniform(0.1, 0.35), 1e-6 * random.normal(size=few.shape)))
        return _world(random, logging, reward, first, _normalised(logging + 0.2 * random.normal(size=few.shape)))

    return make


def lumped(least: float, most: float) -> Kind:
    """One cluster with a large share of the slates, all about one prompt."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.5, 1.2))
        first = _normalised(logging + random.uniform(0.1, 0.6) * taste)
        second = _normalised(logging + 0.3 * random.normal(size=taste.shape))
        share = random.uniform(least, most)
        return _world(random, logging, reward, first, second, cluster_sizes=(share,))

    return make


def misrecorded(least: float, most: float) -> Kind:
    """A log with recorded propensities of another temperature than it was sampled at."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.8, 1.5))
        recorded = _normalised(logging * random.uniform(least, most))
        first = _normalised(recorded + random.uniform(0.1, 0.6) * taste)
        return _world(random, logging, reward, first, _normalised(recorded / 0.8), recorded=recorded)

    return make


def drifting(least: float, most: float) -> Kind:
    """Targets that change each prompt by a different amount, most little and a few very much."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.5, 1.5))
        own = np.exp(random.uniform(np.log(least), np.log(most), size=(len(logging), 1)))
        first = _normalised(logging + own * taste)
        return _world(random, logging, reward, first, _normalised(logging - own * taste))

    return make


def truncated(least: float, most: float) -> Kind:
    """Targets that cannot write the least likely responses (top-p)."""

    def make(random: np.random.Generator) -> TableWorld:
        logging, taste, reward = _base(random, spread=random.uniform(0.5, 1.5))
        order = np.sort(np.exp(logging), axis=1)
        cut = np.take_along_axis(order, (order.cumsum(1) < random.uniform(least, most)).sum(1, keepdims=True), 1)
        kept = np.where(np.exp(logging) >= cut, logging, -np.inf)
        return _world(
            random, logging, reward, _normalised(kept), _normalised(logging + random.uniform(0.1, 0.5) * taste)
        )

    return make


#: Kinds that thresholds were set on.
DEVELOPMENT: Mapping[str, Kind] = {
    "tilted": tilted(0.1, 1.0),
    "far tilted": tilted(1.0, 2.5),
    "tempered": tempered(0.6, 1.4),
    "rare and good": rare(0.03, 0.05, (0.9, 1.0)),
    "nearly equal": nearly_equal(0.02, 0.10),
    "lumped": lumped(0.2, 0.8),
    "misrecorded": misrecorded(1.1, 1.4),
}

#: Kinds that were not used to set thresholds.
HELD_OUT: Mapping[str, Kind] = {
    "tilted": tilted(0.05, 1.4),
    "far tilted": tilted(1.4, 3.5),
    "tempered": tempered(0.4, 1.8),
    "rare and bad": rare(0.01, 0.08, (0.0, 0.1)),
    "rare and good": rare(0.005, 0.03, (0.8, 1.0)),
    "nearly equal": nearly_equal(0.005, 0.20),
    "lumped": lumped(0.1, 0.9),
    "misrecorded": misrecorded(0.7, 0.9),
    "drifting": drifting(0.05, 1.5),
    "truncated": truncated(0.02, 0.15),
}
