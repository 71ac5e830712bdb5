"""Compares POPE with the other training methods: one log, one start, one budget, and their values on held-out slates.

``python -m pope_align.experiments.methods LOG --model MODEL -o FOLDER`` clones a logging policy from the slates
outside the log's test part, trains every method from it on the same slates, and estimates the gain of each on the test
part. ``methods.md`` is the table of the documentation, ``methods.json`` has all results.
"""

from __future__ import annotations

import argparse
import copy
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pope_core.objective import Objective

from .._extras import require
from .._files import check_output_folder, write_json, write_text
from .._json import jsonable
from ..cli.console import progress
from ..data import Slate, group_split, slate_group
from ..models.loading import best_device, load_model, load_tokenizer
from ..ope import Confidence, Evaluation, evaluate_policies
from ..propensity.behaviour_cloning import fit_behaviour_policy
from ..propensity.fit_report import BehaviourConfig
from ..propensity.logging_policy import score_slates
from ..propensity.scores import score_model
from ..training.config import ListwiseConfig, PopeConfig
from ..training.methods import LISTWISE, METHODS, TrainingMethod
from ..training.options import PopeOptions
from ..training.run import run_baseline, run_training
from .parts import three_parts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

#: All methods but those whose loss needs responses drawn from the policy that they are compared with: here people wrote
#: them, and the logging policy is cloned.
COMPARED = tuple(name for name in METHODS if name not in LISTWISE or LISTWISE[name].reference != "logging")

#: The model that all methods start from and are compared with.
START = "cloned"


@dataclass(frozen=True)
class MethodStudy:
    """Common options of all methods.

    Attributes:
        epochs, learning_rate, slates_per_step: of every method; the rate is the default of `PopeConfig`.
        beta: of DPO, TRL's default; list-wise methods have their own.
        max_length: maximum number of tokens of prompt and response, for all methods.
        bf16: train every method under bfloat16 autocast. The fit and all scoring stay in float32.
        seed: of the split and the orders; 1 is the demo's split.
    """

    epochs: float = 1.0
    learning_rate: float = PopeOptions.learning_rate
    slates_per_step: int = 8
    beta: float = 0.1
    max_length: int = 512
    bf16: bool = False
    seed: int = 1


def run_study(log: Path, model: str, output: Path, study: MethodStudy) -> Evaluation:
    """Clone, train, evaluate; the trained models are saved in ``output``, one folder per method."""
    arguments = {method: _arguments(method, output / method, study) for method in COMPARED}
    tokenizer = load_tokenizer(model)
    parts = three_parts(log, study.seed)
    train, held_out = parts.train + parts.validation, parts.test
    fitted, stop = group_split(train, slate_group, 0.15, study.seed)
    cloning = BehaviourConfig(max_length=study.max_length, epochs=1, seed=study.seed)
    start = load_model(model).to(best_device())
    with progress("cloning the logging policy", "slates") as report:
        policy = fit_behaviour_policy(start, tokenizer, fitted, stop, cloning, progress=report)
    options: dict[str, Any] = {"how": "behaviour_cloned", "max_length": study.max_length, "fit": policy.report}
    with progress("scoring", "tokens") as report:
        train, held_out = (
            score_slates(part, policy.model, tokenizer, progress=report, **options) for part in (train, held_out)
        )
    totals: dict[str, Any] = {START: [slate.logging_logprobs for slate in held_out]}
    for method in COMPARED:
        _say(f"training {method} on {len(train)} slates")
        trained = _train(method, copy.deepcopy(policy.model), arguments[method], train, tokenizer)
        with progress(f"scoring with {method}", "tokens") as report:
            scores = score_model(held_out, trained, tokenizer, max_length=study.max_length, progress=report)
        totals[method] = scores.totals
    return evaluate_policies(
        held_out,
        totals,
        baseline=START,
        estimators=["pope"],
        objective=Objective(normalization="batch", diversity_form="neg_log_prob"),
        confidence=Confidence("bootstrap", seed=study.seed),
    )


def table(evaluation: Evaluation) -> str:
    """Markdown: self-normalised values, gains over the start, verdicts."""
    gains = {comparison.policy: comparison for comparison in evaluation.comparisons}
    lines = [
        f"| | V | gain in V over {START} | in V_CU | in V_Div (nats) | ESS | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in evaluation.policies:
        each, cells = evaluation.of(name), [""] * 3
        if name in gains:
            gain = gains[name]
            cells = [_interval(part, "+.4f") for part in (gain.difference, gain.utility, gain.diversity)]
        ess = f"{each.diagnostics.ess_fraction:.1%}" if each.diagnostics else ""
        lines.append("| " + " | ".join([name, _interval(each, ".3f"), *cells, ess, each.verdict]) + " |")
    return "\n".join(lines)


def _arguments(method: TrainingMethod, folder: Path, study: MethodStudy) -> TrainingArguments:
    shared: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": study.epochs,
        "learning_rate": study.learning_rate,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": study.slates_per_step,
        "max_length": study.max_length,
        "bf16": study.bf16,
        "use_cpu": best_device().type == "cpu",
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "report_to": "none",
        "seed": study.seed,
    }
    if method == "pope":
        return PopeConfig(**shared)
    if method != "sft" and method != "dpo":
        return ListwiseConfig(method=method, **shared)
    trl = require("trl", extra="baselines", purpose=f"for method {method!r}")
    plain = {**shared, "gradient_checkpointing": False, "logging_steps": 1}
    return trl.SFTConfig(**plain) if method == "sft" else trl.DPOConfig(**plain, beta=study.beta)


def _train(
    method: TrainingMethod, model: PreTrainedModel, args: TrainingArguments, train: list[Slate], tokenizer: Any
) -> PreTrainedModel:
    if method == "sft" or method == "dpo":
        return run_baseline(method, model, args, train, processing_class=tokenizer).model
    assert isinstance(args, (PopeConfig, ListwiseConfig))
    return run_training(model, args, train, processing_class=tokenizer).model


def _interval(quantity: Any, style: str) -> str:
    return f"{quantity.value:{style}} [{quantity.low:{style}}, {quantity.high:{style}}]"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="slates with scores")
    parser.add_argument("--model", required=True, help="hub name, folder or GGUF file")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of models and results")
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    for name in ("epochs", "learning_rate", "beta", "max_length", "seed"):
        default = getattr(MethodStudy, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args())
    log, model, output = given.pop("log"), given.pop("model"), given.pop("out")
    study = MethodStudy(**given)
    check_output_folder(output, overwrite=True)
    evaluation = run_study(log, model, output, study)
    text = table(evaluation)
    write_text(output / "methods.md", text + "\n")
    content = {"study": asdict(study), "evaluation": evaluation.to_dict()}
    write_json(output / "methods.json", jsonable(content))
    print(text)


if __name__ == "__main__":
    main()
