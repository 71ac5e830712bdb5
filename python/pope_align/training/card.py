"""The card of a trained model: data, objective, training settings and held-out estimate."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from pope_core.version import __version__

from .._files import write_text
from .._text import in_markdown, printable
from ..data.schema import Slate
from ..ope import Estimate, Scoring, evaluate_policies
from ..stats.intervals import Quantity
from .methods import ABOUT, TrainingMethod

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer


CARD_NAME = "README.md"

#: Shown without an estimate.
NO_HELD_OUT = "the run had no held-out slates"

_HOW = {
    "recorded": "recorded when the responses were sampled",
    "behaviour_cloned": "those of a model fitted to the log",
    "proxy": "those of a model that did not write the responses",
    "unknown": "of unknown origin",
}


@dataclass(frozen=True)
class CardOptions:
    """What `transformers.Trainer.create_model_card` lets a caller say; see `PolicyTrainer.create_model_card`."""

    language: str | Sequence[str] | None = None
    license: str | None = None
    tags: str | Sequence[str] | None = None
    model_name: str | None = None
    finetuned_from: str | None = None
    tasks: str | Sequence[str] | None = None
    dataset_tags: str | Sequence[str] | None = None
    dataset: str | Sequence[str] | None = None
    dataset_args: str | Sequence[str] | None = None


@dataclass(frozen=True)
class RunFacts:
    """The contents of a card, for any method."""

    method: TrainingMethod
    folder: str
    base: str  # the model's name, "" if it has none
    adapter: bool
    slates: Sequence[Slate]  # trained on
    objective: Mapping[str, Any]
    training: Mapping[str, Any]
    options: CardOptions = CardOptions()

    @classmethod
    def of(
        cls,
        method: TrainingMethod,
        trainer: Trainer,
        base: str,
        slates: Sequence[Slate],
        objective: Mapping[str, Any],
        max_length: int,
    ) -> RunFacts:
        """The facts from a transformers trainer, and those that the caller adds."""
        args = trainer.args
        training = {
            "steps": trainer.state.global_step,
            "slates_per_step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "learning_rate": args.learning_rate,
            "max_length": max_length,
            "seed": args.seed,
        }
        if method == "dpo":  # its batches contain pairs
            training["pairs_per_step"] = training.pop("slates_per_step")
        adapter = not isinstance(trainer.accelerator.unwrap_model(trainer.model), PreTrainedModel)
        return cls(method, str(args.output_dir), base, adapter, slates, objective, training)


def held_out_estimate(
    slates: Sequence[Slate],
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase] | Sequence[Sequence[float]],
    *,
    max_length: int,
) -> Estimate | str:
    """The estimate of `pope evaluate` for the model on slates that it was not trained on.

    Args:
        slates: held out.
        policy: the model with its tokenizer; or its totals, slate by slate.
        max_length: as in training.

    Returns:
        The estimate, or the reason why there is none (a run whose weights are saved should not fail because of its
        card).
    """
    if any(slate.logging_logprobs is None for slate in slates):
        return "the held-out slates have no logging_logprobs (pope score)"
    try:
        evaluation = evaluate_policies(
            slates,
            {"trained": policy},
            estimators=["pope"],
            scoring=Scoring(max_length=max_length),
        )
    except ValueError as error:
        return str(error)
    return evaluation.of("trained")


def logging_how(slates: Sequence[Slate]) -> str:
    """How the log's log-probabilities were obtained, if all slates agree."""
    ways = {(slate.logging_policy or {}).get("how", "unknown") for slate in slates}
    return str(ways.pop()) if len(ways) == 1 else "unknown"


def write_card(facts: RunFacts, estimates: Mapping[str, Estimate | str]) -> None:
    """Write ``README.md`` into the model's folder."""
    write_text(Path(facts.folder, CARD_NAME), model_card(facts, estimates))


def model_card(facts: RunFacts, estimates: Mapping[str, Estimate | str]) -> str:
    """Markdown with the metadata that the Hugging Face hub reads.

    Args:
        estimates: by evaluation set ("" for the only one), of `held_out_estimate`, or the reason why there is none.
    """
    options = facts.options
    responses = sum(len(slate.completions) for slate in facts.slates)
    libraries = ("torch", "transformers", "accelerate", *(("peft",) if facts.adapter else ()))
    scored = any(slate.logging_logprobs is not None for slate in facts.slates)
    policy = f" Log-probabilities of the logging policy: {_HOW[logging_how(facts.slates)]}." if scored else ""
    base = options.finetuned_from or facts.base
    data = "; ".join(in_markdown(text) for text in [*_listed(options.dataset), *_listed(options.dataset_args)])
    return f"""---
{_metadata(facts, base)}
---

# {in_markdown(options.model_name or facts.folder.rstrip("/").rpartition("/")[2])}

{in_markdown(base) or "A causal language model"}, aligned with logged responses and people's feedback by
{ABOUT[facts.method]} (pope-core {__version__}).

## Data

{data + ": " if data else ""}{len(facts.slates)} slates, {responses} responses.{policy}

## Objective

{_table(facts.objective)}

## Training

{_table(facts.training)}

{_held_out(estimates)}

## Versions

{", ".join(f"{name} {version(name)}" for name in libraries)}, Python {platform.python_version()}
"""


def _metadata(facts: RunFacts, base: str) -> str:
    """The front matter; names of others are quoted where YAML would read them as something else."""
    options = facts.options
    own = [facts.method, "off-policy", "alignment"]
    entries = {
        "language": _listed(options.language),
        "license": options.license,
        "base_model": base or "unknown",
        "datasets": _listed(options.dataset_tags),
        "library_name": "peft" if facts.adapter else "transformers",
        "pipeline_tag": next(iter(_listed(options.tasks)), "text-generation"),
        "tags": list(dict.fromkeys([*own, *_listed(options.tags)])),
    }
    return "\n".join(
        f"{name}: {_yaml(value) if isinstance(value, str) else '[' + ', '.join(map(_yaml, value)) + ']'}"
        for name, value in entries.items()
        if value
    )


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _held_out(estimates: Mapping[str, Estimate | str]) -> str:
    if set(estimates) == {""}:
        return f"## Held-out estimate\n\n{_estimate(estimates[''])}"
    parts = [f"### {in_markdown(name)}\n\n{_estimate(estimate)}" for name, estimate in estimates.items()]
    return "\n\n".join(["## Held-out estimates", *parts])


def _estimate(estimate: Estimate | str) -> str:
    if isinstance(estimate, str):
        return f"None: {in_markdown(estimate)}."
    parts = [
        ("value", estimate.value, estimate.low, estimate.high),
        *((name, part.value, part.low, part.high) for name, part in _parts(estimate)),
    ]
    rows = "\n".join(f"| {name} | {value:.4g} | {low:.4g} to {high:.4g} |" for name, value, low, high in parts)
    reasons = "".join(f"\n- {in_markdown(reason)}" for reason in estimate.reasons)
    return (
        f"What `pope evaluate` gives on {estimate.num_slates} slates that were not trained on: self-normalised, with "
        f"{estimate.confidence.level:.0%} intervals. Its objective is that of every evaluation, not the one above. "
        f"Verdict: **{estimate.verdict}**.\n\n|  | estimate | interval |\n|---|---|---|\n{rows}\n{reasons}"
    )


def _parts(estimate: Estimate) -> list[tuple[str, Quantity]]:
    return [("utility", estimate.utility), ("diversity", estimate.diversity)]


def _table(values: Mapping[str, object]) -> str:
    return "\n".join(["|  |  |", "|---|---|", *(f"| {name} | {_cell(value)} |" for name, value in values.items())])


def _cell(value: object) -> str:
    text = str(value)
    return text if text.replace("_", "").isalnum() else in_markdown(text)


#: What YAML reads as a truth value or as nothing, such as the code of Norwegian.
_NOT_TEXT = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def _yaml(name: str) -> str:
    """A name as a YAML value: plain where it has letters and signs of paths only, else JSON, which YAML reads."""
    plain = re.fullmatch(r"[A-Za-z][\w./-]*|[0-9][\w./-]*[A-Za-z][\w./-]*", name, re.ASCII)
    return name if plain and name.lower() not in _NOT_TEXT else json.dumps(printable(name))
