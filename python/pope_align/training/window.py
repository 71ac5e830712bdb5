"""The responses seen since the last log, and the metrics they add up to; training and evaluation share it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import pope_core
from pope_core import Objective, PopeLossOutput

from ..distributed import gather_ragged
from .examples import num_slates
from .policy_loss import ShareOfStep, penalty_to_start

#: Quantiles of the log-weights that are logged, by the name they get.
_QUANTILES = {"p05": 0.05, "p50": 0.50, "p95": 0.95}

#: Fields of `SlateWindow` that hold vectors.
_VECTORS = ("policy", "logging", "utility", "tokens", "sizes", "index", "at_start")


@dataclass
class SlateWindow:
    """Log-probabilities of whole micro-batches, kept as vectors so that every metric is that of the pooled responses.

    Means of per-batch ratios (effective sample size, quantiles, self-normalised values) would depend on how the slates
    were split into batches and over processes; these do not.
    """

    objective: Objective
    first_step: int = 0  # optimizer steps before the window
    policy: list[torch.Tensor] = field(default_factory=list)  # each [R] totals
    logging: list[torch.Tensor] = field(default_factory=list)  # each [R] totals
    utility: list[torch.Tensor] = field(default_factory=list)  # each [R]
    tokens: list[torch.Tensor] = field(default_factory=list)  # each [R] of the policy
    sizes: list[torch.Tensor] = field(default_factory=list)  # each [S] responses per slate
    index: list[torch.Tensor] = field(default_factory=list)  # each [S] position of the slate in its data set
    at_start: list[torch.Tensor] = field(default_factory=list)  # each [R] totals of the start, with a KL penalty
    shares: list[torch.Tensor] = field(default_factory=list)  # each [] share of a micro-batch in the loss of its step
    tokens_computed: int = 0
    started: float | None = None

    def start(self) -> None:
        """Begin the clock of ``tokens_per_second`` unless it runs; what happens between two logs and before the next
        batch (evaluation, saving) does not count.
        """
        if self.started is None:
            self.started = time.perf_counter()

    def add(self, share: ShareOfStep, batch: Mapping[str, torch.Tensor]) -> None:
        """Take in one micro-batch: what the loss made of it, and what the collator made."""
        slates = num_slates(batch)
        real = share.response_logprobs.shape[0] if slates else 0  # nothing of a stand-in
        self.policy.append(share.response_logprobs[:real])
        self.logging.append(batch["logging_logprobs"][:real])
        self.utility.append(batch["utility"][:real])
        self.tokens.append(batch["response_offsets"].diff()[:real])
        self.sizes.append(batch["slate_offsets"].diff()[:slates])
        self.index.append(batch["slate_index"])
        if "start_logprobs" in batch:
            self.at_start.append(batch["start_logprobs"][:real])
        self.shares.append(share.value)
        self.tokens_computed += int((batch["tree"] >= 0).sum()) if slates else 0

    def state_dict(self) -> dict[str, Any]:
        """What decides the metrics of the window, but for the clock."""
        vectors = {name: getattr(self, name) for name in (*_VECTORS, "shares")}
        return {**vectors, "first_step": self.first_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def gathered(self) -> SlateWindow:
        """The window of all processes together; to be called on all of them."""
        whole = replace(self)
        for name in _VECTORS:
            parts = getattr(self, name)
            setattr(whole, name, gather_ragged(torch.cat(parts)) if parts else [])
        whole.shares = gather_ragged(torch.stack(self.shares).sum().reshape(1))
        computed = self.sizes[0].new_tensor([self.tokens_computed])
        whole.tokens_computed = int(torch.cat(gather_ragged(computed)).sum())
        return whole

    def mean_loss(self, step: int) -> float:
        """Of the steps after `first_step` and up to ``step``."""
        return float(torch.stack(self.shares).sum()) / (step - self.first_step)

    def value(self, objective: Objective) -> PopeLossOutput:
        """The objective on all responses of the window."""
        return pope_core.slate_objective(
            torch.cat(self.policy),
            torch.cat(self.logging),
            torch.cat(self.utility),
            pope_core.offsets_from_lengths(torch.cat(self.sizes)),
            tokens=torch.cat(self.tokens),
            objective=objective,
        )

    def logprobs(self, name: str) -> torch.Tensor:
        """``[R]`` log-probabilities as the objective takes them: per token where it is length-normalised."""
        totals = torch.cat(getattr(self, name))
        return totals / torch.cat(self.tokens) if self.objective.length_normalize else totals

    def metrics(self, *, self_normalized: bool = False) -> dict[str, float]:
        """What docs/training.md explains, by name.

        Args:
            self_normalized: add the values under ``normalization="batch"``, which cannot rise by raising every logged
                response.
        """
        output = self.value(self.objective)
        slates, responses = sum(len(sizes) for sizes in self.sizes), output.log_weights.numel()
        weights = responses if self.objective.weighting == "response" else slates
        quantiles = output.log_weights.double().quantile(output.log_weights.new_tensor([*_QUANTILES.values()]).double())
        metrics = {
            "pope/value": output.value,
            "pope/utility": output.utility_value,
            "pope/diversity": output.diversity_value,
            "is/ess": output.effective_sample_size,
            "is/ess_fraction": output.effective_sample_size / weights,
            "is/clip_fraction": output.clip_fraction,
            **{f"is/log_weight_{name}": value for name, value in zip(_QUANTILES, quantiles, strict=True)},
            "logps/policy": self.logprobs("policy").mean(),
            "logps/logging": self.logprobs("logging").mean(),
            "slate/k_mean": responses / slates,
        }
        if self.at_start:
            difference = self.logprobs("policy") - self.logprobs("at_start")
            metrics["kl_to_start"] = penalty_to_start(difference).mean()
        if self_normalized:
            batch = self.value(replace(self.objective, normalization="batch"))
            metrics["pope/value_self_normalized"] = batch.value
            metrics["pope/utility_self_normalized"] = batch.utility_value
            metrics["pope/diversity_self_normalized"] = batch.diversity_value
        if self.started is not None:
            metrics["tokens_per_second"] = self.tokens_computed / (time.perf_counter() - self.started)
        return {name: float(value) for name, value in metrics.items()}
