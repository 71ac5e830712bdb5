"""Judge scores on people's scale: calibrated on responses that people rated, with that uncertainty in the interval.

A judge (a model, or a cheap metric) scores every response of a policy; people rate a few. An isotonic regression of
ratings on scores (`JudgeCalibration.fit`) turns scores into expected ratings without assuming more than that a higher
score does not mean a lower rating. The value of a policy is the mean of its calibrated scores.

The interval has two parts: which prompts were drawn, and which ratings the calibration was fitted to (a jackknife over
groups of rated clusters refits it). Neither shows whether the calibration holds for *another* policy's responses: a
policy can learn to please the judge only. `JudgeCalibration.audit` tests this on ratings of that policy's own
responses, and without it the best verdict is caution. `JudgeCalibration.plan` says how many ratings and judgements a
given precision needs.

Source: Landesberg and Narayan, "Causal Judge Evaluation" (2025), arXiv 2512.11150: its direct method, transport audit
and square-root allocation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from .._extras import require
from ..stats.clusters import codes_of
from ..stats.intervals import Quantity
from .rules import Verdict
from .verdict import Finding, find, judge

#: Groups of rated clusters that the jackknife leaves out one at a time.
GROUPS = 20


@dataclass(frozen=True, eq=False)
class Judged:
    """Judge scores of one policy's responses, some of them with people's ratings.

    Attributes:
        scores: ``[N]``.
        ratings: ``[N]`` of people; NaN where nobody rated.
        clusters: ``[N]`` numbers from 0: responses of one prompt (or conversation) are not independent.
        ids: of the clusters, in the order of their numbers; None: every response is its own.
    """

    scores: Floats
    ratings: Floats
    clusters: Integers
    ids: tuple[Any, ...] | None

    @classmethod
    def of(
        cls,
        scores: npt.ArrayLike,
        ratings: npt.ArrayLike | None = None,
        clusters: Sequence[Any] | npt.ArrayLike | None = None,
    ) -> Judged:
        """Check and keep the arrays.

        Args:
            scores: ``[N]`` finite.
            ratings: ``[N]``, NaN where nobody rated; None: nowhere.
            clusters: ``[N]`` ids, e.g. of prompts; None: every response is its own cluster.

        Raises:
            ValueError: arrays of different length, or a score or rating that is not a number, with its place.
        """
        given = np.asarray(scores, dtype=np.float64)
        rated = np.full(given.shape, np.nan) if ratings is None else np.asarray(ratings, dtype=np.float64)
        if given.ndim != 1 or given.size == 0:
            raise ValueError(f"scores: expected [N] with N >= 1, got {list(given.shape)}")
        if rated.shape != given.shape:
            raise ValueError(f"ratings: expected [{given.size}], got {list(rated.shape)}")
        for name, values, bad in (("scores", given, ~np.isfinite(given)), ("ratings", rated, np.isinf(rated))):
            if bad.any():
                at = int(np.flatnonzero(bad)[0])
                raise ValueError(f"{name}[{at}]: expected a finite number, got {values[at]}")
        if clusters is not None and len(clusters) != given.size:  # type: ignore[arg-type]  # any sized ids
            raise ValueError(f"clusters: expected [{given.size}], got [{len(clusters)}]")  # type: ignore[arg-type]
        if clusters is None:
            return cls(given, rated, np.arange(given.size), None)
        ids, codes = codes_of(clusters)
        return cls(given, rated, codes, tuple(ids))

    @property
    def prompts(self) -> int:
        """The number of clusters."""
        return int(np.unique(self.clusters).size)

    @property
    def rated(self) -> Judged:
        """The responses that people rated."""
        keep = ~np.isnan(self.ratings)
        there, codes = np.unique(self.clusters[keep], return_inverse=True)
        ids = None if self.ids is None else tuple(self.ids[code] for code in there)
        return Judged(self.scores[keep], self.ratings[keep], codes, ids)


@dataclass(frozen=True, eq=False)
class Isotonic:
    """A step function of the score that never falls; between two scores it is interpolated, beyond them constant."""

    scores: Floats  # ascending, distinct
    ratings: Floats

    @classmethod
    def fit(cls, scores: Floats, ratings: Floats) -> Isotonic:
        """Least squares; the mean of the fitted ratings is the mean of the given ones."""
        optimize = require("scipy.optimize", extra="train", purpose="to calibrate a judge")
        distinct, place = np.unique(scores, return_inverse=True)
        counts = np.bincount(place)
        means = np.bincount(place, weights=ratings) / counts
        return cls(distinct, np.asarray(optimize.isotonic_regression(means, weights=counts).x))

    def __call__(self, scores: Floats) -> Floats:
        return np.asarray(np.interp(scores, self.scores, self.ratings))


@dataclass(frozen=True)
class JudgedValue:
    """A mean rating by calibrated judge scores, or a difference of two, with its verdict.

    Attributes:
        value: with standard error and interval; both parts are in it.
        from_prompts, from_ratings: standard errors of the parts.
        beyond: share of the scores outside those that were rated, where the calibration is constant.
        audits: of the policy (and the baseline), see `JudgeCalibration.audit`; None: it has no ratings.
    """

    value: Quantity
    from_prompts: float
    from_ratings: float
    beyond: float
    audits: tuple[Quantity | None, ...]
    verdict: Verdict
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class RatingPlan:
    """What a precision costs: prompts with judged responses, and ratings for the calibration."""

    prompts: int
    ratings: int
    half_width: float


@dataclass(frozen=True, eq=False)
class JudgeCalibration:
    """An isotonic calibration and its refits without each group of ratings.

    Attributes:
        rated: what it was fitted to.
        fitted: on all of it.
        without: on all but one group, for each of `GROUPS` groups of clusters.
        level: of the intervals.
    """

    rated: Judged
    fitted: Isotonic
    without: tuple[Isotonic, ...]
    level: float

    @classmethod
    def fit(cls, judged: Judged, *, level: float = 0.95, seed: int = 0) -> JudgeCalibration:
        """Calibrate on the rated responses of one or more policies.

        Args:
            judged: its unrated responses are not used. Which were rated must not depend on how good they are. Ratings
                of a policy that will be audited do not belong here: the calibration is right for them on average
                whatever the policy, so an audit with them passes.
            seed: of the groups.

        Raises:
            ValueError: fewer rated clusters than groups.
        """
        rated = judged.rated
        count = rated.prompts
        if count < GROUPS:
            raise ValueError(f"judged: expected ratings of at least {GROUPS} independent prompts, got {count}")
        group = (np.random.default_rng(seed).permutation(count) % GROUPS)[rated.clusters]
        rest = (group != each for each in range(GROUPS))
        return cls(
            rated,
            Isotonic.fit(rated.scores, rated.ratings),
            tuple(Isotonic.fit(rated.scores[keep], rated.ratings[keep]) for keep in rest),
            level,
        )

    def value(self, judged: Judged) -> JudgedValue:
        """The mean rating that people would give the policy's responses; those of them that are rated are the audit."""
        quantity = self._quantity(lambda f: _means(f(judged.scores), judged.clusters))
        return self._judged(quantity, [judged])

    def difference(self, judged: Judged, baseline: Judged) -> JudgedValue:
        """The mean rating of a policy minus that of another on the same prompts, paired by prompt.

        Raises:
            ValueError: responses without ids of their prompts; other prompts.
        """
        if judged.ids is None or baseline.ids is None:
            which = "judged" if judged.ids is None else "baseline"
            raise ValueError(f"{which}: expected clusters, the ids of its prompts, to pair the policies by, got none")
        if judged.ids != baseline.ids:
            other = next(iter(set(judged.ids) ^ set(baseline.ids)))
            raise ValueError(f"baseline: expected the prompts of the policy, and {other!r} is of one of the two only")

        def rows(f: Isotonic) -> Floats:
            return _means(f(judged.scores), judged.clusters) - _means(f(baseline.scores), baseline.clusters)

        return self._judged(self._quantity(rows), [judged, baseline])

    def audit(self, judged: Judged) -> Quantity:
        """Mean of people's rating minus calibrated score on a policy's own rated responses: 0 if the calibration holds.

        Its interval has the uncertainty of the calibration; half of its width is the error that the audit can miss.

        Raises:
            ValueError: ratings of responses to fewer than two prompts.
        """
        own = judged.rated
        if own.prompts < 2:
            raise ValueError(f"judged: expected ratings of responses to at least two prompts, got {own.prompts}")
        return self._quantity(lambda f: _means(own.ratings - f(own.scores), own.clusters))[0]

    def plan(self, judged: Judged, half_width: float, *, cost_of_rating: float = 10.0) -> RatingPlan:
        """The cheapest numbers of prompts and ratings for an interval of +- ``half_width``.

        With ``A / n`` and ``B / m`` the variances by n prompts and m ratings of this pilot, and a rating that costs
        ``c`` judged prompts: ``n = (A + sqrt(A B c)) / e^2`` and ``m = (B + sqrt(A B / c)) / e^2`` with ``e`` the
        standard error that the half-width allows.

        Raises:
            ValueError: a half-width or cost that is not above 0.
        """
        for name, number in (("half_width", half_width), ("cost_of_rating", cost_of_rating)):
            if not number > 0:
                raise ValueError(f"{name}: expected a number above 0, got {number!r}")
        _, from_prompts, from_ratings = self._quantity(lambda f: _means(f(judged.scores), judged.clusters))
        prompts = from_prompts**2 * judged.prompts
        ratings = from_ratings**2 * self.rated.scores.size
        special = require("scipy.special", extra="train", purpose="to plan ratings")
        error = half_width / float(special.ndtri((1 + self.level) / 2))
        both = math.sqrt(prompts * ratings)
        return RatingPlan(
            math.ceil((prompts + both * math.sqrt(cost_of_rating)) / error**2),
            math.ceil((ratings + both / math.sqrt(cost_of_rating)) / error**2),
            half_width,
        )

    def _judged(self, found: tuple[Quantity, float, float], policies: Sequence[Judged]) -> JudgedValue:
        low, high = self.fitted.scores[[0, -1]]
        beyond = max(float(((each.scores < low) | (each.scores > high)).mean()) for each in policies)
        own = [each.rated for each in policies]
        audits = tuple(self.audit(each) if each.prompts > 1 else None for each in own)
        verdict, reasons = judge(_findings(audits, min(each.prompts for each in own), beyond))
        return JudgedValue(*found, beyond, audits, verdict, reasons)

    def _quantity(self, rows: Callable[[Isotonic], Floats]) -> tuple[Quantity, float, float]:
        """The mean of ``rows(calibration)`` over clusters, and the standard errors of its two parts."""
        each = rows(self.fitted)
        refits = np.array([rows(f).mean() for f in self.without])
        of_prompts = float(each.var(ddof=1)) / each.size
        of_ratings = (GROUPS - 1) / GROUPS * float(np.square(refits - refits.mean()).sum())
        total = of_prompts + of_ratings
        special = require("scipy.special", extra="train", purpose="for t intervals")
        parts = of_prompts**2 / (each.size - 1) + of_ratings**2 / (GROUPS - 1)  # Welch and Satterthwaite
        half = float(special.stdtrit(total**2 / parts, (1 + self.level) / 2)) * math.sqrt(total) if total > 0 else 0.0
        value, error = float(each.mean()), math.sqrt(total)
        return Quantity(value, error, value - half, value + half), math.sqrt(of_prompts), math.sqrt(of_ratings)


def _means(values: Floats, clusters: Integers) -> Floats:
    """``[N] -> [C]``: the mean over each cluster's responses."""
    codes = np.unique(clusters, return_inverse=True)[1]
    return np.asarray(np.bincount(codes, weights=values) / np.bincount(codes))


def _findings(audits: Sequence[Quantity | None], rated: int, beyond: float) -> Iterator[Finding]:
    for audit in audits:
        if audit is not None and audit.standard_error > 0:
            off = (
                f"people rate a policy's own responses {audit.value:+.3g} (+-{audit.standard_error:.2g}) off the judge"
            )
            yield from find("judge_transport", off, abs(audit.value) / audit.standard_error)
    few = f"people rated a policy's own responses to {rated} prompts: it may please the judge only"
    yield from find("judge_unaudited", few, rated)
    yield from find("judge_beyond", f"{beyond:.0%} of the scores are outside those that people rated", beyond)
