"""Sampling settings; used by command lines, so this module imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


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
