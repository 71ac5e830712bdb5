"""From scores to utilities in training: by a transform within the slate, or as the log's labeller gave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from ..data.feedback import to_utility
from ..data.schema import Slate
from .options import TrainingTransform


def log_transform(name: str, slates: Sequence[Slate], transform: TrainingTransform) -> TrainingTransform:
    """The transform of a log: ``transform``, or with "auto" the one in the slates' ``origin``, or else "minmax".

    `pope label` writes "reward" or "none" there if its scores are on one scale for the whole log, which a transform
    within the slate would destroy.

    Args:
        name: of the slates, in errors.

    Raises:
        ValueError: the slates name different transforms.
    """
    if transform != "auto":
        return transform
    named = {(slate.origin or {}).get("utility_transform", "minmax") for slate in slates}
    if len(named) > 1 or not named <= set(get_args(TrainingTransform)) - {"auto"}:
        names = ", ".join(sorted(map(str, named)))
        raise ValueError(
            f"utility_transform: expected one for all of {name}, whose slates' origins name {names}; give one"
        )
    found: TrainingTransform = named.pop()
    return found


def utilities_of(slate: Slate, transform: TrainingTransform) -> list[float]:
    """``[k]`` utilities of a slate: its scores with "reward", else those of `pope_align.data.to_utility`."""
    if transform == "reward":
        return list(map(float, slate.scores))
    assert transform != "auto", "log_transform comes first"
    return to_utility(slate.scores, transform).tolist()
