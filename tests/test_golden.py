"""Every option on every backend gives the stored float64 values: from log-probabilities, logits and hidden states."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from plain import plain

import pope_core
from pope_core.objective import CHOICES
from pope_core.testing import TARGETS, Target


class Case(NamedTuple):
    """Inputs and stored results of one combination of options on one group; tensors are float64 or int64."""

    inputs: dict[str, Any]
    expected: torch.Tensor  # value, utility_value, diversity_value, value
    grad_response_logprobs: torch.Tensor  # [R] dV/dl, of totals

    def on(self, device: str) -> Case:
        moved = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in self.inputs.items()}
        return Case(moved, self.expected.to(device), self.grad_response_logprobs.to(device))

    def data(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``logging_logprobs``, ``utility`` and ``slate_offsets``."""
        group = self.inputs
        return group["logging_logprobs"].to(dtype), group["utility"].to(dtype), group["slate_offsets"]

    @property
    def objective(self) -> dict[str, Any]:
        return {name: self.inputs[name] for name in ("diversity_weight", "length_normalize")}

    def grad_logits(self) -> torch.Tensor:
        """The stored gradient carried on to the logits: ``dV/dl * (onehot - softmax)``."""
        logits, lengths = self.inputs["logits"], self.inputs["response_offsets"].diff()
        onehot = torch.nn.functional.one_hot(self.inputs["labels"], logits.shape[1])
        return self.grad_response_logprobs.repeat_interleave(lengths).unsqueeze(1) * (onehot - logits.softmax(-1))


def tensors(values: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers as int64 or float64 tensors; everything else as it is."""
    return {
        name: torch.tensor(np.array(value)) if isinstance(value, list) and name != "cases" else value
        for name, value in values.items()
    }


OPTIONS = ("weighting", "normalization", "clip", "utility_form", "diversity_form")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
GROUPS = [
    tensors(group) for group in json.loads((Path(__file__).parent / "golden" / "objective.json").read_text())["groups"]
]
CASES: dict[tuple[Any, ...], list[Case]] = defaultdict(list)
for group in GROUPS:
    for stored in map(tensors, group["cases"]):
        scalars = [stored[name] for name in ("value", "utility_value", "diversity_value", "value")]
        CASES[tuple(stored[name] for name in OPTIONS)].append(
            Case(group, torch.tensor(scalars, dtype=torch.float64), stored["grad_response_logprobs"])
        )

every_option = pytest.mark.parametrize("combination", CASES, ids=lambda c: "-".join(map(str, c)))
# An interpreter is slow: float64 has to do there.
every_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"),
    [(t, dtype) for t in TARGETS for dtype in TOLERANCE if str(t) != "triton-interpreted" or dtype == torch.float64],
    ids=str,
)


def cases_of(combination: tuple[Any, ...], target: Target) -> list[Case]:
    """On the target's device; an interpreter is slow, and one group has to do."""
    count = 1 if str(target) == "triton-interpreted" else len(GROUPS)
    return [case.on(target.device) for case in CASES[combination][:count]]


def assert_golden(
    output: pope_core.PopeLossOutput, gradient: torch.Tensor, grad_value: torch.Tensor, case: Case
) -> None:
    dtype = output.value.dtype
    near = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    actual = torch.stack([output.value, output.utility_value, output.diversity_value, -output.loss.detach()])
    torch.testing.assert_close(actual, case.expected.to(dtype), **near)
    torch.testing.assert_close(-gradient, grad_value.to(dtype), **near)


def test_the_cases_cover_every_combination_of_options() -> None:
    wanted = set(itertools.product(*(CHOICES.get(name, (None, 1.2)) for name in OPTIONS)))
    assert len(wanted) >= 72
    assert set(CASES) == wanted, "tests/golden/objective.json is old: python scripts/make_golden.py"
    assert all(len(cases) == len(GROUPS) for cases in CASES.values())


@every_target_and_dtype
@every_option
def test_objective_from_response_logprobs(combination: tuple[Any, ...], target: Target, dtype: torch.dtype) -> None:
    options = dict(zip(OPTIONS, combination))
    for case in cases_of(combination, target):
        group = case.inputs
        logprobs = group["response_logprobs"].to(dtype, copy=True).requires_grad_()
        output = pope_core.slate_objective(
            logprobs,
            *case.data(dtype),
            tokens=group["response_offsets"].diff(),
            backend=target.backend,
            **plain(**case.objective, **options),
        )
        output.loss.backward()
        assert_golden(output, logprobs.grad, case.grad_response_logprobs, case)


@every_target_and_dtype
@every_option
def test_loss_from_logits(combination: tuple[Any, ...], target: Target, dtype: torch.dtype) -> None:
    options = dict(zip(OPTIONS, combination))
    for case in cases_of(combination, target):
        group = case.inputs
        logits = group["logits"].to(dtype, copy=True).requires_grad_()
        output = pope_core.pope_loss(
            logits,
            group["labels"],
            *case.data(dtype),
            response_offsets=group["response_offsets"],
            backend=target.backend,
            **plain(**case.objective, **options),
        )
        output.loss.backward()
        assert_golden(output, logits.grad, case.grad_logits(), case)


@every_target_and_dtype
@every_option
def test_loss_from_hidden_states_under_an_identity_head(
    combination: tuple[Any, ...], target: Target, dtype: torch.dtype
) -> None:
    options = dict(zip(OPTIONS, combination))
    for case in cases_of(combination, target):
        group = case.inputs
        hidden = group["logits"].to(dtype, copy=True).requires_grad_()
        head = torch.eye(hidden.shape[1], dtype=dtype, device=target.device, requires_grad=True)
        output = pope_core.linear_pope_loss(
            hidden,
            head,
            group["labels"],
            *case.data(dtype),
            response_offsets=group["response_offsets"],
            chunk_bytes=10 * hidden.shape[1] * dtype.itemsize,
            backend=target.backend,
            **plain(**case.objective, **options),
        )
        output.loss.backward()
        d_logits = case.grad_logits()
        assert_golden(output, hidden.grad, d_logits, case)
        assert_golden(output, head.grad, d_logits.T @ hidden.detach().double(), case)


@every_target_and_dtype
@pytest.mark.parametrize("group", GROUPS, ids=lambda g: f"seed{g['seed']}-mean{g['length_normalize']}")
def test_response_logprobs(group: dict[str, Any], target: Target, dtype: torch.dtype) -> None:
    logprobs = pope_core.response_logprobs(
        group["logits"].to(target.device, dtype),
        group["labels"].to(target.device),
        response_offsets=group["response_offsets"],
        backend=target.backend,
    )
    expected = group["response_logprobs"].to(target.device, dtype)
    torch.testing.assert_close(logprobs, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_stored_values_are_those_of_the_reference() -> None:
    script = Path(__file__).parent.parent / "scripts" / "make_golden.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(CASES)} combinations each, all equal" in done.stdout
