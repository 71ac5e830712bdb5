"""Behaviour cloning: a language model fitted to all logged responses, as the logging policy of a log without one.

`fit_behaviour_policy` fits one model and stops when held-out responses stop becoming more likely. A model gives too
much probability to the responses that it was fitted to, so their importance weights would be too small:
`cross_fitted_slates` fits one model per fold of the groups, on the other folds, and scores every response with a model
that was not fitted to its group.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from .._extras import require
from .._files import named_writes
from ..data.collate import ResponseExample
from ..data.schema import Slate
from ..data.split import group_folds, group_split
from ..data.tokenize import EncodedSlate, reads_clock, today
from ..models.causal_lm import merged
from ..models.loading import best_device, load_model
from ..training.checkpoint import checkpoint_date
from ..training.examples import SlateDataset
from .behaviour_trainer import BehaviourTrainer
from .fit_report import BehaviourConfig, FitReport, response_key
from .logging_policy import score_slates
from .scores import encode_log
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
        with named_writes(folder):
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
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: OnProgress | None = None,
) -> BehaviourPolicy:
    """Fit a copy of ``model`` to all logged responses by maximum likelihood, stopped early on held-out ones.

    Maximises ``sum_i log pi(y_i | q_i)`` over all training responses, whatever their scores: each logged response is
    one draw from the logging policy and counts once, so all response *tokens* have the same weight, and prompt tokens
    none. The loss of a step is divided by its response tokens. AdamW without weight decay, gradients clipped to norm 1;
    the learning rate rises over the first tenth of the steps and falls to 0, both linearly.

    Several processes (``accelerate launch``) share the slates of a step. The same arguments give the same policy on the
    same machine; global random states and ``model`` are not changed.

    Args:
        model: the model to start from, any causal language model of transformers, on its device.
        tokenizer: the model's.
        train_slates: slates to fit.
        heldout_slates: slates that decide when to stop and which weights are kept; preferably of other groups than the
            training slates (`group_split`).
        config: see `BehaviourConfig`; None for its defaults.
        checkpoints: folder of a checkpoint, written at every evaluation; None writes none.
        resume: continue from the checkpoint in that folder, if there is one, with bit-identical results.
        progress: called with the slates trained on so far and at most.

    Raises:
        ValueError: no training or held-out slates; a held-out response that is also trained on; a loss or gradient that
            is not finite; a sharded model (FSDP, DeepSpeed); a checkpoint of other slates.
    """
    config = config or BehaviourConfig()
    keys = _refuse_leaks(train_slates, heldout_slates)
    if reads_clock(tokenizer):
        begun = checkpoint_date(checkpoints) if resume and checkpoints is not None else None
        config = replace(config, template_date=config.template_date or begun or today())
    options: dict[str, Any] = {"max_length": config.max_length, "template_date": config.template_date}
    train = encode_log(train_slates, tokenizer, name="train_slates", **options)
    heldout = encode_log(heldout_slates, tokenizer, name="heldout_slates", **options)
    with _own_random_state(config.seed, next(model.parameters()).device), _folder(checkpoints) as folder:
        fitted = copy.deepcopy(model)
        if config.lora_rank is not None:
            fitted = _with_adapter(fitted, config.lora_rank)
        trainer = BehaviourTrainer(
            fitted,
            config,
            folder,
            _dataset("train_slates", train, train_slates),
            _dataset("heldout_slates", heldout, heldout_slates),
            save=checkpoints is not None,
            template_date=config.template_date,
            progress=progress,
        )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError("model: expected one device or DDP for a fit, got a sharded model (FSDP or DeepSpeed)")
        trainer.train("last" if resume else None)
        trainer.held_out.restore_best()
        fitted = cast("PreTrainedModel", trainer.unwrapped())
        if config.gradient_checkpointing:
            fitted.gradient_checkpointing_disable()
        if config.lora_rank is not None:
            fitted = merged(cast(Any, fitted))
        # A process keeps the precision of its first Accelerator. Reset it after the fit, because the next training may
        # need another.
        AcceleratorState._reset_state()
    prompts = {json.dumps(slate.prompt) for slate in train_slates}
    report = FitReport(
        train_slates=len(train),
        train_responses=sum(len(slate.completion_ids) for slate in train),
        train_tokens=_tokens(train),
        heldout_slates=len(heldout),
        heldout_responses=sum(len(slate.completion_ids) for slate in heldout),
        heldout_tokens=_tokens(heldout),
        shared_prompts=sum(json.dumps(slate.prompt) in prompts for slate in heldout_slates),
        evaluations=tuple(trainer.held_out.scores),
        best=trainer.held_out.best,
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
    work_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> tuple[list[Slate], list[FitReport]]:
    """Score every response with a behaviour-cloned policy that was not fitted to its group.

    The groups are divided into ``folds`` (`group_folds`). For each fold a policy is fitted to the other folds and
    scores the fold; a ``1 / folds`` share of the other groups (at least one) is held out to decide when to stop.

    Args:
        model, tokenizer, config: as in `fit_behaviour_policy`; every fold starts from ``model``.
        slates: the log.
        key: the group of a slate, such as its item or conversation; slates that share text or authors must share it.
        folds: the number of policies; at least 2 and fewer than the groups.
        work_dir: folder for checkpoints and the policies of finished folds; None keeps none.
        resume: use finished folds from ``work_dir``, and continue the interrupted one.
        cache_dir, overwrite: as in `score_slates`.
        progress: called with the slates trained on so far and at most, over all folds.

    Returns:
        The scored slates in their order, and the report of every fold's fit. The provenance of a slate has its fold.

    Raises:
        ValueError: too few groups; errors of `fit_behaviour_policy` and `score_slates`.
    """
    config = config or BehaviourConfig()
    fold_of = group_folds(slates, key, folds, config.seed)
    if len({key(slate) for slate in slates}) <= folds:
        raise ValueError(f"folds: expected fewer than the groups of the log, got {folds}")
    folders = [None if work_dir is None else Path(work_dir, f"fold{fold}-of-{folds}") for fold in range(folds)]
    if reads_clock(tokenizer):  # one day for all folds, also after midnight
        begun = next(filter(None, map(_begun, folders)), None) if resume else None
        config = replace(config, template_date=config.template_date or begun or today())
    scored: dict[int, Slate] = {}
    reports = []
    splits = [
        group_split(
            [slate for slate, its in zip(slates, fold_of, strict=True) if its != fold], key, 1 / folds, config.seed
        )
        for fold in range(folds)
    ]
    ends = [0, *itertools.accumulate(config.epochs * len(train) for train, _ in splits)]
    for fold, (train, stop) in enumerate(splits):
        fit = partial(fit_behaviour_policy, model, tokenizer, train, stop, config)
        policy = _fold_policy(
            fit, folders[fold], config if resume else None, tokenizer, _part(progress, ends[fold], ends[-1])
        )
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


def _fold_policy(
    fit: Callable[..., BehaviourPolicy],
    folder: Path | None,
    resumed: BehaviourConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    progress: OnProgress | None,
) -> BehaviourPolicy:
    """The policy of one fold: fitted, or loaded from the folder of an interrupted run with the same options."""
    if folder is None:
        return fit(progress=progress)
    report = FitReport.read(folder) if resumed else None
    if report is not None and report.config != resumed:
        raise ValueError(f"resume: {folder}: expected a fit with {resumed}, got one with {report.config}")
    if report is not None:
        return BehaviourPolicy(load_model(folder, dtype="auto").to(best_device()), report)
    policy = fit(checkpoints=folder / "checkpoints", resume=resumed is not None, progress=progress)
    if PartialState().is_main_process:
        policy.save(folder, tokenizer)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    PartialState().wait_for_everyone()
    return policy


def _begun(folder: Path | None) -> str | None:
    """The date on which an interrupted run began its fold; None without one."""
    if folder is None:
        return None
    report = FitReport.read(folder)
    return report.config.template_date if report is not None else checkpoint_date(folder / "checkpoints")


def _part(progress: OnProgress | None, before: int, of_all: int) -> OnProgress | None:
    """The progress over all folds, from that of one fold."""
    return None if progress is None else lambda done, of: progress(before + done, of_all)


def nats_per_token(slates: Sequence[EncodedSlate], model: PreTrainedModel, *, batch_tokens: int = 8192) -> float:
    """Cross-entropy of all responses under ``model``: minus the sum of their log-probabilities, per response token.

    ``exp`` of it is the perplexity.
    """
    totals = score_responses(slates, model, batch_tokens=batch_tokens)
    return -sum(sum(of_slate) for of_slate in totals) / _tokens(slates)


def _with_adapter(model: PreTrainedModel, rank: int) -> Any:
    peft = require("peft", extra="train", purpose="for lora_rank")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    return peft.get_peft_model(model, lora)


@contextmanager
def _own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random states (also those of Python and NumPy, which Trainer seeds), and restore them afterwards."""
    devices = [] if device.type == "cpu" else [device]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _folder(checkpoints: str | os.PathLike[str] | None) -> Iterator[str]:
    """The folder of the checkpoints, or a temporary one."""
    if checkpoints is not None:
        yield os.fspath(checkpoints)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield folder


def _dataset(name: str, encoded: Sequence[EncodedSlate], slates: Sequence[Slate]) -> SlateDataset:
    examples = [ResponseExample(prompt_ids=ids.prompt_ids, completion_ids=ids.completion_ids) for ids in encoded]
    return SlateDataset(examples, slates, name)


def _tokens(slates: Sequence[EncodedSlate]) -> int:
    return sum(len(ids) for slate in slates for ids in slate.completion_ids)


def _refuse_leaks(train: Sequence[Slate], heldout: Sequence[Slate]) -> set[str]:
    """The keys of all training responses; raises if one of them is held out."""
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
