"""Whether two sets of log-probabilities may be subtracted: what their provenance says they differ in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

#: Both sides must agree on these, where both say them; a ratio of log-probabilities carries any difference.
_SAME = {
    "tokenizer_fingerprint": "tokenizers",
    "chat_template": "chat templates",
    "template_date": "dates in the chat template",
    "dtype": "dtypes",
    "max_length": "max_length",
    "engine": "inference engines",
}

#: What makes a sampler's distribution differ from the model's own; absent means the neutral value.
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


def provenance_differences(logging: Mapping[str, Any] | None, target: Mapping[str, Any] | None) -> Iterator[str]:
    """One sentence for every reason to doubt ``l_theta - l_0``; nothing where the provenance is not known.

    Args:
        logging, target: as `pope_align.propensity.logging_policy` writes them, with any of ``engine``, ``temperature``,
            ``top_p``, ``top_k``, ``min_p`` and ``repetition_penalty`` added by whoever sampled the log.
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
