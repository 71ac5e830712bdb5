"""Checks whether a log already has log-probabilities, without torch, before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable

from ..data.schema import Slate


def check_unscored(slates: Iterable[Slate]) -> None:
    """Refuse log-probabilities that scoring would replace.

    Raises:
        ValueError: names the first slate that has them.
    """
    for number, slate in enumerate(slates, start=1):
        if slate.logging_logprobs is not None:
            how = (slate.logging_policy or {"how": "recorded"}).get("how")
            name = f" ({slate.slate_id})" if slate.slate_id else ""
            raise ValueError(
                f"slate {number}{name}: logging_logprobs: expected none before scoring, got {how} ones; pass "
                "--overwrite (overwrite=True) to replace them"
            )
