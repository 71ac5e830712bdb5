"""Tempered weights keep the effective sample size that was asked for, and no more is taken from them."""

from __future__ import annotations

import numpy as np
import pytest
from pope_align.ope.diagnostics import effective_sample_size
from pope_align.ope.tempered import tempered


def test_the_power_is_the_largest_that_leaves_the_stated_size() -> None:
    log_w = np.random.default_rng(0).normal(0, 6.0, 2000)  # a few sequences hold everything
    assert effective_sample_size(log_w) < 5
    result = tempered(log_w, 0.25)
    assert result.ess == pytest.approx(500, rel=1e-6)
    assert effective_sample_size(result.power * 1.01 * log_w) < 500
    np.testing.assert_allclose(result.log_weights, result.power * log_w)
    assert result.raw_ess == effective_sample_size(log_w)


def test_lognormal_weights_have_the_power_of_theory() -> None:
    """The effective share of lognormal weights is exp(-(b s)^2), so b = sqrt(log 4) / s for a quarter."""
    spread = 3.0
    result = tempered(np.random.default_rng(1).normal(0, spread, 200_000), 0.25)
    assert result.power == pytest.approx(np.sqrt(np.log(4)) / spread, rel=0.02)


def test_weights_that_leave_enough_are_left_alone() -> None:
    log_w = np.random.default_rng(2).normal(0, 0.5, 100)
    assert tempered(log_w, 0.25).power == 1.0
    assert tempered(log_w, 0.25).log_weights is log_w


def test_weights_of_zero_stay_zero_until_the_power_is() -> None:
    some = np.array([0.0, -np.inf, 0.1, -np.inf])
    assert tempered(some, 0.25).power == 1.0
    none_left = tempered(some, 0.9)  # two weights cannot count as 3.6
    assert none_left.power < 1e-9
    assert none_left.ess <= 4


@pytest.mark.parametrize(
    ("log_w", "share", "message"),
    [
        ([0.0, np.nan], 0.25, r"log_weights\[1\]: expected a number below infinity, got nan"),
        ([np.inf, 0.0], 0.25, r"log_weights\[0\]: expected a number below infinity, got inf"),
        ([-np.inf, -np.inf], 0.25, "every weight is 0"),
        ([0.0, 0.0], 0.0, r"share: expected a number in \(0, 1\], got 0.0"),
    ],
)
def test_errors(log_w: list[float], share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tempered(np.array(log_w), share)
