"""`Objective`: all options of the training and evaluation objective in one value.

Imports no torch, so that a command line can read the options quickly.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Never, get_args

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


def missing_value(option: str, value: Never) -> NotImplementedError:
    """To be raised at the end of every choice between an option's values: one was added to the names and not there.

    A type checker reports each choice that lacks a value.
    """
    return NotImplementedError(
        f"{option}: {value!r} is not implemented by the function that raises this; CONTRIBUTING.md lists what a new "
        "value needs"
    )


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def weighs_slates(weighting: Weighting) -> bool:
    """Whether a slate has one weight, which its responses share."""
    if weighting == "response":
        return False
    if weighting == "slate" or weighting == "geometric":
        return True
    raise missing_value("weighting", weighting)


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
        if not _is_real(self.diversity_weight) or not 0 <= self.diversity_weight < math.inf:
            raise ValueError(f"diversity_weight: expected a finite number >= 0, got {self.diversity_weight!r}")
        if self.clip is not None and (not _is_real(self.clip) or not 0 < self.clip < math.inf):
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
        return self._divides_by != "nothing"

    @property
    def couples_slates(self) -> bool:
        """Whether the value needs all slates at once, i.e. is not a mean over slates."""
        return self._divides_by == "call"

    @property
    def normalized_within_slates(self) -> bool:
        """Whether every slate's weights are divided by their own sum, which loses how large they were."""
        return self._divides_by == "slate"

    @property
    def weighs_slates(self) -> bool:
        """Whether a slate has one weight, which its responses share."""
        return weighs_slates(self.weighting)

    @property
    def rewards_likelihood(self) -> bool:
        """Whether the reward for utility depends on the log-probability; then it is not bounded either."""
        if self.utility_form == "feedback":
            return False
        if self.utility_form == "log_likelihood":
            return True
        raise missing_value("utility_form", self.utility_form)

    @property
    def unbounded_diversity(self) -> bool:
        """Whether diversity has a weight and grows without bound as log-probabilities fall."""
        if self.diversity_weight == 0 or self.diversity_form == "entropy":
            return False
        if self.diversity_form == "neg_log_prob":
            return True
        raise missing_value("diversity_form", self.diversity_form)

    @property
    def _divides_by(self) -> Literal["nothing", "slate", "call"]:
        """Which sum of weights the weights are divided by."""
        if self.normalization == "none":
            return "nothing"
        if self.normalization == "slate":
            return "slate"
        if self.normalization == "batch":
            return "call"
        raise missing_value("normalization", self.normalization)

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
