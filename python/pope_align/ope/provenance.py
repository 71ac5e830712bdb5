"""Compares the provenance of two sets of log-probabilities, which must agree if they are subtracted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..generation.sampling import NEUTRAL, sampled_with

#: Keys on which both must agree, if both have them.
_SAME = {
    "tokenizer_fingerprint": "tokenizers",
    "chat_template": "chat templates",
    "template_date": "dates in the chat template",
    "dtype": "dtypes",
    "max_length": "max_length",
    "engine": "inference engines",
}

#: What of a sampler leaves some tokens without any probability.
_CUTS = ("top_p", "top_k", "min_p")


def provenance_differences(logging: Mapping[str, Any] | None, target: Mapping[str, Any] | None) -> Iterator[str]:
    """One sentence for every difference that makes ``l_theta - l_0`` doubtful; none if the provenance is unknown.

    Args:
        logging, target: as `pope_align.propensity.logging_policy` writes them, with any of ``engine``, ``temperature``,
            ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty`` added when the log was sampled;
            ``sampling``, settings whose distribution the propensities are of, as `pope label` writes them; or
            ``sampled_with``, settings that the propensities leave out, as `pope score` writes them.
    """
    logging, target = logging or {}, target or {}
    for key, what in _SAME.items():
        if key in logging and key in target and logging[key] != target[key]:
            yield f"{what} differ: the log was scored with {logging[key]}, the policy with {target[key]}"
    if other := logging.get("sampled_with"):
        yield (
            f"the log was sampled with {_spelled(other)}, and its propensities are those of the model without; record "
            "them while sampling (pope generate --logprobs)"
        )
    cuts = {name: value for name, value in sampled_with({"sampling": logging.get("sampling")}).items() if name in _CUTS}
    if cuts:
        yield (
            f"the log was sampled with {_spelled(cuts)}: it holds no response that this leaves out, and the policy may "
            "write such"
        )
    for key, neutral in NEUTRAL.items():
        theirs, ours = logging.get(key, neutral), target.get(key, neutral)
        if theirs != ours:
            yield (
                f"{key} differs: {theirs} for the logging policy, {ours} for the policy; propensities must be those of "
                "the distribution that was sampled"
            )


def _spelled(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
