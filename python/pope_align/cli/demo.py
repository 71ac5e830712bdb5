"""``pope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..demo import DemoResult
    from ..ope import Quantity

_ROWS = {"none": "raw", "batch": "self-normalised"}


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the model, numbers and pictures.")] = Path(
        "demo_output"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub name, folder or GGUF file; default: the packaged SmolLM2-135M-Instruct.")
    ] = None,
    responses_per_slate: Annotated[int, typer.Option(help="Statements drawn from the 12 of every slate.")] = 6,
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 1,
) -> None:
    """Align a language model with the Polis log and estimate the gain, in a few minutes on two cores.

    The log has 14 public conversations: what participants wrote, and how many agreed. Five of them are held out. A
    language model is fitted to the others as the logging policy, then trained with POPE; the value of both is estimated
    on the held-out ones.
    """
    import time

    from ..demo import DemoConfig, run_demo
    from ..training.callbacks import ProgressLines
    from .console import err, progress

    started = time.monotonic()
    config = DemoConfig(output_dir=out, model=model, responses_per_slate=responses_per_slate, epochs=epochs, seed=seed)

    def say(line: str) -> None:
        err.print(line, markup=False)

    result = run_demo(config, say=say, progress=progress, callbacks=[ProgressLines(say, every_seconds=5)])
    _show(result)
    say(f"wrote the model, its curves and the evaluation to {out} ({time.monotonic() - started:.0f} s)")


def _show(result: DemoResult) -> None:
    from ..demo import POLICIES
    from .console import out, table

    rows = []
    for normalization, label in _ROWS.items():
        for policy in POLICIES:
            estimate = result.estimate(policy, normalization)
            ess = estimate.diagnostics.ess if estimate.diagnostics else float("nan")
            rows.append(
                [
                    f"{label}: {policy}",
                    f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]",
                    _interval(estimate.utility),
                    _interval(estimate.diversity),
                    f"{ess:.0f} of {estimate.num_responses}",
                ]
            )
        for over in POLICIES[:2]:
            gain = result.gain("aligned", over, normalization)
            parts = [_interval(part) for part in (gain.difference, gain.utility, gain.diversity)]
            rows.append([f"{label}: aligned - {over}", *parts, ""])
    table("Value on held-out conversations, 95 % intervals over slates", ["", "V", "V_CU", "V_Div (nats)", "ESS"], rows)
    aligned = result.estimate("aligned", "batch")
    out.print(f"verdict: {aligned.verdict} ({'; '.join(aligned.reasons)})", markup=False)
    out.print(
        "Raw values also rise when a policy makes everything that people wrote likelier, so judge utility by the "
        "self-normalised rows. V_Div is -p log p of a mean token: it rises with p until p = 1/e. See "
        "docs/training.md.",
        markup=False,
    )
    for answers in result.generations:
        out.print(f"\n? {answers.question}", markup=False)
        for policy in POLICIES:
            out.print(f"  {policy}: {' '.join(answers.by_policy[policy].split())}", markup=False)


def _interval(quantity: Quantity) -> str:
    return f"{quantity.value:.3f} [{quantity.low:.3f}, {quantity.high:.3f}]"
