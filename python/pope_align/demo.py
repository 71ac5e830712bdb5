"""The whole pipeline on real data, in minutes: propensities, training, and the value before and after.

The log is 14 public Polis conversations: what participants wrote, and how many agreed. No propensities were recorded,
so the logging policy is behaviour-cloned. docs/defaults.md has the measurements behind the settings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from pope_core.objective import Normalization, Objective

from ._files import write_json
from .data import Slate, group_split, read_slates, slate_group, write_slates
from .generation.generate import Sampling, generate
from .models.loading import best_device, load_model, load_tokenizer
from .models.places import PACKAGED_MODEL
from .ope import Comparison, Confidence, Estimate, Evaluation, compare, evaluate_policies
from .propensity.behaviour_cloning import fit_behaviour_policy
from .propensity.fit_report import BehaviourConfig, FitReport
from .propensity.logging_policy import score_slates
from .propensity.scores import score_model
from .training.config import PopeConfig
from .training.run import run_training

#: The packaged log.
POLIS = Path(__file__).parent / "demo_data" / "polis_slates.jsonl"

#: The given model, the logging policy that was fitted from it (training starts there), and the trained model.
POLICIES = ("base", "cloned", "aligned")

#: The two ways a value is shown: raw, and divided by the sum of weights.
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "batch")


@dataclass(frozen=True)
class DemoConfig:
    """The settings of the demo.

    Attributes:
        output_dir: folder for ``model/``, ``train.jsonl``, ``heldout.jsonl``, ``evaluation.json`` and
            ``evaluation.png``.
        model: hub name, folder or GGUF file; None for SmolLM2-135M-Instruct from its PyPI package.
        responses_per_slate: how many of the 12 of every slate are drawn, without replacement, to save time.
        holdout_fraction: share of the conversations that are used neither for fitting nor for training.
        cloning_learning_rate, cloning_epochs: of the behaviour-cloned logging policy.
        learning_rate, epochs, slates_per_step: of the training.
        objective: of the training; the value is shown under two normalisations of it.
        bf16: train under bfloat16 autocast, faster where the hardware has it.
        prompts: how many held-out questions every policy answers.
        max_length: maximum number of tokens of prompt and response.
        seed: of everything that is drawn.
    """

    output_dir: Path = Path("demo_output")
    model: str | None = None
    responses_per_slate: int = 6
    holdout_fraction: float = 0.35
    cloning_learning_rate: float = 5e-5
    cloning_epochs: int = 1
    learning_rate: float = 7e-5
    epochs: int = 1
    slates_per_step: int = 8
    objective: Objective = Objective()  # noqa: RUF009 (frozen)
    bf16: bool = False
    prompts: int = 3
    max_length: int = 512
    seed: int = 1


@dataclass(frozen=True)
class Answers:
    """Every policy's answer to a held-out question, with the same seed."""

    question: str
    by_policy: dict[str, str]


@dataclass(frozen=True)
class DemoResult:
    """The results; estimates are on held-out conversations."""

    train: list[Slate]
    heldout: list[Slate]
    fit: FitReport
    evaluations: dict[str, Evaluation]  # by normalisation
    by_conversation: dict[str, Evaluation]  # the same, resampling conversations
    generations: list[Answers]

    def estimate(self, policy: str, normalization: str) -> Estimate:
        return self.evaluations[normalization].of(policy)

    def gain(self, policy: str, over: str, normalization: str) -> Comparison:
        """The paired difference of two policies on the held-out slates."""
        return compare(self.estimate(policy, normalization), self.estimate(over, normalization))


def run_demo(
    config: DemoConfig,
    *,
    say: Callable[[str], None],
    progress: Callable[[str, str], Any],
    callbacks: Sequence[TrainerCallback] = (),
) -> DemoResult:
    """Run the demo and write everything to ``config.output_dir``.

    Args:
        say: prints a line about the current step.
        progress: a context manager that takes a description and a unit, and yields an `OnProgress`.
        callbacks: of the trainer, to show its progress.
    """
    config.output_dir.mkdir(parents=True, exist_ok=True)
    name = config.model or PACKAGED_MODEL
    say(f"model: {name}")
    tokenizer = load_tokenizer(name)
    start = load_model(name).to(best_device())
    train, heldout = demo_slates(config)
    say(
        f"log: {len(train)} slates to train on and {len(heldout)} held out, of {config.responses_per_slate} statements "
        f"each; {len({slate_group(slate) for slate in heldout})} whole conversations are held out"
    )
    logger, fit = clone(start, tokenizer, train, config, progress)
    say(f"logging policy, behaviour-cloned: {fit}")
    logged = [score_log(slates, logger, tokenizer, fit, config, progress) for slates in (train, heldout)]
    for slates, part in zip(logged, ("train", "heldout"), strict=True):
        write_slates(slates, config.output_dir / f"{part}.jsonl")
    questions = _questions(heldout, config.prompts)
    answers = [_answers(policy, tokenizer, questions, config) for policy in (start, logger)]
    before = score(heldout, start, tokenizer, config, progress)
    say("training from the cloned policy, so that every importance weight starts at 1")
    trainer = run_training(
        logger,
        training_config(config),
        logged[0],
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    aligned = trainer.model
    after = score(heldout, aligned, tokenizer, config, progress)
    answers.append(_answers(aligned, tokenizer, questions, config))
    cloned = [slate.logging_logprobs or [] for slate in logged[1]]
    totals = dict(zip(POLICIES, (before, cloned, after), strict=True))
    result = DemoResult(
        train=train,
        heldout=heldout,
        fit=fit,
        evaluations=_evaluate(logged[1], totals, config, None),
        by_conversation=_evaluate(logged[1], totals, config, slate_group),
        generations=[
            Answers(question, dict(zip(POLICIES, texts, strict=True)))
            for question, texts in zip(questions, zip(*answers, strict=True), strict=True)
        ],
    )
    _write(result, config)
    return result


def demo_slates(config: DemoConfig) -> tuple[list[Slate], list[Slate]]:
    """The Polis log, ``responses_per_slate`` responses of each slate, split by conversation."""
    draw = random.Random(config.seed)
    slates = []
    for slate in read_slates(POLIS):
        k = len(slate.completions)
        kept = sorted(draw.sample(range(k), min(config.responses_per_slate, k)))
        slates.append(
            Slate(
                prompt=slate.prompt,
                completions=[str(slate.completions[i]) for i in kept],
                scores=[slate.scores[i] for i in kept],
                slate_id=slate.slate_id,
            )
        )
    return group_split(slates, slate_group, config.holdout_fraction, config.seed)


def training_config(config: DemoConfig) -> PopeConfig:
    return PopeConfig(
        str(config.output_dir / "model"),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        gradient_accumulation_steps=config.slates_per_step,
        lr_scheduler_type="linear",
        warmup_steps=2,
        **config.objective.to_dict(),
        max_length=config.max_length,
        seed=config.seed,
        data_seed=config.seed,
        bf16=config.bf16,
        use_cpu=best_device().type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=best_device().type != "cpu",
    )


def clone(
    start: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Slate],
    config: DemoConfig,
    progress: Callable[[str, str], Any],
) -> tuple[PreTrainedModel, FitReport]:
    """The logging policy. It is fitted to training conversations only, so that the held-out value is estimated on
    conversations that it was not fitted to; a few of the training conversations decide when to stop.
    """
    fitted, stop = group_split(train, slate_group, 0.15, config.seed)
    cloning = BehaviourConfig(
        max_length=config.max_length,
        epochs=config.cloning_epochs,
        learning_rate=config.cloning_learning_rate,
        evaluations_per_epoch=1,
        seed=config.seed,
    )
    with progress("cloning the logging policy", "slates") as report:
        policy = fit_behaviour_policy(start, tokenizer, fitted, stop, cloning, progress=report)
    return policy.model, policy.report


def score(
    slates: list[Slate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: DemoConfig,
    progress: Callable[[str, str], Any],
) -> list[list[float]]:
    """The totals of a policy that did not write the slates."""
    with progress("scoring", "tokens") as report:
        return score_model(slates, model, tokenizer, max_length=config.max_length, progress=report).totals


def score_log(
    slates: list[Slate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fit: FitReport,
    config: DemoConfig,
    progress: Callable[[str, str], Any],
) -> list[Slate]:
    """The slates with the log-probabilities of the cloned logging policy."""
    with progress("scoring", "tokens") as report:
        return score_slates(
            slates,
            model,
            tokenizer,
            how="behaviour_cloned",
            max_length=config.max_length,
            fit=fit,
            progress=report,
        )


def _questions(slates: list[Slate], count: int) -> list[str]:
    """The prompts of the first conversations."""
    distinct = dict.fromkeys(slate.prompt for slate in slates if isinstance(slate.prompt, str))
    return list(distinct)[:count]


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: list[str], config: DemoConfig
) -> list[str]:
    sampling = Sampling(max_new_tokens=48, temperature=0.7, top_p=0.9)
    seeds = [config.seed + index for index in range(len(questions))]
    return [texts[0] for texts in generate(model, tokenizer, questions, sampling=sampling, seeds=seeds)]


def _evaluate(
    heldout: list[Slate],
    totals: dict[str, list[list[float]]],
    config: DemoConfig,
    cluster: Callable[[Slate], str] | None,
) -> dict[str, Evaluation]:
    """The value of every policy, under both normalisations, with bootstrap intervals over slates or conversations."""
    evaluations: dict[str, Evaluation] = {}
    for normalization in NORMALIZATIONS:
        evaluations[normalization] = evaluate_policies(
            heldout,
            totals,
            baseline="base",
            estimators=["pope"],
            objective=replace(config.objective, normalization=normalization),
            cluster=cluster or (lambda slate: slate.slate_id or ""),
            confidence=Confidence("bootstrap", seed=config.seed),
        )
    return evaluations


def _write(result: DemoResult, config: DemoConfig) -> None:
    content = {
        "config": {name: value if name != "output_dir" else str(value) for name, value in asdict(config).items()},
        "fit": {
            "heldout_nats_per_token_before": result.fit.heldout_nats_per_token_before,
            "heldout_nats_per_token": result.fit.heldout_nats_per_token,
        },
        "by_slate": {name: each.to_dict() for name, each in result.evaluations.items()},
        "by_conversation": {name: each.to_dict() for name, each in result.by_conversation.items()},
        "generations": [asdict(answers) for answers in result.generations],
    }
    write_json(config.output_dir / "evaluation.json", content)
    result.evaluations["batch"].write_figure(config.output_dir / "evaluation.png")
