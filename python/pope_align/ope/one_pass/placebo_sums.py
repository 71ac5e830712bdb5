"""The placebo of a gain in closed form: the mean and variance of gains of utilities permuted within slates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..._arrays import Floats
from ..log import LoggedSlates
from ..model_first import per_slate_weights
from ..placebo import Placebo
from .weight_sums import factor


@dataclass(frozen=True, eq=False)
class PlaceboSums:
    """Of ``P`` policies' weights ``a = w / k``, each in units of ``exp(scales)``.

    For fixed weights a gain is ``sum s u`` with shares ``s`` linear in the policies' weights. A permutation of
    utilities within slates of k responses has the mean ``sum_slates mean(s) sum(u)`` and the variance
    ``sum_slates SS(s) SS(u) / (k - 1)``, with sums of squares about the slate's mean; over many slates it is normal.

    Attributes:
        scales: ``[P]``.
        totals: ``[P]`` sums of ``a``.
        gains: ``[P]`` sums of ``a u``.
        means: ``[P]`` sums of ``mean(a) u``.
        spreads: ``[P, P]`` sums over slates of ``sum((a - mean a)(b - mean b)) SS(u) / (k - 1)``.
        permutable: whether any slate has two responses or more.
    """

    scales: Floats
    totals: Floats
    gains: Floats
    means: Floats
    spreads: Floats
    permutable: bool

    @classmethod
    def of(cls, log: LoggedSlates, log_weights: list[Floats]) -> PlaceboSums:
        """Of the policies' log-weights, ``[R]`` each."""
        sizes = log.sizes.astype(np.float64)
        scales = np.array([each.max() for each in log_weights])
        zero = np.zeros(log.num_responses)
        a = np.stack([per_slate_weights(log, w) if np.isfinite(w.max()) else zero for w in log_weights])  # [P, R]
        means = np.stack([log.slate_sums(each) for each in a]) / sizes  # [P, S]
        utility = log.slate_sums(log.utility)
        off = log.utility - log.per_response(utility / sizes)
        spread = log.slate_sums(off * off) / np.maximum(sizes - 1, 1)
        centred = a - np.repeat(means, log.sizes, axis=1)
        scaled = centred * log.per_response(spread)
        return cls(scales, a.sum(1), a @ log.utility, means @ utility, scaled @ centred.T, bool(sizes.max() > 1))

    def merge(self, other: PlaceboSums) -> PlaceboSums:
        scales = np.maximum(self.scales, other.scales)
        mine, theirs = (
            np.array([factor(scale, top) for scale, top in zip(each.scales, scales, strict=True)])
            for each in (self, other)
        )
        return PlaceboSums(
            scales,
            self.totals * mine + other.totals * theirs,
            self.gains * mine + other.gains * theirs,
            self.means * mine + other.means * theirs,
            self.spreads * np.outer(mine, mine) + other.spreads * np.outer(theirs, theirs),
            self.permutable or other.permutable,
        )

    def placebo(self, policy: int, baseline: int, *, of_loss: bool) -> Placebo | None:
        """Of the gain of one policy over another; None where nothing can be permuted, or a policy has no weight.

        Args:
            of_loss: test a loss as a gain of the baseline.
        """
        if not self.permutable or not np.isfinite(self.scales[[policy, baseline]]).all():
            return None
        shares = np.zeros_like(self.totals)
        shares[policy] += 1 / self.totals[policy]
        shares[baseline] -= 1 / self.totals[baseline]
        gain = float(shares @ self.gains)
        if of_loss and gain < 0:
            shares, gain = -shares, -gain
        mean = float(shares @ self.means)
        error = math.sqrt(max(0.0, float(shares @ self.spreads @ shares)))
        slack = 1e-12 * float(np.abs(shares) @ self.gains)  # rounding: permutations of nothing are no smaller
        beyond = gain - mean - slack
        p_value = math.erfc(beyond / error / math.sqrt(2)) / 2 if error > 0 else float(beyond <= 0)
        return Placebo(gain, mean, mean - _MIDDLE * error, mean + _MIDDLE * error, p_value, draws=0)


#: Normal quantile of the middle 95%.
_MIDDLE = 1.959963984540054
