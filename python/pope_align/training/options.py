"""The options of a training run, without torch, so that `pope train` checks them before anything is loaded.

`PopeOptions` and `ListwiseOptions` are the fields that `PopeConfig` and `ListwiseConfig` add to
``transformers.TrainingArguments``, with `SlateOptions` in common; `RunOptions` are the model, data, method and adapter.
Names, types, defaults and help are defined here only, those of the objective in `pope_core.Objective` and of list-wise
losses in `methods`.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

from pope_core.objective import Objective

from ..data.tokenize import check_day
from ..data.transforms import UtilityTransform as UtilityTransform
from .methods import LISTWISE, ListwiseName, TrainingMethod

if TYPE_CHECKING:
    from peft import PeftConfig

    from pope_core.types import Backend as Backend

Pairs = Literal["best-worst", "all"]

#: "auto" is what `pope label` wrote into the log, or else "minmax"; "reward" are the scores as they are: any numbers.
TrainingTransform = Literal["auto", "reward", UtilityTransform]

#: Whether a prompt is computed once for all its responses: "auto" if the model allows it.
PromptSharing = Literal["auto", "on", "off"]


def _about(text: str, **rest: Any) -> dict[str, Any]:
    """A field's metadata: its help, its lower bound as ``above`` or ``at_least``, and the ``methods`` that use it."""
    return {"help": text, **rest}


def _flat(each: Field[Any]) -> tuple[str, Any, Any]:
    return each.name, each.type, field(default=each.default, metadata=each.metadata)


#: A class with the fields of `Objective` to inherit, because YAML keys and flags are flat.
_ObjectiveFields: Any = make_dataclass("_ObjectiveFields", [_flat(each) for each in fields(Objective)])
_ObjectiveFields.__module__ = Objective.__module__  # the module in which its type names are defined


@dataclass
class SlateOptions:
    """The options of every method that trains on slates in our loop, in addition to those of transformers."""

    @property
    def needs_propensities(self) -> bool:
        """Whether slates need ``logging_logprobs``."""
        raise NotImplementedError

    @property
    def needs_utility_from_zero(self) -> bool:
        """Whether the loss has no meaningful optimum if a utility is negative."""
        raise NotImplementedError

    @property
    def needs_start(self) -> bool:
        """Whether log-probabilities under the model before training are needed."""
        raise NotImplementedError

    # transformers' arguments with other defaults
    learning_rate: float = field(default=3e-5, metadata=_about("Initial learning rate.", at_least=0))
    per_device_train_batch_size: int = field(
        default=1, metadata=_about("Slates per device and micro-batch.", at_least=1)
    )
    per_device_eval_batch_size: int = field(
        default=1, metadata=_about("Slates per device and evaluation batch.", at_least=1)
    )
    gradient_accumulation_steps: int = field(
        default=8, metadata=_about("Micro-batches per optimizer step.", at_least=1)
    )
    logging_steps: float = field(default=1, metadata=_about("Log every this many optimizer steps.", above=0))
    metric_for_best_model: str | None = field(
        default=None,
        metadata=_about("Held-out metric of the best model; with early stopping, eval_index/gain."),
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata=_about("Must stay False: a loss that is not finite stops the run with an explanation.")
    )
    remove_unused_columns: bool = field(default=False, metadata=_about("Must stay False: slates are not columns."))

    # safety
    early_stopping_patience: int | None = field(
        default=None, metadata=_about("Stop after this many evaluations without a larger held-out gain.", at_least=1)
    )

    # data
    logging_policy: Literal["log", "start"] | None = field(
        default=None,
        metadata=_about(
            "Where propensities come from: log, the slates'; start, the model before training; none: start for "
            "preference datasets, which have none."
        ),
    )
    utility_transform: TrainingTransform = field(
        default="auto",
        metadata=_about("Transform of a slate's scores to utilities; auto: the log's, else minmax."),
    )
    max_length: int = field(
        default=1024, metadata=_about("Maximum number of tokens of prompt and response.", at_least=2)
    )
    template_date: str | None = field(
        default=None,
        metadata=_about(
            "Date (2026-11-28) for chat templates that write today's; none: the log's, else that of the run."
        ),
    )

    # model
    model_dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32", metadata=_about("Dtype of the weights if the model is given by name.")
    )
    disable_dropout: bool = field(default=True, metadata=_about("Set the dropout of the model to 0."))

    # speed
    prompt_sharing: PromptSharing = field(
        default="auto", metadata=_about("Compute a prompt once for all responses of its slate.")
    )
    max_tokens_per_row: int | None = field(
        default=None,
        metadata=_about("Rows of several slates up to this many tokens; none: one slate per row.", at_least=1),
    )
    chunk_bytes: int | None = field(default=None, metadata=_about("Size of the logits buffer, in bytes.", at_least=1))
    backend: Literal["cpu", "cuda", "triton", "reference"] | None = field(
        default=None, metadata=_about("Backend of pope_core; none: the best one that runs here.")
    )

    def check(self) -> None:
        """Refuse an invalid option.

        Raises:
            ValueError: by name, with what was expected.
        """
        for name in ("remove_unused_columns", "logging_nan_inf_filter"):
            if getattr(self, name):
                why = next(each.metadata["help"] for each in fields(SlateOptions) if each.name == name)
                raise ValueError(f"{name}: expected False, got True. {why}")
        for each in fields(self):
            check_range(each.name, getattr(self, each.name), each.metadata)
        if self.logging_policy not in ("log", "start", None):
            raise ValueError(f"logging_policy: expected 'log', 'start' or None, got {self.logging_policy!r}")
        if self.template_date is not None:
            check_day(self.template_date)


@dataclass
class PopeOptions(SlateOptions, _ObjectiveFields):
    """The options of a POPE run in addition to those of transformers; `PopeConfig` documents them.

    Raises:
        ValueError: by `check`.
    """

    # safety
    kl_weight: float = field(
        default=0.0, metadata=_about("Weight of the KL penalty, which keeps the model close to its start.", at_least=0)
    )
    stop_if_ess_below: float | None = field(
        default=None, metadata=_about("Stop when the effective sample size falls below this share of the responses.")
    )

    # reports
    log_slates: int = field(
        default=0,
        metadata=_about(
            "Number of held-out slates to write to slates.md at each evaluation, with their weights.", at_least=0
        ),
    )

    @property
    def needs_propensities(self) -> bool:
        return True

    @property
    def needs_utility_from_zero(self) -> bool:
        return self.objective.rewards_likelihood

    @property
    def needs_start(self) -> bool:
        return self.kl_weight > 0

    @property
    def objective(self) -> Objective:
        """The options of the objective as one value."""
        return Objective(**{each.name: getattr(self, each.name) for each in fields(Objective)})

    def check(self) -> None:
        """As `SlateOptions.check`; also refuse a combination whose loss has no finite or no meaningful optimum."""
        super().check()
        if self.stop_if_ess_below is not None and not 0 < self.stop_if_ess_below < 1:
            raise ValueError(f"stop_if_ess_below: expected None or a share in (0, 1), got {self.stop_if_ess_below!r}")
        refuse_degenerate(self.objective, anchored=self.kl_weight > 0)


@dataclass
class ListwiseOptions(SlateOptions):
    """The options of a run with a list-wise loss in addition to those of transformers; `ListwiseConfig` documents them.

    Options of a loss are None by default, which stands for the method's default in `methods.LISTWISE`.
    """

    method: ListwiseName = field(default="lipo", metadata=_about("The list-wise loss."))
    beta: float | None = field(
        default=None, metadata=_about("Strength of the KL regularisation to the reference.", above=0)
    )

    @property
    def needs_propensities(self) -> bool:
        return LISTWISE[self.method].reference == "logging"

    @property
    def needs_utility_from_zero(self) -> bool:
        return LISTWISE[self.method].utility_from_zero

    @property
    def needs_start(self) -> bool:
        return LISTWISE[self.method].reference == "start"

    @property
    def loss_options(self) -> dict[str, float]:
        """The keyword arguments of the loss."""
        given = {name: getattr(self, name) for name in LISTWISE[self.method].options}
        return {name: LISTWISE[self.method].options[name] if value is None else value for name, value in given.items()}

    def check(self) -> None:
        """As `SlateOptions.check`; also refuse an option that the method does not have."""
        super().check()
        if self.method not in LISTWISE:
            raise ValueError(f"method: expected one of {', '.join(LISTWISE)}, got {self.method!r}")
        for name in LOSS_OPTIONS:
            value = getattr(self, name)
            if value is not None and name not in LISTWISE[self.method].options:
                raise ValueError(f"{name}: expected None for method {self.method!r}, which has none, got {value!r}")


#: The options of list-wise losses; each method has some of them.
LOSS_OPTIONS = tuple(dict.fromkeys(name for method in LISTWISE.values() for name in method.options))
#: The options of each method; SFT and DPO have TRL's.
OPTIONS: dict[TrainingMethod, type[SlateOptions]] = {"pope": PopeOptions, **dict.fromkeys(LISTWISE, ListwiseOptions)}


@dataclass
class RunOptions:
    """The model, data, method and adapter of a run.

    Attributes:
        train_data: scored slates (`pope score`), .jsonl or .parquet.
        model: hub name, folder or GGUF file.
        eval_data: scored slates of other prompts, for evaluation.
        method: "pope", or a method to compare with on the same slates: "sft" on the best-scored response, "dpo" on
            pairs (both by TRL), or one of `methods.LISTWISE`.
        pairs: of "dpo": "best-worst" of every slate, or "all" pairs of different scores.
        lora_rank: train an adapter of this rank and freeze the model; None trains all weights.
        lora_alpha: scale of the adapter; None for twice the rank.
        lora_targets: names of the layers that get it; the language-model head may not be among them.
        dry_run: print the plan and stop.
        overwrite: replace the results of another run.
    """

    train_data: str = field(metadata=_about("Scored slates (pope score): .jsonl or .parquet."))
    model: str = field(metadata=_about("Hub name, folder or GGUF file."))
    eval_data: str | None = field(default=None, metadata=_about("Scored slates of other prompts, for evaluation."))
    method: TrainingMethod = field(
        default="pope", metadata=_about("pope, or a method to compare with on the same slates.")
    )
    pairs: Pairs = field(
        default="best-worst", metadata=_about("Pairs of dpo: best-worst of each slate, or all.", methods=("dpo",))
    )
    lora_rank: int | None = field(
        default=None, metadata=_about("Train an adapter of this rank; none trains all weights.", at_least=1)
    )
    lora_alpha: int | None = field(
        default=None, metadata=_about("Scale of the adapter; none for twice the rank.", at_least=1)
    )
    lora_targets: str = field(
        default="all-linear", metadata=_about("Layers that get the adapter: names with commas, or all-linear.")
    )
    dry_run: bool = field(default=False, metadata=_about("Print the plan and stop."))
    overwrite: bool = field(default=False, metadata=_about("Replace the results of another run in the folder."))

    def check(self) -> None:
        """Refuse options that cannot be run.

        Raises:
            ValueError: by name, with what was expected.
        """
        for each in fields(self):
            check_range(each.name, getattr(self, each.name), each.metadata)
        if self.dry_run and self.method in ("sft", "dpo"):
            raise ValueError(f"dry_run: expected a method that is not trained by TRL, got {self.method!r}")
        if self.pairs != "best-worst" and self.method != "dpo":
            raise ValueError(f"pairs: not for method {self.method!r}; only for 'dpo'")

    def peft_config(self) -> PeftConfig | None:
        """The adapter of ``lora_rank``; None without one."""
        from .._extras import require

        if self.lora_rank is None:
            return None
        peft = require("peft", extra="train", purpose="for lora_rank")
        targets = self.lora_targets if self.lora_targets == "all-linear" else self.lora_targets.split(",")
        return peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=self.lora_rank,
            lora_alpha=self.lora_alpha or 2 * self.lora_rank,
            target_modules=targets,
        )


def check_range(name: str, value: Any, about: Any) -> None:
    """Refuse a number that is not finite, or outside the range in the field's metadata (``above``, ``at_least``)."""
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    above, at_least = about.get("above"), about.get("at_least")
    if above is None and at_least is None:
        return
    fits = math.isfinite(value) and (value > above if at_least is None else value >= at_least)
    if not fits:
        end = f"> {above}" if at_least is None else f">= {at_least}"
        raise ValueError(f"{name}: expected a finite number {end}, got {value!r}")


def refuse_degenerate(objective: Objective, *, anchored: bool = False) -> None:
    """Refuse objectives that are usable as estimates but degenerate when maximised.

    Args:
        anchored: whether a KL penalty keeps log-probabilities from drifting together.

    Raises:
        ValueError: with the reason and the alternative; see docs/training.md.
    """
    if objective.self_normalized and objective.unbounded_diversity and not anchored:
        raise ValueError(
            f"diversity_form: 'neg_log_prob' has no anchor with normalization={objective.normalization!r}: "
            "self-normalised weights see only ratios of probabilities, so the reward -l grows without bound as all "
            "log-probabilities fall; use diversity_form='entropy' (bounded), diversity_weight=0, a kl_weight > 0, or "
            "normalization='none' with a clip"
        )
    if objective.normalized_within_slates and objective.weighs_slates and not objective.rewards_likelihood:
        raise ValueError(
            f"weighting: {objective.weighting!r} gives all responses of a slate one weight, which "
            f"normalization={objective.normalization!r} divides out again, so the feedback has no gradient; use "
            "weighting='response', or normalization='none' or 'batch'"
        )
    if objective.rewards_likelihood and not objective.self_normalized:
        raise ValueError(
            f"utility_form: {objective.utility_form!r} with normalization={objective.normalization!r} rewards w l, "
            "whose slope w (1 + l) is negative below l = -1 nat: good responses would be pushed down; use "
            "normalization='slate' with weighting='geometric' (likelihood weighted by utility), or "
            "utility_form='feedback'"
        )
    if objective.rewards_likelihood and not objective.weighs_slates:
        raise ValueError(
            f"utility_form: {objective.utility_form!r} with weighting={objective.weighting!r} rewards u l <= 0, which "
            "is largest for responses of utility 0: self-normalised weights would move to the worst ones; use "
            "weighting='geometric' with normalization='slate' (likelihood weighted by utility), or "
            "utility_form='feedback'"
        )
