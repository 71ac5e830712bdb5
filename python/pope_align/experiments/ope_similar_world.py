"""A world of responses whose meaning is a vector, with true values in closed form and exact weights.

A response has a meaning, ``e ~ N(B x + shift, I)`` given its prompt's ``x``, and a wording, which changes its
probability but not its reward. With enough wording sequence weights degenerate, as for long texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._arrays import Floats
from ..ope import LoggedSlates
from ..ope.features import Features
from ..ope.log import FreshScores

MEANING, PROMPT = 6, 3
_RANDOM = np.random.default_rng(7)
_B = _RANDOM.normal(0, 0.5, (PROMPT, MEANING))
_TASTE = _RANDOM.normal(0, 0.6, MEANING)
_PROMPT_TASTE = _RANDOM.normal(0, 0.4, PROMPT)


@dataclass(frozen=True)
class SimilarWorld:
    """A target policy whose meaning is shifted by ``shift`` and whose wording adds ``wording`` nats of spread."""

    shift: float = 0.6  # along the taste of the raters
    wording: float = 2.0
    tokens: int = 40

    @property
    def direction(self) -> Floats:
        return self.shift * _TASTE / np.linalg.norm(_TASTE)

    def value(self, shift: Floats) -> float:
        """``E sigmoid(N(mean, variance))`` by quadrature."""
        spread = np.square(_TASTE).sum() + np.square(_B @ _TASTE + _PROMPT_TASTE).sum()
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        return float(weights @ sigmoid(shift @ _TASTE + np.sqrt(spread) * nodes) / weights.sum())

    @property
    def truth(self) -> float:
        return self.value(self.direction)

    @property
    def base(self) -> float:
        return self.value(np.zeros(MEANING))

    def draw(self, seed: int, *, slates: int = 150, size: int = 4, fresh: int = 4) -> tuple[LoggedSlates, Features]:
        """A log with thumbs and with scores of fresh responses; the meanings of logged and fresh responses."""
        random = np.random.default_rng(seed)
        x = random.normal(0, 1, (slates, PROMPT))
        rows, owner = np.repeat(np.arange(slates), size), np.repeat(np.arange(slates), fresh)
        logged = x[rows] @ _B + random.normal(0, 1, (rows.size, MEANING))
        target = x[owner] @ _B + self.direction + random.normal(0, 1, (owner.size, MEANING))
        liked = sigmoid(logged @ _TASTE + x[rows] @ _PROMPT_TASTE)
        utility = (random.random(rows.size) < liked).astype(float)
        words = random.normal(0, self.wording, rows.size) - self.wording**2 / 2
        fresh_words = random.normal(0, self.wording, owner.size) + self.wording**2 / 2
        ratio = self._log_ratio(logged - x[rows] @ _B) + words
        log = LoggedSlates.from_arrays(
            utility,
            np.full(rows.size, -200.0),
            {"target": np.minimum(-200.0 + ratio, 0.0)},
            np.arange(0, rows.size + 1, size),
            tokens=np.full(rows.size, self.tokens),
            how="recorded",
        )
        features = Features("meaning", np.column_stack([logged, x[rows]]), np.column_stack([target, x[owner]]), owner)
        fresh_ratio = self._log_ratio(target - x[owner] @ _B) + fresh_words
        scores = FreshScores(owner, np.minimum(-200.0 + fresh_ratio, 0.0), np.full(owner.size, -200.0))
        return log.with_fresh({"target": scores}), features

    def marginal(self, log: LoggedSlates, features: Features) -> Floats:
        """``[R]`` true log-weights of meanings."""
        return self._log_ratio(features.logged[:, :MEANING] - features.logged[:, MEANING:] @ _B)

    def unit(self, features: Features) -> Features:
        """Meanings as unit vectors, for kernels."""
        return Features("unit", _unit(features.logged), _unit(features.target), features.owner)

    def _log_ratio(self, about: Floats) -> Floats:
        return about @ self.direction - self.direction @ self.direction / 2


def _unit(rows: Floats) -> Floats:
    rows = np.column_stack([rows[:, :MEANING], np.full(len(rows), 3.0)])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sigmoid(x: Floats) -> Floats:
    """``1 / (1 + exp(-x))``."""
    return np.asarray(1 / (1 + np.exp(-x)))
