"""What is in a log, and the stages from it to a decision between policies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.schema import Slate, text_of
from ..ope.asked import DEFAULT_ESTIMATORS, WITH_PREDICTIONS, WITH_TOTALS
from ..ope.crossfit import FOLDS
from ..ope.logging_policies import written_by
from ..ope.long_responses import NAME as MODEL_FIRST
from ..ope.rules import FEW_CLUSTERS
from ..report.run import ANSWERS, EVALUATION, METRICS, SCORED
from .stages import Stage, replaced

#: Characters of a token, about, where no tokenizer has been loaded yet.
_CHARACTERS = 4


@dataclass(frozen=True)
class Options:
    """What a user may ask of `pope compare`.

    Attributes:
        policies: models by name, the baseline first.
        logging_policy: the model that wrote the log; None: recorded in the log, or fitted to it.
        answers: fresh answers of every policy to a prompt.
        max_new_tokens: of an answer.
        max_length: tokens of prompt and response that are kept.
        utility_transform: scores to utilities.
        seed: of fits, answers and bootstraps.
    """

    policies: Mapping[str, str]
    logging_policy: str | None = None
    answers: int = 4
    max_new_tokens: int = 64
    max_length: int = 1024
    utility_transform: str = "calibrated"
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """What a log holds, as far as the plan depends on it."""

    source: tuple[str, ...]  # the files that were given
    format: str
    slates: int
    responses: int
    prompts: int  # distinct
    tokens: int  # of all responses, about
    prompt_tokens: int  # of all prompts, about
    median_tokens: float  # of a response, about
    people: bool
    recorded: int  # slates that have log-probabilities
    how: str  # where these came from

    def lines(self) -> dict[str, str]:
        """For people, in the order of interest."""
        written = "people wrote it, so there is no logging policy" if self.people else "not known to be by people"
        return {
            "log": ", ".join(Path(each).name or each for each in self.source),
            "format": self.format,
            "slates": f"{self.slates:,} of {self.prompts:,} prompts, {self.responses:,} responses",
            "length": f"about {self.median_tokens:.0f} tokens a response (median; {_CHARACTERS} characters a token)",
            "written by": written,
            "propensities": f"{self.how}, of {self.recorded:,} slates" if self.recorded else "none in the log",
        }


def look(slates: Sequence[Slate], *, source: Sequence[str], format: str) -> Found:
    """Count what the plan depends on."""
    lengths = [len(text_of(each)) / _CHARACTERS for slate in slates for each in slate.completions]
    recorded = [slate for slate in slates if slate.logging_logprobs is not None]
    hows = sorted({str((slate.logging_policy or {}).get("how", "unknown")) for slate in recorded})
    return Found(
        source=tuple(source),
        format=format,
        slates=len(slates),
        responses=len(lengths),
        prompts=len({text_of(slate.prompt) for slate in slates}),
        tokens=round(sum(lengths)),
        prompt_tokens=round(sum(len(text_of(slate.prompt)) / _CHARACTERS for slate in slates)),
        median_tokens=statistics.median(lengths),
        people=written_by(slates) == "people",
        recorded=len(recorded),
        how=", ".join(hows),
    )


def stages(found: Found, options: Options, log: Path, folder: Path) -> list[Stage]:
    """The stages after the log has become slates: propensities, answers, evaluation, metrics.

    Args:
        log: the slates.
        folder: the run's.
    """
    if found.prompts < FOLDS:  # which the reward model of the evaluation needs
        raise ValueError(
            f"log: expected at least {FOLDS} different prompts, got {found.prompts}: no verdict is possible "
            "on fewer independent queries"
        )
    propensities = _propensities(found, options, log, folder)
    scored = log if propensities is None else folder / SCORED
    answers = {name: folder / ANSWERS / f"{name}.jsonl" for name in options.policies}
    return [
        *([] if propensities is None else [propensities]),
        *(_answers(name, found, options, log, path) for name, path in answers.items()),
        _evaluation(found, options, scored, answers, folder),
        _metrics(found, options, log, answers, folder),
    ]


def estimators(found: Found) -> list[str]:
    """Those that `pope evaluate` has by default, the one that decides first."""
    others = [*DEFAULT_ESTIMATORS, *WITH_TOTALS, *WITH_PREDICTIONS]
    return [MODEL_FIRST, *others] if found.prompts >= FEW_CLUSTERS else others


def _propensities(found: Found, options: Options, log: Path, folder: Path) -> Stage | None:
    """Log-probabilities under the logging policy, where the log has none: of the model named, or of fitted ones."""
    out, tokens = folder / SCORED, found.tokens + found.prompt_tokens
    common = ("--max-length", str(options.max_length), "--cache", str(folder / "cache"), "-o", str(out))
    if options.logging_policy is not None:
        argv = ["score", str(log), "--model", options.logging_policy, "--how", "recorded", *common]
        if found.recorded:
            argv.append("--overwrite")
        return Stage(
            "propensities",
            f"log-probabilities under {options.logging_policy}, which wrote the log",
            f"{tokens:,} tokens read",
            tuple(argv),
            (str(log), options.logging_policy),
            (str(out),),
        )
    if found.recorded == found.slates:
        return None
    if found.recorded:
        raise ValueError(
            f"log: expected log-probabilities in every slate or in none, got them in {found.recorded:,} of "
            f"{found.slates:,}; name the model that wrote the log (--logging-policy), or leave the others out"
        )
    baseline = next(iter(options.policies.values()))
    fit = ("fit-logger", str(log), "--model", baseline, "--folds", "2", "--epochs", "1", "--seed", str(options.seed))
    return Stage(
        "propensities",
        "a logging policy fitted to the log, in two folds: each half is scored by a model fitted to the other",
        f"{tokens:,} tokens learnt from, as many read",
        (*fit, *common),
        (str(log), baseline),
        (str(out),),
        work=(str(out.with_name(f"{out.name}.fits")),),
        resume=("--resume",),
    )


def _answers(name: str, found: Found, options: Options, log: Path, out: Path) -> Stage:
    model, count = options.policies[name], found.slates * options.answers
    argv = (
        *("generate", str(log), "--model", model, "--name", name, "-n", str(options.answers)),
        *("--max-new-tokens", str(options.max_new_tokens), "--seed", str(options.seed), "-o", str(out)),
    )
    return Stage(
        f"answers-{name}",
        f"{options.answers} fresh answers of {name} to every prompt",
        f"{count:,} answers, up to {count * options.max_new_tokens:,} tokens written",
        argv,
        (str(log), model),
        (str(out),),
        work=(f"{out}.journal",),
    )


def _evaluation(found: Found, options: Options, scored: Path, answers: Mapping[str, Path], folder: Path) -> Stage:
    argv: list[str] = ["evaluate", str(scored)]
    for name, model in options.policies.items():
        argv += ["--policy", f"{name}={model}"]
    for name, path in answers.items():
        argv += ["--samples", f"{name}={path}"]
    if options.logging_policy is not None:
        argv += ["--logging-policy", options.logging_policy]
    for each in estimators(found):
        argv += ["--estimator", each]
    argv += ["--utility-transform", options.utility_transform, "--seed", str(options.seed)]
    argv += ["--max-length", str(options.max_length), "--cache", str(folder / "cache"), "-o", str(folder / EVALUATION)]
    fresh = found.slates * options.answers
    tokens = found.tokens + found.prompt_tokens + fresh * options.max_new_tokens
    return Stage(
        "evaluation",
        f"values, differences, placebo, support; {estimators(found)[0]} decides",
        f"up to {tokens:,} tokens read by each policy",
        tuple(argv),
        (str(scored), *map(str, answers.values()), *options.policies.values()),
        (str(folder / EVALUATION),),
    )


def _metrics(found: Found, options: Options, log: Path, answers: Mapping[str, Path], folder: Path) -> Stage:
    out = (folder / METRICS).parent
    argv = [
        "metrics",
        *(f"{name}={path}" for name, path in answers.items()),
        *("--refs", str(log), "--seed", str(options.seed), "--cache", str(folder / "cache"), "-o", str(out)),
    ]
    texts = found.responses + found.prompts + found.slates * options.answers * len(answers)
    return Stage(
        "metrics",
        "how near the answers are to people's, how plural, helpful and relevant",
        f"up to {texts:,} texts embedded",
        tuple(argv),
        (str(log), *map(str, answers.values())),
        (str(out),),
    )


def record(found: Found, options: Options, all_stages: Sequence[Stage], folder: Path) -> dict[str, Any]:
    """What the report says of how a run was made."""
    return {
        "found": found.lines(),
        "policies": dict(options.policies),
        "stages": [{**stage.to_dict(), "replaced": replaced(stage, folder)} for stage in all_stages],
    }
