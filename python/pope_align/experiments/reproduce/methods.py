"""The methods and controls that every reproduction compares. A new method is one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: What a method is trained on: "votes", the log with its feedback (in the paper's first experiment the model's own
#: candidates, scored by their similarity to the reference answers); "people", the reference answers themselves;
#: "shuffled", the log with its feedback permuted within slates; "energy" and "set-utility", own candidates with that
#: feedback of `pope label`. The last two, and "people", differ from "votes" only where the log is own candidates.
Feedback = Literal["votes", "people", "shuffled", "energy", "set-utility"]

#: The feedback that a log of people's responses has.
OF_PEOPLE: tuple[Feedback, ...] = ("votes", "shuffled")

BASE, AGAIN, PEOPLE = "base", "base-again", "people"


@dataclass(frozen=True)
class Method:
    """A trained method.

    Attributes:
        name: in options and file names.
        label: in tables.
        train: arguments of ``pope train`` that make it.
        feedback: what it is trained on.
        quick: whether ``--quick`` runs it.
        own: only for responses that the model drew itself.
        curve: part of the curve over ``diversity_weight``, which only Figure 1 has.
    """

    name: str
    label: str
    train: tuple[str, ...]
    feedback: Feedback = "votes"
    quick: bool = False
    own: bool = False
    curve: bool = False

    @property
    def is_pope(self) -> bool:
        """Whether it maximises POPE's value."""
        return self.name.startswith("pope")


#: The paper's reading of its own objective: importance weights without normalisation, and -log p as diversity.
_PAPER = ("--normalization", "none", "--diversity-form", "neg_log_prob")
#: Feedback that contains diversity already; training keeps its scale, which the log names.
_FEEDBACK_ALONE = ("--diversity-weight", "0")

METHODS = (
    Method("sft", "SFT", ("--method", "sft"), quick=True),
    Method("sft-people", "SFT on reference answers", ("--method", "sft"), "people"),
    Method("dpo", "DPO", ("--method", "dpo"), quick=True),
    Method("dpo-all", "DPO on all pairs", ("--method", "dpo", "--pairs", "all")),
    Method("lipo", "LiPO", ("--method", "lipo")),
    Method("oapl", "OAPL", ("--method", "oapl"), own=True),
    Method("weighted-sft", "SFT weighted by utility", ("--method", "weighted-sft")),
    Method("pope-paper", "POPE", _PAPER, quick=True),
    Method("pope", "POPE, our defaults", ()),
    Method("pope-energy", "POPE, energy distance as feedback", _FEEDBACK_ALONE, "energy"),
    Method("pope-set-utility", "POPE, set utility as feedback", _FEEDBACK_ALONE, "set-utility"),
    Method("pope-shuffled", "POPE on shuffled votes", _PAPER, "shuffled", quick=True),
    *(
        Method(
            f"pope-paper-{weight}",
            f"POPE, diversity weight {weight}",
            (*_PAPER, "--diversity-weight", weight),
            quick=weight in ("0", "1"),
            curve=True,
        )
        for weight in ("0", "0.03", "0.3", "1")
    ),
)

#: Labels of what is not trained.
CONTROLS = {BASE: "Base", AGAIN: "Base, sampled again", PEOPLE: "Other people"}


def label(name: str) -> str:
    """The label of a method or control."""
    return CONTROLS.get(name) or next(each.label for each in METHODS if each.name == name)


def chosen(names: Sequence[str] | None, *, own: bool, quick: bool, curve: bool) -> list[Method]:
    """The methods of an experiment.

    Args:
        names: of a selection; None: all that fit.
        own: whether the log is the model's own candidates.
        quick: only those of ``--quick``, unless names say otherwise.
        curve: whether the curve over ``diversity_weight`` belongs to it.

    Raises:
        ValueError: a name that is unknown, or does not fit the log.
    """
    fitting = [
        each for each in METHODS if (own or (each.feedback in OF_PEOPLE and not each.own)) and (curve or not each.curve)
    ]
    if names is None:
        return [each for each in fitting if each.quick or not quick]
    by_name = {each.name: each for each in fitting}
    for name in names:
        if name not in by_name:
            raise ValueError(f"--method: expected some of {', '.join(by_name)} for this experiment, got {name!r}")
    return [by_name[name] for name in dict.fromkeys(names)]
