"""The training methods by name, without torch: what they are, and for list-wise ones their loss and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

#: Methods of `ListwiseTrainer`, whose losses are in `listwise`.
ListwiseName = Literal["lipo", "oapl", "weighted-sft"]
TrainingMethod = Literal["pope", "sft", "dpo", ListwiseName]

#: The policy whose log-probabilities a loss compares with: the model before training, the logging policy, or none.
Reference = Literal["start", "logging", "none"]

#: What a loss compares within a slate, without which it teaches nothing: different utilities, several responses, or
#: nothing.
Compares = Literal["utilities", "responses", "nothing"]


@dataclass(frozen=True)
class ListwiseMethod:
    """A list-wise loss.

    Attributes:
        about: its name and source, for model cards.
        loss: name of the function in `listwise`.
        reference: the policy that its log-ratios are to.
        compares: what a slate must have for the loss to teach anything.
        options: keyword arguments of the loss, with their defaults.
        utility_from_zero: whether the loss has no minimum if a utility is negative.
    """

    about: str
    loss: str
    reference: Reference
    compares: Compares
    options: Mapping[str, float] = field(default_factory=dict)
    utility_from_zero: bool = False


LISTWISE: dict[ListwiseName, ListwiseMethod] = {
    "lipo": ListwiseMethod("LiPO-λ (arXiv 2402.01878)", "lipo_lambda", "start", "utilities", {"beta": 0.1}),
    "oapl": ListwiseMethod("OAPL (arXiv 2602.19362)", "optimal_advantage", "logging", "responses", {"beta": 0.1}),
    "weighted-sft": ListwiseMethod(
        "likelihood weighted by utility (reward-weighted regression, Peters and Schaal 2007)",
        "weighted_sft",
        "none",
        "nothing",
        utility_from_zero=True,
    ),
}

#: What a model card says about each method.
ABOUT: dict[TrainingMethod, str] = {
    "pope": "[POPE](https://arxiv.org/abs/2509.19333)",
    "sft": "supervised fine-tuning on the best response of every slate (SFT)",
    "dpo": "direct preference optimisation on pairs of responses (DPO)",
    **{name: method.about for name, method in LISTWISE.items()},
}

METHODS: tuple[TrainingMethod, ...] = get_args(TrainingMethod)
