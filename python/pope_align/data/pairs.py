"""Converts slates to TRL's preference format, so that pairwise methods can train on the same log."""

from __future__ import annotations

from typing import Any

from .schema import Slate
from .write import RowFormat, turns_type


def preference_pair(slate: Slate) -> dict[str, Any] | None:
    """The best-scored response of a slate as ``chosen`` and the worst as ``rejected``, in TRL's preference format.

    Of equal scores the first is taken. ``score_chosen`` and ``score_rejected`` are included. Text stays text; if the
    prompt or a response is turns, all become turns, as TRL requires.

    Returns:
        None for a slate whose scores are all equal.
    """
    best = max(range(len(slate.scores)), key=lambda index: slate.scores[index])
    worst = min(range(len(slate.scores)), key=lambda index: slate.scores[index])
    if slate.scores[best] == slate.scores[worst]:
        return None
    prompt, chosen, rejected = slate.prompt, slate.completions[best], slate.completions[worst]
    if not (isinstance(prompt, str) and isinstance(chosen, str)):
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        chosen, rejected = (
            [{"role": "assistant", "content": side}] if isinstance(side, str) else side for side in (chosen, rejected)
        )
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "score_chosen": slate.scores[best],
        "score_rejected": slate.scores[worst],
    }


def _schema(pa: Any, turns: dict[str, bool]) -> dict[str, Any]:
    sides = {name: turns_type(pa) if turns.get(name) else pa.string() for name in ("prompt", "chosen", "rejected")}
    return {**sides, "score_chosen": pa.float64(), "score_rejected": pa.float64()}


#: Files of `preference_pair` rows.
PAIRS = RowFormat(preference_pair, _schema, ("prompt", "chosen", "rejected"))
