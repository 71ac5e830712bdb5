"""Every row of `METHODS` gives the value of its formula, written in plain NumPy over ragged slates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, get_type_hints

import numpy as np
import pytest
from objectives import asked
from pope_align.cli.evaluate import evaluate
from pope_align.ope import METHODS, LoggedSlates, Predictions, estimate


class Slate(NamedTuple):
    """One slate: weights, utilities and predictions of its responses, and the prediction for the policy."""

    w: np.ndarray
    u: np.ndarray
    q: np.ndarray
    target: float


RNG = np.random.default_rng(5)
SIZES = (1, 3, 2, 4, 1, 2)
SLATES = [Slate(np.exp(RNG.normal(size=k)), RNG.random(k), RNG.random(k), float(RNG.random())) for k in SIZES]
LAM = 0.8


def clip(w: np.ndarray) -> np.ndarray:
    return np.minimum(w, LAM)


def subgaussian(w: np.ndarray) -> np.ndarray:
    return w / (1 - LAM + LAM * w)


def slate_mean(of: Callable[[Slate], float]) -> float:
    return sum(of(s) for s in SLATES) / len(SLATES)


#: The value of every method; methods that shrink have lam = 0.8.
FORMULAS: dict[str, Callable[[], float]] = {
    "ips": lambda: slate_mean(lambda s: (s.w * s.u).mean()),
    "clipped_ips": lambda: slate_mean(lambda s: (clip(s.w) * s.u).mean()),
    "subgaussian_ips": lambda: slate_mean(lambda s: (subgaussian(s.w) * s.u).mean()),
    "snips": lambda: slate_mean(lambda s: (s.w * s.u).mean()) / slate_mean(lambda s: s.w.mean()),
    "dm": lambda: slate_mean(lambda s: s.target),
    "dr": lambda: slate_mean(lambda s: s.target + (s.w * (s.u - s.q)).mean()),
    "sndr": lambda: (
        slate_mean(lambda s: s.target)
        + slate_mean(lambda s: (s.w * (s.u - s.q)).mean()) / slate_mean(lambda s: s.w.mean())
    ),
    "clipped_dr": lambda: slate_mean(lambda s: s.target + (clip(s.w) * (s.u - s.q)).mean()),
    "switch_dr": lambda: slate_mean(lambda s: s.target + (s.w * (s.w <= LAM) * (s.u - s.q)).mean()),
    "dros": lambda: slate_mean(lambda s: s.target + (LAM * s.w / (s.w**2 + LAM) * (s.u - s.q)).mean()),
    "subgaussian_dr": lambda: slate_mean(lambda s: s.target + (subgaussian(s.w) * (s.u - s.q)).mean()),
    "slate_ips": lambda: slate_mean(lambda s: s.w.prod() * s.u.mean()),
    "slate_snips": lambda: slate_mean(lambda s: s.w.prod() * s.u.mean()) / slate_mean(lambda s: s.w.prod()),
    "pseudo_inverse": lambda: slate_mean(lambda s: (1 - s.w.size + s.w.sum()) * s.u.mean()),
}


def test_every_method_has_a_formula() -> None:
    assert set(FORMULAS) == set(METHODS), "one row in FORMULAS of tests/test_ope_formulas.py per row of METHODS"


@pytest.mark.parametrize("method", FORMULAS)
def test_a_method_has_the_value_of_its_formula(method: str) -> None:
    weights, utility, predicted = (np.concatenate([getattr(s, name) for s in SLATES]) for name in ("w", "u", "q"))
    offsets = np.append(0, np.cumsum(SIZES))
    log = LoggedSlates.from_arrays(utility, np.full(utility.size, -9.0), {"new": np.log(weights) - 9}, offsets)
    spec = METHODS[method]
    value = estimate(
        log,
        "new",
        method,
        lam=LAM if spec.shrink else None,
        predictions=Predictions(predicted, np.array([s.target for s in SLATES])) if spec.predictions else None,
        **asked(),
    ).value
    assert value == pytest.approx(FORMULAS[method](), rel=1e-12)


def test_every_estimator_is_in_the_table_and_in_the_help() -> None:
    page = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = page.partition("## Estimators\n")[2].partition("\n\n## ")[0]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    names = {name for row in rows for name in row.strip("| `").split("`, `")}
    assert names == {"pope", "model_first", *METHODS}, "a row in the table of docs/evaluation.md"
    told = get_type_hints(evaluate, include_extras=True)["estimator"].__metadata__[0].help
    assert set(told.partition(";")[0].replace(" or ", ", ").split(", ")) == names, "the help of --estimator"
