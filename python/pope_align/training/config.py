"""Everything that decides a training run: the arguments of transformers, and those of the POPE objective."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from transformers import TrainingArguments

from pope_core.objective import DiversityForm, Normalization, Objective, UtilityForm, Weighting
from pope_core.types import Backend

from ..data.feedback import UtilityTransform


@dataclass
class PopeConfig(TrainingArguments):
    """Arguments of `PopeTrainer`: those of ``transformers.TrainingArguments`` and the ones below.

    ``per_device_train_batch_size`` counts slates. A step sees that many times ``gradient_accumulation_steps`` of them,
    and its loss is their exact mean, however they are split.

    Objective (names and meaning as in `pope_core.linear_pope_loss`, defaults as measured in docs/defaults.md;
    docs/training.md says which combinations are refused, and why):
        diversity_weight: alpha, the weight of diversity against utility.
        weighting: importance weight per "response", per "slate", or its "geometric" mean.
        normalization: divide by nothing ("none"), by the sum of weights of the "slate", or of the "batch".
        clip: largest importance weight; None for no limit.
        utility_form: reward "feedback" itself, or "log_likelihood", utility times log-probability.
        diversity_form: "neg_log_prob" or "entropy".
        length_normalize: mean log-probability per token (biased, less variance) instead of the total.

    Safety:
        kl_weight: weight of a penalty on leaving the model as it was at the start, on the logged responses (see
            `policy_loss.penalty_to_start`); it lets self-normalised weights go with "neg_log_prob". Their
            log-probabilities under the start are computed before training.
        stop_if_ess_below: stop when the effective sample size, as a share of the responses since the last log, falls
            below this; None only warns.
        early_stopping_patience: evaluations without a better held-out value (self-normalised, unless
            ``metric_for_best_model`` says otherwise) after which to stop; the best model is kept. None never stops.

    Reports:
        log_slates: so many held-out slates are written to ``slates.md`` at each evaluation, with their log-weights at
            the first evaluation and now.

    Data:
        utility_transform: how the scores of a slate become utilities in [0, 1]; see `pope_align.data.to_utility`.
        max_length: tokens of prompt and response that are kept.
        template_date: the day, as 2026-11-28, that a chat template which writes today's date is given; None for the
            day under which each slate was scored, or where the log does not say, the one on which the run began.

    Model:
        model_dtype: of the weights, when the model is given by name.
        disable_dropout: set the dropout of the model to 0; dropout makes importance weights noisy. An adapter's own
            ``lora_dropout`` stays as it was asked for.

    Speed:
        prompt_sharing: compute a prompt once for all responses of its slate: "on", "off", or "auto", which does so
            wherever the model can and says so where it cannot.
        max_tokens_per_row: with shared prompts, rows of several slates up to this many tokens, without padding between
            them; None for one slate a row, which suits CPUs.
        chunk_bytes: budget of the logits buffer; None for the device's default.
        backend: of `pope_core`; None for the best one that runs here.

    Raises:
        ValueError: an option that does not fit, or a combination whose loss has no finite or no meaningful optimum.
    """

    # transformers' arguments with other defaults
    learning_rate: float = field(default=3e-5, metadata={"help": "Initial learning rate."})
    per_device_train_batch_size: int = field(default=1, metadata={"help": "Slates per device and micro-batch."})
    per_device_eval_batch_size: int = field(default=1, metadata={"help": "Slates per device and evaluation batch."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Micro-batches per optimizer step."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many optimizer steps."})
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Held-out metric that tells the best model; with early stopping, the value."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay False: a loss that is no number stops the run and is explained."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay False: slates are not columns."})

    # objective
    diversity_weight: float = field(default=0.1, metadata={"help": "alpha, the weight of diversity against utility."})
    weighting: Weighting = field(
        default="response", metadata={"help": "Importance weight per response, per slate, or its geometric mean."}
    )
    normalization: Normalization = field(
        default="slate", metadata={"help": "Divide by nothing, or by the sum of weights of the slate or the batch."}
    )
    clip: float | None = field(default=5.0, metadata={"help": "Largest importance weight; none for no limit."})
    utility_form: UtilityForm = field(
        default="feedback", metadata={"help": "Reward the utility itself, or utility times log-probability."}
    )
    diversity_form: DiversityForm = field(
        default="entropy", metadata={"help": "Diversity of a response: -l, or -exp(l) l."}
    )
    length_normalize: bool = field(
        default=True, metadata={"help": "Mean log-probability per token (biased, less variance), not the total."}
    )

    # safety
    kl_weight: float = field(default=0.0, metadata={"help": "Weight of a penalty on leaving the start."})
    stop_if_ess_below: float | None = field(
        default=None, metadata={"help": "Stop when this share of the responses' weights is no longer effective."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better held-out value after which to stop."}
    )

    # reports
    log_slates: int = field(
        default=0, metadata={"help": "Held-out slates to write to slates.md at each evaluation, with their weights."}
    )

    # data
    utility_transform: UtilityTransform = field(
        default="minmax", metadata={"help": "How the scores of a slate become utilities in [0, 1]."}
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens of prompt and response that are kept."})
    template_date: str | None = field(
        default=None,
        metadata={"help": "Day (2026-11-28) for chat templates that write today's date; none for the log's or run's."},
    )

    # model
    model_dtype: Literal["float32", "bfloat16", "float16", "auto"] = field(
        default="float32", metadata={"help": "Dtype of the weights when the model is given by name."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set the dropout of the model to 0."})

    # speed
    prompt_sharing: Literal["auto", "on", "off"] = field(
        default="auto", metadata={"help": "Compute a prompt once for all responses of its slate."}
    )
    max_tokens_per_row: int | None = field(
        default=None, metadata={"help": "Rows of several slates up to this many tokens; none for one slate a row."}
    )
    chunk_bytes: int | None = field(default=None, metadata={"help": "Budget of the logits buffer, in bytes."})
    backend: Backend | None = field(default=None, metadata={"help": "Backend of pope_core; none for the best here."})

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
            self.restore_callback_states_from_checkpoint = True  # the count of evaluations without a better value
            if not self.metric_for_best_model:
                self.metric_for_best_model = "eval_pope/value_self_normalized"
                self.greater_is_better = True
        super().__post_init__()
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns: expected False, because slates are not columns; got True")
        if self.logging_nan_inf_filter:
            raise ValueError(
                "logging_nan_inf_filter: expected False, because a loss that is no number stops the run; got True"
            )
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                "train_sampling_strategy: expected 'random' or 'sequential', whose order resumes exactly, got "
                f"{self.train_sampling_strategy!r}"
            )
        if not (math.isfinite(self.kl_weight) and self.kl_weight >= 0):
            raise ValueError(f"kl_weight: expected a finite number >= 0, got {self.kl_weight!r}")
        if self.stop_if_ess_below is not None and not 0 < self.stop_if_ess_below < 1:
            raise ValueError(f"stop_if_ess_below: expected None or a share in (0, 1), got {self.stop_if_ess_below!r}")
        refuse_degenerate(self.objective, anchored=self.kl_weight > 0)

    @property
    def objective(self) -> Objective:
        """The objective's options, validated one by one."""
        return Objective(
            diversity_weight=self.diversity_weight,
            weighting=self.weighting,
            normalization=self.normalization,
            clip=self.clip,
            utility_form=self.utility_form,
            diversity_form=self.diversity_form,
            length_normalize=self.length_normalize,
        )


def refuse_degenerate(objective: Objective, *, anchored: bool = False) -> None:
    """Refuse objectives that estimate a value well enough but that training drives to nonsense.

    Args:
        anchored: a penalty holds the policy to its start, so that log-probabilities cannot run away together.

    Raises:
        ValueError: with the reason and what to use instead. docs/training.md derives each.
    """
    self_normalized = objective.normalization != "none"
    unbounded = objective.diversity_form == "neg_log_prob" and objective.diversity_weight > 0
    if self_normalized and unbounded and not anchored:
        raise ValueError(
            f"diversity_form: 'neg_log_prob' has no anchor with normalization={objective.normalization!r}: "
            "self-normalised weights see only ratios of probabilities, so the reward -l grows without bound as all "
            "log-probabilities fall; use diversity_form='entropy' (bounded), diversity_weight=0, a kl_weight > 0, or "
            "normalization='none' with a clip"
        )
    if (
        objective.normalization == "slate"
        and objective.weighting in ("slate", "geometric")
        and objective.utility_form == "feedback"
    ):
        raise ValueError(
            f"weighting: {objective.weighting!r} gives all responses of a slate one weight, which "
            "normalization='slate' divides out again, so the feedback has no gradient; use weighting='response', or "
            "normalization='none' or 'batch'"
        )
    if objective.utility_form == "log_likelihood" and not self_normalized:
        raise ValueError(
            "utility_form: 'log_likelihood' with normalization='none' rewards w l, whose slope w (1 + l) is negative "
            "below l = -1 nat: good responses would be pushed down; use normalization='slate' with "
            "weighting='geometric' (likelihood weighted by utility), or utility_form='feedback'"
        )
    if objective.utility_form == "log_likelihood" and objective.weighting == "response":
        raise ValueError(
            "utility_form: 'log_likelihood' with weighting='response' rewards u l <= 0, which is largest for responses "
            "of utility 0: self-normalised weights would move to the worst ones; use weighting='geometric' with "
            "normalization='slate' (likelihood weighted by utility), or utility_form='feedback'"
        )
