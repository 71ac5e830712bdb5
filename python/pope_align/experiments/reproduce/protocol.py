"""What an experiment of the paper consists of: read from the YAML files in ``protocols/``, checked, with sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..._extras import require

_FOLDER = Path(__file__).parent / "protocols"

Experiment = Literal["table1", "table2", "table3", "figure1", "figure2", "figure3", "figure4"]

#: All seven, in the paper's order.
EXPERIMENTS: tuple[Experiment, ...] = get_args(Experiment)


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        train, test: slates of each part, of different prompts.
        candidates: responses of a training slate, at most: own ones, or a sample of people's.
        answers: to every test prompt, at every temperature.
        temperatures: of the methods; the base always has those of `BASE_TEMPERATURES`.
        max_new_tokens: of an answer.
        reference_characters: to which reference answers are cut, so that they are about as long as an answer can be; 0:
            uncut. Only for own candidates: what people voted on stays as it is.
        max_length: tokens of prompt and response in training and scoring.
        epochs, batch: of training; a batch is slates per optimizer step.
        learning_rates: that are tried for every method; of several, the one is taken whose answers to the validation
            prompts are best.
        validation: slates for that choice; none are made where there is one rate.
        draws: of the bootstrap.
    """

    train: int
    test: int
    candidates: int
    answers: int
    temperatures: tuple[float, ...]
    max_new_tokens: int
    reference_characters: int
    max_length: int
    epochs: int
    learning_rates: tuple[float, ...]
    validation: int
    batch: int
    draws: int

    def __post_init__(self) -> None:
        for each in fields(self):
            values = getattr(self, each.name)
            for value in values if isinstance(values, tuple) else (values,):
                if not value > 0 and each.name != "reference_characters":
                    raise ValueError(f"{each.name}: expected a number > 0, got {value}")
        for name in ("candidates", "answers", "test", "validation"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")
        if 1.0 not in self.temperatures:
            raise ValueError(f"temperatures: expected 1.0 among them, got {self.temperatures}")

    @property
    def tuned(self) -> bool:
        """Whether there is a learning rate to choose."""
        return len(self.learning_rates) > 1


#: Temperatures of the base model, whose front every method is compared with.
BASE_TEMPERATURES = (0.5, 0.7, 0.85, 1.0, 1.15)


@dataclass(frozen=True)
class Protocol:
    """One experiment.

    Attributes:
        name, title: of it.
        log: "candidates", the model's own answers to prompts with reference answers; or "people", a log people wrote.
        shows: the form of the result.
        metrics: its columns.
        matching: regular expression of the prompts that belong to it; "": all.
        value: whether off-policy estimates are a column.
        curve: whether it has the curve over ``diversity_weight``.
        source: whether the test part of the training data is reported; otherwise other data sets are needed.
        needs: what must be named on the command line.
        paper_metrics, paper: the paper's numbers.
    """

    name: str
    title: str
    log: Literal["candidates", "people"]
    shows: Literal["table", "envelopes", "bars", "judge"]
    metrics: tuple[str, ...]
    matching: str = ""
    value: bool = False
    curve: bool = False
    source: bool = True
    needs: tuple[str, ...] = ()
    paper_metrics: tuple[str, ...] = ()
    paper: tuple[Mapping[str, Any], ...] = ()

    @property
    def own(self) -> bool:
        """Whether the log is the model's own candidates."""
        return self.log == "candidates"


def read_protocol(name: str) -> Protocol:
    """The protocol of an experiment."""
    content = _yaml(f"{name}.yaml")
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    return Protocol(name=name, **{**content, **lists})


def read_sizes(protocol: Protocol, *, quick: bool, changes: Sequence[str] = ()) -> Sizes:
    """The sizes of a protocol.

    Args:
        changes: each ``NAME=VALUE``.

    Raises:
        ValueError: an unknown name or an invalid value.
    """
    content = _yaml("sizes.yaml")[protocol.log]["quick" if quick else "full"]
    content = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    sizes = Sizes(**content)
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals or name not in content:
            raise ValueError(f"--set: expected NAME=VALUE with a name among {', '.join(content)}, got {change!r}")
        sizes = replace(sizes, **{name: _value(name, text, content[name])})
    return sizes


def _value(name: str, text: str, like: Any) -> Any:
    """``text`` as a value of the same type as ``like``."""
    try:
        if isinstance(like, tuple):
            return tuple(sorted({float(part) for part in text.split(",")}))
        return type(like)(text)
    except ValueError:
        kind = "numbers with commas" if isinstance(like, tuple) else f"a number of type {type(like).__name__}"
        raise ValueError(f"--set {name}: expected {kind}, got {text!r}") from None


def _yaml(name: str) -> dict[str, Any]:
    yaml = require("yaml", extra="train", purpose="to read the protocols of reproductions")
    content: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
    return content
