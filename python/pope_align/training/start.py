"""What only the model before training can say: log-probabilities to compare with, and propensities in their place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from accelerate.logging import get_logger

from ..data.schema import Slate
from ..data.tokenize import EncodedSlate
from ..distributed import from_main_process
from ..propensity.logging_policy import score_slates
from ..propensity.scoring import score_responses
from .config import SlateConfig
from .examples import SlateDataset

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = get_logger(__name__)  # of the main process alone


def score_with_start(
    data: SlateDataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: SlateConfig, *, compare: bool
) -> None:
    """Score the slates with the model before training, unless they are scored already.

    Args:
        model: still as before training; an untrained adapter does not change its log-probabilities.
        compare: whether the loss or a metric compares with the start; propensities are computed where the data lack
            them.
    """
    if data.lacks_policy:
        data.set_policy(from_main_process(partial(_as_logging_policy, data, model, tokenizer, args)))
    if compare and data.start_logprobs is None:
        data.start_logprobs = from_main_process(partial(_totals, data, model))


def refuse_without_start(data: SlateDataset, *, compare: bool) -> None:
    """Refuse slates that need scores of the model before training when that model is gone.

    Raises:
        ValueError: names the data.
    """
    gone = "the model before training, which would have to score them, is gone"
    if data.lacks_policy:
        raise ValueError(f"{data.title}: expected slates with logging_logprobs after training has begun: {gone}")
    if compare and data.start_logprobs is None:
        raise ValueError(
            f"{data.title}: expected an evaluation set of the constructor, because the loss compares with the start, "
            f"got other slates after training has begun: {gone}"
        )


def _totals(data: SlateDataset, model: PreTrainedModel) -> list[list[float]]:
    logger.info("computing the log-probabilities of %d slates under the model before training", len(data))
    slates = [EncodedSlate(example["prompt_ids"], example["completion_ids"]) for example in data.examples]
    return score_responses(slates, model)


def _as_logging_policy(
    data: SlateDataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, args: SlateConfig
) -> list[Slate]:
    logger.info("scoring %d slates with the model before training, in the place of the logging policy", len(data))
    return score_slates(
        data.slates,
        model,
        tokenizer,
        how="proxy",
        max_length=args.max_length,
        template_date=args.template_date,
    )
