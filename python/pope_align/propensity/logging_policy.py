"""The logging policy: the log-probability of every logged response under it, and its provenance.

`score_slates` fills ``logging_logprobs`` and ``completion_tokens`` of a log with the scores of the logging policy, or
of a model in its place, and the provenance as ``Slate.logging_policy``. Nothing else writes these fields; scores of
other models are `scores.ModelScores`. The provenance:

=========================  ================================================================================
``how``                    ``recorded`` (this model wrote the responses), ``behaviour_cloned`` (it was fitted to
                           the log) or ``proxy`` (a stand-in; estimates from it are never unbiased)
``model``                  name or path, and ``model_fingerprint``: a hash of configuration and weights
``tokenizer``              name or path, and ``tokenizer_fingerprint``: a hash of what determines the tokens
``chat_template``          hash of the template, None without one
``dtype``                  of the weights
``max_length``             maximum tokens of prompt and response
``rope``                   how rotary frequencies depend on the length of a sequence, if they do
``template_date``          the date for the chat template, if it writes today's date
``sampling``               settings of the sampler whose distribution these log-probabilities are of, if they
                           were recorded while sampling
``sampled_with``           settings that the responses were drawn with and these log-probabilities leave out
``training``               the training objective, if it is in the model's folder
``versions``               of torch, transformers and pope-core
``fit``                    of a behaviour-cloned policy with a report (`propensity.fit_report`): held-out nats per token
                           before and after, responses fitted to, seed, ``fold`` and ``folds`` when
                           cross-fitted, and ``in_sample``, how many of this slate's responses it was fitted to
=========================  ================================================================================
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..data.schema import Slate
from ..data.tokenize import EncodedSlate
from ..generation.sampling import sampled_with
from .fit_report import FitReport, response_key
from .scores import encode_log, score_model
from .scoring import OnProgress
from .unscored import check_unscored

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

#: The relation of a model to the log that it scores as the logging policy.
HowLogged = Literal["recorded", "behaviour_cloned", "proxy"]

logger = logging.getLogger(__name__)


def score_slates(
    slates: Sequence[Slate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    how: HowLogged,
    max_length: int,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    fit: FitReport | None = None,
    fold: tuple[int, int] | None = None,
    template_date: str | None = None,
    progress: OnProgress | None = None,
) -> list[Slate]:
    """The same slates with ``logging_logprobs`` (totals, nats), ``completion_tokens`` and ``logging_policy`` filled in.

    The log-probabilities are those of `propensity.scoring.score_responses`, which batches by length, resumes from
    ``cache_dir`` after a kill, and does not change the model's modes or a random state.

    Args:
        slates: the log.
        model: any causal language model of transformers, on its device and in its dtype.
        tokenizer: the model's.
        how: the relation of the model to the log; see the module's table.
        max_length: as in `encode_slate`; truncation is logged.
        batch_tokens: upper bound of rows times length in one forward pass (a single longer response runs alone).
        cache_dir: folder of the cache, created if missing; None disables caching.
        overwrite: replace log-probabilities that the slates already have.
        fit: the report of a behaviour-cloned model's fit, for the provenance. Responses that the model was fitted to
            are counted there, with a warning: their log-probabilities are too high.
        fold: number of this fold and of all folds, if cross-fitted.
        template_date: as in `encode_slate`; for a behaviour-cloned model the date of its fit, whatever the slates have.
        progress: called after every batch, and once before the first.

    Raises:
        ValueError: an unknown ``how``; a ``fit`` with another ``how``, or made at another ``max_length``; a slate that
            already has ``logging_logprobs`` without ``overwrite``; errors of `encode_slate`; an invalid cache file.
    """
    template_date = check_how(how, fit, max_length, template_date)
    if not overwrite:
        check_unscored(slates)
    encoded = encode_log(slates, tokenizer, max_length=max_length, template_date=template_date)
    return fill_in(
        slates,
        encoded,
        model,
        tokenizer,
        how=how,
        max_length=max_length,
        batch_tokens=batch_tokens,
        cache_dir=cache_dir,
        fit=fit,
        fold=fold,
        progress=progress,
    )


def check_how(how: HowLogged, fit: FitReport | None, max_length: int, template_date: str | None) -> str | None:
    """Refuse what does not go together; returns the date for the chat template.

    Raises:
        ValueError: as `score_slates`.
    """
    if how not in get_args(HowLogged):
        raise ValueError(f"how: expected one of {', '.join(get_args(HowLogged))}, got {how!r}")
    if fit is None:
        return template_date
    _check_fit(fit, how, max_length, template_date)
    return fit.config.template_date or template_date


def fill_in(
    slates: Sequence[Slate],
    encoded: Sequence[EncodedSlate],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    how: HowLogged,
    max_length: int,
    batch_tokens: int = 8192,
    cache_dir: str | os.PathLike[str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    fit: FitReport | None = None,
    fold: tuple[int, int] | None = None,
    progress: OnProgress | None = None,
) -> list[Slate]:
    """`score_slates` of slates that are checked and tokenised.

    Args:
        encoded: the slates' tokens, by `encode_slates` with this tokenizer and ``max_length``.
        provenance: as in `scores.score_model`.
    """
    scores = score_model(
        encoded,
        model,
        tokenizer,
        max_length=max_length,
        batch_tokens=batch_tokens,
        cache_dir=cache_dir,
        provenance=provenance,
        progress=progress,
    )
    policy = {"how": how, **scores.provenance}
    if fit is not None:
        policy["fit"] = _fit_provenance(fit, fold)
    scored = []
    for slate, ids, totals, tokens in zip(slates, encoded, scores.totals, scores.tokens, strict=True):
        its_policy = dict(policy)
        if ids.template_date is not None:
            its_policy["template_date"] = ids.template_date
        if how == "recorded" and (
            altered := (slate.origin or {}).get("sampled_with") or sampled_with(slate.logging_policy)
        ):
            its_policy["sampled_with"] = altered
        if fit is not None:
            its_policy["fit"] = {**policy["fit"], "in_sample": _in_sample(slate, fit)}
        before = (slate.logging_policy or {}).get("tokenizer_fingerprint")
        scored.append(
            replace(
                slate,
                logging_logprobs=totals,
                completion_tokens=tokens,
                completion_ids=slate.completion_ids if before == ids.tokenizer else None,  # of another tokenizer
                logging_policy=its_policy,
            )
        )
    _warn_in_sample(scored)
    _warn_sampled_otherwise(scored)
    return scored


def check_token_counts(slate: Slate, encoded: EncodedSlate, where: str) -> None:
    """Refuse log-probabilities that were computed for other tokens than those to train on.

    Applies if the slate has ``completion_tokens`` and was scored with the tokenizer of ``encoded``: then counts can
    differ only because of different maximum lengths. With another tokenizer different counts are normal.

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


def _check_fit(fit: FitReport, how: HowLogged, max_length: int, template_date: str | None) -> None:
    if how != "behaviour_cloned":
        raise ValueError(f"how: expected 'behaviour_cloned' for a model with the report of a fit, got {how!r}")
    if fit.config.max_length != max_length:
        raise ValueError(
            f"max_length: expected {fit.config.max_length}, which the policy was fitted with, got {max_length}"
        )
    if None not in (template_date, fit.config.template_date) and template_date != fit.config.template_date:
        raise ValueError(
            f"template_date: expected {fit.config.template_date}, which the policy was fitted with, got {template_date}"
        )


def _fit_provenance(fit: FitReport, fold: tuple[int, int] | None) -> dict[str, Any]:
    return {
        "heldout_nats_per_token": fit.heldout_nats_per_token,
        "heldout_nats_per_token_before": fit.heldout_nats_per_token_before,
        "train_responses": fit.train_responses,
        "seed": fit.config.seed,
        "fold": None if fold is None else fold[0],
        "folds": None if fold is None else fold[1],
    }


def _in_sample(slate: Slate, fit: FitReport) -> int:
    return sum(response_key(slate.prompt, completion) in fit.seen for completion in slate.completions)


def _warn_sampled_otherwise(slates: Sequence[Slate]) -> None:
    altered = [found for slate in slates if (found := (slate.logging_policy or {}).get("sampled_with"))]
    if altered:
        logger.warning(
            "%d of %d slates were sampled with %s, but are scored without: these are not the probabilities with which "
            "the responses were drawn; record them while sampling (pope generate --logprobs)",
            len(altered),
            len(slates),
            ", ".join(f"{name} {value}" for name, value in altered[0].items()),
        )


def _warn_in_sample(slates: Sequence[Slate]) -> None:
    fits = [(slate.logging_policy or {}).get("fit") for slate in slates]
    count = sum(fit["in_sample"] for fit in fits if fit is not None)
    if count:
        logger.warning(
            "%d of %d responses were scored by a policy that was fitted to them and gives them too much probability: "
            "their importance weights are too small; cross-fit (pope fit-logger --folds) to avoid it",
            count,
            sum(len(slate.completions) for slate in slates),
        )
