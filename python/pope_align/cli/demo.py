"""``pope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..demo import DemoResult

_ROWS = {"none": "as trained", "batch": "self-normalised"}


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model, numbers and pictures.")] = Path(
        "demo_output"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub name, folder or GGUF file; default: the packaged SmolLM2-135M-Instruct.")
    ] = None,
    responses_per_slate: Annotated[int, typer.Option(help="Statements drawn from the 12 of every slate.")] = 6,
    epochs: Annotated[int, typer.Option(help="Passes of the training over the log.")] = 1,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
) -> None:
    """Align a language model with the Polis log and estimate what it gained, in a few minutes on two cores.

    14 public conversations, what their participants wrote and how many agreed. Five conversations are held out. A
    language model is fitted to the others as the logging policy, then trained with POPE; the value of both is estimated
    on the held-out ones.
    """
    import time

    from ..callbacks import ProgressLines
    from ..demo import DemoConfig, run_demo
    from .console import err, progress

    started = time.monotonic()
    config = DemoConfig(
        output_dir=output, model=model, responses_per_slate=responses_per_slate, epochs=epochs, seed=seed
    )

    def say(line: str) -> None:
        err.print(line, markup=False)

    result = run_demo(config, say=say, progress=progress, callbacks=[ProgressLines(say, every_seconds=5)])
    _show(result)
    say(f"wrote the model, its curves and the evaluation to {output} ({time.monotonic() - started:.0f} s)")


def _show(result: DemoResult) -> None:
    from .console import out, table

    rows = []
    for normalization, label in _ROWS.items():
        for policy in ("before", "after"):
            estimate = result.estimate(policy, normalization)
            ess = estimate.diagnostics.ess if estimate.diagnostics else float("nan")
            rows.append(
                [
                    f"{label}, {policy}",
                    f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]",
                    str(estimate.utility),
                    str(estimate.diversity),
                    f"{ess:.0f} of {estimate.num_responses}",
                    estimate.verdict,
                ]
            )
        gain = result.gain(normalization)
        rows.append([f"{label}, gain", str(gain.difference), str(gain.utility), str(gain.diversity), "", gain.verdict])
    table(
        "Value on held-out conversations, 95 % intervals over slates",
        ["weights, policy", "V", "V_CU", "V_Div (nats)", "ESS", "verdict"],
        rows,
    )
    for reason in result.estimate("after", "batch").reasons:
        out.print(f"caution: {reason}", markup=False)
    for question, before, after in result.generations:
        out.print(f"\n? {question}", markup=False)
        out.print(f"  before: {before}", markup=False)
        out.print(f"  after:  {after}", markup=False)
