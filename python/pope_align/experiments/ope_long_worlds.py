"""Worlds of long responses of many kinds with known truth, for the verdicts of estimators that read features.

A response is a vector of meaning and a wording that changes its probability only, as in `ope_similar_world`; but every
world has tastes, a policy, features and a number of ratings of its own. Thresholds and intervals may be set on the
kinds of `LONG_DEVELOPMENT`; those of `LONG_HELD_OUT` were committed before, with other kinds and ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .._arrays import Floats, Integers
from ..ope import LoggedSlates
from ..ope.features import Features
from ..ope.log import FreshScores
from .ope_similar_world import sigmoid

MEANING, PROMPT = 6, 3

#: Responses drawn for the true values, each with its mirror image: an error far below that of any estimate.
_TRUTH_DRAWS = 40_000


@dataclass(frozen=True, eq=False)
class LongWorld:
    """Meanings ``e ~ N(B x, I)`` given the prompt's ``x``; the policy's are ``N(B x + shift, spread^2 I)``.

    Attributes:
        about: ``[PROMPT, MEANING]`` B.
        taste, prompt_taste: of the raters; the logit of a thumb is linear in meaning and prompt ...
        curve: ``[MEANING]`` ... plus ``(curve @ e)^2``.
        shift, spread: of the policy.
        hidden: coordinates of meaning that the features leave out.
        noise: features that mean nothing.
        raters: thumbs per response; the utility is their mean.
        wording: nats of spread of the log-weights that meaning does not explain.
        slates, size: of the log.
    """

    about: Floats
    taste: Floats
    prompt_taste: Floats
    curve: Floats
    shift: Floats
    spread: float
    hidden: int
    noise: int
    raters: int
    wording: float
    slates: int
    size: int

    def liked(self, meaning: Floats, prompt: Floats) -> Floats:
        """Probability of a thumb."""
        return sigmoid(meaning @ self.taste + prompt @ self.prompt_taste + np.square(meaning @ self.curve))

    def truth(self, random: np.random.Generator) -> tuple[float, float]:
        """Values of the policy and of the logging policy."""
        half = random.normal(size=(_TRUTH_DRAWS, PROMPT + MEANING))
        x, noise = np.split(np.concatenate([half, -half]), [PROMPT], axis=1)
        middle = x @ self.about
        values = (self.liked(middle + self.shift + self.spread * noise, x), self.liked(middle + noise, x))
        return float(values[0].mean()), float(values[1].mean())

    def support_share(self, log: LoggedSlates, random: np.random.Generator) -> float:
        """The policy's probability of responses whose weight is above the largest logged one."""
        half = random.normal(size=(_TRUTH_DRAWS, MEANING + 1))
        noise, words = np.split(np.concatenate([half, -half]), [MEANING], axis=1)
        # Under the policy the wording's log-weight has the mean +wording^2 / 2.
        ratio = self._ratio(self.shift + self.spread * noise) + self.wording * words[:, 0] + self.wording**2 / 2
        largest = np.subtract(*log.logprobs("target", length_normalize=False)).max()
        return float((ratio > largest).mean())

    def _ratio(self, moved: Floats) -> Floats:
        """Log-ratio of policy and logging policy for meanings this far from the prompt's own ``[..., MEANING]``."""
        away = (moved - self.shift) / self.spread
        return (np.square(moved).sum(1) - np.square(away).sum(1)) / 2 - MEANING * np.log(self.spread)

    def sample(self, random: np.random.Generator, fresh: int = 4) -> tuple[LoggedSlates, Features]:
        """A log with the policies "base", its own, and "target", and with scores of fresh responses; the features of
        logged and fresh responses.
        """
        x = random.normal(size=(self.slates, PROMPT))
        rows, owner = np.repeat(np.arange(self.slates), self.size), np.repeat(np.arange(self.slates), fresh)
        middle = x @ self.about
        logged = middle[rows] + random.normal(size=(rows.size, MEANING))
        target = middle[owner] + self.shift + self.spread * random.normal(size=(owner.size, MEANING))
        utility = random.binomial(self.raters, self.liked(logged, x[rows])) / self.raters
        words = random.normal(0, self.wording, rows.size) - self.wording**2 / 2
        logging = np.full(rows.size, -300.0)
        log = LoggedSlates.from_arrays(
            utility,
            logging,
            {"base": logging, "target": np.minimum(logging + self._ratio(logged - middle[rows]) + words, 0.0)},
            np.arange(0, rows.size + 1, self.size),
            how="recorded",
            written_by="model",
        )
        features = self._features(logged, target, x, rows, owner, random)
        words = random.normal(0, self.wording, owner.size) + self.wording**2 / 2
        ratio = self._ratio(target - middle[owner]) + words
        scores = FreshScores(owner, np.minimum(-300.0 + ratio, 0.0), np.full(owner.size, -300.0))
        return log.with_fresh({"target": scores}), features

    def _features(
        self, logged: Floats, target: Floats, x: Floats, rows: Integers, owner: Integers, random: np.random.Generator
    ) -> Features:
        seen = MEANING - self.hidden
        both = [
            np.column_stack([meaning[:, :seen], x[at], random.normal(size=(len(meaning), self.noise))])
            for meaning, at in ((logged, rows), (target, owner))
        ]
        return Features("features", both[0], both[1], owner)


Kind = Callable[[np.random.Generator], LongWorld]

Range = tuple[float, float]


def long_kind(
    *,
    taste: Range = (0.4, 0.8),
    shift: Range = (0.1, 0.9),
    curve: Range = (0.0, 0.0),
    spread: Range = (1.0, 1.0),
    hidden: tuple[int, int] = (0, 0),
    noise: tuple[int, int] = (0, 8),
    slates: Range = (100, 600),
) -> Kind:
    """Worlds with numbers drawn from these ranges: policies move half towards the raters' taste, half at random."""

    def make(random: np.random.Generator) -> LongWorld:
        tastes = random.normal(0, random.uniform(*taste), MEANING)
        aside = random.normal(size=MEANING)
        towards = tastes / np.linalg.norm(tastes) + random.uniform(0, 1) * aside / np.linalg.norm(aside)
        bend = random.normal(size=MEANING)
        return LongWorld(
            about=random.normal(0, 0.5, (PROMPT, MEANING)),
            taste=tastes,
            prompt_taste=random.normal(0, 0.4, PROMPT),
            curve=np.sqrt(random.uniform(*curve)) * bend / np.linalg.norm(bend),
            shift=random.choice([-1, 1]) * random.uniform(*shift) * towards / np.linalg.norm(towards),
            spread=random.uniform(*spread),
            hidden=int(random.integers(hidden[0], hidden[1] + 1)),
            noise=int(random.integers(noise[0], noise[1] + 1)),
            raters=int(random.integers(1, 9)),
            wording=random.uniform(0.5, 5.0),
            slates=int(np.exp(random.uniform(*np.log(slates)))),
            size=int(random.choice([1, 2, 4])),
        )

    return make


#: Kinds to set thresholds and intervals on.
LONG_DEVELOPMENT: Mapping[str, Kind] = {
    "seen": long_kind(),
    "curved": long_kind(curve=(0.05, 0.3)),
    "partly hidden": long_kind(hidden=(1, 2)),
    "far": long_kind(shift=(1.5, 3.0)),
    "narrow": long_kind(spread=(0.7, 0.9)),
}

#: Kinds that nothing was set on.
LONG_HELD_OUT: Mapping[str, Kind] = {
    "seen": long_kind(taste=(0.3, 1.0), shift=(0.05, 1.2)),
    "curved": long_kind(curve=(0.1, 0.6), taste=(0.3, 1.0)),
    "partly hidden": long_kind(hidden=(1, 3), shift=(0.05, 1.2)),
    "far": long_kind(shift=(1.2, 3.5)),
    "narrow": long_kind(spread=(0.6, 0.9), shift=(0.05, 1.2)),
    "wide": long_kind(spread=(1.1, 1.3), shift=(0.05, 1.2)),
    "many features": long_kind(noise=(20, 60), slates=(150, 600)),
}

#: Kinds whose features hold what decides the reward and whose policies stay near the log.
LONG_HEALTHY = ("seen", "many features")
