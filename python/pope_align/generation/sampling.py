"""Sampling settings; used by command lines, so this module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What makes a sampler's distribution differ from the model's own; absent means the neutral value.
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


#: Answers decoded together, unless a caller says otherwise: it changes speed and memory, not the answers.
BATCH_SIZE = 32


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings. The defaults sample from the model itself; a checkpoint's own settings are not applied."""

    max_new_tokens: int = 256
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # 1: off
    top_k: int = 0  # 0: off

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected an integer >= 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected a finite number >= 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected an integer >= 0 (0: off), got {self.top_k}")

    def check_logprobs(self) -> None:
        """Refuse settings without usable propensities.

        Raises:
            ValueError: greedy decoding.
        """
        if self.temperature == 0:
            raise ValueError(
                "temperature: expected > 0 with logprobs, got 0: a greedy answer has probability 1 and all others 0, "
                "so no other policy can be compared with this one"
            )


def sampled_with(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What makes the distribution that was sampled differ from the model's own; empty where nothing does.

    Args:
        settings: of a sampler: with a key ``sampling``, as `pope generate` writes them, or with ``temperature`` and its
            kin themselves, as other tools do; or the provenance of a log, whose key ``sampled_with`` is the answer of
            an earlier step.
    """
    settings = settings or {}
    if isinstance(before := settings.get("sampled_with"), Mapping) and before:
        return dict(before)
    nested = settings.get("sampling")
    given = {**settings, **(nested if isinstance(nested, Mapping) else {})}
    found = {name: given[name] for name, neutral in NEUTRAL.items() if given.get(name) not in (None, neutral)}
    if found.get("top_k", 0) < 0:  # off, as vLLM spells it
        del found["top_k"]
    return found
