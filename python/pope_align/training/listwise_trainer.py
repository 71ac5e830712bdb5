"""`ListwiseTrainer`: the list-wise losses that POPE is compared with, in its training loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from pope_core.slates import LogData

from ..data.schema import Slate
from ..models.causal_lm import LmHead
from . import listwise
from .config import ListwiseConfig, SlateConfig
from .methods import LISTWISE, ListwiseName, Reference
from .policy_loss import response_totals
from .policy_trainer import PolicyTrainer
from .window import ResponseWindow

logger = logging.getLogger(__name__)


class ListwiseTrainer(PolicyTrainer):
    """Train on logged slates with a list-wise loss (`methods.LISTWISE`), on the same tokens as `PopeTrainer`.

    Slates, shared prompts, accumulation, resuming and reports are those of `PopeTrainer`. The log-probabilities come
    from `pope_core.linear_response_logprobs`, so no logits are kept. Slates need ``logging_logprobs`` only if the
    method compares with the logging policy.

    Args:
        model, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics, callbacks, optimizers,
            peft_config: as in `PopeTrainer`.
        args: the run and its method; see `ListwiseConfig`. None for the defaults.

    Raises:
        ValueError: as in `PopeTrainer`.
        TypeError: as in `PopeTrainer`.
    """

    args: ListwiseConfig
    config_class = ListwiseConfig

    @property
    def method(self) -> ListwiseName:
        return self.args.method

    @property
    def reference(self) -> Reference:
        """The policy that the loss compares with."""
        return LISTWISE[self.method].reference

    def _check_slates(self, slates: Sequence[Slate], args: SlateConfig) -> None:
        """Refuse a log from which nothing can be learnt."""
        assert isinstance(args, ListwiseConfig)
        compares = LISTWISE[args.method].compares
        if compares == "utilities" and not any(len(set(slate.scores)) > 1 for slate in slates):
            raise ValueError(
                f"train_dataset: expected a slate with responses of different scores for method {args.method!r}, which "
                "compares them, got none"
            )
        if compares == "responses" and all(len(slate.scores) == 1 for slate in slates):
            raise ValueError(
                f"train_dataset: expected a slate of two or more responses for method {args.method!r}, got one each"
            )

        how = {(slate.logging_policy or {}).get("how") for slate in slates}
        if LISTWISE[args.method].reference == "logging" and how != {"recorded"}:
            logger.warning(
                "train_dataset: %s is derived for responses drawn from the logging policy, and the log-probabilities "
                "are not all recorded ones (how: %s)",
                args.method,
                ", ".join(sorted(map(str, how))),
            )

    def _new_window(self, first_step: int = 0) -> ResponseWindow:
        return ResponseWindow(first_step)

    def _share(
        self, hidden: torch.Tensor, head: LmHead, batch: Mapping[str, Any], slates_of_step: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        totals = response_totals(hidden, head, batch, self.args)
        losses = self.slate_losses(totals, batch["log"], batch.get("start_logprobs"))
        return (losses.sum() / (slates_of_step or losses.shape[0])).to(totals.dtype), totals

    def slate_losses(self, totals: torch.Tensor, log: LogData, at_start: torch.Tensor | None) -> torch.Tensor:
        """``[S]`` losses of the slates."""
        reference = {"start": at_start, "logging": log.logging_logprobs, "none": None}[self.reference]
        scored = listwise.ScoredSlates(totals, reference, log.utility, log.slate_offsets, log.tokens)
        loss = getattr(listwise, LISTWISE[self.method].loss)
        return cast(torch.Tensor, loss(scored, **self.args.loss_options))

    def _held_out_metrics(self) -> dict[str, float]:
        window = self.eval_window
        at_start = torch.cat(window.at_start) if window.at_start else None
        losses = self.slate_losses(torch.cat(window.policy), window.log, at_start)
        return {"loss": float(losses.mean()), **window.metrics()}

    def about(self) -> dict[str, Any]:
        options = {"reference": self.reference, **self.args.loss_options}
        return {"objective": None, **options, "utility_transform": self.args.utility_transform}
