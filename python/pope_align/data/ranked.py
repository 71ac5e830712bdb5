"""Converts slates to NeMo-RL's preference data, ranked completions, which its DPO and reward models train on."""

from __future__ import annotations

from typing import Any

from .checks import Turn
from .schema import Slate
from .write import RowFormat, turns_type


def ranked_completions(slate: Slate) -> dict[str, Any] | None:
    """A slate as ``context`` and ``completions``, with ``rank`` (0 is best; equal scores share one) and ``reward``.

    Text becomes turns, as NeMo-RL requires.

    Returns:
        None for a slate whose scores are all equal.
    """
    distinct = sorted(set(slate.scores), reverse=True)
    if len(distinct) == 1:
        return None
    best_first = sorted(range(len(slate.scores)), key=lambda index: -slate.scores[index])
    return {
        "context": _turns("user", slate.prompt),
        "completions": [
            {
                "rank": distinct.index(slate.scores[index]),
                "completion": _turns("assistant", slate.completions[index]),
                "reward": slate.scores[index],
            }
            for index in best_first
        ],
    }


def _turns(role: str, value: str | list[Turn]) -> list[Turn]:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _schema(pa: Any, turns: dict[str, bool]) -> dict[str, Any]:
    completion = {"rank": pa.int64(), "completion": turns_type(pa), "reward": pa.float64()}
    return {"context": turns_type(pa), "completions": pa.list_(pa.struct(completion))}


#: Files of `ranked_completions` rows.
RANKED = RowFormat(ranked_completions, _schema, ())
