"""The stored numbers of Open Bandit Pipeline, VowpalWabbit's estimators, CJE and arviz-stats, and exact enumeration.

Where a library is wrong, or answers another question, the test says which and why.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from objectives import asked
from pope_align.ope import (
    METHODS,
    Estimate,
    LoggedSlates,
    Predictions,
    Shrink,
    bias_bound,
    diagnose,
    effective_sample_size,
    estimate,
    pope_value,
)
from pope_align.ope.slope import slope
from scipy import stats

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ope.json").read_text())
EXACT = {"rtol": 1e-9, "atol": 1e-12}
UTILITY = asked()

#: Golden name: our method and its lam.
BANDIT = {
    "ipw": ("ips", None),
    "snipw": ("snips", None),
    "dm": ("dm", None),
    "dr": ("dr", None),
    "sndr": ("sndr", None),
    **{f"ipw_clip_{lam}": ("clipped_ips", lam) for lam in (0.5, 1.0, 2.0, 5.0)},
    **{f"dr_clip_{lam}": ("clipped_dr", lam) for lam in (1.0, 2.0)},
    **{f"switch_dr_{lam}": ("switch_dr", lam) for lam in (1.0, 2.0)},
    **{f"dr_os_{lam}": ("dros", lam) for lam in (1.0, 10.0)},
    **{f"sg_ipw_{lam}": ("subgaussian_ips", lam) for lam in (0.1, 0.5)},
    **{f"sg_dr_{lam}": ("subgaussian_dr", lam) for lam in (0.1, 0.5)},
}


@pytest.fixture(params=GOLDEN["bandit"], ids=lambda group: group["name"])
def bandit(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def bandit_log(bandit: dict[str, Any]) -> LoggedSlates:
    given = bandit["inputs"]
    return LoggedSlates.from_arrays(given["reward"], given["ell_0"], {"target": given["ell_theta"]}, how="recorded")


def bandit_estimate(bandit: dict[str, Any], name: str) -> Estimate:
    method, lam = BANDIT[name]
    given = bandit["inputs"]
    predictions = None
    if METHODS[method].predictions:
        predictions = Predictions(np.array(given["q_hat_logged"]), np.array(given["q_hat_target_mean"]))
    return estimate(bandit_log(bandit), "target", method, predictions=predictions, lam=lam, **UTILITY)


@pytest.mark.parametrize("name", BANDIT)
def test_bandit_estimates_are_those_of_open_bandit_pipeline(bandit: dict[str, Any], name: str) -> None:
    np.testing.assert_allclose(bandit_estimate(bandit, name).value, bandit["obp"][name], **EXACT)


def test_every_stored_bandit_estimate_is_compared(bandit: dict[str, Any]) -> None:
    assert set(BANDIT) == set(bandit["obp"]), "one row in BANDIT per value in tests/golden/ope.json"


def test_contributions_of_rows_are_those_of_open_bandit_pipeline(bandit: dict[str, Any]) -> None:
    """Not for "snipw": its rows r w / mean(w) treat the mean weight as known, so that an interval of their mean grows
    with the level of the rewards (zr-obp #187). Our interval of a ratio does not; see test_ope_intervals.py.
    """
    for name, rows in bandit["obp_round_rewards"].items():
        if name not in ("snipw", "sndr"):
            actual = bandit_estimate(bandit, name).ratios.numerators[:, :, 0].sum(0)
            np.testing.assert_allclose(actual, rows, rtol=1e-9, atol=1e-9, err_msg=name)


def test_intervals_and_bounds_of_a_mean(bandit: dict[str, Any]) -> None:
    low, high = bandit["vw_estimators"]["gaussian_interval_alpha.05"]
    ips = bandit_estimate(bandit, "ipw")
    half = stats.norm.ppf(0.975) * ips.standard_error
    np.testing.assert_allclose([ips.value - half, ips.value + half], [low, high], **EXACT)
    one_sided = ips.value - stats.t.ppf(0.95, bandit["n"] - 1) * ips.standard_error
    np.testing.assert_allclose(one_sided, bandit["obp_bounds"]["student_t_lower(ipw rows, delta=.05)"], **EXACT)
    given = bandit["inputs"]
    bound = bias_bound(np.log(given["weights"]), Shrink("clip", 2.0), np.array(given["reward"]))
    np.testing.assert_allclose(bound, bandit["obp_bounds"]["bias_upper(clip 2, delta=.05)"], **EXACT)
    assert bandit["vw_estimators"]["snips"] == pytest.approx(bandit_estimate(bandit, "snipw").value, rel=1e-9)


@pytest.mark.parametrize(("tuned", "method"), [("ipw_slope", "clipped_ips"), ("dr_slope", "clipped_dr")])
def test_slope_chooses_the_stored_parameter(bandit: dict[str, Any], tuned: str, method: str) -> None:
    given, grid = bandit["inputs"], bandit["obp_tuning"]["grid"]
    predictions = Predictions(np.array(given["q_hat_logged"]), np.array(given["q_hat_target_mean"]))
    candidates = [
        estimate(
            bandit_log(bandit),
            "target",
            method,
            lam=lam,
            predictions=predictions if method == "clipped_dr" else None,
            **UTILITY,
        )
        for lam in grid
    ]
    quantile = stats.t.ppf(1 - bandit["obp_tuning"]["delta"], bandit["n"] - 1)
    chosen = slope([c.value for c in candidates], [quantile * c.standard_error for c in candidates])
    stored = bandit["obp_tuning"][tuned]
    assert grid[chosen] == stored["lambda"]
    np.testing.assert_allclose(candidates[chosen].value, stored["value"], **EXACT)


# --- slates ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=GOLDEN["slates"], ids=lambda group: group["name"])
def slates(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def slate_log(slates: dict[str, Any], *, sums: bool) -> LoggedSlates:
    """The libraries add the rewards of a slate, we average them: ``sums`` multiplies them by the slate's size."""
    given = slates["inputs"]
    sizes = np.bincount(given["slate_id"])
    rewards = np.array(given["reward"]) * (np.repeat(sizes, sizes) if sums else 1)
    return LoggedSlates.from_arrays(
        rewards,
        given["ell_0"],
        {"target": given["ell_theta"]},
        np.append(0, sizes.cumsum()),
        utility_range=(0.0, 64.0),
        how="recorded",
    )


@pytest.mark.parametrize(("name", "method"), [("sips", "slate_ips"), ("iips", "ips")])
def test_slate_estimates_are_those_of_open_bandit_pipeline(slates: dict[str, Any], name: str, method: str) -> None:
    value = estimate(slate_log(slates, sums=True), "target", method, **UTILITY).value
    np.testing.assert_allclose(value, slates["obp"][name], **EXACT)
    weighting = "slate" if name == "sips" else "response"
    log = slate_log(slates, sums=False)
    mean = pope_value(log, "target", **asked(weighting=weighting, normalization="none")).value
    key = {"sips": "mean-reward SIPS: mean_s W_s * mean_j r", "iips": "mean-reward IIPS: mean_s mean_j w r"}[name]
    np.testing.assert_allclose(mean, slates["ours_for_comparison"][key], **EXACT)


def test_self_normalised_slate_value_is_a_ratio_over_slates(slates: dict[str, Any]) -> None:
    """Open Bandit Pipeline divides by the mean weight over *rows*, so that a slate of four counts four times in the
    denominator; on ragged slates its "snsips" is no ratio of the same slates. With equal slates it agrees.
    """
    value = estimate(slate_log(slates, sums=True), "target", "slate_snips", **UTILITY).value
    stored = slates["ours_for_comparison"]["snips_over_slates (correct for ragged slates)"]
    np.testing.assert_allclose(value, stored, **EXACT)
    if slates["name"] == "slate_ragged":
        assert value != pytest.approx(slates["obp"]["snsips"], rel=0.1)
    else:
        np.testing.assert_allclose(value, slates["obp"]["snsips"], **EXACT)


def test_responses_are_normalised_together_not_by_position(slates: dict[str, Any]) -> None:
    """Open Bandit Pipeline's "sniips" normalises each position by itself. Responses of a slate are exchangeable draws
    here, so a position means nothing and all weights are normalised together. (Its "rips" and "cascade_dr" model how
    a reader goes down a list, which has no counterpart, and are not offered.)
    """
    given, log = slates["inputs"], slate_log(slates, sums=False)
    value = estimate(log, "target", "snips", **UTILITY).value
    sizes = np.bincount(given["slate_id"])
    share = 1 / np.repeat(sizes, sizes)
    w = np.exp(np.array(given["ell_theta"]) - given["ell_0"]) * share
    np.testing.assert_allclose(value, (w * given["reward"]).sum() / w.sum(), **EXACT)


def test_pseudo_inverse_is_that_of_vowpal_wabbit(slates: dict[str, Any]) -> None:
    result = estimate(slate_log(slates, sums=True), "target", "pseudo_inverse", **UTILITY)
    np.testing.assert_allclose(result.value, slates["vw_estimators"]["pseudo_inverse"], **EXACT)
    low, high = slates["vw_estimators"]["gaussian_interval_alpha_05"]
    half = stats.norm.ppf(0.975) * result.standard_error
    np.testing.assert_allclose([result.value - half, result.value + half], [low, high], **EXACT)


# --- diagnostics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", GOLDEN["diagnostics"], ids=lambda group: group["name"])
def test_diagnostics_are_those_of_cje_and_arviz(group: dict[str, Any]) -> None:
    given, stored = group["inputs"], group["out"]
    log = LoggedSlates.from_arrays(
        given["reward"], given["ell_0"], {"target": given["ell_theta"]}, tokens=given["token_counts"], how="recorded"
    )
    raw = diagnose(log, "target", weighting="response", length_normalize=False)
    actual = [
        raw.ess,
        raw.ess_fraction,
        raw.max_share,
        raw.top_percent_share,
        raw.mean_weight,
        raw.pareto_k,
        raw.pareto_k_threshold,
        raw.target_coverage,
        np.exp(raw.log_weight_max),
    ]
    names = [
        "ess",
        "ess_fraction",
        "max_share",
        "cje_mass_concentration_top1pct",
        "mean_weight",
        "arviz_psis_khat",
        "khat_threshold",
        "cje_ttc_per_token",
        "max_weight",
    ]
    np.testing.assert_allclose(actual, [stored[name] for name in names], **EXACT)
    without_tokens = LoggedSlates.from_arrays(given["reward"], given["ell_0"], {"target": given["ell_theta"]})
    totals = diagnose(without_tokens, "target", weighting="response", length_normalize=False)
    np.testing.assert_allclose(totals.target_coverage, stored["cje_ttc_total"], **EXACT)


@pytest.mark.parametrize("group", GOLDEN["diagnostics"], ids=lambda group: group["name"])
def test_calibrated_weights_hide_what_raw_ones_show(group: dict[str, Any]) -> None:
    """CJE's calibration raises the effective sample size by itself (here from 18 to 274 of 300); ours stays raw."""
    stored = group["out"]
    assert stored["cje_simcal"]["ess_after"] > stored["cje_simcal"]["ess_before"]
    log_w = np.array(group["inputs"]["ell_theta"]) - group["inputs"]["ell_0"]
    np.testing.assert_allclose(effective_sample_size(log_w), stored["cje_simcal"]["ess_before"], **EXACT)


# --- every sequence of a toy language model -------------------------------------------------------------------------


ENUMERATION = GOLDEN["enumeration"][0]
TARGET = np.array([sum(tokens) for tokens in ENUMERATION["token_logp_target"]])
LOGGING = np.array([sum(tokens) for tokens in ENUMERATION["token_logp_logging"]])
LENGTHS = np.array([len(tokens) for tokens in ENUMERATION["token_logp_target"]])
PROBABILITIES = np.exp(LOGGING)
REWARD = np.array(ENUMERATION["reward"])
ENUMERATED = LoggedSlates.from_arrays(REWARD, LOGGING, {"target": TARGET}, tokens=LENGTHS, how="recorded")


def expectation(value: Estimate, column: int = 1) -> tuple[float, float]:
    """Of the numerators and of the denominators under the logging policy: an exact sum over all logs of one slate."""
    sizes = value.num_slates
    weights = PROBABILITIES if sizes == PROBABILITIES.size else np.outer(PROBABILITIES, PROBABILITIES).reshape(-1)
    return float(weights @ value.ratios.numerators[0, :, column]), float(weights @ value.ratios.denominators[0])


def test_true_propensities_give_the_value_and_weights_of_mean_one() -> None:
    exact = ENUMERATION["exact"]
    total, mass = expectation(estimate(ENUMERATED, "target", "snips", **UTILITY))
    top = np.exp((TARGET - LOGGING).max())  # self-normalised weights are scaled by their largest
    np.testing.assert_allclose([mass * top, total * top], [1.0, exact["V_target"]], **EXACT)
    np.testing.assert_allclose(expectation(estimate(ENUMERATED, "target", "ips", **UTILITY)), [exact["V_target"], 1.0])
    clipped, _ = expectation(estimate(ENUMERATED, "target", "clipped_ips", lam=2.0, **UTILITY))
    np.testing.assert_allclose(clipped, exact["E0_clip2_r"], **EXACT)


def test_the_expected_diversity_reward_is_the_entropy() -> None:
    value = estimate(ENUMERATED, "target", "ips", **asked(diversity_weight=1.0))
    np.testing.assert_allclose(expectation(value, column=2)[0], ENUMERATION["exact"]["entropy_target"], **EXACT)


def test_length_normalised_weights_are_no_importance_weights() -> None:
    exact = ENUMERATION["exact"]
    value = pope_value(ENUMERATED, "target", **asked(normalization="none", length_normalize=True))
    np.testing.assert_allclose(expectation(value)[0], exact["E0_wbar_r"], **EXACT)
    assert "biased, variance-reduced" in value.labels
    assert value.verdict != "reliable"
    normalised = pope_value(ENUMERATED, "target", **asked(length_normalize=True))
    total, mass = expectation(normalised)
    np.testing.assert_allclose(total / mass, exact["snips_limit_wbar"], **EXACT)


def test_joint_decomposed_and_pseudo_inverse_share_their_expectation_and_differ_in_variance() -> None:
    """Theorem 4.1 a and b on all slates of two; the stored values are sums over the slate."""
    exact = ENUMERATION["exact"]
    pairs = np.array(list(itertools.product(range(REWARD.size), repeat=2)))
    log = LoggedSlates.from_arrays(
        REWARD[pairs].reshape(-1) * 2,
        LOGGING[pairs].reshape(-1),
        {"target": TARGET[pairs].reshape(-1)},
        np.arange(0, 2 * len(pairs) + 1, 2),
        utility_range=(0.0, 2.0),
        how="recorded",
    )
    weights = PROBABILITIES[pairs].prod(1)
    for method, variance in [("slate_ips", "var_SIPS"), ("ips", "var_IIPS"), ("pseudo_inverse", "var_PI")]:
        rows = estimate(log, "target", method, **UTILITY).ratios.numerators[0, :, 0]
        mean = weights @ rows
        np.testing.assert_allclose(mean, exact["slate_k2_E0_sum_w_r"], **EXACT)
        np.testing.assert_allclose(weights @ rows**2 - mean**2, exact[f"slate_k2_{variance}"], rtol=1e-9)
