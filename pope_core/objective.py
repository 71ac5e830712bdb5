"""`Objective`: all options of the training and evaluation objective in one value.

Imports no torch, so that a command line can read the options quickly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

Weighting = Literal["response", "slate", "geometric"]
Normalization = Literal["none", "slate", "batch"]
UtilityForm = Literal["feedback", "log_likelihood"]
DiversityForm = Literal["neg_log_prob", "entropy"]

#: The options that are chosen by name, and their allowed names.
CHOICES: dict[str, tuple[str, ...]] = {
    "weighting": get_args(Weighting),
    "normalization": get_args(Normalization),
    "utility_form": get_args(UtilityForm),
    "diversity_form": get_args(DiversityForm),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised in training or estimated in evaluation: ``V = V_CU + diversity_weight * V_Div``.

    ``Objective()`` is what training maximises, with the defaults that docs/defaults.md measured;
    :meth:`Objective.evaluation` is what evaluation estimates. Losses, estimators, `PopeConfig` and the command line all
    take these options from here.

    Attributes:
        diversity_weight: alpha >= 0, the weight of diversity against utility.
        weighting: importance weights per "response" (decomposed), per "slate" (the product over its responses), or the
            "geometric" mean over the slate's responses (the k-th root of the product).
        normalization: "none"; "slate" divides by the slate's sum of weights; "batch" by the sum over the call (SNIPS).
        clip: the maximum importance weight, applied in log space; with None there is none, and a weight above
            ``exp(80)`` is an error.
        utility_form: reward "feedback", the utility itself, or "log_likelihood", utility times log-probability.
        diversity_form: "neg_log_prob", ``-l``, or "entropy", ``-exp(l) l``.
        length_normalize: ``l`` is the mean log-probability per token instead of the total (biased, less variance). Both
            policies' totals are divided by the number of tokens of the evaluated policy.

    Raises:
        ValueError: an option is not one of the above.

    Source: docs/method.md; POPE (arXiv 2509.19333), Eqs. (1)-(10).
    """

    diversity_weight: float = field(
        default=0.1, metadata={"help": "Weight of diversity against utility (alpha), at least 0."}
    )
    weighting: Weighting = field(
        default="response", metadata={"help": "Importance weights per response, per slate, or their geometric mean."}
    )
    normalization: Normalization = field(
        default="slate", metadata={"help": "Divide by nothing, or by the sum of weights of the slate or the batch."}
    )
    clip: float | None = field(
        default=5.0, metadata={"help": "Maximum importance weight, above 0; none for no maximum."}
    )
    utility_form: UtilityForm = field(
        default="feedback", metadata={"help": "Reward the utility itself, or utility times log-probability."}
    )
    diversity_form: DiversityForm = field(
        default="entropy", metadata={"help": "Diversity of a response: -l, or -exp(l) l."}
    )
    length_normalize: bool = field(
        default=True,
        metadata={"help": "Log-probabilities per token (biased, less variance) instead of totals."},
    )

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        # Plain comparisons (NaN fails them too), because in a torch.compile trace these numbers may be symbolic.
        if not 0 <= self.diversity_weight < math.inf:
            raise ValueError(f"diversity_weight: expected a finite number >= 0, got {self.diversity_weight!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip: expected None or a finite number > 0, got {self.clip!r}")
        if self.length_normalize is not True and self.length_normalize is not False:
            raise ValueError(f"length_normalize: expected True or False, got {self.length_normalize!r}")

    @classmethod
    def evaluation(cls) -> Objective:
        """What evaluation estimates: the utility under the policy, by true weights, self-normalised over the whole log.

        It differs from the training objective because training needs a direction, found by comparing the responses of
        one slate, and evaluation needs a value. Weights that are normalised within each slate ignore how much of the
        policy's probability the slate has, and length-normalised weights show a direction but not a value. A maximum
        weight trades bias for variance, which helps an optimiser but biases a reported value. Diversity, the entropy of
        the policy, is shown next to V_CU and has no weight in V: with self-normalised weights it grows as a policy
        moves away from the log, and a policy must not win by that.
        """
        return cls(
            diversity_weight=0.0,
            normalization="batch",
            clip=None,
            diversity_form="neg_log_prob",
            length_normalize=False,
        )

    @property
    def self_normalized(self) -> bool:
        """Whether weights are divided by a sum of weights, so that only their ratios matter."""
        return self.normalization != "none"

    @property
    def couples_slates(self) -> bool:
        """Whether the value needs all slates at once, i.e. is not a mean over slates."""
        return self.normalization == "batch"

    def to_dict(self) -> dict[str, Any]:
        """The options by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Objective:
        """The inverse of :meth:`to_dict`; missing options get their defaults.

        Raises:
            ValueError: an unknown option, or an invalid value.
        """
        names = [each.name for each in fields(cls)]
        if unknown := sorted(set(options) - set(names)):
            raise ValueError(f"objective: expected options among {', '.join(names)}, got {', '.join(unknown)}")
        return cls(**options)
