"""Write ``tests/golden/objective.json``: float64 values and gradients of every combination of the objective's options.

``python scripts/make_golden.py`` computes them with ``pope_core.reference`` from the inputs in the file (logits,
labels, offsets, utility, propensities) and rewrites the file; run it after adding an option or changing inputs.
``--check`` only compares. The first version of the file was computed by an independent program from docs/method.md, so
equal numbers mean that the reference follows the page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pope_core import Objective, reference
from pope_core.objective import CHOICES

FILE = Path(__file__).parent.parent / "tests" / "golden" / "objective.json"
CLIPS = (None, 1.2)
WHAT = (
    "float64 values of the objective in docs/method.md. All log-probabilities are totals in nats. "
    "grad_response_logprobs is the derivative of the value in the totals of the responses."
)


def combinations() -> Iterator[dict[str, Any]]:
    """Every combination of the named options, with and without a maximum weight."""
    options = {"weighting": CHOICES["weighting"], "normalization": CHOICES["normalization"], "clip": CLIPS}
    options |= {name: CHOICES[name] for name in ("utility_form", "diversity_form")}
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values))


def case(group: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """The results of one combination on one group of inputs."""
    objective = Objective(
        **options, diversity_weight=group["diversity_weight"], length_normalize=group["length_normalize"]
    )
    totals = torch.tensor(group["response_logprobs"], dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor(group["response_offsets"])
    data = [torch.tensor(group[name], dtype=torch.float64) for name in ("logging_logprobs", "utility")]
    output = reference.slate_objective(
        totals, *data, torch.tensor(group["slate_offsets"]), tokens=offsets.diff(), objective=objective
    )
    (gradient,) = torch.autograd.grad(output.loss, totals)
    numbers = {name: float(getattr(output, name)) for name in ("value", "utility_value", "diversity_value")}
    return {**options, **numbers, "grad_response_logprobs": (-gradient).tolist()}


def computed(group: dict[str, Any]) -> dict[str, Any]:
    """The group with all results computed from its inputs."""
    logits, labels = torch.tensor(group["logits"], dtype=torch.float64), torch.tensor(group["labels"])
    offsets = torch.tensor(group["response_offsets"])
    inputs = {name: value for name, value in group.items() if name != "cases"}
    for name, reduction in (("token_logprobs", "none"), ("response_logprobs", "sum")):
        inputs[name] = reference.response_logprobs(
            logits, labels, response_offsets=offsets, reduction=reduction
        ).tolist()
    return {**inputs, "cases": [case(inputs, options) for options in combinations()]}


def differences(stored: Any, made: Any, path: str = "") -> Iterator[str]:
    """The differences of two files beyond rounding."""
    if isinstance(stored, dict) and isinstance(made, dict) and set(stored) == set(made):
        for name in stored:
            yield from differences(stored[name], made[name], f"{path}.{name}")
    elif isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
        for index, (one, other) in enumerate(zip(stored, made)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(stored, float) and isinstance(made, float):
        if not math.isclose(stored, made, rel_tol=1e-11, abs_tol=1e-13):
            yield f"{path}: {stored!r} in the file, {made!r} from the reference"
    elif stored != made:
        yield f"{path}: {str(stored)[:60]} in the file, {str(made)[:60]} from the reference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the file instead of writing it")
    check = parser.parse_args().check
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    made = {"what": WHAT, "groups": [computed(group) for group in stored["groups"]]}
    if not check:
        FILE.write_text(json.dumps(made) + "\n", encoding="utf-8")
        return
    found = list(differences(stored, made))
    if found:
        remedy = "if the options or their formulas changed on purpose: python scripts/make_golden.py"
        raise SystemExit("\n".join([f"{len(found)} differences from {FILE.name}; {remedy}", *found[:10]]))
    print(f"{FILE.name}: {len(made['groups'])} groups, {sum(1 for _ in combinations())} combinations each, all equal")


if __name__ == "__main__":
    main()
