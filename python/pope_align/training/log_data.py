"""The logged data of batches (`pope_core.slates.LogData`): extracted, concatenated and gathered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch

from pope_core.objective import Objective
from pope_core.slates import LogData

from ..distributed import gather_ragged
from .examples import num_slates


def log_of(batch: Mapping[str, Any]) -> LogData:
    """The logged data of a batch; empty for a stand-in."""
    log = cast(LogData, batch["log"])
    if num_slates(batch) > 0:
        return log
    return LogData(log.logging_logprobs[:0], log.utility[:0], log.slate_offsets[:1], log.tokens[:0])


def joined(logs: Sequence[LogData]) -> LogData:
    """Concatenate the data of several batches."""
    counts = [log.utility.shape[0] for log in logs]
    offsets = [log.slate_offsets[1:] + before for log, before in zip(logs, accumulate([0, *counts]), strict=False)]
    return LogData(
        logging_logprobs=torch.cat([log.logging_logprobs for log in logs]),
        utility=torch.cat([log.utility for log in logs]),
        slate_offsets=torch.cat([logs[0].slate_offsets[:1], *offsets]),
        tokens=torch.cat([log.tokens for log in logs]),
    )


def gathered(log: LogData) -> LogData:
    """The data of all processes, in their order; to be called on all of them."""
    pieces = [gather_ragged(vector) for vector in log]
    return joined([LogData(*of_process) for of_process in zip(*pieces, strict=True)])


def measured(totals: torch.Tensor, log: LogData, objective: Objective) -> torch.Tensor:
    """Log-probabilities ``[R]`` as the objective uses them: means per token if it is length-normalised."""
    return totals / log.tokens if objective.length_normalize else totals
