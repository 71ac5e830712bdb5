"""A value of an option that something does not implement yet is refused there, and never taken for another value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from objectives import asked
from pope_align.ope import LoggedSlates, diagnose, pope_value

import pope_core
from pope_core import Objective, backends, objective
from pope_core.objective import CHOICES, Normalization, Weighting
from pope_core.testing import TARGETS, Target, make_slates
from pope_kernels import values
from pope_kernels.values import ObjectiveOptions

TABLES = {
    "weighting": values.WEIGHTINGS,
    "normalization": values.NORMALIZATIONS,
    "utility_form": values.UTILITY_FORMS,
    "diversity_form": values.DIVERSITY_FORMS,
}
every_name = pytest.mark.parametrize("name", CHOICES)
every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


@pytest.fixture
def third(name: str, monkeypatch: pytest.MonkeyPatch) -> Objective:
    """The objective with a value that is among the names only."""
    monkeypatch.setitem(objective.CHOICES, name, (*CHOICES[name], "third"))
    return Objective(clip=2.0, **{name: "third"})  # type: ignore[arg-type]


def test_every_value_has_a_code() -> None:
    assert {name: set(codes) for name, codes in TABLES.items()} == {name: set(names) for name, names in CHOICES.items()}


def losses(target: Target, wanted: Objective) -> None:
    p = make_slates().to(target.device)
    given = {"objective": wanted, "backend": target.backend}
    pope_core.slate_objective(p.logging_logprobs, *p.log_data, tokens=p.tokens, **given)


def linear_losses(target: Target, wanted: Objective) -> None:
    p = make_slates().to(target.device)
    given = {"response_offsets": p.response_offsets, "objective": wanted, "backend": target.backend}
    pope_core.linear_pope_loss(p.hidden.requires_grad_(), p.lm_head_weight, p.labels, *p.log_data, **given)


@every_name
@every_target
@pytest.mark.parametrize("function", [losses, linear_losses])
def test_a_name_alone_is_refused_by_every_backend(target: Target, name: str, third: Objective, function) -> None:
    with pytest.raises(NotImplementedError, match=f"^{name}: 'third' .* CONTRIBUTING.md lists what a new value needs"):
        function(target, third)


@every_name
@pytest.mark.parametrize("target", [t for t in TARGETS if t.backend != "reference"], ids=str)
def test_a_code_without_a_formula_is_refused_by_every_backend(
    target: Target, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TABLES[name], "third", len(TABLES[name]))
    p = make_slates(dtype=torch.float64).to(target.device)
    plain = {"weighting": "response", "normalization": "none", "utility_form": "feedback", "diversity_form": "entropy"}
    options = ObjectiveOptions(diversity_weight=0.3, clip=None, num_slates=3, **{**plain, name: "third"})
    backend = backends.kernels(target.backend)
    with pytest.raises(Exception, match=rf"{name}(: code \d)? .*formula"):
        backend.slate_objective(p.logging_logprobs, *p.log_data, options, torch.float64)


@every_name
def test_a_name_alone_is_refused_by_the_estimator_on_vectors(name: str, third: Objective) -> None:
    log = LoggedSlates.from_arrays(
        np.ones(4), np.zeros(4), {"new": np.zeros(4)}, np.array([0, 2, 4]), tokens=np.ones(4, int)
    )
    with pytest.raises(NotImplementedError, match=f"^{name}: 'third'"):
        pope_value(log, "new", objective=third)


def test_what_decides_by_a_weighting_refuses_others() -> None:
    log = LoggedSlates.from_arrays(np.ones(4), np.zeros(4), {"new": np.zeros(4)})
    with pytest.raises(NotImplementedError, match=r"^weighting: 'third'"):
        diagnose(log, "new", weighting="third", length_normalize=False)  # type: ignore[arg-type]
    diagnose(log, "new", weighting="geometric", length_normalize=False)


@pytest.mark.parametrize("normalization", CHOICES["normalization"])
@pytest.mark.parametrize("weighting", CHOICES["weighting"])
def test_properties_say_what_options_do(weighting: Weighting, normalization: Normalization) -> None:
    """Scaling all weights changes an unnormalised value only; splitting a call into slates changes a coupled one."""
    wanted = asked(weighting=weighting, normalization=normalization)["objective"]
    p = make_slates((2, 2, 2), dtype=torch.float64)

    def value(shift: float, slates: slice = slice(None)) -> float:
        offsets = p.slate_offsets[slates]
        rows = slice(int(offsets[0]), int(offsets[-1]))
        logprobs = (p.logging_logprobs + torch.linspace(-1, 1, p.utility.numel()) + shift)[rows]
        output = pope_core.reference.slate_objective(
            logprobs, p.logging_logprobs[rows], p.utility[rows], offsets - offsets[0], objective=wanted
        )
        return float(output.value)

    assert (value(0.1) == pytest.approx(value(0.0))) == wanted.self_normalized
    alone = np.mean([value(0.0, slice(q, q + 2)) for q in range(3)])
    assert (value(0.0) != pytest.approx(alone)) == wanted.couples_slates
    assert wanted.normalized_within_slates == (wanted.self_normalized and not wanted.couples_slates)
