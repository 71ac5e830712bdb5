"""What is asked of an evaluation, checked before anything is scored or embedded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from pope_core.objective import Objective

from ..stats.intervals import Confidence
from .crossfit import FOLDS
from .estimators import METHODS, check_slope
from .log import LoggedSlates
from .long_responses import NAME as MODEL_FIRST
from .predictions import Predictions
from .reward_model import queries
from .weights import Shrink

#: The default estimators.
DEFAULT_ESTIMATORS = ("pope",)

#: Added by default for weights of whole responses, which are unbiased without normalisation.
WITH_TOTALS = ("ips",)

#: Added by default for policies with fresh samples or predictions.
WITH_PREDICTIONS = ("dm", "dr", "sndr")


def wanted(estimators: Iterable[str] | None, objective: Objective) -> list[str]:
    """The estimators of every policy: those that were asked for, else the defaults."""
    return list(estimators or DEFAULT_ESTIMATORS + (() if objective.length_normalize else WITH_TOTALS))


def check_names(
    names: Sequence[str], samples: Collection[str], predictions: Collection[str], baseline: str | None
) -> None:
    """Raises: ValueError: no policies, or names that are not among them."""
    if not names:
        raise ValueError("policies: expected at least one policy, got none")
    if baseline is not None and baseline not in names:
        raise ValueError(f"baseline: expected one of {', '.join(names)}, got {baseline!r}")
    for what, of in (("samples", samples), ("predictions", predictions)):
        if unknown := sorted(set(of) - set(names)):
            raise ValueError(f"{what}: expected names among {', '.join(names)}, got {', '.join(unknown)}")


def check_estimators(
    estimators: Sequence[str],
    lam: float | None,
    policies: Sequence[str],
    samples: Collection[str],
    predictions: Collection[str] = (),
) -> None:
    """Refuse unknown estimators, those whose samples or predictions are missing, and a ``lam`` that is not used.

    Args:
        estimators: of `wanted`.
        samples, predictions: policies that have any.

    Raises:
        ValueError: by name.
    """
    for name in estimators:
        if name != "pope" and name not in METHODS and name != MODEL_FIRST:
            known = ", ".join([*METHODS, MODEL_FIRST])
            raise ValueError(f"estimators: expected pope or one of {known}, got {name!r}")
        lacking = [policy for policy in policies if policy not in samples and policy not in predictions]
        if name in METHODS and METHODS[name].predictions and lacking:
            raise ValueError(
                f"estimators: {name!r} needs samples or predictions of every policy, got none for {', '.join(lacking)}"
            )
        without = [policy for policy in policies if policy not in samples]
        if name == MODEL_FIRST and (len(without) > 1 or not samples):
            raise ValueError(
                f"estimators: {name!r} needs samples of every policy but the logging policy, got none for "
                f"{', '.join(without)}"
            )
    if lam is None:
        return
    kinds = [METHODS[name].shrink for name in estimators if name in METHODS]
    for kind in kinds:
        if kind is not None:
            Shrink(kind, lam)
    if not any(kinds):
        having = ", ".join(name for name, spec in METHODS.items() if spec.shrink)
        raise ValueError(
            f"lam: expected None, because none of {', '.join(estimators)} has a shrinkage parameter ({having} have "
            f"one), got {lam:g}"
        )


def check_by_raters(estimators: Sequence[str] | None, objective: Objective, confidence: Confidence) -> None:
    """Refuse what values to groups of raters would ignore: they are utilities by self-normalised weights of whole
    responses, with t intervals by query and annotator.

    Args:
        estimators: those that were asked for; None: the defaults.

    Raises:
        ValueError: by name, with what to do instead.
    """
    if estimators and not {"pope", "snips"} & set(estimators):
        raise ValueError(
            "estimators: expected pope or snips among them with by_raters, whose values are by weights of whole "
            f"responses, got {', '.join(estimators)}; for other estimators make the log of one group (`pope label "
            "--with group --raters NAME`) and evaluate that"
        )
    different = {name: value for name, value in objective.to_dict().items() if value != _EVALUATED[name]}
    if different:
        got = ", ".join(f"{name} {value}" for name, value in different.items())
        raise ValueError(
            f"objective: expected that of evaluation with by_raters, whose values are utilities by weights of whole "
            f"responses, got {got}"
        )
    if confidence.method != "t":
        raise ValueError(
            f"confidence: expected t intervals with by_raters, which are by query and annotator, got "
            f"{confidence.method}"
        )


_EVALUATED = Objective.evaluation().to_dict()


def check_log(
    log: LoggedSlates,
    estimators: Sequence[str],
    lam: float | None,
    predictions: Mapping[str, Predictions],
    objective: Objective,
    *,
    cross_fits: bool,
) -> None:
    """Refuse a log that is too small for what is asked of it, and predictions that are not of this log.

    Args:
        log: with or without the policies that are yet to be scored.
        cross_fits: whether a reward model will be fitted.

    Raises:
        ValueError: by name.
    """
    for each in predictions.values():
        each.check(log)
    if lam is None and any(name in METHODS and METHODS[name].shrink for name in estimators):
        check_slope(log)
    if objective.length_normalize:
        for name in log.policies:
            log.logprobs(name, length_normalize=True)
    if cross_fits and log.slates is not None:
        count = int(queries(log.slates, log.clusters).max()) + 1
        if count < FOLDS:
            raise ValueError(
                f"samples: a reward model is cross-fitted in {FOLDS} folds and needs as many independent queries, this "
                f"log has {count}"
            )


def reads_samples(estimators: Iterable[str] | None) -> bool:
    """Whether these estimators learn from the text of samples; without any, samples only show the support."""
    return not estimators or any(
        name == MODEL_FIRST or METHODS[name].predictions for name in estimators if name != "pope"
    )
