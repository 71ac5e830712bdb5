"""The configuration of a training run: the arguments of transformers and ours."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import TrainingArguments

from .options import ListwiseOptions, PopeOptions, SlateOptions


@dataclass
class SlateConfig(SlateOptions, TrainingArguments):
    """What `PopeConfig` and `ListwiseConfig` have in common."""

    def __post_init__(self) -> None:
        if self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
            self.restore_callback_states_from_checkpoint = True  # the count of evaluations without a better value
            if not self.metric_for_best_model:
                self.metric_for_best_model, self.greater_is_better = "eval_index/gain", True
        super().__post_init__()
        if self.train_sampling_strategy not in ("random", "sequential"):
            raise ValueError(
                "train_sampling_strategy: expected 'random' or 'sequential', whose order resumes exactly, got "
                f"{self.train_sampling_strategy!r}"
            )
        self.check()


@dataclass
class PopeConfig(PopeOptions, SlateConfig):
    """Arguments of `PopeTrainer`: those of ``transformers.TrainingArguments`` and the ones below.

    ``per_device_train_batch_size`` counts slates. A step uses ``gradient_accumulation_steps`` times as many, and its
    loss is their exact mean, however they are split.

    Objective: the fields of `pope_core.Objective`, by the same names; `objective` is the value they make. The defaults
    are measured in docs/defaults.md, and docs/training.md says which combinations are refused, and why.

    Safety:
        kl_weight: weight of a KL penalty on the logged responses, which keeps the model close to its start (see
            `policy_loss.penalty_to_start`); with it, self-normalised weights may be combined with "neg_log_prob".
            Log-probabilities under the start are computed before training.
        stop_if_ess_below: stop when the effective sample size, as a share of the responses since the last log, falls
            below this; None only warns.
        early_stopping_patience: stop after this many evaluations without a larger `held_out_index.held_out_gain` (or
            a better ``metric_for_best_model``) and keep the best model; its placebo is logged beside it. None never
            stops.

    Reports:
        log_slates: write this many held-out slates to ``slates.md`` at each evaluation, with their log-weights at the
            first evaluation and now.

    Data:
        logging_policy: where propensities come from. "log": the ``logging_logprobs`` of the slates. "start": the model
            before training, a proxy, which scores the slates when training begins. None: "start" for preference
            datasets in TRL's formats, which have no propensities, and "log" for slates.
        utility_transform: how the scores of a slate become utilities; see `utilities.utilities_of`.
        max_length: maximum number of tokens of prompt and response.
        template_date: the date (2026-11-28) for chat templates that write today's date; None for the date with which
            each slate was scored or, if the log has none, the day on which the run began.

    Model:
        model_dtype: dtype of the weights if the model is given by name.
        disable_dropout: set the dropout of the model to 0; dropout makes importance weights noisy. An adapter's own
            ``lora_dropout`` is not changed.

    Speed:
        prompt_sharing: compute a prompt once for all responses of its slate: "on", "off", or "auto", which does so if
            the model allows it and warns otherwise.
        max_tokens_per_row: with shared prompts, rows of several slates up to this many tokens, without padding between
            them; None for one slate per row, which suits CPUs.
        chunk_bytes: size of the logits buffer; None for the device's default.
        backend: of `pope_core`; None for the best one that runs here.

    Raises:
        ValueError: an invalid option, or a combination whose loss has no finite or no meaningful optimum.
    """


@dataclass
class ListwiseConfig(ListwiseOptions, SlateConfig):
    """Arguments of `ListwiseTrainer`: those of ``transformers.TrainingArguments``, those that `PopeConfig` documents
    under "Data", "Model" and "Speed", its ``early_stopping_patience``, and these:

    method: the loss, one of `methods.LISTWISE`.
    beta: strength of the KL regularisation to the reference; None for the method's default.

    Raises:
        ValueError: an invalid option, or one that the method does not have.
    """
