"""Compares the provenance of two sets of log-probabilities, which must agree if they are subtracted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Keys on which both must agree, if both have them.
_SAME = {
    "tokenizer_fingerprint": "tokenizers",
    "chat_template": "chat templates",
    "template_date": "dates in the chat template",
    "dtype": "dtypes",
    "max_length": "max_length",
    "engine": "inference engines",
}

#: Sampling settings and their neutral values; a missing key means the neutral value.
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def provenance_differences(logging: Mapping[str, Any] | None, target: Mapping[str, Any] | None) -> Iterator[str]:
    """One sentence for every difference that makes ``l_theta - l_0`` doubtful; none if the provenance is unknown.

    Args:
        logging, target: as `pope_align.propensity.logging_policy` writes them, with any of ``engine``, ``temperature``,
            ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty`` added when the log was sampled.
    """
    logging, target = logging or {}, target or {}
    for key, what in _SAME.items():
        if key in logging and key in target and logging[key] != target[key]:
            yield f"{what} differ: the log was scored with {logging[key]}, the policy with {target[key]}"
    for key, neutral in _SAMPLING.items():
        theirs, ours = logging.get(key, neutral), target.get(key, neutral)
        if theirs != ours:
            yield (
                f"{key} differs: {theirs} for the logging policy, {ours} for the policy; propensities must be those of "
                "the distribution that was sampled"
            )
