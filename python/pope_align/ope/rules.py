"""The rules of verdicts: what is measured, and which values lead to a caution or a refusal.

All thresholds of verdicts are defined here; docs/evaluation.md shows `rules_table`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

#: "index": a direction, not a value; see `pope_align.ope.direction`.
Verdict = Literal["reliable", "caution", "index", "refuse"]

#: From best to worst.
VERDICTS: tuple[Verdict, ...] = ("reliable", "caution", "index", "refuse")


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        measured: what is measured.
        caution, refuse: the threshold of each verdict; None: never.
        below: whether smaller is worse.
        always: the verdict whenever this is found, for facts without a number.
        percent: whether the table shows the numbers as percentages.
        value_only: whether it concerns values, but not differences of two policies on one log.
        note: when the rule applies.
    """

    measured: str
    caution: float | None = None
    refuse: float | None = None
    below: bool = False
    always: Verdict | None = None
    percent: bool = False
    value_only: bool = False
    note: str = ""

    def grade(self, number: float = 0.0) -> Verdict | None:
        """The verdict for the number; None if it is fine or unknown (NaN)."""
        if self.always is not None:
            return self.always
        for verdict, limit in (("refuse", self.refuse), ("caution", self.caution)):
            if limit is not None and (number < limit if self.below else number > limit):
                return "refuse" if verdict == "refuse" else "caution"
        return None

    def cell(self, verdict: Verdict) -> str:
        """The text of one cell of the table."""
        if self.always is not None:
            return "always" if verdict == self.always else ""
        limit = {"caution": self.caution, "refuse": self.refuse}.get(verdict)
        if limit is None:
            return ""
        return f"{'<' if self.below else '>'} {f'{limit:.0%}' if self.percent else f'{limit:g}'}"


RULES: Mapping[str, Rule] = {
    # the log
    "clusters": Rule("number of independent clusters", 50, 10, below=True),
    "cluster_ess": Rule("effective number of clusters, by their weights", 50, 10, below=True),
    "annotators": Rule("number of annotators", 50, 10, below=True, note="values to groups of raters"),
    "constant_utility": Rule("every response has the same utility, or the same within its slate", always="refuse"),
    "relative_utility": Rule("utilities relative to their slate", always="caution"),
    "relative_slate": Rule("utilities relative to their slate, with weights of whole slates", always="refuse"),
    # propensities
    "proxy": Rule("the logging policy is a stand-in", always="caution"),
    "cloned": Rule("the logging policy was fitted to the log", always="caution"),
    "unknown": Rule("the log does not say where its propensities came from", always="caution"),
    "in_sample": Rule("responses scored by a logging policy that was fitted to them", 0),
    "people": Rule("people wrote the log", always="refuse", value_only=True),
    "provenance": Rule(
        "log-probabilities of another tokenizer, template, dtype, length, engine or sampling setting", always="caution"
    ),
    "rescored": Rule("recorded propensities against rescored ones, nats per token", 0.02, 0.2),
    # weights
    "length_normalized": Rule("length-normalised weights", always="index"),
    "tempered": Rule("weights to a power below 1, or normalised within a slate", always="index"),
    "overflow": Rule("a log-weight above 80 nats without a maximum weight", always="refuse"),
    "ess": Rule("effective sample size of the weights in use", 100, 10, below=True),
    "ess_fraction": Rule(
        "the same as a share of the weights", None, 0.01, below=True, percent=True, note="if it is below 100"
    ),
    "max_share": Rule("share of the largest weight", 0.05, 0.25, percent=True),
    "few_weights": Rule("number of weights", 25, None, below=True, note="too few to judge a tail"),
    "pareto_k": Rule(
        "Pareto tail index k-hat minus min(1 - 1/log10 n, 0.7)",
        0.0,
        None,
        note="if a weight is above ten times the mean",
    ),
    "pareto_k_infinite": Rule(
        "Pareto tail index k-hat", None, 1.0, note="if effective sample size or largest share are a caution, too"
    ),
    "mean_weight": Rule(
        "distance of the mean weight from 1, in standard errors", 3, 5, note="true propensities of whole responses"
    ),
    "balance": Rule(
        "distance of weighted logged responses from the policy's fresh ones in mean rank, in standard errors",
        3,
        5,
        note="if the effective sample size of whole sequences is 100 or more",
    ),
    "target_coverage": Rule(
        "logged responses typical of the policy", 0.5, 0.1, below=True, percent=True, note="if support is unchecked"
    ),
    "length_correlation": Rule("correlation of log-weight and length", 0.8, note="length-normalised weights"),
    "clip_fraction": Rule("share of clipped weights", 0.1, percent=True),
    # support
    "support_unchecked": Rule("no fresh responses scored under the logging policy", always="caution"),
    "support": Rule("fresh responses that outweigh every logged one", 0.01, 0.1, percent=True),
    "support_bias": Rule("possible effect of unsupported responses on a difference, in its standard errors", 2, 10),
    # estimators
    "shrinkage": Rule("bias of shrinking plus its error, in standard errors of the estimate", 0.5),
    "shrinkage_far": Rule("that bias minus twice its error, in standard errors of the estimate", None, 3),
    "model_only": Rule("estimate by the reward model alone", always="caution"),
    "model_contradicted": Rule("weighted residuals of the reward model, in standard errors", None, 3),
    "model_leaks": Rule("predictions that repeat the logged utilities", always="caution"),
    "model_blind": Rule(
        "share of the utilities' variance that the reward model explains out of fold",
        0.3,
        0.05,
        below=True,
        percent=True,
        note="direct method; model first, unless effective sample size and what the features may miss are fine",
    ),
    "model_scale": Rule("distance of the slope of utility on prediction from 1, in standard errors", 3),
    "model_unverified": Rule(
        "standard error of what the features may miss, in standard errors of the estimate", 1.5, note="model first"
    ),
    "diversity_from_log": Rule(
        "diversity -log p by self-normalised weights, without fresh responses of the policy", always="caution"
    ),
    "outside_range": Rule("interval of V_CU outside the utilities' range", always="refuse"),
    "not_finite": Rule("value or standard error not finite", always="refuse"),
    # judges
    "judge_transport": Rule("people's ratings of the policy's own responses off the calibrated judge, in errors", 2, 3),
    "judge_unaudited": Rule("prompts with ratings of the policy's own responses", 50, None, below=True),
    "judge_beyond": Rule("judge scores outside those that people rated", 0.05, 0.2, percent=True),
    # differences
    "placebo": Rule("p-value of a gain among utilities permuted within slates", None, 0.05),
}

#: The number of independent queries that SLOPE needs.
FEW_CLUSTERS = 50

#: The tail is judged if a weight is above this many times the mean.
TAIL_STARTS = 10.0

#: If residuals are smaller than this share of the utilities' spread, the model repeats what it was fitted to.
LEAK = 1e-3


def is_index(rule: str) -> bool:
    """Whether what a rule finds makes an estimate an index of direction."""
    return RULES[rule].always == "index"


def rules_table() -> str:
    """The rules as Markdown, for docs/evaluation.md."""
    rows = ["| what is found | caution | index | refuse |", "|---|---|---|---|"]
    for rule in RULES.values():
        what = rule.measured + (f" ({rule.note})" if rule.note else "")
        what += " (values, not differences)" if rule.value_only else ""
        rows.append(f"| {what} | {rule.cell('caution')} | {rule.cell('index')} | {rule.cell('refuse')} |")
    return "\n".join(rows)
