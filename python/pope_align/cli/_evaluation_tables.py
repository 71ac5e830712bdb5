"""The output of ``pope evaluate``: a table each of values, differences and indices, and the reasons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ope import Comparison, DirectionIndex, Estimate, Evaluation, GroupValue, RaterGroups

#: Title, columns and rows.
Table = tuple[str, list[str], list[list[str]]]


def tables(evaluation: Evaluation, *, struck: bool) -> Iterator[Table]:
    """The tables in their order.

    Args:
        struck: strike refused numbers through, for a terminal; programs get plain numbers and the verdict.
    """
    log, alpha = evaluation.log, evaluation.objective.diversity_weight
    size = f"{log.num_responses} responses, {log.num_slates} slates, {log.num_clusters} queries"
    values = [each for each in evaluation.estimates if not each.is_index]
    if values:
        parts = ["V"] if alpha > 0 else []
        columns = ["policy", "estimator", *parts, "V_CU", "low", "high", "ESS", "verdict"]
        yield f"Values ({size})", columns, [_value(each, alpha > 0, struck) for each in values]
    differences = [each for each in evaluation.comparisons if each.probability is not None]
    if differences:
        columns = ["policy", "estimator", "V_CU", "low", "high", "P(better)", "placebo p", "verdict"]
        title = f"Differences from {evaluation.baseline}, paired"
        yield title, columns, [_difference(each, struck) for each in differences]
    weighted = [each for each in evaluation.estimates if each.is_index]
    if weighted:
        columns = ["policy", "estimator", "weighted V_CU", "low", "high", "sequence ESS", "verdict"]
        yield "Weighted means that are not values", columns, [_weighted(each, struck) for each in weighted]
    if evaluation.indices:
        columns = ["policy", "weights", "gain", "low", "high", "seq. ESS", "placebo p", "rank corr.", "verdict"]
        title = f"Direction within the log, from {evaluation.baseline} (an index, not a value)"
        yield title, columns, [_index(each, struck) for each in evaluation.indices]
    for raters in evaluation.raters:
        columns = ["raters", "V", "low", "high", "gain", "low", "high", "people", "prompts", "verdict"]
        rows = [_to_raters(each, struck) for each in (raters.everyone, *raters.groups)]
        yield f"{raters.policy}: values to raters, intervals by prompt and person", columns, rows


def lines(evaluation: Evaluation) -> Iterator[str]:
    """The lines under the tables: policies about which nothing is known, the unit, diversities, what was chosen from
    the data, and the reasons of verdicts.
    """
    for nothing in evaluation.undecided:
        yield str(nothing)
    yield f"one unit of V_CU is {evaluation.log.scale.unit}"
    for raters in evaluation.raters:
        yield _worst(raters)
    for policy, fresh in evaluation.log.fresh.items():
        entropy = -float((fresh.target / fresh.tokens if fresh.tokens is not None else fresh.target).mean())
        unit = "nats per token" if fresh.tokens is not None else "nats"
        yield f"{policy}: diversity {entropy:.3g} {unit}, of {fresh.target.size} fresh responses"
    labelled: dict[tuple[str, ...], list[str]] = {}
    for each in evaluation.estimates:
        names = labelled.setdefault(each.labels, [])
        if each.estimator not in names:
            names.append(each.estimator)
    for labels, names in labelled.items():
        yield f"{', '.join(names)}: {', '.join(labels) or 'unnormalised'}"
    for each in evaluation.estimates:
        if each.chosen:
            facts = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in each.chosen.items())
            yield f"{each.policy}, {each.estimator}: {facts}"
    by_reason: dict[str, list[str]] = {}
    for each in evaluation.estimates:
        for reason in each.reasons:
            by_reason.setdefault(reason, []).append(f"{each.policy} {each.estimator}")
    for comparison in evaluation.comparisons:
        for finding in comparison.findings:
            if finding.rule in ("support_bias", "placebo"):
                pair = f"{comparison.policy} - {comparison.baseline}"
                by_reason.setdefault(finding.reason, []).append(pair)
    for reason, where in by_reason.items():
        yield f"- {reason} ({', '.join(where)})"


def _value(each: Estimate, with_v: bool, struck: bool) -> list[str]:
    numbers = [f"{q:.4g}" for q in (each.utility.value, each.utility.low, each.utility.high)]
    if with_v:
        numbers = [f"{each.value:.4g}", *numbers]
    ess = "" if each.diagnostics is None else f"{each.diagnostics.ess:.0f}"
    return [each.policy, each.estimator, *_struck(numbers, each.verdict, struck), ess, each.verdict]


def _weighted(each: Estimate, struck: bool) -> list[str]:
    numbers = [f"{q:.4g}" for q in (each.utility.value, each.utility.low, each.utility.high)]
    ess = "" if each.diagnostics is None else f"{each.diagnostics.sequence_ess:.3g}"
    return [each.policy, each.estimator, *_struck(numbers, each.verdict, struck), ess, each.verdict]


def _difference(each: Comparison, struck: bool) -> list[str]:
    numbers = [f"{q:+.3g}" for q in (each.utility.value, each.utility.low, each.utility.high)]
    numbers.append(f"{each.probability:.3f}")
    p_value = "" if each.placebo is None else f"{each.placebo.p_value:.3f}"
    return [each.policy, each.estimator, *_struck(numbers, each.verdict, struck), p_value, each.verdict]


def _index(each: DirectionIndex, struck: bool) -> list[str]:
    numbers = [f"{q:+.3g}" for q in (each.gain.value, each.gain.low, each.gain.high)]
    p_value = "" if each.placebo is None else f"{each.placebo.p_value:.3f}"
    ranks = "" if each.rank_correlation is None else f"{each.rank_correlation.value:+.2f}"
    cells = _struck(numbers, each.verdict, struck)
    return [each.policy, each.weights, *cells, f"{each.sequence_ess:.3g}", p_value, ranks, each.verdict]


def _to_raters(each: GroupValue, struck: bool) -> list[str]:
    numbers = [f"{q:.4g}" for q in (each.value.value, each.value.low, each.value.high)]
    gain = each.gain
    numbers += ["", "", ""] if gain is None else [f"{q:+.3g}" for q in (gain.value, gain.low, gain.high)]
    people = "" if each.annotators is None else f"{each.annotators}"
    return [each.group, *_struck(numbers, each.verdict, struck), people, f"{each.prompts}", each.verdict]


def _worst(raters: RaterGroups) -> str:
    """The group served worst and the gap, in one line."""
    small = f"; too few ratings of {', '.join(raters.too_small)}" if raters.too_small else ""
    if raters.worst is None and not raters.groups:
        return f"{raters.policy}: {'no group has enough ratings' if small else 'the ratings name no groups'}{small}"
    if raters.worst is None:
        return (
            f"{raters.policy}: no group of raters can be estimated by weights of whole responses{small}; with fresh "
            "answers: pope label --with group --raters NAME, then pope evaluate --samples on that log"
        )
    gap = "" if raters.gap is None else f"; gap between groups {raters.gap}"
    return f"{raters.policy}: serves {raters.worst} worst, {raters.worst_value}{gap}{small}; one unit is {raters.unit}"


def _struck(cells: list[str], verdict: str, struck: bool) -> list[str]:
    if not struck or verdict != "refuse":
        return cells
    return ["".join(letter + "\u0336" for letter in cell) for cell in cells]
