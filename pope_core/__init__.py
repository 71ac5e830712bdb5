"""POPE: the value of a language model on logged slates of rated responses, and the loss that raises it.

``pope_core.reference`` has the float64 version of each operation. A name is imported when it is first used, so that
`Objective` and its options can be used without loading torch.
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
    globals()[name] = value  # found directly next time, also while torch.compile traces
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
