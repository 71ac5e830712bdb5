"""All estimators on replicates of the log, compared with fresh responses that they did not use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import Floats, Integers
from ..ope import FreshScores, LoggedSlates
from ..ope.features import Features
from ..ope.log_support import support
from ..ope.rules import VERDICTS, Verdict
from ..stats.intervals import Confidence, quantities
from .ope_lm_policies import LOGGING
from .ope_lm_pool import REWARDS, PromptPool, Responses
from .ope_long_estimators import estimate_all, learn, shipped

#: Responses per slate, and fresh responses for the estimators.
SIZE, FRESH = 4, 4


@dataclass(frozen=True)
class ReplicateEstimate:
    """One estimate of ``V(target) - V(log)`` on one replicate."""

    reward: str
    length: int
    target: str
    replicate: int
    estimator: str
    estimate: float
    standard_error: float
    low: float
    high: float
    heldout: float  # difference in fresh responses that the estimator did not use
    heldout_error: float
    verdict: Verdict | None = None  # of what `pope evaluate` shows


@dataclass(frozen=True)
class Check:
    """The diagnostics of one target on one replicate."""

    reward: str
    length: int
    target: str
    replicate: int
    support_share: float
    sequence_ess_share: float
    features: str
    r2: float
    calibration: float
    residual_z: float
    classifier_gain: float
    kernel_bandwidth: float
    kernel_bias_bound: float
    placebo_p: float
    disagreement_z: float  # of the direct method and the doubly robust one, in paired standard errors


@dataclass(frozen=True, eq=False)
class _Replicate:
    chosen: Integers  # [P, SIZE] of the pool's responses, in the log
    others: Integers  # [P, M - SIZE]
    thumbs: dict[str, Floats]  # [P, SIZE]


def replicate(pool: PromptPool, number: int) -> _Replicate:
    """Slates without overlap until the pool is used up, then reshuffled; thumbs are always new."""
    prompts, count = pool.logged.tokens.shape
    deal, part = divmod(number, count // SIZE)
    order = np.random.default_rng(1000 + deal).random((prompts, count)).argsort(1)
    chosen = order[:, part * SIZE : (part + 1) * SIZE]
    others = np.delete(order, np.s_[part * SIZE : (part + 1) * SIZE], axis=1)
    random = np.random.default_rng(number)
    thumbs = {
        name: (random.random(chosen.shape) < np.take_along_axis(pool.logged.reward[name], chosen, 1)).astype(np.float64)
        for name in REWARDS
    }
    return _Replicate(chosen, others, thumbs)


def run(pool: PromptPool, replicates: int) -> Iterator[tuple[list[ReplicateEstimate], Check]]:
    """Every reward, target and replicate at one length."""
    for number in range(replicates):
        drawn = replicate(pool, number)
        for reward in REWARDS:
            for at, (name, target) in enumerate(pool.targets.items()):
                split = np.random.default_rng((number, at)).random(target.tokens.shape).argsort(1)
                yield _one(pool, drawn, reward, name, target, split, number)


def _one(
    pool: PromptPool, drawn: _Replicate, reward: str, name: str, target: Responses, split: Integers, number: int
) -> tuple[list[ReplicateEstimate], Check]:
    mine, rest = split[:, :FRESH], split[:, FRESH:]
    log = _log(pool.logged, drawn, reward, name, target, mine)
    owner = np.repeat(np.arange(pool.num_prompts), FRESH)

    def features(seen: str) -> Features:
        logged, fresh = _take(pool.logged.seen[seen], drawn.chosen), _take(target.seen[seen], mine)
        return Features(seen, logged, fresh, owner)

    unit = Features("unit", _take(pool.logged.unit, drawn.chosen), _take(target.unit, mine), owner)
    theirs = (_take(pool.logged.unit, drawn.others[:, :FRESH]), owner)
    learned = learn(log, [features(seen) for seen in pool.logged.seen], unit, theirs)
    all_of_them = estimate_all(log, name, learned)
    truth, error = _heldout(pool.logged, drawn, target, rest, reward)
    rows = []
    for estimator, ratios in all_of_them.values.items():
        q = quantities(ratios.minus(all_of_them.base), Confidence())[0]
        place = (reward, pool.length, name, number, estimator)
        rows.append(ReplicateEstimate(*place, q.value, q.standard_error, q.low, q.high, truth, error))
    for estimator, shown in shipped(log, name, LOGGING.name, learned).items():
        q, place = shown.utility, (reward, pool.length, name, number, f"pope evaluate: {estimator}")
        row = ReplicateEstimate(*place, q.value, q.standard_error, q.low, q.high, truth, error, shown.verdict)
        rows.append(row)
    fresh = log.fresh[name]
    assert fresh.logging is not None
    share = support(log, name, fresh.target - fresh.logging, owner).share
    return rows, Check(reward, pool.length, name, number, share, **all_of_them.checks)


def _log(
    logged: Responses, drawn: _Replicate, reward: str, name: str, target: Responses, mine: Integers
) -> LoggedSlates:
    """The replicate, with the target, the logging policy, and fresh responses of both."""
    prompts = len(drawn.chosen)
    owner = np.repeat(np.arange(prompts), FRESH)

    def fresh(policy: str, responses: Responses, chosen: Integers) -> FreshScores:
        under, tokens = responses.logprobs, _take(responses.tokens, chosen)
        return FreshScores(owner, _take(under[policy], chosen), _take(under[LOGGING.name], chosen), tokens)

    return LoggedSlates.from_arrays(
        drawn.thumbs[reward].ravel(),
        _take(logged.logprobs[LOGGING.name], drawn.chosen),
        {each: _take(logged.logprobs[each], drawn.chosen) for each in (name, LOGGING.name)},
        np.arange(0, prompts * SIZE + 1, SIZE),
        tokens=_take(logged.tokens, drawn.chosen),
        how="recorded",
        fresh={
            name: fresh(name, target, mine),
            LOGGING.name: fresh(LOGGING.name, logged, drawn.others[:, :FRESH]),
        },
    )


def _take(values: npt.NDArray[Any], chosen: Integers) -> npt.NDArray[Any]:
    """``[P, M, ...], [P, k] -> [P k, ...]``."""
    picked = values[np.arange(len(values))[:, None], chosen]
    return np.asarray(picked.reshape(-1, *values.shape[2:]))


def _heldout(
    logged: Responses, drawn: _Replicate, target: Responses, rest: Integers, reward: str
) -> tuple[float, float]:
    """The true difference in responses that no estimator used, and its standard error, paired by prompt."""
    prompts = len(rest)
    new = _take(target.reward[reward], rest).reshape(prompts, -1)
    old = _take(logged.reward[reward], drawn.others).reshape(prompts, -1)
    variance = new.var(1, ddof=1) / new.shape[1] + old.var(1, ddof=1) / old.shape[1]
    return float((new.mean(1) - old.mean(1)).mean()), float(np.sqrt(variance.sum()) / prompts)


def true_differences(pool: PromptPool, reward: str) -> dict[str, tuple[float, float]]:
    """``V(target) - V(log)`` over all that was sampled, and its standard error given these prompts."""
    result = {}
    old = pool.logged.reward[reward]
    for name, target in pool.targets.items():
        new = target.reward[reward]
        variance = new.var(1, ddof=1) / new.shape[1] + old.var(1, ddof=1) / old.shape[1]
        difference = float((new.mean(1) - old.mean(1)).mean())
        result[name] = difference, float(np.sqrt(variance.sum()) / len(old))
    return result


def summarize(rows: Sequence[ReplicateEstimate], truths: dict[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """By estimator, over targets and replicates of one reward and length."""
    return {
        estimator: _summary([row for row in rows if row.estimator == estimator], truths)
        for estimator in dict.fromkeys(row.estimator for row in rows)
    }


def _summary(rows: Sequence[ReplicateEstimate], truths: dict[str, tuple[float, float]]) -> dict[str, float]:
    errors = np.array([row.estimate - row.heldout for row in rows])
    half = np.array([(row.high - row.low) / 2 for row in rows])
    # The truth is a mean of samples, so an interval may miss it by its error.
    allowed = np.sqrt(np.square(half) + np.square(1.96 * np.array([row.heldout_error for row in rows])))
    true = np.array([truths[row.target][0] for row in rows])
    estimates = np.array([row.estimate for row in rows])
    sure = np.array([abs(truths[row.target][0]) > 2 * truths[row.target][1] for row in rows])
    inside = np.abs(errors) <= allowed
    shown = np.array([str(row.verdict) for row in rows])
    orders = [
        _order([row for row in rows if row.replicate == number], truths) for number in {r.replicate for r in rows}
    ]
    return {
        "rmse": float(np.sqrt(np.square(errors).mean())),
        "bias": float(errors.mean()),
        "recovered": float(true @ estimates / (true @ true)),
        "covered": float(inside.mean()),
        "half_width": float(np.median(half)),
        "right_signs": float((np.sign(estimates) == np.sign(true))[sure].mean()) if sure.any() else float("nan"),
        "tau": float(np.mean([tau for tau, _ in orders])),
        "regret": float(np.mean([regret for _, regret in orders])),
        "estimates": len(rows),
        **{verdict: float((shown == verdict).mean()) for verdict in VERDICTS if rows[0].verdict},
        **{f"{verdict}, covered": float(inside[shown == verdict].mean()) for verdict in VERDICTS if verdict in shown},
    }


def _order(rows: Sequence[ReplicateEstimate], truths: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Kendall's tau of the targets and the log, and the regret of choosing the best estimate."""
    estimates = np.array([0.0, *(row.estimate for row in rows)])
    true = np.array([0.0, *(truths[row.target][0] for row in rows)])
    i, j = np.triu_indices(len(true), 1)
    tau = float((np.sign(estimates[i] - estimates[j]) * np.sign(true[i] - true[j])).mean())
    return tau, float(true.max() - true[int(estimates.argmax())])


def check_table(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Medians over replicates, by target."""
    table = []
    for target in dict.fromkeys(check.target for check in checks):
        mine = [asdict(check) for check in checks if check.target == target]
        chosen = [each["features"] for each in mine]
        row: dict[str, Any] = {"target": target, "features": max(set(chosen), key=chosen.count)}
        numbers = [name for name, value in mine[0].items() if isinstance(value, float)]
        table.append(row | {name: float(np.median([each[name] for each in mine])) for name in numbers})
    return table
