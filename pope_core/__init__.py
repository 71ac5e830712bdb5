"""POPE: the value of a language model on logged slates of rated responses, and the loss that raises it.

The public names of the library; ``pope_core.reference`` holds their float64 twins.
"""

from . import _linear_ops, _ops, reference  # noqa: F401  (the first two register torch.ops.pope.*)
from .logprobs import linear_response_logprobs, response_logprobs
from .loss import PopeLoss, linear_pope_loss, pope_loss
from .objective import slate_objective
from .slates import offsets_from_lengths
from .types import PopeLossOutput
from .version import __version__

__all__ = [
    "PopeLoss",
    "PopeLossOutput",
    "__version__",
    "linear_pope_loss",
    "linear_response_logprobs",
    "offsets_from_lengths",
    "pope_loss",
    "reference",
    "response_logprobs",
    "slate_objective",
]
