"""The card of a trained model: what it was trained on, for what, and what its held-out value is worth."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from pope_core.version import __version__

from ..data.schema import Slate
from ..data.split import slate_group
from ..ope import Estimate, LoggedSlates, pope_value
from ..ope.log import How
from ..stats.intervals import Quantity

if TYPE_CHECKING:
    from .trainer import PopeTrainer

_HOW = {
    "recorded": "recorded when the responses were sampled",
    "behaviour_cloned": "those of a model fitted to the log",
    "proxy": "those of a model that did not write the responses",
    "unknown": "of unknown origin",
}


def held_out_estimate(trainer: PopeTrainer) -> Estimate | None:
    """The self-normalised value on the held-out slates, with interval and verdict, from the trainer's last evaluation.

    None without an evaluation, or with slates of one query alone.
    """
    window, data, args = trainer.eval_window, trainer.eval_dataset, trainer.args
    if data is None or not window.policy:
        return None
    slates = [data.slates[index] for index in torch.cat(window.index).tolist()]
    groups = [slate_group(slate) for slate in slates]
    if len(set(groups)) < 2:
        return None
    sizes = torch.cat(window.sizes)
    log = LoggedSlates.from_arrays(
        torch.cat(window.utility).tolist(),
        torch.cat(window.logging).tolist(),
        {"trained": torch.cat(window.policy).clamp(max=0.0).tolist()},
        [0, *sizes.cumsum(0).tolist()],
        tokens=torch.cat(window.tokens).tolist(),
        clusters=groups,
        how=logging_how(slates),
    )
    return pope_value(
        log,
        "trained",
        diversity_weight=args.diversity_weight,
        weighting=args.weighting,
        normalization="batch",
        clip=args.clip,
        utility_form=args.utility_form,
        diversity_form=args.diversity_form,
        length_normalize=args.length_normalize,
    )


def logging_how(slates: Sequence[Slate]) -> How:
    """How the log's log-probabilities were obtained, where all slates agree."""
    ways = {(slate.logging_policy or {}).get("how", "unknown") for slate in slates}
    return ways.pop() if len(ways) == 1 else "unknown"


def model_card(trainer: PopeTrainer) -> str:
    """Markdown with the metadata that the Hugging Face hub reads."""
    data, args, state = trainer.train_dataset, trainer.args, trainer.state
    slates = data.slates
    responses = sum(len(slate.completions) for slate in slates)
    base = trainer.base_name
    objective = {name: value for name, value in asdict(args.objective).items() if name != "num_slates"}
    options = {**objective, "length_normalize": args.length_normalize, "utility_transform": args.utility_transform}
    if args.kl_weight > 0:
        options["kl_weight"] = args.kl_weight
    training = {
        "steps": state.global_step,
        "slates_per_step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "learning_rate": args.learning_rate,
        "max_length": args.max_length,
        "seed": args.seed,
    }
    adapter = not isinstance(trainer.model, PreTrainedModel)
    libraries = ("torch", "transformers", "accelerate", *(("peft",) if adapter else ()))
    return f"""---
base_model: {base or "unknown"}
library_name: {"peft" if adapter else "transformers"}
pipeline_tag: text-generation
tags: [pope, off-policy, alignment]
---

# {args.output_dir.rstrip("/").rpartition("/")[2]}

{base or "A causal language model"}, aligned with logged responses and people's feedback by
[POPE](https://arxiv.org/abs/2509.19333) (pope-core {__version__}).

## Data

{len(slates)} slates, {responses} responses. Log-probabilities of the logging policy: {_HOW[logging_how(slates)]}.

## Objective

{_table(options)}

## Training

{_table(training)}

## Held-out estimate

{_estimate(held_out_estimate(trainer), len(trainer.eval_dataset or ()))}

## Versions

{", ".join(f"{name} {version(name)}" for name in libraries)}, Python {platform.python_version()}
"""


def _estimate(estimate: Estimate | None, slates: int) -> str:
    if estimate is None:
        return "None: the run had no held-out slates of two queries or more."
    parts = [
        ("value", estimate.value, estimate.low, estimate.high),
        *((name, part.value, part.low, part.high) for name, part in _parts(estimate)),
    ]
    rows = "\n".join(f"| {name} | {value:.4g} | {low:.4g} to {high:.4g} |" for name, value, low, high in parts)
    reasons = "".join(f"\n- {reason}" for reason in estimate.reasons)
    return (
        f"Self-normalised, on {slates} slates that were not trained on, {estimate.confidence.level:.0%} intervals. "
        f"Verdict: **{estimate.verdict}**.\n\n|  | estimate | interval |\n|---|---|---|\n{rows}\n{reasons}"
    )


def _parts(estimate: Estimate) -> list[tuple[str, Quantity]]:
    return [("utility", estimate.utility), ("diversity", estimate.diversity)]


def _table(values: dict[str, object]) -> str:
    return "\n".join(["|  |  |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])
