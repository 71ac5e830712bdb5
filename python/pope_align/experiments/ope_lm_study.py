"""How far each estimator can be believed on real language, where the truth is known.

    python -m pope_align.experiments.ope_lm_study sample --prompts alpaca_eval.jsonl --cache CACHE

draws the responses and can be stopped and started at will. docs/choosing-an-estimator.md reads the results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..model import load_model, load_tokenizer
from ..places import packaged_model
from .ope_lm_policies import LOGGING, TARGETS, TRAINED, Policy, Prompts, choose_prompts
from .ope_lm_samples import Piece, PolicyModel, write_piece

#: Blocks that are sampled under every policy before the next ones are begun, so that what is there can be used.
_STAGE = 4


def work(prompts: Prompts, rounds: int, targets: Sequence[Policy]) -> Iterator[tuple[Piece, Policy | None]]:
    """Every piece to draw (None) or to score (the scorer), in the order in which results become useful."""
    blocks = len(prompts.blocks)
    for start in range(0, blocks, _STAGE):
        stage = range(start, min(start + _STAGE, blocks))
        yield from ((Piece(LOGGING, block, 0), None) for block in stage)
        yield from (each for target in targets[:1] for block in stage for each in _target_work(target, block, 1))
        yield from ((Piece(LOGGING, block, 1), None) for block in stage)
        yield from (each for target in targets[:1] for block in stage for each in _scoring(target, block, 1))
        yield from (each for target in targets[1:] for block in stage for each in _target_work(target, block, 2))
    for round_ in range(2, rounds):
        for block in range(blocks):
            yield Piece(LOGGING, block, round_), None
            yield from ((Piece(LOGGING, block, round_), target) for target in targets if not target.untouched)


def _target_work(target: Policy, block: int, rounds: int) -> Iterator[tuple[Piece, Policy | None]]:
    yield Piece(target, block, 0), None
    if not target.untouched:
        yield Piece(target, block, 0), LOGGING
    for round_ in range(rounds):
        yield from _scoring(target, block, round_)


def _scoring(target: Policy, block: int, round_: int) -> Iterator[tuple[Piece, Policy | None]]:
    if not target.untouched:
        yield Piece(LOGGING, block, round_), target


@dataclass(frozen=True)
class Worker:
    """One of several processes that share a cache: it takes every so manieth piece, and its part of the cores."""

    number: int = 0
    of: int = 1
    cores: float = 1.5  # that all of them may keep busy

    def rest(self, wall: float, busy: float) -> None:
        """Sleep off what was used beyond this worker's part."""
        time.sleep(max(0.0, busy * self.of / self.cores - wall))


def sample(path: Path, cache: Path, *, rounds: int, blocks: int, worker: Worker, trained: bool) -> None:
    """Draw and score what is missing in the cache; a worker takes the pieces that are its own."""
    tokenizer = load_tokenizer(packaged_model())
    models = PolicyModel(load_model(packaged_model()), tokenizer, cache)
    prompts = choose_prompts(path, tokenizer, blocks=blocks)
    targets = [*TARGETS, *(policy for policy in TRAINED if trained and models.ready(policy))]
    for piece, scorer in islice(work(prompts, rounds, targets), worker.number, None, worker.of):
        target = piece.path(cache) if scorer is None else piece.scored_path(cache, scorer)
        if target.exists():
            continue
        while scorer is not None and not piece.path(cache).exists():
            time.sleep(5)  # another worker draws it
        start, busy, block = time.monotonic(), time.process_time(), prompts.blocks[piece.block]
        if scorer is None:
            arrays = models.draw(piece.policy, block, piece.seed)
        else:
            arrays = models.score(scorer, block, np.load(piece.path(cache))["tokens"])
        write_piece(target, arrays)
        wall, busy = time.monotonic() - start, time.process_time() - busy
        print(f"{target.relative_to(cache)} in {wall:.0f} s, {busy:.0f} s of a core", flush=True)
        worker.rest(wall, busy)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    drawing = stages.add_parser("sample", help="draw and score responses into the cache")
    drawing.add_argument("--prompts", type=Path, required=True, help="JSON lines with prompt and completions")
    drawing.add_argument("--cache", type=Path, required=True)
    drawing.add_argument("--rounds", type=int, default=5, help="logs of two slates of four a prompt (default: 5)")
    drawing.add_argument("--blocks", type=int, default=16, help="of ten prompts (default: 16)")
    drawing.add_argument("--worker", type=int, default=0)
    drawing.add_argument("--workers", type=int, default=1)
    drawing.add_argument("--cores", type=float, default=1.5, help="that all workers may keep busy (default: 1.5)")
    drawing.add_argument("--trained", action="store_true", help="also the trained policies whose adapters are there")
    given = parser.parse_args(arguments)
    sample(
        given.prompts,
        given.cache,
        rounds=given.rounds,
        blocks=given.blocks,
        worker=Worker(given.worker, given.workers, given.cores),
        trained=given.trained,
    )


if __name__ == "__main__":
    main()
