"""Under which settings an endpoint's log-probabilities are propensities; imports nothing heavy."""

from __future__ import annotations

from typing import Any, Literal

from ..data.token_logprobs import ENGINES, left_out
from .sampling import Sampling

#: What answers at the endpoint; each means something else by log-probabilities, and has other settings.
Server = Literal["openai", "vllm", "sglang"]

#: Settings that a server takes from the model's generation_config.json unless a request has them. OpenAI has none.
SERVER_SETTINGS: dict[str, float] = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def check_recordable(sampling: Sampling, server: Server) -> None:
    """Refuse settings under which an endpoint's log-probabilities are no propensities.

    Raises:
        ValueError: greedy decoding; settings that its values leave out.
    """
    sampling.check_logprobs()
    settings: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if server != "openai":
        settings |= SERVER_SETTINGS
    if others := left_out(ENGINES[server], settings):
        named = ", ".join(f"{name} {value}" for name, value in others.items())
        raise ValueError(
            f"logprobs: expected settings that the log-probabilities of {server} include, got {named}: they are not "
            "the probabilities that its tokens were drawn with"
        )
