"""The policies behind a log: who wrote it, where its propensities come from, and several policies as one mixture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from ..data.schema import Slate
from ._checks import vector

#: How the log-probabilities of the logging policy were obtained, best first; "unknown" when the log does not say.
LoggingOrigin = Literal["recorded", "behaviour_cloned", "proxy", "unknown"]

#: Who wrote the responses.
WrittenBy = Literal["model", "people", "unknown"]


@dataclass(frozen=True)
class LoggingSource:
    """One logging policy of a log, and the number of slates attributed to it."""

    provenance: Mapping[str, Any]
    slates: int

    @property
    def how(self) -> LoggingOrigin:
        how = self.provenance.get("how", "unknown")
        return how if how in get_args(LoggingOrigin) else "unknown"


def logging_sources(slates: Sequence[Slate]) -> list[LoggingSource]:
    """The logging policies named in the slates, the most frequent first; folds of one fit count as one policy."""
    found: Counter[str] = Counter()
    for slate in slates:
        provenance = {key: value for key, value in (slate.logging_policy or {}).items() if key != "fit"}
        if provenance.get("how") == "behaviour_cloned":  # cross-fitted: one model per fold
            provenance.pop("model_fingerprint", None)
            provenance.pop("model", None)
        found[json.dumps(provenance, sort_keys=True, default=str)] += 1
    return [LoggingSource(json.loads(key), count) for key, count in found.most_common()]


def written_by(slates: Sequence[Slate]) -> WrittenBy:
    """ "people" if the original format says so, or if every named responder is a person.

    A person is named "human", or "human:" and a name.
    """
    if all((slate.origin or {}).get("written_by") == "people" for slate in slates):
        return "people"
    named = {name.partition(":")[0] for slate in slates for name in slate.responders or []}
    if not named:
        return "unknown"
    return "people" if named <= {"human", "person", "people", "user"} else "model"


def fit_of(slate: Slate) -> Mapping[str, Any]:
    """What the fit of a fitted logging policy left in the slate."""
    return (slate.logging_policy or {}).get("fit") or {}


def balanced_logprobs(logprobs: Mapping[str, npt.ArrayLike], shares: Mapping[str, float]) -> Floats:
    """``[R]`` log-propensities of a log that several policies wrote, each response scored under all of them.

    ``log sum_j share_j p_j(y)``: the log is a sample of this mixture. Weights with these propensities have at most the
    variance of weights with each response's own propensity.

    Args:
        logprobs: for each logging policy, ``[R]`` totals of all responses, -inf if it cannot write a response.
        shares: for each, the share of the responses that it wrote; they sum to 1.

    Raises:
        ValueError: different names in the two arguments, or shares that are not positive or do not sum to 1.

    Source: Veach and Guibas (1995), the balance heuristic; Agarwal et al. (2017).
    """
    if set(logprobs) != set(shares) or not logprobs:
        raise ValueError(f"shares: expected one for each of {', '.join(logprobs)}, got {', '.join(shares)}")
    parts = np.array([shares[name] for name in logprobs])
    if not ((parts > 0).all() and abs(parts.sum() - 1) < 1e-9):
        raise ValueError(f"shares: expected positive numbers that sum to 1, got {dict(shares)}")
    totals = np.stack([vector(f"logprobs[{name!r}]", given) for name, given in logprobs.items()])
    return np.asarray(np.logaddexp.reduce(totals + np.log(parts)[:, None], axis=0))


def rescoring_gap(recorded: npt.ArrayLike, rescored: npt.ArrayLike, tokens: npt.ArrayLike) -> float:
    """Mean ``|recorded - rescored|`` per token, nats; large after a wrongly recorded temperature or template.

    The weights of the logging policy itself have mean 1 whatever was recorded, so weights do not reveal this; rescoring
    a few responses under the logging policy does.

    Args:
        recorded, rescored: totals of the same responses.
        tokens: of each.
    """
    gap = np.abs(np.asarray(recorded, dtype=np.float64) - np.asarray(rescored, dtype=np.float64))
    return float(gap.sum() / np.asarray(tokens).sum())
