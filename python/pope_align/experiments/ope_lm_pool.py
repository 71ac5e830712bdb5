"""The sampled responses: texts of every prefix, their rewards, and features for reward models."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import Floats
from ..ope.features import surface
from .ope_lm_policies import BLOCK, LENGTHS, LOGGING, TEMPERATURES, Policy, Prompts
from .ope_lm_samples import ROUND, Portion

Embed = Callable[[list[str]], Floats]

#: Principal components kept of embeddings, of their products with the prompt's, and of hidden states.
_COMPONENTS = 48

REWARDS = ("semantic", "lexical")


@dataclass(frozen=True, eq=False)
class Responses:
    """One policy's responses to every prompt, cut at one length: ``[P, M, ...]``."""

    logprobs: dict[str, Floats]  # totals of the prefix, nats, under policies that scored it
    tokens: npt.NDArray[np.int64]
    reward: dict[str, Floats]  # chance of a thumb
    unit: Floats  # sentence embedding
    seen: dict[str, Floats]  # feature sets of reward models


@dataclass(frozen=True, eq=False)
class PromptPool:
    """Everything sampled, at one length."""

    length: int
    logged: Responses
    targets: dict[str, Responses]

    @property
    def num_prompts(self) -> int:
        return int(self.logged.tokens.shape[0])


def finished_blocks(cache: Path, blocks: int, rounds: int, targets: Sequence[Policy]) -> list[int]:
    """The blocks with all pieces for these targets and rounds of the log."""
    return [block for block in range(blocks) if all(path.exists() for path in _needed(cache, block, rounds, targets))]


def _needed(cache: Path, block: int, rounds: int, targets: Sequence[Policy]) -> list[Path]:
    logged = [Portion(LOGGING, block, number) for number in range(rounds)]
    paths = [piece.path(cache) for piece in logged]
    for target in targets:
        paths.append(Portion(target, block, 0).path(cache))
        if not target.untouched:
            paths.append(Portion(target, block, 0).scored_path(cache, LOGGING))
            paths += [piece.scored_path(cache, target) for piece in logged]
    return paths


def read_pools(
    cache: Path,
    prompts: Prompts,
    tokenizer: Any,
    embed: Embed,
    blocks: Sequence[int],
    rounds: int,
    targets: Sequence[Policy],
) -> list[PromptPool]:
    """The pools of all `LENGTHS`, from `finished_blocks`."""
    raw = {LOGGING.name: _read(cache, LOGGING, blocks, rounds, targets)}
    raw |= {target.name: _read(cache, target, blocks, 1, [target]) for target in targets}
    questions = [prompt for block in blocks for prompt in prompts.blocks[block]]
    asked = embed([prompt.text for prompt in questions])
    return [_cut(raw, place, tokenizer, embed, questions, asked) for place in range(len(LENGTHS))]


@dataclass(frozen=True, eq=False)
class _Raw:
    tokens: npt.NDArray[np.int32]  # [P, M, LENGTH]
    logprobs: dict[str, Floats]  # [P, M, LENGTH]
    hidden: Floats  # [P, M, len(LENGTHS), D]


def _read(cache: Path, policy: Policy, blocks: Sequence[int], rounds: int, scorers: Sequence[Policy]) -> _Raw:
    parts: list[list[dict[str, Any]]] = []
    for block in blocks:
        row = []
        for number in range(rounds):
            piece = Portion(policy, block, number)
            drawn = dict(np.load(piece.path(cache)))
            own = drawn if policy.untouched else dict(np.load(piece.scored_path(cache, LOGGING)))
            if policy.untouched:
                scores = {f"T={each:g}": own["logprobs"][..., at] for at, each in enumerate(TEMPERATURES)}
            else:
                scores = {LOGGING.name: own["logprobs"][..., 0], policy.name: drawn["logprobs"][..., 0]}
            if policy == LOGGING:
                for scorer in scorers:
                    if not scorer.untouched:
                        scores[scorer.name] = np.load(piece.scored_path(cache, scorer))["logprobs"][..., 0]
            row.append({"tokens": drawn["tokens"], "hidden": own["hidden"], **scores})
        parts.append(row)

    def joined(name: str) -> npt.NDArray[Any]:
        """``[P, M, ...]``: rounds concatenated along M, blocks along P."""
        shaped = [[each[name].reshape(BLOCK, ROUND, *each[name].shape[1:]) for each in row] for row in parts]
        return np.concatenate([np.concatenate(row, axis=1) for row in shaped])

    names = [name for name in parts[0][0] if name not in ("tokens", "hidden")]
    logprobs = {name: joined(name).astype(np.float64) for name in names}
    return _Raw(joined("tokens"), logprobs, joined("hidden").astype(np.float64))


def _cut(
    raw: dict[str, _Raw], place: int, tokenizer: Any, embed: Embed, questions: Sequence[Any], asked: Floats
) -> PromptPool:
    length = LENGTHS[place]
    references = [[_first_tokens(tokenizer, text, length) for text in prompt.references] for prompt in questions]
    nearest = [embed(texts) for texts in references]
    read: dict[str, dict[str, Any]] = {}
    for name, each in raw.items():
        rows = each.tokens[:, :, :length].reshape(-1, length)
        texts = [tokenizer.decode(row[row >= 0].tolist(), skip_special_tokens=True) for row in rows]
        unit = embed(texts).reshape(*each.tokens.shape[:2], -1)
        read[name] = {
            "unit": unit,
            "near": np.stack([(of @ theirs.T).max(1) for of, theirs in zip(unit, nearest, strict=True)]),
            "long": np.array([long_words(text) for text in texts]).reshape(each.tokens.shape[:2]),
            "surface": surface(texts).reshape(*each.tokens.shape[:2], -1),
            "hidden": each.hidden[:, :, place],
        }
    base = read[LOGGING.name]
    scales = {"near": np.quantile(base["near"], [0.05, 0.95]), "long": np.quantile(base["long"], [0.05, 0.95])}
    axes = {
        "unit": _axes(base["unit"]),
        "product": _axes(base["unit"] * asked[:, None]),
        "hidden": _axes(base["hidden"]),
    }
    of = {name: _responses(raw[name], read[name], length, scales, axes, asked) for name in raw}
    return PromptPool(length, of.pop(LOGGING.name), of)


def _responses(
    raw: _Raw, read: dict[str, Any], length: int, scales: dict[str, Floats], axes: dict[str, Any], asked: Floats
) -> Responses:
    tokens = (raw.tokens[:, :, :length] >= 0).sum(2)
    counts = np.log(tokens)[..., None]
    question = np.repeat(axes["unit"](asked)[:, None], tokens.shape[1], axis=1)
    meaning = [axes["unit"](read["unit"]), axes["product"](read["unit"] * asked[:, None]), question, counts]
    embedding = np.concatenate(meaning, axis=2)
    hidden = np.concatenate([axes["hidden"](read["hidden"]), counts], axis=2)
    words = np.concatenate([read["surface"], counts], axis=2)
    return Responses(
        {name: scores[:, :, :length].sum(2) for name, scores in raw.logprobs.items()},
        tokens.astype(np.int64),
        {"semantic": _between(read["near"], scales["near"]), "lexical": _between(read["long"], scales["long"])},
        read["unit"],
        {
            "embedding": embedding,
            "surface": words,
            "hidden states": hidden,
            "embedding + surface": np.concatenate([embedding, read["surface"]], axis=2),
        },
    )


def long_words(text: str) -> float:
    """Share of words of seven letters and more, 0 without words."""
    sizes = [len(word) for word in re.findall(r"[^\W\d_]+", text)]
    return sum(size >= 7 for size in sizes) / len(sizes) if sizes else 0.0


def _between(values: Floats, ends: Floats) -> Floats:
    """The chance of a thumb: from .02 to .98 over the middle 90% of the log."""
    return np.asarray(np.clip((values - ends[0]) / (ends[1] - ends[0]), 0.02, 0.98))


def _first_tokens(tokenizer: Any, text: str, length: int) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"][:length]))


def _axes(values: Floats) -> Callable[[Floats], Floats]:
    """Projection on the principal components of the log's values, without rewards."""
    flat = values.reshape(-1, values.shape[-1])
    mean = flat.mean(0)
    axes = np.linalg.svd(flat - mean, full_matrices=False)[2][:_COMPONENTS]
    return lambda new: np.asarray((new - mean) @ axes.T)


def embedder(cache: Path) -> Embed:
    """all-MiniLM-L6-v2, with its cache next to the samples."""
    from ..metrics.embeddings import Embedder

    os.makedirs(cache / "embeddings", exist_ok=True)
    return Embedder(cache_dir=cache / "embeddings")
