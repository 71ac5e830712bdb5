"""The logging policy when nobody recorded it: a language model fitted to all logged responses by maximum likelihood.

`fit_behaviour_policy` fits one model and stops when held-out responses stop becoming more likely. A model that scores
the rows it was fitted to finds them too likely, so importance weights from it are too small just where the policy
learned: `cross_fitted_slates` fits one model for each fold of the groups, on the other folds, and scores every response
with a model that saw nothing of its group.
"""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .._extras import require
from ..data.rows import Tree, lay_out
from ..data.schema import Slate
from ..data.split import group_folds, group_split
from ..data.tokenize import EncodedSlate, encode_slates
from ..limits import check_limits
from ..model import merged, response_logprobs, rows_on
from ..sharing import sharing_obstacle
from .fit_report import BehaviourConfig, FitReport, HeldOutScore, response_key
from .logging_policy import score_slates
from .scoring import OnProgress, score_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class BehaviourPolicy(NamedTuple):
    """A fitted policy and the report of its fit."""

    model: PreTrainedModel
    report: FitReport

    def save(self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """Write model, tokenizer and report so that `load_model`, `load_tokenizer` and `FitReport.read` find them."""
        self.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        self.report.write(folder)


def fit_behaviour_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train_slates: Sequence[Slate],
    heldout_slates: Sequence[Slate],
    config: BehaviourConfig | None = None,
    *,
    progress: OnProgress | None = None,
) -> BehaviourPolicy:
    """Fit a copy of ``model`` to all logged responses by maximum likelihood, stopped early on held-out ones.

    Maximises ``sum_i log pi(y_i | q_i)`` over all training responses, whatever their scores: each logged response is
    one draw from the logging policy and counts once, so each response *token* has the same weight. The prompt's tokens
    have none. A step divides by the tokens of its own responses. AdamW without weight decay, gradients clipped to
    norm 1.

    The same arguments give the same policy on the same machine; the global random state is left as it was, and so is
    ``model``.

    Args:
        model: the start, any causal language model of transformers, on its device.
        tokenizer: the model's.
        train_slates: what to fit.
        heldout_slates: what decides when to stop, and which weights are kept; best of other groups than the training
            slates (`group_split`).
        config: see `BehaviourConfig`; None for its defaults.
        progress: called with the slates trained on so far and at most.

    Raises:
        ValueError: no slates on a side; a held-out response that is also trained on; a loss that is not finite.
    """
    config = config or BehaviourConfig()
    keys = _refuse_leaks(train_slates, heldout_slates)
    train, train_cut = encode_slates(train_slates, tokenizer, max_length=config.max_length)
    heldout, heldout_cut = encode_slates(heldout_slates, tokenizer, max_length=config.max_length)
    for name, cut in (("train_slates", train_cut), ("heldout_slates", heldout_cut)):
        logger.log(logging.WARNING if cut.anything_cut else logging.INFO, "%s: %s", name, cut)
    with _own_random_state(config.seed, next(model.parameters()).device):
        fitted = copy.deepcopy(model)
        if config.lora_rank is not None:
            fitted = _with_adapter(fitted, config.lora_rank)
        evaluations, best = _Fit(fitted, config, train, heldout).run(progress)
        if config.lora_rank is not None:
            fitted = merged(fitted)
    prompts = {json.dumps(slate.prompt) for slate in train_slates}
    report = FitReport(
        train_slates=len(train),
        train_responses=sum(len(slate.completion_ids) for slate in train),
        train_tokens=_tokens(train),
        heldout_slates=len(heldout),
        heldout_responses=sum(len(slate.completion_ids) for slate in heldout),
        heldout_tokens=_tokens(heldout),
        shared_prompts=sum(json.dumps(slate.prompt) in prompts for slate in heldout_slates),
        evaluations=tuple(evaluations),
        best=best,
        trained_on=tuple(sorted(keys)),
        config=config,
    )
    logger.info("%s", report)
    return BehaviourPolicy(fitted.eval(), report)


def cross_fitted_slates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    slates: Sequence[Slate],
    key: Callable[[Slate], str],
    config: BehaviourConfig | None = None,
    *,
    folds: int = 5,
    cache_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> tuple[list[Slate], list[FitReport]]:
    """Score every response with a behaviour-cloned policy that saw nothing of its group.

    The groups are dealt into ``folds`` (`group_folds`). For each fold a policy is fitted to the others, of which a
    ``1 / folds`` share of the groups (at least one) decides when to stop, and scores the fold.

    Args:
        model, tokenizer, config: as in `fit_behaviour_policy`; every fold starts from ``model``.
        slates: the log.
        key: the group of a slate: whatever shares text or authors, such as its item or conversation.
        folds: how many policies are fitted; at least 2, and the groups must number more.
        cache_dir, overwrite: as in `score_slates`. A fit is not cached: it gives the same weights again.
        progress: called with the slates trained on so far and at most, over all folds.

    Returns:
        The slates in their order, scored, and the report of every fold's fit. The provenance of a slate names its
        fold.

    Raises:
        ValueError: too few groups; anything that `fit_behaviour_policy` or `score_slates` refuse.
    """
    config = config or BehaviourConfig()
    fold_of = group_folds(slates, key, folds, config.seed)
    if len({key(slate) for slate in slates}) <= folds:
        raise ValueError(f"folds: expected fewer than the groups of the log, got {folds}")
    scored: dict[int, Slate] = {}
    reports = []
    for fold in range(folds):
        rest = [slate for slate, its_fold in zip(slates, fold_of, strict=True) if its_fold != fold]
        train, stop = group_split(rest, key, 1 / folds, config.seed)
        policy = fit_behaviour_policy(model, tokenizer, train, stop, config, progress=_part(progress, fold, folds))
        mine = [number for number, its_fold in enumerate(fold_of) if its_fold == fold]
        of_fold = score_slates(
            [slates[number] for number in mine],
            policy.model,
            tokenizer,
            how="behaviour_cloned",
            max_length=config.max_length,
            cache_dir=cache_dir,
            overwrite=overwrite,
            fit=policy.report,
            fold=(fold, folds),
        )
        scored.update(zip(mine, of_fold, strict=True))
        reports.append(policy.report)
    return [scored[number] for number in range(len(slates))], reports


def _part(progress: OnProgress | None, fold: int, folds: int) -> OnProgress | None:
    """The progress of one fold's fit as that of all folds, counted alike."""
    return None if progress is None else lambda done, of: progress(fold * of + done, folds * of)


def nats_per_token(slates: Sequence[EncodedSlate], model: PreTrainedModel, *, batch_tokens: int = 8192) -> float:
    """Cross-entropy of all responses under ``model``: minus the sum of their log-probabilities, per response token.

    ``exp`` of it is the perplexity.
    """
    totals = score_responses(slates, model, batch_tokens=batch_tokens)
    return -sum(sum(of_slate) for of_slate in totals) / _tokens(slates)


class _Fit:
    """The training loop: one object holds what its steps share."""

    def __init__(
        self, model: Any, config: BehaviourConfig, train: Sequence[EncodedSlate], heldout: Sequence[EncodedSlate]
    ) -> None:
        self.model, self.config, self.heldout = model, config, heldout
        self.trees = [Tree(slate.prompt_ids, slate.completion_ids) for slate in train]
        check_limits(model, self.trees, name="train_slates: slate")
        several = any(len(tree.response_ids) > 1 for tree in self.trees)
        self.share_prompt = several and sharing_obstacle(model, self.trees) is None
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate, weight_decay=0.0)
        self.steps_per_epoch = -(-len(self.trees) // config.batch_slates)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.order = torch.Generator().manual_seed(config.seed)

    def run(self, progress: OnProgress | None) -> tuple[list[HeldOutScore], int]:
        """Train, and leave the best weights in the model."""
        config, report = self.config, progress or (lambda done, of: None)
        evaluations = [HeldOutScore(0, None, nats_per_token(self.heldout, self.model))]
        best, kept = 0, self._weights()
        step = done = 0
        nats = tokens = 0.0
        marks = {
            round(part * self.steps_per_epoch / config.evaluations_per_epoch)
            for part in range(1, config.evaluations_per_epoch + 1)
        }
        for _ in range(config.epochs):
            for in_epoch, batch in enumerate(self._epoch(), start=1):
                step_nats, step_tokens = self._step(batch)
                nats, tokens = nats + step_nats, tokens + step_tokens
                step, done = step + 1, done + len(batch)
                report(done, len(self.trees) * config.epochs)
                if in_epoch not in marks:
                    continue
                evaluations.append(HeldOutScore(step, nats / tokens, nats_per_token(self.heldout, self.model)))
                nats = tokens = 0.0
                if evaluations[-1].heldout_nats_per_token < evaluations[best].heldout_nats_per_token:
                    best, kept = len(evaluations) - 1, self._weights()
                elif len(evaluations) - 1 - best >= config.patience:
                    self._restore(kept)
                    return evaluations, best
        self._restore(kept)
        return evaluations, best

    def _epoch(self) -> Iterator[list[Tree]]:
        order = torch.randperm(len(self.trees), generator=self.order).tolist()
        for start in range(0, len(order), self.config.batch_slates):
            yield [self.trees[index] for index in order[start : start + self.config.batch_slates]]

    def _step(self, batch: list[Tree]) -> tuple[float, int]:
        """One optimizer step; returns the batch's total cross-entropy before it, and its tokens."""
        self.model.train()
        tokens = sum(len(ids) for tree in batch for ids in tree.response_ids)
        total = 0.0
        for tree in batch:  # one at a time: no padding, and the memory of the largest
            rows = rows_on(self.model, lay_out([tree], share_prompt=self.share_prompt))
            nats = -response_logprobs(self.model, rows).sum()
            torch.autograd.backward(nats / tokens)
            total += nats.item()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not torch.isfinite(norm):
            raise ValueError(
                f"learning_rate: expected finite gradients, got norm {float(norm)} at a mean loss of "
                f"{total / tokens:.4g} nats per token; lower it (now {self.config.learning_rate:g})"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return total, tokens

    def _rate(self, step: int) -> float:
        """Share of the learning rate: up over the first tenth of all steps, then down to 0."""
        steps = self.steps_per_epoch * self.config.epochs
        rise = max(steps // 10, 1)
        return min((step + 1) / rise, (steps - step) / max(steps - rise, 1))

    def _weights(self) -> list[torch.Tensor]:
        return [parameter.detach().cpu().clone() for parameter in self.parameters]

    def _restore(self, weights: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)


def _with_adapter(model: PreTrainedModel, rank: int) -> Any:
    peft = require("peft", extra="train", purpose="for lora_rank")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return peft.get_peft_model(model, lora)


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded random numbers inside, the caller's afterwards."""
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        yield


def _tokens(slates: Sequence[EncodedSlate]) -> int:
    return sum(len(ids) for slate in slates for ids in slate.completion_ids)


def _refuse_leaks(train: Sequence[Slate], heldout: Sequence[Slate]) -> set[str]:
    """The keys of all training responses, if none of them is held out."""
    for name, slates in (("train_slates", train), ("heldout_slates", heldout)):
        if not slates:
            raise ValueError(f"{name}: expected at least one slate, got none")
    keys = {response_key(slate.prompt, completion) for slate in train for completion in slate.completions}
    for number, slate in enumerate(heldout, start=1):
        for index, completion in enumerate(slate.completions):
            if response_key(slate.prompt, completion) in keys:
                raise ValueError(
                    f"heldout_slates: slate {number}: completions[{index}]: expected a response that is not trained "
                    "on, got one that is; deduplicate the log or split it by prompt (pope_align.data.group_split)"
                )
    return keys
