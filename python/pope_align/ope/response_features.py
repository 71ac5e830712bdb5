"""Features of the texts of logged and fresh responses, for estimators for long responses."""

from __future__ import annotations

import numpy as np

from .._arrays import Floats
from ..data.schema import Slate
from ..generation.generations import completion_text, prompt_text
from .features import Features, given_prompt, surface
from .log import LoggedSlates
from .reward_model import Embed
from .scoring import Samples, owners


def response_features(log: LoggedSlates, samples: Samples, embed: Embed) -> list[Features]:
    """Feature sets of logged and fresh responses: embeddings given the prompt, properties of the words, and both.

    Args:
        log: made by `LoggedSlates.from_slates`, so that it has text.
        samples: for each slate, fresh responses of the policy.
        embed: sentence embeddings.

    Raises:
        ValueError: a log without text.
    """
    if log.slates is None:
        raise ValueError("log: a reward model reads text, and this log was made from arrays; use from_slates")
    slates: tuple[Slate, ...] = log.slates
    logged = [completion_text(completion) for slate in slates for completion in slate.completions]
    fresh, owner = [text for texts in samples for text in texts], owners(samples)
    prompts = _unit(embed([prompt_text(slate.prompt) for slate in slates]))
    at = np.repeat(np.arange(log.num_slates), log.sizes)
    said, new = _unit(embed(logged)), _unit(embed(fresh))
    embedded = Features("embedding", given_prompt(said, prompts[at]), given_prompt(new, prompts[owner]), owner)
    words = Features("surface", surface(logged), surface(fresh), owner)
    return [embedded, words, embedded.beside(words)]


def _unit(vectors: object) -> Floats:
    array = np.asarray(vectors, dtype=np.float64)
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.where(norms > 0, norms, 1.0))
