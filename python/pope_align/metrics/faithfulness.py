"""AlignScore (Zha et al. 2023): whether an answer's claims are supported by its context, for any aligner."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._extras import require

if TYPE_CHECKING:
    import torch

#: Maps (context chunk, claim) pairs to the probability, in [0, 1], that the claim is supported.
AlignFn = Callable[[Sequence[tuple[str, str]]], Sequence[float]]

#: Approximate number of words of a context chunk, as in the published metric.
CHUNK_WORDS = 350


def align_scores(
    contexts: Sequence[str],
    claims: Sequence[str],
    align_fn: AlignFn,
    *,
    split: Callable[[str], list[str]] | None = None,
) -> list[float]:
    """AlignScore of every claim given its context: ``mean_j max_i P(sentence j is supported by chunk i)``.

    The context is cut into chunks of whole sentences, about 350 words each, the claim into sentences; every chunk is
    scored with every sentence, all pairs of all texts in one call of ``align_fn`` (equal pairs once). In [0, 1], higher
    is better. NaN for an empty claim; an empty context is one empty chunk.

    Args:
        contexts, claims: texts, of one length.
        align_fn: e.g. `load_alignscore` of the official checkpoint.
        split: splits a text into sentences; default `sentences`. (The published numbers used NLTK's punkt.)

    Raises:
        ValueError: lengths that differ; an ``align_fn`` that returns another number of scores, or one outside [0, 1].
    """
    if len(contexts) != len(claims):
        raise ValueError(f"claims: expected {len(contexts)}, one per context, got {len(claims)}")
    split = split or sentences
    grids = [(context_chunks(context, split), split(claim)) for context, claim in zip(contexts, claims)]
    pairs = list(dict.fromkeys((chunk, claim) for chunks, parts in grids for claim in parts for chunk in chunks))
    probabilities = np.asarray(align_fn(pairs) if pairs else [], dtype=np.float64)
    if probabilities.shape != (len(pairs),):
        raise ValueError(f"align_fn: expected {len(pairs)} scores, got shape {list(probabilities.shape)}")
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        at = int(outside.argmax())
        raise ValueError(f"align_fn: expected probabilities in [0, 1], got {probabilities[at]} for pair {at}")
    known = dict(zip(pairs, probabilities.tolist()))
    return [
        float(np.mean([max(known[chunk, claim] for chunk in chunks) for claim in parts])) if parts else float("nan")
        for chunks, parts in grids
    ]


def context_chunks(context: str, split: Callable[[str], list[str]] | None = None) -> list[str]:
    """Whole sentences of a context, joined into chunks of about `CHUNK_WORDS` words. At least one chunk."""
    parts = (split or sentences)(context) or [""]
    chunks = len(context.split()) // CHUNK_WORDS + 1
    size = max(len(parts) // chunks, 1)
    return [" ".join(parts[start : start + size]) for start in range(0, len(parts), size)]


def sentences(text: str) -> list[str]:
    """Sentences by their closing mark (. ! ? or a CJK one) and by line; without handling of abbreviations."""
    pieces = re.split(r"(?<=[.!?])\s+|(?<=[.!?][\"')\]])\s+|(?<=[\u3002\uff01\uff1f])|\n+", text)
    return [piece.strip() for piece in pieces if piece and piece.strip()]


def load_alignscore(
    checkpoint: str | os.PathLike[str],
    backbone: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    device: str = "cpu",
) -> AlignFn:
    """The official AlignScore model as an ``align_fn`` (the three-way head's probability of *aligned*).

    Args:
        checkpoint: AlignScore-base.ckpt or -large.ckpt, or a file with its state dict.
        backbone: name or folder of the RoBERTa model that it is based on (roberta-base, roberta-large), for
            configuration and tokenizer; the weights come from the checkpoint.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a checkpoint without the encoder or the head.
    """
    import torch

    transformers = require("transformers", extra="eval", purpose="for AlignScore")
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint: expected a file, found none at {os.fspath(checkpoint)!r}")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    encoder = transformers.RobertaModel(
        transformers.AutoConfig.from_pretrained(os.fspath(backbone), trust_remote_code=False)
    )
    prefix = "base_model."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    missing, _ = encoder.load_state_dict(weights, strict=False)  # old checkpoints also contain buffers
    head = {name: state.get(f"tri_layer.{name}") for name in ("weight", "bias")}
    if missing or head["weight"] is None or head["bias"] is None:
        raise ValueError(
            f"checkpoint: expected base_model.* for {os.fspath(backbone)!r} and tri_layer.*, got "
            f"{len(weights)} encoder tensors, {len(missing)} missing ({', '.join(missing[:3])})"
        )
    encoder.to(device).eval()
    head = {name: value.to(device) for name, value in head.items()}
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(backbone), trust_remote_code=False)

    def aligned(inputs: Any) -> torch.Tensor:
        return torch.nn.functional.linear(encoder(**inputs).pooler_output, **head).softmax(-1)[:, 0]

    return _in_batches(aligned, tokenizer, longest=512, batch_size=batch_size, device=device)


def load_entailment(name: str | os.PathLike[str], *, batch_size: int = 32, device: str = "cpu") -> AlignFn:
    """Any model of natural-language inference as an ``align_fn``: the probability of its label *entailment*.

    Its scores are not those of AlignScore, whatever they are averaged like: reports name the model.

    Args:
        name: hub name or folder of a sequence classifier with one label whose name begins with "entail".

    Raises:
        ValueError: a classifier without such a label, with several, or with no other label.
    """

    transformers = require("transformers", extra="eval", purpose="for entailment")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(os.fspath(name), trust_remote_code=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(os.fspath(name), trust_remote_code=False)
    labels = {int(index): str(label) for index, label in model.config.id2label.items()}
    found = [index for index, label in labels.items() if label.lower().startswith("entail")]
    if len(found) != 1 or len(labels) < 2:
        raise ValueError(
            f"entailment: expected a model with one label that begins with 'entail', and others, got the labels "
            f"{', '.join(labels.values())} in {os.fspath(name)!r}"
        )
    model.to(device).eval()
    # Not every tokenizer knows the model's limit, and positions may begin behind the padding's.
    longest = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 514) - 2)

    def entailed(inputs: Any) -> torch.Tensor:
        probabilities: torch.Tensor = model(**inputs).logits.float().softmax(-1)[:, found[0]]
        return probabilities

    return _in_batches(entailed, tokenizer, longest=longest, batch_size=batch_size, device=device)


def _in_batches(
    probabilities: Callable[[Any], torch.Tensor], tokenizer: Any, *, longest: int, batch_size: int, device: str
) -> AlignFn:
    """Pairs of context and claim in batches of similar length, in their own order."""
    import torch

    def align(pairs: Sequence[tuple[str, str]]) -> list[float]:
        order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][0]) + len(pairs[index][1]))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = tokenizer(
                [pairs[index][0] for index in batch],
                [pairs[index][1] for index in batch],
                truncation="longest_first",
                max_length=longest,
                padding=True,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                for index, score in zip(batch, probabilities(inputs).tolist()):
                    scores[index] = score
        return scores

    return align
