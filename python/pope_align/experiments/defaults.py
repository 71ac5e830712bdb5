"""The ablation behind the defaults: objectives, clips and learning rates, from one cloned logging policy.

``python -m pope_align.experiments.defaults LOG --model MODEL -o FILE.json`` clones a logging policy once, trains every
setting below from it for one epoch, and estimates the gain of each on the log's validation part, which is used neither
for cloning nor for training. The test part is not used. docs/defaults.md has the tables that it prints.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pope_core.objective import DiversityForm, Normalization, Objective

from .._files import check_output, write_json
from .._json import jsonable
from ..cli.console import progress
from ..data import Slate, group_split, slate_group
from ..models.loading import best_device, load_model, load_tokenizer
from ..ope import Confidence, LoggedSlates, compare, pope_value
from ..propensity.behaviour_cloning import fit_behaviour_policy
from ..propensity.fit_report import BehaviourConfig
from ..propensity.logging_policy import score_slates
from ..propensity.scores import ModelScores, score_model
from ..training.config import PopeConfig
from ..training.trainer import PopeTrainer
from .parts import three_parts

#: The objective with which every setting is evaluated, whatever it was trained with.
MEASURE = Objective(diversity_form="neg_log_prob")


@dataclass(frozen=True)
class Setting:
    """The varied options; the others are `PopeConfig`'s defaults."""

    normalization: Normalization
    diversity_form: DiversityForm
    diversity_weight: float
    learning_rate: float
    clip: float | None = Objective().clip


SETTINGS = [
    Setting("none", "neg_log_prob", 0.1, 7e-5),
    Setting("none", "neg_log_prob", 0.1, 2e-4),
    Setting("none", "neg_log_prob", 0.0, 7e-5),
    Setting("none", "neg_log_prob", 0.1, 7e-5, clip=None),
    Setting("slate", "entropy", 0.1, 3e-5),
    Setting("slate", "entropy", 0.1, 7e-5),
    Setting("slate", "entropy", 0.1, 2e-4),
    Setting("slate", "entropy", 0.1, 7e-5, clip=None),
    Setting("slate", "entropy", 2.0, 7e-5),
    Setting("batch", "entropy", 0.1, 7e-5),
]


@dataclass(frozen=True)
class AblationStudy:
    """Common options of all settings.

    Attributes:
        max_length: maximum number of tokens of prompt and response.
        cloning_learning_rate: of the logging policy, fitted for one epoch.
        seed: of the split, the fit and the order of slates; 1 is the demo's split.
        bf16: train under bfloat16 autocast. Scoring stays in float32.
    """

    max_length: int = 512
    cloning_learning_rate: float = 5e-5
    slates_per_step: int = 8
    seed: int = 1
    bf16: bool = False


def run(log: Path, model: str, study: AblationStudy) -> dict[str, Any]:
    """Every setting's gain over the cloned policy, under one objective: neg_log_prob diversity with weight 0.1."""
    tokenizer = load_tokenizer(model)
    train, validation, test = three_parts(log, study.seed)
    fitted, stop = group_split(train, slate_group, 0.15, study.seed)
    cloning = BehaviourConfig(
        max_length=study.max_length,
        epochs=1,
        learning_rate=study.cloning_learning_rate,
        evaluations_per_epoch=1,
        seed=study.seed,
    )
    with progress("cloning the logging policy", "slates") as report:
        policy = fit_behaviour_policy(
            load_model(model).to(best_device()), tokenizer, fitted, stop, cloning, progress=report
        )

    def logged(slates: list[Slate]) -> list[Slate]:
        options: dict[str, Any] = {"how": "behaviour_cloned", "max_length": study.max_length, "fit": policy.report}
        with progress("scoring", "tokens") as report:
            return score_slates(slates, policy.model, tokenizer, progress=report, **options)

    train, before = logged(train), logged(validation)
    rows = []
    for setting in SETTINGS:
        trainer = PopeTrainer(
            copy.deepcopy(policy.model), _arguments(setting, study), train_dataset=train, processing_class=tokenizer
        )
        trainer.train()
        with progress("scoring", "tokens") as report:
            after = score_model(
                validation, trainer.unwrapped(), tokenizer, max_length=study.max_length, progress=report
            )
        rows.append({**asdict(setting), **_gains(before, after)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {
        "study": asdict(study),
        "slates": {"train": len(train), "validation": len(validation), "test (not read)": len(test)},
        "settings": rows,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: gains over the cloned policy."""
    lines = [
        "| normalization | diversity_form | weight | clip | learning rate | raw V | raw V_CU | self-normalised V_CU | "
        "self-normalised V_Div | ESS | nats per token |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        raw, own = row["raw"], row["self_normalized"]
        cells = [
            row["normalization"],
            row["diversity_form"],
            f"{row['diversity_weight']:g}",
            f"{row['clip']:g}" if row["clip"] else "none",
            f"{row['learning_rate']:g}",
            _interval(raw["value"]),
            _interval(raw["utility"]),
            f"**{_interval(own['utility'])}**",
            f"{own['diversity']['value']:+.2f}",
            f"{row['ess_fraction']:.0%}",
            f"{row['nats_per_token']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _arguments(setting: Setting, study: AblationStudy) -> PopeConfig:
    return PopeConfig(
        "unused",
        num_train_epochs=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=study.slates_per_step,
        lr_scheduler_type="linear",
        warmup_steps=2,
        max_length=study.max_length,
        seed=study.seed,
        bf16=study.bf16,
        use_cpu=best_device().type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **asdict(setting),
    )


def _gains(before: list[Slate], after: ModelScores) -> dict[str, Any]:
    totals = {"cloned": [slate.logging_logprobs or [] for slate in before], "aligned": after.totals}
    log = LoggedSlates.from_slates(before, totals, cluster=lambda slate: slate.slate_id or "")
    measures: list[tuple[str, Normalization]] = [("raw", "none"), ("self_normalized", "batch")]
    gains: dict[str, Any] = {}
    for label, normalization in measures:
        aligned, cloned = (
            pope_value(
                log,
                policy,
                objective=replace(MEASURE, normalization=normalization),
                confidence=Confidence("bootstrap"),
            )
            for policy in ("aligned", "cloned")
        )
        gain = compare(aligned, cloned)
        gains[label] = {
            "value": asdict(gain.difference),
            "utility": asdict(gain.utility),
            "diversity": asdict(gain.diversity),
        }
    diagnostics = aligned.diagnostics
    assert diagnostics is not None
    gains["ess_fraction"] = diagnostics.ess_fraction
    gains["nats_per_token"] = after.nats_per_token
    return gains


def _interval(gain: dict[str, float]) -> str:
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", type=Path, help="slates with scores")
    parser.add_argument("--model", required=True, help="hub name, folder or GGUF file")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--max-length", type=int, default=AblationStudy.max_length)
    parser.add_argument("--seed", type=int, default=AblationStudy.seed)
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    given = vars(parser.parse_args())
    log, model, output = given.pop("log"), given.pop("model"), given.pop("out")
    check_output(output, overwrite=True)
    result = run(log, model, AblationStudy(**given))
    write_json(output, jsonable(result))
    print(table(result["settings"]))


if __name__ == "__main__":
    main()
