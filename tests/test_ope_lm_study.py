"""The study on language, on a tiny model: log-probabilities are those of the model, pieces add up, tables are right."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pope_align.experiments import ope_lm_results as results
from pope_align.experiments import ope_lm_training as training
from pope_align.experiments.ope_lm_policies import (
    BLOCK,
    LENGTHS,
    LOGGING,
    TARGETS,
    TEMPERATURES,
    Policy,
    Prompt,
    Prompts,
)
from pope_align.experiments.ope_lm_pool import finished_blocks, long_words, read_pools
from pope_align.experiments.ope_lm_samples import ROUND, PolicyModel, Portion, write_portion
from pope_align.experiments.ope_lm_study import overlap, work

transformers = pytest.importorskip("transformers")

LETTERS = "\x00 abcdefghijklmnopqrstuvwxyz."
WARM, PLAIN = TARGETS[0], TARGETS[1]


class Letters:
    """A tokenizer whose tokens are letters, and whose chat template is the text itself."""

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0

    def apply_chat_template(self, turns: list[dict[str, str]], **_: Any) -> dict[str, list[int]]:
        return {
            "input_ids": [LETTERS.index(each) for turn in turns for each in turn["content"].lower() if each in LETTERS]
        }

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(each) for each in text.lower() if each in LETTERS]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(LETTERS[each] for each in ids if each > 0)


def embed(texts: list[str]) -> np.ndarray:
    """How often each letter occurs, as unit vectors."""
    counts = np.array([[text.count(letter) + 0.1 for letter in LETTERS] for text in texts])
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    def block(start: int) -> tuple[Prompt, ...]:
        return tuple(
            Prompt(f"say {LETTERS[2 + (start + i) % 26] * 3}", ("a reference of words", "bb")) for i in range(BLOCK)
        )

    return Prompts((block(0), block(13)), ())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, prompts: Prompts) -> tuple[Path, PolicyModel]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(LETTERS), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.15, max_position_embeddings=256,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("study")
    models = PolicyModel(transformers.LlamaForCausalLM(config), Letters(), folder)
    for piece, scorer in work(prompts, 2, [WARM, PLAIN]):
        if scorer is None:
            arrays = models.draw(piece.policy, prompts.blocks[piece.block], piece.seed)
            write_portion(piece.path(folder), arrays)
        else:
            tokens = np.load(piece.path(folder))["tokens"]
            write_portion(piece.scored_path(folder, scorer), models.score(scorer, prompts.blocks[piece.block], tokens))
    return folder, models


@pytest.mark.parametrize("policy", [LOGGING, WARM, PLAIN])
def test_drawn_log_probabilities_are_the_models_own(
    policy: Policy, cache: tuple[Path, PolicyModel], prompts: Prompts
) -> None:
    folder, models = cache
    drawn = np.load(Portion(policy, 0, 0).path(folder))
    again = models.score(policy, prompts.blocks[0], drawn["tokens"])
    own = TEMPERATURES.index(policy.temperature) if policy.untouched else 0
    np.testing.assert_allclose(again["logprobs"][..., 0], drawn["logprobs"][..., own], atol=2e-5)
    temperatures = TEMPERATURES if policy.untouched else (1.0,)
    for row in (0, 13, 29):
        answer = torch.from_numpy(drawn["tokens"][row].astype(np.int64))
        answer = answer[answer >= 0]
        turns = [{"content": policy.system}] if policy.system else []
        asked = Letters().apply_chat_template([*turns, {"content": prompts.blocks[0][row // ROUND].text}])["input_ids"]
        with torch.no_grad():
            logits = models.model(torch.cat([torch.tensor(asked), answer])[None]).logits[0, len(asked) - 1 : -1]
        for at, temperature in enumerate(temperatures):
            own = (logits / temperature).log_softmax(-1).gather(1, answer[:, None])[:, 0]
            np.testing.assert_allclose(drawn["logprobs"][row, : len(answer), at], own.numpy(), atol=2e-5)


def test_tokens_are_drawn_with_the_probabilities_that_are_recorded(
    cache: tuple[Path, PolicyModel], prompts: Prompts
) -> None:
    _, models = cache
    first = np.concatenate([models.draw(WARM, prompts.blocks[0][:1], seed)["tokens"][:, 0] for seed in range(24)])
    asked = torch.tensor([Letters()(prompts.blocks[0][0].text)["input_ids"]])
    with torch.no_grad():
        chances = (models.model(asked).logits[0, -1] / 0.7).softmax(-1).numpy()
    counts = np.bincount(first, minlength=len(LETTERS))
    assert (np.abs(counts - 192 * chances) < 5 * np.sqrt(192 * chances * (1 - chances)) + 1).all()


def test_nothing_follows_the_end_of_an_answer(cache: tuple[Path, PolicyModel]) -> None:
    drawn = np.load(Portion(LOGGING, 0, 0).path(cache[0]))
    ended = np.cumsum(drawn["tokens"] == 0, axis=1)
    after = (ended - (drawn["tokens"] == 0)) > 0
    assert after.any()
    assert (drawn["tokens"][after] == -1).all()
    assert (drawn["logprobs"][after] == 0).all()


def test_a_prefix_is_an_exact_log_of_the_policy_that_stops_there(
    cache: tuple[Path, PolicyModel], prompts: Prompts
) -> None:
    """Importance weights of prefixes have mean 1, and longer prefixes are less likely."""
    folder, _ = cache
    targets = [WARM, PLAIN]
    assert finished_blocks(folder, 3, 2, targets) == [0, 1]
    pools = read_pools(folder, prompts, Letters(), embed, [0, 1], 2, targets)
    assert [pool.length for pool in pools] == list(LENGTHS)
    short = pools[0]
    assert short.num_prompts == 2 * BLOCK
    assert short.logged.tokens.shape == (2 * BLOCK, 2 * ROUND)
    weights = np.exp(short.logged.logprobs[WARM.name] - short.logged.logprobs[LOGGING.name])
    assert weights.mean() == pytest.approx(1.0, abs=4 * weights.mean(1).std() / np.sqrt(2 * BLOCK))
    assert (short.targets[PLAIN.name].logprobs[PLAIN.name] < 0).all()
    for shorter, longer in pairwise(pools):
        assert (shorter.logged.logprobs[LOGGING.name] >= longer.logged.logprobs[LOGGING.name]).all()


def test_the_table_of_a_small_study(cache: tuple[Path, PolicyModel], prompts: Prompts) -> None:
    folder, _ = cache
    short = read_pools(folder, prompts, Letters(), embed, [0, 1], 2, [WARM, PLAIN])[0]
    found = list(results.run(short, 2))
    rows = [row for rows, _ in found for row in rows]
    assert len(found) == 2 * 2 * 2  # replicates, rewards, targets
    assert len(rows) == len(found) * 15
    assert all(np.isfinite([row.estimate, row.standard_error, row.heldout]).all() for row in rows)
    mine = [row for row in rows if row.reward == "semantic"]
    table = results.summarize(mine, results.true_differences(short, "semantic"))
    assert table["model first"]["estimates"] == 4
    index = table["pope evaluate: index of direction"]
    assert index["reliable"] + index["caution"] == 0
    mine = table["pope evaluate: model_first"]
    assert mine["reliable"] + mine["caution"] + mine["refuse"] == 1
    checks = results.check_table([check for _, check in found])
    assert [row["target"] for row in checks] == [WARM.name, PLAIN.name]
    assert 0 < checks[0]["sequence_ess_share"] <= 1


def test_replicates_do_not_overlap_until_the_pool_is_used_up(cache: tuple[Path, PolicyModel], prompts: Prompts) -> None:
    pool = read_pools(cache[0], prompts, Letters(), embed, [0], 2, [WARM])[0]
    chosen = np.concatenate([results.replicate(pool, number).chosen for number in range(3)], axis=1)
    assert (np.sort(chosen, axis=1) == np.arange(2 * ROUND)).all()


def test_overlap_falls_with_length(cache: tuple[Path, PolicyModel], tmp_path: Path) -> None:
    found = overlap(cache[0], 2)
    assert found["responses"] == 4 * BLOCK * ROUND
    shares = [of["T=0.7"] for of in found["effective_share"].values()]
    assert shares == sorted(shares, reverse=True)
    assert all(of["T=1"] == pytest.approx(1.0) for of in found["effective_share"].values())
    with pytest.raises(ValueError, match="run `sample` first"):
        overlap(tmp_path, 2)


def test_summaries_by_hand() -> None:
    def row(target: str, estimate: float, low: float, high: float, heldout: float) -> results.ReplicateEstimate:
        return results.ReplicateEstimate("semantic", 8, target, 0, "snips", estimate, 0.1, low, high, heldout, 0.0)

    truths = {"a": (0.2, 0.01), "b": (-0.1, 0.01)}
    table = results.summarize([row("a", 0.1, 0.0, 0.2, 0.25), row("b", 0.15, 0.0, 0.3, 0.05)], truths)["snips"]
    assert table["rmse"] == pytest.approx(np.sqrt((0.15**2 + 0.1**2) / 2))
    assert table["covered"] == 0.5
    assert table["recovered"] == pytest.approx((0.2 * 0.1 - 0.1 * 0.15) / 0.05)
    assert table["right_signs"] == 0.5
    assert table["tau"] == pytest.approx((1 - 1 - 1) / 3)  # of log, a, b only a above the log is in order
    assert table["regret"] == pytest.approx(0.3)


def test_work_is_dealt_whole_and_once(prompts: Prompts) -> None:
    pieces = list(work(prompts, 3, TARGETS))
    assert len({(piece, scorer) for piece, scorer in pieces}) == len(pieces)
    drawn: set[Portion] = set()
    for piece, scorer in pieces:  # nothing is scored before it is drawn
        if scorer is None:
            drawn.add(piece)
        else:
            assert piece in drawn, (piece, scorer)


def test_long_words() -> None:
    assert long_words("Elephants eat wonderful apples") == 0.5
    assert long_words("12 34") == 0.0


@pytest.mark.parametrize("method", ["sft", "dpo", "pope", "against"])
def test_training_moves_the_policy_where_the_method_says(
    method: str, cache: tuple[Path, PolicyModel], prompts: Prompts, tmp_path: Path
) -> None:
    """After some steps: references likelier, good responses likelier against bad ones, or the other way."""
    pytest.importorskip("peft")
    _, drawn = cache
    models = PolicyModel(drawn.model, Letters(), tmp_path)

    def worth(prompt: Prompt, texts: list[str]) -> list[float]:
        return [text.count("a") for text in texts]

    slates = training.training_slates(models, prompts.blocks[0][:8], worth)
    training.train(models, slates, method, 12, tmp_path / "adapters" / method)
    policy = Policy(method, adapter=method)
    assert models.ready(policy)
    network = models.network(policy)

    def change(rows: list[tuple[list[int], list[int]]]) -> float:
        with torch.no_grad():
            return float((training._totals(network, rows) - training._totals(models.model, rows)).mean())

    best = [(each.prompt_ids, each.response_ids[int(np.argmax(each.utility))]) for each in slates]
    worst = [(each.prompt_ids, each.response_ids[int(np.argmin(each.utility))]) for each in slates]
    if method == "sft":
        assert change([(each.prompt_ids, each.reference_ids) for each in slates]) > 0
    elif method == "against":
        assert change(best) < change(worst)
    else:
        assert change(best) > change(worst)
