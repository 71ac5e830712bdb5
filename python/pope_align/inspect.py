"""Statistics of a log of slates to look at before using it: sizes, lengths, feedback, repeats, overlap,
propensities.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._extras import require
from ._files import replacing
from ._text import in_figure
from .data.feedback import SMALL_UTILITY, UtilityTransform, heavy_tail_hint, is_constant, to_utility
from .data.merge import content
from .data.near import near_duplicates
from .data.schema import Slate, text_of
from .data.split import grouping
from .disagreement import Raters, raters_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Propensities:
    """The propensities of one logging policy and its perplexity on the responses that it is said to have written."""

    how: str
    model: str
    responses: int
    nats_per_token: float | None  # None if the log has no token counts
    per_token: Numbers  # [responses] mean log-probability of each; empty without token counts
    totals: Numbers  # [responses] nats
    in_sample: int  # responses that the policy was fitted to
    cross_fitted: bool

    @property
    def perplexity(self) -> float | None:
        return None if self.nats_per_token is None else float(np.exp(self.nats_per_token))

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON."""
        names = ("how", "model", "responses", "nats_per_token", "perplexity", "in_sample", "cross_fitted")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Inspection:
    """The statistics of a log.

    Attributes:
        k, prompt_chars, response_chars, scores, utilities: one number per slate or response.
        constant: slates whose scores, and therefore utilities, are all equal.
        repeated_prompts: slates whose prompt occurs in an earlier slate of the log.
        repeated_responses: responses whose text occurs earlier in the log; ``repeated_in_slate``: in the same slate.
        groups: distinct groups, by `slate_group` or ``group``.
        shared_prompts, shared_groups: slates of this log whose prompt or group is also in the log it is compared to.
        near_prompts: slates whose prompt is nearly equal to one of that log, and not equal (`near_duplicates`).
        propensities: of each logging policy that scored the log.
        origins: slates by format and kind of feedback.
        raters: None if the log has neither ratings by annotator nor by group.
    """

    slates: int
    responses: int
    k: Numbers
    prompt_chars: Numbers
    response_chars: Numbers
    scores: Numbers
    utilities: Numbers
    transform: UtilityTransform
    constant: int
    repeated_prompts: int
    repeated_responses: int
    repeated_in_slate: int
    groups: int
    shared_prompts: int | None
    shared_groups: int | None
    near_prompts: int | None
    propensities: tuple[Propensities, ...]
    unscored: int
    origins: dict[str, int]
    raters: Raters | None = None

    @property
    def warnings(self) -> list[str]:
        """Problems of the log."""
        found = [
            (self.shared_prompts, "share their prompt with the other log"),
            (self.shared_groups, "share their group with the other log"),
            (self.near_prompts, "have a prompt that is nearly one of the other log"),
        ]
        leaks = [f"{count:,} of {self.slates:,} slates {what}" for count, what in found if count]
        return leaks + ["split with --split-by group (and --group) so that they stay together"] * bool(leaks)

    @property
    def hints(self) -> list[str]:
        """Suggestions from the distributions."""
        if self.transform != "minmax":
            return []
        return heavy_tail_hint(int((self.utilities < SMALL_UTILITY).sum()), self.responses)

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, distributions as quantiles."""
        spreads = {name: quantiles(getattr(self, name)) for name in _SPREADS}
        names = ("least", "5%", "median", "95%", "greatest")
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            "distributions": {name: dict(zip(names, values, strict=True)) for name, values in spreads.items()},
            "propensities": [policy.to_dict() for policy in self.propensities],
            "raters": None if self.raters is None else self.raters.to_dict(),
            "warnings": self.warnings,
            "hints": self.hints,
        }


_SPREADS = ("k", "prompt_chars", "response_chars", "scores", "utilities")
_COUNTS = (
    "slates",
    "responses",
    "groups",
    "constant",
    "repeated_prompts",
    "repeated_responses",
    "repeated_in_slate",
    "shared_prompts",
    "shared_groups",
    "near_prompts",
    "unscored",
    "origins",
    "transform",
)


def inspect_slates(
    slates: Sequence[Slate],
    *,
    transform: UtilityTransform = "minmax",
    against: Sequence[Slate] | None = None,
    group: str | None = None,
) -> Inspection:
    """Compute the statistics of a log.

    Args:
        slates: at least one.
        transform: of scores to utilities, as training would apply it.
        against: another log that should share no prompts or groups with this one, such as the training split.
        group: the definition of a group, for `grouping`; None for `slate_group`.

    Raises:
        ValueError: no slates; scores that ``transform`` refuses.
    """
    if not slates:
        raise ValueError("slates: expected at least one slate, got none")
    texts = Counter(content(completion).strip() for slate in slates for completion in slate.completions)
    prompts = Counter(content(slate.prompt) for slate in slates)
    in_slate = sum(len(s.completions) - len({content(c).strip() for c in s.completions}) for s in slates)
    group_of = grouping(group)
    groups = {group_of(slate) for slate in slates}
    shared_prompts = shared_groups = near_prompts = None
    if against is not None:
        other_prompts = {content(slate.prompt) for slate in against}
        other_groups = {group_of(slate) for slate in against}
        shared_prompts = sum(content(slate.prompt) in other_prompts for slate in slates)
        shared_groups = sum(group_of(slate) in other_groups for slate in slates)
        others = [text_of(slate.prompt) for slate in slates if content(slate.prompt) not in other_prompts]
        near_prompts = sum(near_duplicates(others, (text_of(slate.prompt) for slate in against)))
    origins = Counter(_origin(slate) for slate in slates)
    return Inspection(
        slates=len(slates),
        responses=sum(len(slate.completions) for slate in slates),
        k=_numbers(len(slate.completions) for slate in slates),
        prompt_chars=_numbers(_prompt_chars(slate) for slate in slates),
        response_chars=_numbers(len(text_of(c)) for slate in slates for c in slate.completions),
        scores=_numbers(score for slate in slates for score in slate.scores),
        utilities=np.concatenate([to_utility(slate.scores, transform) for slate in slates]),
        transform=transform,
        constant=sum(is_constant(slate.scores) for slate in slates),
        repeated_prompts=len(slates) - len(prompts),
        repeated_responses=sum(texts.values()) - len(texts),
        repeated_in_slate=in_slate,
        groups=len(groups),
        shared_prompts=shared_prompts,
        shared_groups=shared_groups,
        near_prompts=near_prompts,
        propensities=tuple(_propensities(slates)),
        unscored=sum(slate.logging_logprobs is None for slate in slates),
        origins=dict(origins.most_common()),
        raters=raters_of(slates),
    )


def plot_inspection(inspection: Inspection, path: str | os.PathLike[str], *, name: str = "") -> None:
    """Draw the distributions of an `Inspection` to a picture (.png, .pdf, .svg), titled with the name of the log."""
    pyplot = require("matplotlib.pyplot", extra="train", purpose="to draw pictures")
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    sizes, responses, prompts, scores, utilities, policies = axes.ravel()
    _sizes(sizes, inspection.k)
    _lengths(responses, inspection.response_chars, "length of responses", "responses")
    _lengths(prompts, inspection.prompt_chars, "length of prompts", "slates")
    _scores(scores, inspection.scores)
    utilities.hist(inspection.utilities, bins=np.linspace(0, 1, 26).tolist())
    utilities.set(title=f"utilities ({inspection.transform})", xlabel="utility", ylabel="responses")
    _policies(policies, inspection.propensities)
    for panel in axes.ravel():
        panel.spines[["top", "right"]].set_visible(False)
        _whole_counts(panel)
    title = f"{name}   slates: {inspection.slates:,}, responses: {inspection.responses:,}".strip()
    figure.suptitle(in_figure(title, lines=True), x=0.01, ha="left")
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120)
    pyplot.close(figure)


def quantiles(values: Numbers) -> tuple[float, float, float, float, float]:
    """Least, 5%, median, 95%, greatest."""
    least, low, middle, high, most = np.quantile(values, [0, 0.05, 0.5, 0.95, 1])
    return float(least), float(low), float(middle), float(high), float(most)


def _whole_counts(axes: Axes) -> None:
    """Bars are counts: whole numbers on the axis, which starts at 0."""
    ticker = require("matplotlib.ticker", extra="train", purpose="to draw pictures")
    if axes.axison:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(nbins=6, integer=True))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.set_ylim(bottom=0, top=max(axes.get_ylim()[1], 1))


def _scores(axes: Axes, values: Numbers) -> None:
    """On a symlog axis if a few scores are far larger than the rest."""
    if np.ptp(values) > 50:
        shown = np.sign(values) * np.log10(1 + np.abs(values))
        edges = np.linspace(shown.min(), shown.max(), _bins(values) + 1)
        axes.hist(values, bins=(np.sign(edges) * (10 ** np.abs(edges) - 1)).tolist())
        axes.set_xscale("symlog", linthresh=1)
    elif np.ptp(values) == 0:
        axes.bar(values[:1], [values.size], width=0.2)
        axes.set_xlim(values[0] - 1, values[0] + 1)
    else:
        axes.hist(values, bins=_bins(values))
    axes.set(title="scores", xlabel="score", ylabel="responses")


def _sizes(axes: Axes, k: Numbers) -> None:
    largest = int(k.max())
    if largest <= 24:
        numbers, counts = np.unique(k, return_counts=True)
        axes.bar(numbers, counts)
        axes.set_xticks(range(1, largest + 1, 1 + largest // 13))
        axes.set_xlim(0.4, largest + 0.6)
    else:
        axes.hist(k, bins=_bins(k))
    axes.set(title="responses per slate", xlabel="k", ylabel="slates")


def _lengths(axes: Axes, characters: Numbers, title: str, unit: str) -> None:
    ticker = require("matplotlib.ticker", extra="train", purpose="to draw pictures")
    low, high = max(characters.min(), 1), max(characters.max(), 2)
    if high < 3 * low:  # there may be no power of ten between them
        step = int(np.ceil((high - low + 1) / _bins(characters)))
        axes.hist(characters, bins=np.arange(low - 0.5, high + step, step).tolist())
        middle, half = (low + high) / 2, max((high - low) / 2 + 1, 3)  # so that no two tick labels are equal
        axes.set_xlim(middle - half, middle + half)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=5, integer=True))
    else:
        axes.hist(np.maximum(characters, 1), bins=np.geomspace(low, high * 1.001, _bins(characters) + 1).tolist())
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
    axes.set(title=title, xlabel="characters", ylabel=unit)


def _policies(axes: Axes, policies: Sequence[Propensities]) -> None:
    axes.set(title="logging policy", xlabel="mean log-probability per token (nats)", ylabel="responses")
    scored = [policy for policy in policies if policy.per_token.size]
    for policy in scored:
        label = f"{policy.how}: {policy.nats_per_token:.2f} nats per token"
        axes.hist(policy.per_token, bins=_bins(policy.per_token), alpha=0.6, label=label)
    if scored:
        axes.set_ylim(top=axes.get_ylim()[1] * 1.25)  # space for the legend
        axes.legend(frameon=False, fontsize="small")
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no log-probabilities per token", ha="center", va="center", transform=axes.transAxes)


def _bins(values: Numbers) -> int:
    return int(np.clip(np.sqrt(values.size), 8, 40))


def _propensities(slates: Sequence[Slate]) -> list[Propensities]:
    by_policy: dict[tuple[str, str], list[Slate]] = {}
    for slate in slates:
        if slate.logging_logprobs is not None:
            policy = slate.logging_policy or {"how": "recorded"}
            by_policy.setdefault((str(policy.get("how")), str(policy.get("model") or "unknown")), []).append(slate)
    return [_of_policy(how, model, scored) for (how, model), scored in by_policy.items()]


def _of_policy(how: str, model: str, slates: Sequence[Slate]) -> Propensities:
    totals = _numbers(total for slate in slates for total in slate.logging_logprobs or [])
    tokens = _numbers(n for slate in slates for n in slate.completion_tokens or [])
    counted = tokens.size == totals.size
    fits: list[dict[str, Any]] = [fit for slate in slates if (fit := (slate.logging_policy or {}).get("fit"))]
    return Propensities(
        how=how,
        model=model,
        responses=totals.size,
        nats_per_token=-float(totals.sum() / tokens.sum()) if counted else None,
        per_token=totals / tokens if counted else _numbers(()),
        totals=totals,
        in_sample=sum(fit["in_sample"] for fit in fits),
        cross_fitted=len(fits) == len(slates) and all(fit["folds"] is not None for fit in fits),
    )


def _origin(slate: Slate) -> str:
    origin = slate.origin or {}
    return f"{origin.get('format', 'unknown')}: {origin.get('feedback', 'unknown')}"


def _prompt_chars(slate: Slate) -> int:
    if isinstance(slate.prompt, str):
        return len(slate.prompt)
    return sum(len(turn["content"]) for turn in slate.prompt)


def _numbers(values: Any) -> Numbers:
    return np.asarray([*values], dtype=np.float64)
