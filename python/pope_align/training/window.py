"""The responses since the last log, and their metrics; used by training and evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch

import pope_core
from pope_core.objective import Objective
from pope_core.slates import LogData
from pope_core.types import PopeLossOutput

from ..distributed import gather_ragged
from .examples import num_slates
from .held_out_index import held_out_gain
from .log_data import gathered, joined, log_of, measured
from .policy_loss import ShareOfStep, penalty_to_start

#: Logged quantiles of log-weights, by name.
_QUANTILES = {"p05": 0.05, "p50": 0.50, "p95": 0.95}

#: Fields of `SlateWindow` with vectors of responses or slates.
_VECTORS = ("policy", "index", "at_start")


@dataclass
class ResponseWindow:
    """Log-probabilities of micro-batches, kept as vectors so that metrics are computed on the pooled responses.

    Means of per-batch ratios (effective sample size, quantiles, self-normalised values) would depend on how the slates
    were split into batches and over processes; these do not.
    """

    first_step: int = 0  # optimizer steps before the window
    policy: list[torch.Tensor] = field(default_factory=list)  # each [R] nats, totals under the policy
    logs: list[LogData] = field(default_factory=list)
    index: list[torch.Tensor] = field(default_factory=list)  # each [S] position of the slate in its data set
    at_start: list[torch.Tensor] = field(default_factory=list)  # each [R] totals under the start, where computed
    shares: list[torch.Tensor] = field(
        default_factory=list
    )  # each [] contribution of a micro-batch to the loss of its step
    tokens: int = 0  # positions computed, prompts and responses
    started: float | None = None

    def start(self) -> None:
        """Start the clock of ``tokens_per_second`` unless it runs; time before the first batch after a log (evaluation,
        saving) does not count.
        """
        if self.started is None:
            self.started = time.perf_counter()

    def add(self, share: ShareOfStep, batch: Mapping[str, Any]) -> None:
        """Add one micro-batch: its loss and its collated data."""
        log = log_of(batch)
        real = log.utility.shape[0]  # empty for a stand-in
        self.policy.append(share.response_logprobs[:real])
        self.logs.append(log)
        self.index.append(batch["slate_index"])
        if "start_logprobs" in batch:
            self.at_start.append(batch["start_logprobs"][:real])
        self.shares.append(share.value)
        self.tokens += int((batch["tree"] >= 0).sum()) if num_slates(batch) else 0

    @property
    def log(self) -> LogData:
        """The logged data of all responses of the window."""
        return joined(self.logs)

    def state_dict(self) -> dict[str, Any]:
        """The state of the window, except the clock."""
        vectors = {name: getattr(self, name) for name in (*_VECTORS, "shares")}
        return {**vectors, "logs": [tuple(log) for log in self.logs], "first_step": self.first_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.logs = [LogData(*log) for log in state["logs"]]

    def gathered(self) -> Self:
        """The window of all processes together; to be called on all of them."""
        everything = replace(self, logs=[gathered(self.log)])
        for name in _VECTORS:
            parts = getattr(self, name)
            setattr(everything, name, gather_ragged(torch.cat(parts)) if parts else [])
        everything.shares = gather_ragged(torch.stack(self.shares).sum().reshape(1))
        everything.tokens = int(torch.cat(gather_ragged(self.index[0].new_tensor([self.tokens]))).sum())
        return everything

    def mean_loss(self, step: int) -> float:
        """The mean loss of the steps after `first_step` up to ``step``."""
        return float(torch.stack(self.shares).sum()) / (step - self.first_step)

    def held_out_index(self) -> dict[str, float]:
        """`held_out_gain` and its p-value, where the log-probabilities under the start are known."""
        gain = held_out_gain(torch.cat(self.policy), torch.cat(self.at_start), self.log) if self.at_start else None
        return {} if gain is None else {"index/gain": gain.gain, "index/p_value": gain.p_value}

    def metrics(self) -> dict[str, float]:
        """The metrics of every method that docs/training.md explains, by name."""
        log, policy = self.log, torch.cat(self.policy)
        metrics = {"slate/k_mean": log.utility.shape[0] / (log.slate_offsets.shape[0] - 1)}
        metrics["logps/policy"] = float((policy / log.tokens).mean())
        if self.started is not None:
            metrics["tokens_per_second"] = self.tokens / (time.perf_counter() - self.started)
        return metrics


@dataclass
class SlateWindow(ResponseWindow):
    """A window with the metrics of a POPE objective."""

    objective: Objective = field(kw_only=True)

    def value(self, objective: Objective) -> PopeLossOutput:
        """The objective on all responses of the window."""
        log = self.log
        return pope_core.slate_objective(
            torch.cat(self.policy),
            log.logging_logprobs,
            log.utility,
            log.slate_offsets,
            tokens=log.tokens,
            objective=objective,
        )

    def metrics(self, *, self_normalized: bool = False) -> dict[str, float]:
        """The metrics that docs/training.md explains, by name.

        Args:
            self_normalized: add the values under ``normalization="batch"``, which do not rise if all logged responses
                become likelier.
        """
        output, log, policy = self.value(self.objective), self.log, torch.cat(self.policy)
        slates, responses = log.slate_offsets.shape[0] - 1, log.utility.shape[0]
        weights = slates if self.objective.weighs_slates else responses
        quantiles = output.log_weights.double().quantile(output.log_weights.new_tensor([*_QUANTILES.values()]).double())
        metrics = {
            "pope/value": output.value,
            "pope/utility": output.utility_value,
            "pope/diversity": output.diversity_value,
            "is/ess": output.effective_sample_size,
            "is/ess_fraction": output.effective_sample_size / weights,
            "is/clip_fraction": output.clip_fraction,
            **{f"is/log_weight_{name}": value for name, value in zip(_QUANTILES, quantiles, strict=True)},
            "logps/policy": measured(policy, log, self.objective).mean(),
            "logps/logging": measured(log.logging_logprobs, log, self.objective).mean(),
        }
        if self.at_start:
            log_ratio = measured(policy - torch.cat(self.at_start), log, self.objective)
            metrics["kl_to_start"] = penalty_to_start(log_ratio).mean()
        if self_normalized:
            batch = self.value(replace(self.objective, normalization="batch"))
            metrics["pope/value_self_normalized"] = batch.value
            metrics["pope/utility_self_normalized"] = batch.utility_value
            metrics["pope/diversity_self_normalized"] = batch.diversity_value
        return {**super().metrics(), **{name: float(value) for name, value in metrics.items()}}
