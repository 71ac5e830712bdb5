"""POPE: the value of a language model on logged slates of rated responses, and the loss that raises it.

The public names of the library; ``pope_core.reference`` holds their float64 twins. A name is imported when it is first
used, so that a program may read `Objective` and its options without loading torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .objective import Objective as Objective
from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import reference as reference
    from .logprobs import linear_response_logprobs as linear_response_logprobs
    from .logprobs import response_logprobs as response_logprobs
    from .loss import linear_pope_loss as linear_pope_loss
    from .loss import pope_loss as pope_loss
    from .loss import slate_objective as slate_objective
    from .modules import LinearPopeLoss as LinearPopeLoss
    from .modules import PopeLoss as PopeLoss
    from .slates import LogData as LogData
    from .slates import offsets_from_lengths as offsets_from_lengths
    from .types import PopeLossOutput as PopeLossOutput

_HOMES = {
    "LinearPopeLoss": "modules",
    "LogData": "slates",
    "PopeLoss": "modules",
    "PopeLossOutput": "types",
    "linear_pope_loss": "loss",
    "linear_response_logprobs": "logprobs",
    "offsets_from_lengths": "slates",
    "pope_loss": "loss",
    "response_logprobs": "logprobs",
    "slate_objective": "loss",
}
#: Modules that are reached through the package, as in ``pope_core.reference.pope_loss``.
_MODULES = {"backends", "reference", "slates", "testing", "types"}
__all__ = sorted([*_HOMES, "Objective", "__version__", "reference"])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next use finds it at once, also inside a trace
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
