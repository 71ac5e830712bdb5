"""A row added to `METHODS` is right in every respect: what the rows that exist have in common holds for others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from objectives import asked
from pope_align.ope import METHODS, LoggedSlates, estimate
from pope_align.ope.estimators import EstimatorSpec
from pope_align.ope.slope import slope_of
from pope_align.stats.intervals import Confidence

NEW = {
    "clipped_snips": EstimatorSpec("self-normalised IPS, clipped", shrink="clip", self_normalize=True),
    "clipped_slate_ips": EstimatorSpec("products of weights, limited to lam", shrink="clip", weighs="slate"),
    "clipped_pseudo_inverse": EstimatorSpec("1 - k + sum of limited weights", shrink="clip", pseudo_inverse=True),
}
UTILITY = asked()


@pytest.fixture(autouse=True)
def _new_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in NEW.items():
        monkeypatch.setitem(METHODS, name, spec)  # type: ignore[arg-type]


def heavy_log(seed: int) -> LoggedSlates:
    """Slates of two with utilities around 0.7 and weights with a heavy tail."""
    rng = np.random.default_rng(seed)
    utility = 0.7 + 0.1 * rng.standard_normal(400)
    log_w = 1.5 * rng.standard_normal(400)
    offsets = np.arange(0, 401, 2)
    return LoggedSlates.from_arrays(
        utility.clip(0, 1), np.full(400, -5.0), {"target": log_w - 5.0}, offsets, how="recorded"
    )


@pytest.mark.parametrize("method", ["snips", "clipped_snips", "pseudo_inverse", "clipped_pseudo_inverse"])
@pytest.mark.parametrize("interval", ["hoeffding", "bernstein"])
def test_what_has_no_bounded_contributions_has_no_interval_that_needs_them(method: str, interval: Any) -> None:
    given = {"lam": 2.0} if METHODS[method].shrink else {}
    with pytest.raises(ValueError, match=f"^method: '{interval}' needs contributions of bounded size"):
        estimate(heavy_log(0), "target", method, confidence=Confidence(method=interval), **given, **UTILITY)


@pytest.mark.parametrize("method", ["clipped_ips", "clipped_slate_ips"])
def test_limited_weights_have_bounded_contributions(method: str) -> None:
    """`n` slates, each within [0, lam]: Hoeffding's half-width is ``lam sqrt(ln(2 / 0.05) / (2 n))``."""
    bounded = estimate(heavy_log(0), "target", method, lam=2.0, confidence=Confidence(method="hoeffding"), **UTILITY)
    assert (bounded.high - bounded.low) / 2 == pytest.approx(2 * np.sqrt(np.log(40) / 400), rel=1e-12)


@pytest.mark.parametrize("method", NEW)
def test_slope_compares_estimates_of_the_same_kind(method: str) -> None:
    """Among the values that the method itself gives with each candidate, not among those of IPS."""
    for seed in range(6):
        log = heavy_log(seed)
        chosen = estimate(log, "target", method, **UTILITY)
        spec = METHODS[method]
        log_w = np.log(weights_of(log, whole=spec.weighs == "slate"))
        limits = np.unique(np.exp(np.quantile(log_w, (0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0))))[::-1]
        each = [estimate(log, "target", method, lam=float(limit), **UTILITY) for limit in limits]
        utilities = [one.ratios.combine(np.array([[0.0], [1.0], [0.0]])) for one in each]
        assert chosen.chosen["lam"] == pytest.approx(limits[slope_of(utilities)], rel=1e-12)


def test_a_ratio_and_a_mean_choose_differently() -> None:
    """A mean moves with the level of the utilities, which a ratio does not see."""
    lams = [
        [estimate(log, "target", method, **UTILITY).chosen["lam"] for method in ("clipped_ips", "clipped_snips")]
        for log in map(heavy_log, range(6))
    ]
    assert any(mean != ratio for mean, ratio in lams)


def weights_of(log: LoggedSlates, *, whole: bool) -> np.ndarray:
    target, logging = log.logprobs("target", length_normalize=False)
    ratio = target - logging
    return np.exp(log.slate_sums(ratio) if whole else ratio)


@pytest.mark.parametrize("method", NEW)
def test_only_a_mean_over_responses_has_a_bound_on_its_bias(method: str) -> None:
    assert "utility_bias_bound" in estimate(heavy_log(0), "target", "clipped_ips", lam=2.0, **UTILITY).chosen
    chosen = estimate(heavy_log(0), "target", method, lam=2.0, **UTILITY).chosen
    assert set(chosen) == {"lam", "shrinkage_bias"}
