"""What `compute_metrics` is called with: log-probabilities and utilities of all slates of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, denumpify_detensorize

from .window import ResponseWindow

Padded = npt.NDArray[np.float64]


class SlatePredictions(NamedTuple):
    """``predictions`` of `transformers.EvalPrediction` for ``S`` slates of up to ``k`` responses, in the order of the
    data; NaN fills slates of fewer responses. Its ``label_ids`` are the utilities, ``[S, k]``.
    """

    policy_logprobs: Padded  # [S, k] nats, totals under the model
    logging_logprobs: Padded  # [S, k] nats, totals under the logging policy; NaN where not known
    tokens: Padded  # [S, k] response tokens


def with_predictions(
    output: EvalLoopOutput,
    window: ResponseWindow,
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]] | None,
    prefix: str,
) -> EvalLoopOutput:
    """The result of an evaluation with its predictions, and with the metrics that ``compute_metrics`` makes of them.

    Args:
        window: of all processes.
        prefix: added to names of metrics that do not have it.
    """
    log, policy = window.log, torch.cat(window.policy)
    order = torch.cat(window.index)

    def padded(values: torch.Tensor) -> Padded:
        rows = torch.split(values.double().cpu(), log.slate_offsets.diff().tolist())
        table = np.full((len(rows), max(len(row) for row in rows)), np.nan)
        for position, row in zip(order.tolist(), rows, strict=True):
            table[position, : len(row)] = row.numpy()
        return table

    predictions = SlatePredictions(padded(policy), padded(log.logging_logprobs), padded(log.tokens))
    labels = padded(log.utility)
    if compute_metrics is not None:
        found = compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        if not isinstance(found, dict):
            raise TypeError(f"compute_metrics: expected a dict of metrics, got {type(found).__name__}")
        for name, value in denumpify_detensorize(found).items():
            output.metrics[name if name.startswith(f"{prefix}_") else f"{prefix}_{name}"] = value
    return output._replace(predictions=predictions, label_ids=labels)
