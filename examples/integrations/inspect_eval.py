"""Inspect evaluates a task with epochs; its log becomes slates, and our metrics are its scorers.

    python examples/integrations/inspect_eval.py FOLDER

Needs inspect-ai. The model is a list of answers, so nothing is downloaded.
"""

from __future__ import annotations

import itertools
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inspect_ai import Epochs, Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message
from pope_align.data import read_slates
from pope_align.data.convert import ConvertOptions, convert
from pope_align.integrations.inspect_ai import over_epochs, pope_metric

ANSWERS = ["Sencha, or matcha.", "Coffee.", "Lapsang souchong.", "None is."]


@modelapi(name="tea")
class TeaModel(ModelAPI):
    """Gives the answers in turn."""

    def __init__(self, model_name: str, **more: Any) -> None:
        super().__init__(model_name)
        self.answers = itertools.cycle(ANSWERS)

    async def generate(self, *given: Any, **more: Any) -> ModelOutput:
        output = ModelOutput.from_content(self.model_name, next(self.answers))
        output.usage = ModelUsage(input_tokens=9, output_tokens=3, total_tokens=12)
        return output

    async def count_text_tokens(self, text: str) -> int:
        return len(text.split())


def main(folder: Path) -> None:
    print(f"inspect-ai {version('inspect-ai')}")
    questions = [
        Sample(id="green", input="Which tea is green?", target="Sencha"),
        Sample(id="smoked", input="Which tea is smoked?", target="Lapsang"),
    ]
    task = Task(
        name="tea",
        dataset=questions,
        solver=[system_message("Be brief."), generate()],
        scorer=[includes(), pope_metric("distinct_1")],
        epochs=Epochs(2, over_epochs("distinct_1")),
    )
    (log,) = eval(task, model=get_model("tea/one"), log_dir=str(folder), display="none", max_samples=1)
    print(f"Inspect: {log.status}")
    for score in log.results.scores if log.results else []:
        print(f"  {score.name}: {', '.join(f'{name} {metric.value:.3f}' for name, metric in score.metrics.items())}")
    options = ConvertOptions(mapping={"score": "includes"})
    report = convert("inspect", [Path(log.location)], folder / "slates.jsonl", options, overwrite=True)
    print(f"pope: {report.slates_kept} slates, {report.responses_kept} responses")
    for slate in read_slates(folder / "slates.jsonl"):
        print(
            f"  {slate.prompt[-1]['content']} {[answer[0]['content'] for answer in slate.completions]} {slate.scores}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
