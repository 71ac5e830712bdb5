"""Hidden states and head of a real model on real text, in a file that the GPU benchmark reads without the model.

What a kernel skips because its probability is small (CCE's filter) depends on how peaked a model is, which random
states do not show. On any machine with the ``demo`` extra::

    python benchmarks/hidden_states.py                    # SmolLM2-135M-Instruct on the Polis log of the demo
    python benchmarks/hidden_states.py MODEL --log slates.jsonl --tokens 4096

MODEL is a folder, a GGUF file or a hub name. The file, ``data/hidden_states.pt``, holds bfloat16 tensors: 2(N + V)D
bytes, 63 MiB of SmolLM2's at 8192 tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypedDict

import torch

FILE = Path(__file__).parent / "data" / "hidden_states.pt"
HOW = "python benchmarks/hidden_states.py"


class States(TypedDict):
    """A log as the objective sees it; the logging policy is the model itself, so that all weights are about 1."""

    model: str
    hidden: torch.Tensor  # [N, D] bfloat16
    head: torch.Tensor  # [V, D] bfloat16
    labels: torch.Tensor  # [N]
    response_offsets: torch.Tensor  # [R + 1]
    slate_offsets: torch.Tensor  # [S + 1]
    logging_logprobs: torch.Tensor  # [R] means of tokens, nats
    utility: torch.Tensor  # [R]


def load_states() -> States | None:
    """What `prepare` has written; None without the file. Tensors are read when they are used."""
    return torch.load(FILE, mmap=True, weights_only=True) if FILE.exists() else None


def prepare(model_name: str | None, log: Path | None, tokens: int) -> States:
    """Run the model over the log, slate by slate, until it has ``tokens`` response tokens; the last response is cut.

    Raises:
        ValueError: a log of fewer tokens; a head with a bias, a scale or a softcap, which not every rival takes.
    """
    from pope_align.data import Tree, encode_slates, lay_out, read_slates
    from pope_align.demo import POLIS
    from pope_align.models.causal_lm import lm_head, response_hidden_states, rows_on
    from pope_align.models.loading import best_device, load_model, load_tokenizer
    from pope_align.models.places import packaged_model

    import pope_core

    source, log = Path(model_name) if model_name else packaged_model(), log or POLIS
    model = load_model(str(source)).to(best_device()).eval()
    head = lm_head(model)
    if head.bias is not None or head.logit_scale != 1.0 or head.logit_softcap is not None:
        raise ValueError(f"model: expected a head that is one matrix, got {source} with a bias, a scale or a softcap")
    slates = list(read_slates(log))
    encoded, _ = encode_slates(slates, load_tokenizer(str(source)), max_length=2048)
    hidden, labels, lengths, sizes, utility = [], [], [], [], []
    left = tokens
    for slate, ids in zip(slates, encoded, strict=True):
        kept: list[list[int]] = []
        for completion in ids.completion_ids:
            if left > 0:
                kept.append(completion[:left])
                left -= len(kept[-1])
        with torch.no_grad():
            states = response_hidden_states(
                model, rows_on(model, lay_out([Tree(ids.prompt_ids, kept)], share_prompt=False))
            )
        hidden.append(states.hidden.cpu().bfloat16())
        labels.append(states.labels.cpu())
        lengths += map(len, kept)
        sizes.append(len(kept))
        utility += slate.scores[: len(kept)]
        print(f"{tokens - left} of {tokens} tokens", end="\r", flush=True)
        if left == 0:
            break
    print()
    if left > 0:
        raise ValueError(f"log: expected {tokens} response tokens, found {tokens - left} in {log}; give --tokens")
    response_offsets = pope_core.offsets_from_lengths(lengths)
    weight = head.weight.detach().cpu().bfloat16()
    packed, answers = torch.cat(hidden), torch.cat(labels)
    logprobs = pope_core.linear_response_logprobs(
        packed.float(), weight.float(), answers, response_offsets=response_offsets
    )
    file = next(source.glob("*.gguf"), source) if source.is_dir() else source
    return States(
        model=f"{file.stem} on {log.name}",
        hidden=packed,
        head=weight,
        labels=answers,
        response_offsets=response_offsets,
        slate_offsets=pope_core.offsets_from_lengths(sizes),
        logging_logprobs=logprobs,
        utility=torch.tensor(utility, dtype=torch.float32),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder, GGUF file or hub name; SmolLM2-135M-Instruct if left out")
    parser.add_argument("--log", type=Path, help="slates as JSON lines; the Polis log if left out")
    parser.add_argument("--tokens", type=int, default=8192, help="response tokens, N")
    arguments = parser.parse_args()
    states = prepare(arguments.model, arguments.log, arguments.tokens)
    FILE.parent.mkdir(exist_ok=True)
    torch.save(states, FILE)
    shapes = {name: tuple(states[name].shape) for name in ("hidden", "head", "response_offsets")}
    print(f"wrote {FILE}, {FILE.stat().st_size / 2**20:.1f} MiB: {states['model']}, {shapes}")
