"""Slates to examples: tokens, utilities and the logging policy's log-probabilities, checked against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .collate import SlateExample
from .schema import Slate
from .tokenize import EncodedSlate, TruncationReport, encode_slates
from .utility import UtilityTransform, to_utility

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def make_examples(
    slates: Sequence[Slate], tokenizer: PreTrainedTokenizerBase, *, max_length: int, utility_transform: UtilityTransform
) -> tuple[list[SlateExample], list[EncodedSlate], TruncationReport]:
    """Everything the objective needs of each slate, in order, with the token ids and what tokenising cut.

    Raises:
        ValueError: a slate without ``logging_logprobs`` (score the log first), with log-probabilities of other tokens
            than its own, or with a ``weight``, which the objective does not know.
    """
    for number, slate in enumerate(slates, start=1):
        if slate.logging_logprobs is None:
            raise ValueError(
                f"{_name(slate, number)}: logging_logprobs: expected the log-probabilities of the logging policy, "
                "got none; run `pope score` on the log first"
            )
        if slate.weight is not None and slate.weight != 1:
            raise ValueError(
                f"{_name(slate, number)}: weight: expected none or 1 (every slate counts the same), got {slate.weight}"
            )
    encoded, report = encode_slates(slates, tokenizer, max_length=max_length)
    examples: list[SlateExample] = []
    for number, (slate, tokens) in enumerate(zip(slates, encoded, strict=True), start=1):
        check_token_counts(slate, tokens, _name(slate, number))
        assert slate.logging_logprobs is not None
        examples.append(
            SlateExample(
                prompt_ids=tokens.prompt_ids,
                completion_ids=tokens.completion_ids,
                utility=to_utility(slate.scores, utility_transform).tolist(),
                logging_logprobs=slate.logging_logprobs,
            )
        )
    return examples, encoded, report


def check_token_counts(slate: Slate, encoded: EncodedSlate, where: str) -> None:
    """Refuse log-probabilities that belong to other tokens than those about to be trained on.

    Applies when the slate has ``completion_tokens`` and its provenance names the tokenizer that ``encoded`` came from:
    then the counts can differ only because the two were cut at different lengths. With another tokenizer the counts may
    differ honestly.

    Raises:
        ValueError: a response with another number of tokens than was scored.
    """
    same = (slate.logging_policy or {}).get("tokenizer_fingerprint") == encoded.tokenizer
    if slate.completion_tokens is None or not same:
        return
    for index, (scored, ids) in enumerate(zip(slate.completion_tokens, encoded.completion_ids, strict=True)):
        if scored != len(ids):
            scored_length = (slate.logging_policy or {}).get("max_length")
            raise ValueError(
                f"{where}: completion_tokens[{index}]: expected the {scored} tokens that logging_logprobs was summed "
                f"over, got {len(ids)}; use the max_length it was scored with ({scored_length}), or score the log again"
            )


def _name(slate: Slate, number: int) -> str:
    return f"slate {number}" + (f" ({slate.slate_id})" if slate.slate_id else "")
