"""The accuracy of each estimator on real language with known truth.

    python -m pope_align.experiments.ope_lm_study sample --prompts alpaca_eval.jsonl --cache CACHE
    python -m pope_align.experiments.ope_lm_study train --prompts alpaca_eval.jsonl --cache CACHE
    python -m pope_align.experiments.ope_lm_study study --prompts alpaca_eval.jsonl --cache CACHE -o study.json

The first draws the responses; it can be stopped and restarted, and several processes can share the work. It is run
again with ``--trained`` after the second.
docs/choosing-an-estimator.md discusses the results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from .._files import check_output, claim_output, write_json
from .._json import jsonable
from ..models.loading import load_model, load_tokenizer
from ..models.places import packaged_model
from ..ope.diagnostics import effective_sample_size
from .ope_lm_policies import (
    BLOCK,
    LENGTHS,
    LOGGING,
    TARGETS,
    TEMPERATURES,
    TRAINED,
    Policy,
    Prompt,
    Prompts,
    choose_prompts,
)
from .ope_lm_pool import REWARDS, embedder, finished_blocks, read_pools
from .ope_lm_results import check_table, run, summarize, true_differences
from .ope_lm_samples import ROUND, PolicyModel, Portion, write_portion
from .ope_lm_training import train, training_slates
from .ope_similar_study import as_text

#: Blocks that are sampled under every policy before the next ones begin, so that partial results can be used.
_STAGE = 5

#: Maximum rounds of the log that `overlap` uses.
_MOST_ROUNDS = 20


def work(prompts: Prompts, rounds: int, targets: Sequence[Policy]) -> Iterator[tuple[Portion, Policy | None]]:
    """Every piece to draw (None) or to score (the scorer), in the order in which results become useful."""
    blocks = len(prompts.blocks)
    for start in range(0, blocks, _STAGE):
        stage = range(start, min(start + _STAGE, blocks))
        yield from ((Portion(LOGGING, block, number), None) for block in stage for number in range(rounds))
        yield from (each for target in targets for block in stage for each in _target_work(target, block, rounds))


def _target_work(target: Policy, block: int, rounds: int) -> Iterator[tuple[Portion, Policy | None]]:
    yield Portion(target, block, 0), None
    if not target.untouched:
        yield Portion(target, block, 0), LOGGING
        yield from ((Portion(LOGGING, block, number), target) for number in range(rounds))


def sample(path: Path, cache: Path, *, rounds: int, blocks: int, trained: bool) -> None:
    """Draw and score the pieces that are missing in the cache; several processes may do so together."""
    tokenizer = load_tokenizer(packaged_model())
    models = PolicyModel(load_model(packaged_model()), tokenizer, cache)
    prompts = choose_prompts(path, tokenizer, blocks=blocks)
    while True:
        # Adapters may appear while others are drawn.
        targets = [*TARGETS, *(policy for policy in TRAINED if trained and models.ready(policy))]
        left = [each for each in work(prompts, rounds, targets) if not _path(cache, *each).exists()]
        if not left:
            break
        if not any(_make(models, prompts, piece, scorer) for piece, scorer in left):
            time.sleep(5)  # other processes are making the rest


def _path(cache: Path, piece: Portion, scorer: Policy | None) -> Path:
    return piece.path(cache) if scorer is None else piece.scored_path(cache, scorer)


def _make(models: PolicyModel, prompts: Prompts, piece: Portion, scorer: Policy | None) -> bool:
    """Whether the piece was made here; not if another process makes it, or has to draw it before it can be scored."""
    if scorer is not None and not piece.path(models.cache).exists():
        return False
    target = _path(models.cache, piece, scorer)
    target.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as claims:
        try:
            claims.enter_context(claim_output(target))
        except ValueError:  # it exists by now, or another process has claimed it
            return False
        start, busy, block = time.monotonic(), time.process_time(), prompts.blocks[piece.block]
        if scorer is None:
            arrays = models.draw(piece.policy, block, piece.seed)
        else:
            arrays = models.score(scorer, block, np.load(piece.path(models.cache))["tokens"])
        write_portion(target, arrays)
        wall, busy = time.monotonic() - start, time.process_time() - busy
        print(f"{target.relative_to(models.cache)} in {wall:.0f} s, {busy:.0f} s of a core", flush=True)
    return True


def overlap(cache: Path, blocks: int) -> dict[str, Any]:
    """Effective share of the log for other temperatures at each length, from logged responses only."""
    pieces = [Portion(LOGGING, block, number).path(cache) for block in range(blocks) for number in range(_MOST_ROUNDS)]
    there = [np.load(path)["logprobs"].astype(np.float64) for path in pieces if path.exists()]
    if not there:
        raise ValueError(f"cache: expected responses of the logging policy in {cache}, found none; run `sample` first")
    scores = np.concatenate(there)  # [n, LENGTH, temperatures]
    shares = {}
    for length in LENGTHS:
        totals = scores[:, :length].sum(1)
        log_weights = totals - totals[:, :1]
        shares[str(length)] = {
            f"T={temperature:g}": effective_sample_size(log_weights[:, at]) / len(totals)
            for at, temperature in enumerate(TEMPERATURES)
        }
    return {"responses": len(scores), "effective_share": shares}


def train_targets(path: Path, cache: Path, *, prompts: int) -> None:
    """Train the adapters of `TRAINED` that are missing, on prompts that are not evaluated and the semantic reward."""
    tokenizer = load_tokenizer(packaged_model())
    models = PolicyModel(load_model(packaged_model()), tokenizer, cache)
    embed = embedder(cache)

    def nearest(prompt: Prompt, texts: list[str]) -> list[float]:
        return [float(each) for each in (embed(texts) @ embed(list(prompt.references)).T).max(1)]

    slates = training_slates(models, choose_prompts(path, tokenizer, training=prompts).training, nearest)
    for policy in TRAINED:
        if not models.ready(policy):
            method, steps = policy.name.rsplit("-", 1)
            train(models, slates, method, int(steps), cache / "adapters" / policy.name)


def study(
    path: Path, cache: Path, *, blocks: int, rounds: int, replicates: int, names: Sequence[str]
) -> dict[str, Any]:
    """The tables of every reward and length, over the blocks that are finished for all given targets.

    Raises:
        ValueError: no block is finished for these targets.
    """
    targets = [policy for policy in (*TARGETS, *TRAINED) if policy.name in names]
    done = finished_blocks(cache, blocks, rounds, targets)
    if not done:
        raise ValueError(f"targets: expected a block with every piece of {', '.join(names)} in {cache}, found none")
    tokenizer = load_tokenizer(packaged_model())
    prompts = choose_prompts(path, tokenizer, blocks=blocks)
    tables: dict[str, Any] = {}
    for pool in read_pools(cache, prompts, tokenizer, embedder(cache), done, rounds, targets):
        found = list(run(pool, replicates))
        for reward in REWARDS:
            truths = true_differences(pool, reward)
            rows = [row for rows, check in found if check.reward == reward for row in rows]
            tables[f"{reward}, {pool.length} tokens"] = {
                "truths": truths,
                "estimators": summarize(rows, truths),
                "checks": check_table([check for _, check in found if check.reward == reward]),
            }
            print(f"{reward}, {pool.length} tokens\n{as_text(tables[f'{reward}, {pool.length} tokens']['estimators'])}")
    about = {"prompts": len(done) * BLOCK, "logged_responses_a_prompt": rounds * ROUND, "replicates": replicates}
    return {**about, "targets": [target.name for target in targets], "tables": tables}


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    if given.stage == "sample":
        sample(given.prompts, given.cache, rounds=given.rounds, blocks=given.blocks, trained=given.trained)
    elif given.stage == "overlap":
        print(json.dumps(overlap(given.cache, given.blocks), indent=1))
    elif given.stage == "train":
        train_targets(given.prompts, given.cache, prompts=given.training)
    else:
        names = given.targets.split(",")
        options = {"blocks": given.blocks, "rounds": given.rounds, "replicates": given.replicates}
        check_output(given.out, overwrite=True)
        result = study(given.prompts, given.cache, names=names, **options)
        write_json(given.out, jsonable(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = parser.add_subparsers(dest="stage", required=True)
    drawing = stages.add_parser("sample", help="draw and score responses into the cache")
    training = stages.add_parser("train", help="train the targets that are trained")
    reading = stages.add_parser("study", help="every estimator on what is in the cache")
    looking = stages.add_parser("overlap", help="effective share of the log by length, from what is drawn so far")
    for stage in (drawing, training, reading):
        stage.add_argument("--prompts", type=Path, required=True, help="JSON lines with prompt and completions")
    for stage in (drawing, training, reading, looking):
        stage.add_argument("--cache", type=Path, required=True)
    for stage in (drawing, reading, looking):
        stage.add_argument("--blocks", type=int, default=10, help=f"of {BLOCK} prompts (default: 10)")
    drawing.add_argument("--rounds", type=int, default=2, help=f"of {ROUND} logged responses a prompt (default: 2)")
    drawing.add_argument("--trained", action="store_true", help="also the trained policies whose adapters are there")
    training.add_argument("--training", type=int, default=96, help="prompts (default: 96)")
    reading.add_argument("-o", "--out", type=Path, required=True, help="JSON file for the tables")
    reading.add_argument("--rounds", type=int, default=2, help="of the log to read (default: 2)")
    reading.add_argument("--replicates", type=int, default=10, help="of the log (default: 10)")
    every = ",".join(target.name for target in TARGETS)
    reading.add_argument("--targets", default=every, help=f"names, by commas (default: {every})")
    return parser


if __name__ == "__main__":
    main()
