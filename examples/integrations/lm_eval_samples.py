"""Two models answer a small task in lm-evaluation-harness, and its samples become slates of two rated answers.

python examples/integrations/lm_eval_samples.py FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in FOLDER

import datasets
import lm_eval
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.loggers import EvaluationTracker
from pope_align.data import read_slates
from pope_align.data.convert import ConvertOptions, convert

QUESTIONS = {"Which tea is smoked?": "Lapsang", "Which tea is whisked?": "Matcha"}


class Answers(LM):
    """A model that has one answer to everything."""

    def __init__(self, answer: str) -> None:
        super().__init__()
        self.answer = answer

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The same answer to each."""
        return [self.answer for _ in requests]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Not asked for."""
        raise NotImplementedError("this model only writes")

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Not asked for."""
        raise NotImplementedError("this model only writes")


def samples(folder: Path, name: str, answer: str) -> Path:
    """The file of samples that ``lm_eval run --log_samples`` writes for one model."""
    config = {
        "task": "tea",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "tea.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    results = lm_eval.simple_evaluate(
        model=Answers(answer), tasks=[ConfigurableTask(config=config)], log_samples=True, bootstrap_iters=0
    )
    tracker = EvaluationTracker(output_path=str(folder / name))
    found = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=found)
    tracker.save_results_samples(task_name="tea", samples=found["tea"])
    (path,) = (folder / name).rglob("samples_tea_*.jsonl")
    return path


def main(folder: Path) -> None:
    """Run both models, convert their samples, and show the slates."""
    print(f"lm-eval {lm_eval.__version__}, datasets {datasets.__version__}")
    rows = [json.dumps({"question": question, "answer": answer}) for question, answer in QUESTIONS.items()]
    (folder / "tea.jsonl").write_text("\n".join(rows) + "\n")
    files = [samples(folder, name, answer) for name, answer in (("smoky", "Lapsang"), ("green", "Matcha"))]
    report = convert("lm-eval", files, folder / "slates.jsonl", ConvertOptions())
    print(f"pope: {report.slates_kept} slates, {report.responses_kept} responses")
    for slate in read_slates(folder / "slates.jsonl"):
        rated = ", ".join(f"{text} {score:g}" for text, score in zip(slate.completions, slate.scores))
        print(f"  {slate.prompt} {rated}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
