"""Token log-probabilities that an engine returned with a response: when they are the propensity, and when they are not.

A propensity is the probability with which the response was drawn: under the sampler's temperature, top-p and whatever
else changed its distribution. Engines return something else unless these are neutral:

==========  ===========================================================================================  =============
engine      its log-probabilities are those of                                                           source
==========  ===========================================================================================  =============
openai      not documented whether temperature and top-p are included, so neither may be used (the API  API reference
            documents that -9999.0 stands for any very unlikely token)
vllm        the model itself (``raw_logprobs``, the default); with ``--logprobs-mode                     vLLM v1 guide
            processed_logprobs`` the distribution that was sampled
sglang      the sampler after temperature, penalties and logit bias, before top-k, top-p and min-p       sampler.py
            (with ``SGLANG_RETURN_ORIGINAL_LOGPROB``: before temperature, too)
tinker      the model itself; what a temperature does to them is not documented                          SampledSequence
==========  ===========================================================================================  =============

So a total is a propensity if every setting that changes the distribution is neutral or among those that the engine's
values reflect. All readers of such logs decide this with `recorded`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..generation.sampling import NEUTRAL

#: Settings that change the distribution of a sampler, with the values that do not.
NEUTRAL_SETTINGS: dict[str, tuple[Any, ...]] = {
    **{name: (value,) for name, value in NEUTRAL.items()},
    "top_k": (0, -1),  # off, as transformers and as vLLM, SGLang and Tinker spell it
    "frequency_penalty": (0.0,),
    "presence_penalty": (0.0,),
    "logit_bias": ({}, []),
    "bad_words": ([],),
    "min_tokens": (0,),
    "min_new_tokens": (0,),
    "use_beam_search": (False,),
    "response_format": ({"type": "text"},),
    **{f"guided_{kind}": () for kind in ("json", "regex", "choice", "grammar")},
    **dict.fromkeys(("structured_outputs", "json_schema", "regex", "ebnf"), ()),
}

#: Settings without which nothing is known of the distribution, where a server's own defaults may not be neutral.
_NEEDED = ("temperature", "top_p", "top_k")

#: Stands in provenance for the value of a setting that the log lacks.
NOT_LOGGED = "not logged"

#: The API writes this for every token that is very unlikely; vLLM writes it for minus infinity.
UNLIKELY = -9999.0


#: What ``--map logprobs_mode=...`` may say, the default first, and the ending of the name in `ENGINES`.
MODES = {
    "vllm": {"raw_logprobs": "", "processed_logprobs": "-processed"},
    "sglang": {"sampled": "", "original": "-original"},
}


@dataclass(frozen=True, slots=True)
class EngineLogprobs:
    """What an engine's log-probabilities are."""

    name: str
    reflects: frozenset[str] = frozenset()  # settings that its values include
    neutral_defaults: bool = True  # whether a setting that a request lacks is neutral


_ALL = frozenset(NEUTRAL_SETTINGS)
_SGLANG = frozenset(
    {"temperature", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "min_new_tokens"}
)
#: By name, and for servers that take their defaults from the model's generation_config.json by name and "-server".
ENGINES = {
    "openai": EngineLogprobs("openai"),
    "vllm": EngineLogprobs("vllm"),
    "vllm-server": EngineLogprobs("vllm", neutral_defaults=False),
    "vllm-processed": EngineLogprobs("vllm", _ALL),
    "vllm-server-processed": EngineLogprobs("vllm", _ALL, neutral_defaults=False),
    "sglang": EngineLogprobs("sglang", _SGLANG),
    "sglang-server": EngineLogprobs("sglang", _SGLANG, neutral_defaults=False),
    "sglang-original": EngineLogprobs("sglang", _SGLANG - {"temperature"}),
    "sglang-server-original": EngineLogprobs("sglang", _SGLANG - {"temperature"}, neutral_defaults=False),
    "tinker": EngineLogprobs("tinker"),
    "tinker-unknown": EngineLogprobs("tinker", neutral_defaults=False),  # its sampling_params were not captured
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """The total of a response's token log-probabilities, and what it is."""

    total: float  # nats
    tokens: int
    left_out: dict[str, Any]  # settings that the response was drawn with and the total leaves out; none: a propensity

    @property
    def is_propensity(self) -> bool:
        return not self.left_out


def mode(engine: str, given: str | None) -> str:
    """The ending of an engine's name in `ENGINES` for a mode of its log-probabilities; None for the default.

    Raises:
        ValueError: the engine has no such mode.
    """
    modes = MODES[engine]
    if given is not None and given not in modes:
        raise ValueError(f"mapping: logprobs_mode: expected one of {', '.join(modes)}, got {given!r}")
    return modes.get(given or "", "")


def recorded(engine: EngineLogprobs, logprobs: Sequence[float], settings: Mapping[str, Any]) -> Recorded:
    """What the token log-probabilities of a response are, given the settings that it was drawn with.

    Args:
        logprobs: of every token of the response, nats, each finite and <= 0.
        settings: of the request; None counts as absent.
    """
    return Recorded(sum(logprobs), len(logprobs), left_out(engine, settings))


def left_out(engine: EngineLogprobs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change the distribution and that the engine's log-probabilities do not reflect."""
    found = {name: value for name, value in changed(engine, settings).items() if name not in engine.reflects}
    if settings.get("temperature") == 0:  # the response that was certain: its log-probabilities are of no draw
        found["temperature"] = 0
    return found


def changed(engine: EngineLogprobs, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings whose values change the distribution, or may, since the log lacks them."""
    found = {name: value for name, value in sampling(settings).items() if value not in NEUTRAL_SETTINGS[name]}
    if not engine.neutral_defaults:
        found |= {name: NOT_LOGGED for name in _NEEDED if settings.get(name) is None}
    return found


def sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that bear on the distribution, as provenance keeps them."""
    return {name: settings[name] for name in NEUTRAL_SETTINGS if settings.get(name) is not None}
