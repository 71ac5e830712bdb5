"""The ablation behind the defaults: objectives and learning rates on the Polis log, from one cloned logging policy.

``python -m pope_align.experiments.defaults --output defaults.json`` clones a logging policy once, trains every setting
below from it for one epoch, and estimates what each gained on conversations that neither saw. docs/defaults.md reads
the result.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pope_core.types import DiversityForm, Normalization

from ..demo import DemoConfig, clone, demo_slates, packaged_model, score, training_config
from ..model import best_device, load_model, load_tokenizer
from ..ope import Confidence, LoggedSlates, compare, pope_value
from ..trainer import PopeTrainer


@dataclass(frozen=True)
class Setting:
    """What is varied."""

    normalization: Normalization
    diversity_form: DiversityForm
    diversity_weight: float
    learning_rate: float


SETTINGS = [
    Setting("none", "neg_log_prob", 0.1, 7e-5),
    Setting("none", "neg_log_prob", 0.1, 2e-4),
    Setting("none", "neg_log_prob", 0.0, 7e-5),
    Setting("slate", "entropy", 0.1, 3e-5),
    Setting("slate", "entropy", 0.1, 7e-5),
    Setting("slate", "entropy", 0.1, 2e-4),
    Setting("slate", "entropy", 2.0, 7e-5),
    Setting("batch", "entropy", 0.1, 7e-5),
]


def run(config: DemoConfig) -> dict[str, Any]:
    """Every setting's gain over the cloned policy, under one measure: neg_log_prob diversity of weight 0.1."""
    name = config.model or str(packaged_model())
    tokenizer = load_tokenizer(name)
    train, heldout = demo_slates(config)
    logger, fit = clone(load_model(name).to(best_device()), tokenizer, train, heldout, config, _lines)
    scored, logged = (score(slates, logger, tokenizer, fit, config, _lines) for slates in (train, heldout))
    rows = []
    for setting in SETTINGS:
        args = training_config(replace(config, **asdict(setting)))
        trainer = PopeTrainer(copy.deepcopy(logger), args, scored, None, tokenizer)
        trainer.train()
        after = score(heldout, trainer.model, tokenizer, fit, config, _lines)
        rows.append({**asdict(setting), **_gains(logged, after, config)})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return {
        "config": {**asdict(config), "output_dir": None},
        "slates": {"train": len(train), "heldout": len(heldout)},
        "settings": rows,
    }


def _gains(before: list[Any], after: list[Any], config: DemoConfig) -> dict[str, Any]:
    totals = {"cloned": [slate.logging_logprobs for slate in before]}
    totals["aligned"] = [slate.logging_logprobs for slate in after]
    log = LoggedSlates.from_slates(before, totals, cluster=lambda slate: slate.slate_id or "")
    gains: dict[str, Any] = {}
    for label, normalization in (("raw", "none"), ("self_normalized", "batch")):
        values = {
            policy: pope_value(
                log,
                policy,
                normalization=normalization,  # type: ignore[arg-type]
                clip=config.clip,
                confidence=Confidence("bootstrap"),
            )
            for policy in totals
        }
        gain = compare(values["aligned"], values["cloned"])
        gains[label] = {
            "value": asdict(gain.difference),
            "utility": asdict(gain.utility),
            "diversity": asdict(gain.diversity),
        }
    diagnostics = values["aligned"].diagnostics
    assert diagnostics is not None
    tokens = sum(sum(slate.completion_tokens) for slate in after)
    gains["ess_fraction"] = diagnostics.ess_fraction
    gains["nats_per_token"] = -sum(sum(slate.logging_logprobs) for slate in after) / tokens
    return gains


@contextmanager
def _lines(what: str, unit: str) -> Any:
    print(what, file=sys.stderr, flush=True)
    yield lambda done, of: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=3, help="of the split; the demo's own is 1")
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    options = parser.parse_args()
    result = run(DemoConfig(seed=options.seed, bf16=options.bf16))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
