"""List-wise losses: their formulas in plain loops, their optima and invariances, and training with them end to end."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from pope_align.cli.train import configured, parse
from pope_align.cli.train_arguments import read_arguments
from pope_align.data import write_slates
from pope_align.models.causal_lm import response_logprobs
from pope_align.training.config import ListwiseConfig, PopeConfig
from pope_align.training.listwise import ScoredSlates, lipo_lambda, optimal_advantage, weighted_sft
from pope_align.training.listwise_trainer import ListwiseTrainer
from pope_align.training.methods import ABOUT, LISTWISE, METHODS, ListwiseName
from pope_align.training.objective_file import read_training_objective
from pope_align.training.options import LOSS_OPTIONS, OPTIONS, ListwiseOptions
from pope_align.training.run import run_training

import pope_core
from pope_core import Objective

LOSSES = {
    "lipo": lambda slates: lipo_lambda(slates, beta=0.7),
    "oapl": lambda slates: optimal_advantage(slates, beta=0.7),
    "weighted-sft": weighted_sft,
}
SIZES = (3, 1, 5, 2)


def scored(seed: int = 0, sizes: tuple[int, ...] = SIZES) -> ScoredSlates:
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    policy, reference = -30 * torch.rand(2, count, generator=generator, dtype=torch.float64)
    utility = torch.rand(count, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, *itertools.accumulate(sizes)])
    return ScoredSlates(policy, reference, utility, offsets, torch.randint(1, 9, (count,), generator=generator))


def slates_of(slates: ScoredSlates) -> list[list[tuple[float, float, float, int]]]:
    """Log-ratio, utility, log-probability and tokens of every response, as numbers."""
    ratios = (slates.response_logprobs - slates.reference_logprobs).tolist()
    rows = list(zip(ratios, slates.utility.tolist(), slates.response_logprobs.tolist(), slates.tokens.tolist()))
    return [rows[start:end] for start, end in itertools.pairwise(slates.slate_offsets.tolist())]


# --- the formulas ---------------------------------------------------------------------------------------------------


def lipo_by_loops(slate: list, beta: float, order: list[int] | None = None) -> float:
    """The sum over pairs; ``order`` lists the responses from the highest score."""
    score = [beta * ratio for ratio, *_ in slate]
    order = order or sorted(range(len(slate)), key=score.__getitem__, reverse=True)
    discount = {index: math.log(1 + place) for place, index in enumerate(order, start=1)}
    total = 0.0
    for i, j in itertools.permutations(range(len(slate)), 2):
        if slate[i][1] > slate[j][1]:
            gain = abs((2 ** slate[i][1] - 1) - (2 ** slate[j][1] - 1))
            gap = abs(1 / discount[i] - 1 / discount[j])
            total += gain * gap * math.log(1 + math.exp(-(score[i] - score[j])))
    return total


def test_lipo_is_its_sum_over_pairs() -> None:
    slates = scored()
    expected = [lipo_by_loops(slate, 0.7) for slate in slates_of(slates)]
    assert lipo_lambda(slates, beta=0.7).tolist() == pytest.approx(expected, rel=1e-12)


def test_lipo_takes_equal_scores_in_all_orders() -> None:
    """Before the first step policy and reference agree; the mean over all orders is what random ties would give."""
    slates = scored(sizes=(4,))
    slates = slates._replace(reference_logprobs=slates.response_logprobs)
    (slate,) = slates_of(slates)
    orders = [list(order) for order in itertools.permutations(range(4))]
    expected = sum(lipo_by_loops(slate, 0.7, order) for order in orders) / len(orders)
    assert float(lipo_lambda(slates, beta=0.7)) == pytest.approx(expected, rel=1e-12)
    partly = slates.response_logprobs.clone()
    partly[2] += 1.0  # one above three equal ones
    slates = slates._replace(response_logprobs=partly)
    (slate,) = slates_of(slates)
    expected = sum(lipo_by_loops(slate, 0.7, order) for order in orders if order[0] == 2) / 6
    assert float(lipo_lambda(slates, beta=0.7)) == pytest.approx(expected, rel=1e-12)


def test_lipo_does_not_rank_by_rounding() -> None:
    """Start and policy are scored in different batches, so before the first step their totals differ by rounding."""
    slates = scored(sizes=(4,))
    slates = slates._replace(reference_logprobs=slates.response_logprobs)
    noise = torch.tensor([3e-5, -9e-5, 6e-5, -2e-5], dtype=torch.float64)
    rounded = slates._replace(response_logprobs=slates.response_logprobs + noise)
    assert float(lipo_lambda(rounded, beta=0.1)) == pytest.approx(float(lipo_lambda(slates, beta=0.1)), rel=1e-4)


def test_oapl_and_weighted_sft_are_their_formulas() -> None:
    slates, beta = scored(), 0.7
    advantage, likelihood = [], []
    for slate in slates_of(slates):
        value = beta * math.log(sum(math.exp(utility / beta) for _, utility, *_ in slate) / len(slate))
        advantage.append(sum((beta * ratio - (utility - value)) ** 2 for ratio, utility, *_ in slate) / len(slate))
        likelihood.append(-sum(utility * total / tokens for _, utility, total, tokens in slate) / len(slate))
    assert optimal_advantage(slates, beta=beta).tolist() == pytest.approx(advantage, rel=1e-12)
    assert weighted_sft(slates).tolist() == pytest.approx(likelihood, rel=1e-12)


def test_oapl_is_zero_at_the_optimum_of_the_regularised_reward() -> None:
    """All sequences enumerated, each once with equal reference probability: the value is exact."""
    utility = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reference = torch.full((6,), -math.log(6), dtype=torch.float64)
    optimum = (reference + utility / 0.3).log_softmax(0)
    slates = ScoredSlates(optimum, reference, utility, torch.tensor([0, 6]), torch.ones(6))
    assert float(optimal_advantage(slates, beta=0.3)) < 1e-24
    assert float(optimal_advantage(slates, beta=0.4)) > 1e-3


def test_weighted_sft_has_the_gradient_of_unnormalised_pope_at_the_logging_policy() -> None:
    slates = scored()
    totals = slates.response_logprobs.requires_grad_()
    (ours,) = torch.autograd.grad(weighted_sft(slates).mean(), totals)
    objective = Objective(normalization="none", diversity_weight=0.0, clip=None)
    output = pope_core.slate_objective(
        totals, totals.detach(), slates.utility, slates.slate_offsets, tokens=slates.tokens, objective=objective
    )
    (theirs,) = torch.autograd.grad(output.loss, totals)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    slates = scored()
    assert torch.autograd.gradcheck(
        lambda totals: LOSSES[name](slates._replace(response_logprobs=totals)),
        slates.response_logprobs.clone().requires_grad_(),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_responses_and_the_other_slates_do_not_matter(name: str) -> None:
    slates = scored()
    slates = slates._replace(reference_logprobs=slates.response_logprobs.round())  # some equal scores
    losses = LOSSES[name](slates)
    order = torch.cat([start + torch.randperm(end - start) for start, end in itertools.pairwise([0, 3, 4, 9, 11])])
    mixed = ScoredSlates(*(v[order] if v is not slates.slate_offsets else v for v in slates))
    torch.testing.assert_close(LOSSES[name](mixed), losses)
    alone = ScoredSlates(*(v[4:9] if v is not slates.slate_offsets else torch.tensor([0, 5]) for v in slates))
    torch.testing.assert_close(LOSSES[name](alone), losses[2:3])


def test_log_ratios_of_a_slate_may_shift_in_lipo_and_utilities_in_oapl() -> None:
    slates = scored()
    shifted = slates._replace(response_logprobs=slates.response_logprobs + 2.0)
    torch.testing.assert_close(lipo_lambda(shifted, beta=0.7), lipo_lambda(slates, beta=0.7))
    better = slates._replace(utility=slates.utility + 5.0)
    torch.testing.assert_close(optimal_advantage(better, beta=0.7), optimal_advantage(slates, beta=0.7))


@pytest.mark.parametrize("name", ["lipo", "oapl"])
def test_losses_of_long_responses_and_a_small_beta_are_finite(name: str) -> None:
    slates = scored()
    slates = slates._replace(response_logprobs=1e4 * slates.response_logprobs)
    loss = {"lipo": lipo_lambda, "oapl": optimal_advantage}[name](slates, beta=1e-3)
    assert loss.isfinite().all()


# --- the registry and the arguments ---------------------------------------------------------------------------------


def test_every_method_has_a_loss_options_and_a_line_for_its_card() -> None:
    from pope_align.training import listwise

    assert tuple(LISTWISE) == ListwiseName.__args__
    assert set(ABOUT) == set(METHODS)
    assert set(OPTIONS) == set(METHODS) - {"sft", "dpo"}
    assert set(LOSS_OPTIONS) == {each.name for each in fields(ListwiseOptions) if each.name not in COMMON}
    for method in LISTWISE.values():
        assert callable(getattr(listwise, method.loss))


COMMON = {each.name for each in fields(OPTIONS["pope"])} | {"method"}


def test_an_option_belongs_to_the_methods_that_use_it(tmp_path: Path, caplog) -> None:
    arguments = ["t.jsonl", "--model", "m", "-o", "out", "--use-cpu"]
    run, args = parse([*arguments, "--method", "lipo", "--beta", "0.3", "--learning-rate", "1e-6"])
    assert isinstance(args, ListwiseConfig)
    assert (run.method, args.method, args.loss_options, args.learning_rate) == ("lipo", "lipo", {"beta": 0.3}, 1e-6)
    assert parse([*arguments, "--method", "oapl"])[1].loss_options == dict(LISTWISE["oapl"].options)
    with pytest.raises(ValueError, match="--beta: not for method weighted-sft; only for lipo, oapl"):
        parse([*arguments, "--method", "weighted-sft", "--beta", "0.3"])
    with pytest.raises(ValueError, match="--beta: not for method pope; only for lipo, oapl"):
        parse([*arguments, "--beta", "0.3"])
    with pytest.raises(ValueError, match="--clip: not for method lipo; only for pope"):
        parse([*arguments, "--method", "lipo", "--clip", "3"])
    with pytest.raises(ValueError, match="beta: expected a finite number > 0, got 0"):
        parse([*arguments, "--method", "lipo", "--beta", "0"])
    with pytest.raises(ValueError, match=r"beta: expected None for method 'weighted-sft', which has none, got 0.1"):
        ListwiseConfig(str(tmp_path), method="weighted-sft", beta=0.1, use_cpu=True)
    with pytest.raises(ValueError, match="--pairs: not for method lipo; only for dpo"):
        read_arguments([*arguments, "--method", "lipo", "--pairs", "all"])
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain_data: t\nuse_cpu: true\nbeta: 0.2\nclip: 2.0\npairs: all\n")
    _, args = configured(read_arguments(["--config", str(path), "--method", "weighted-sft"]))
    assert args.loss_options == {}
    assert "not for method weighted-sft, left out: beta, clip, pairs" in caplog.text


def test_methods_share_defaults_with_pope(tmp_path: Path) -> None:
    ours, theirs = ListwiseConfig(str(tmp_path), use_cpu=True), PopeConfig(str(tmp_path), use_cpu=True)
    for each in fields(ListwiseConfig):
        if each.name in COMMON - {"method"} and each.name != "logging_dir" and hasattr(theirs, each.name):
            assert getattr(ours, each.name) == getattr(theirs, each.name), each.name


# --- training -------------------------------------------------------------------------------------------------------


def config(path: Path, method: str, **options) -> ListwiseConfig:
    defaults = {"gradient_accumulation_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return ListwiseConfig(
        str(path), method=method, **{**defaults, "save_strategy": "no", "max_length": 64, "max_steps": 2, **options}
    )


@pytest.mark.parametrize("name", LISTWISE)
def test_the_loss_and_gradient_of_a_step_are_those_of_the_formula(
    name, make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    """On the model's own log-probabilities, after the model has moved, and however the step is split."""
    slates = make_slates(4)
    trainer = ListwiseTrainer(
        make_tiny_model(),
        config(tmp_path, name),
        train_dataset=slates,
        eval_dataset=slates,
        processing_class=tiny_tokenizer,
    )
    trainer.score_start()
    trainer.model.load_state_dict(make_tiny_model(seed=1).state_dict())
    trainer.model.train()
    batches = [trainer.data_collator([trainer.train_dataset[i] for i in part]) for part in ([0, 1, 2], [3])]
    loss = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=4) for batch in batches)
    loss.backward()
    twin = make_tiny_model(seed=1)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    totals, log = response_logprobs(twin, batch), batch["log"]
    start = response_logprobs(make_tiny_model(), batch).detach()
    reference = {"start": start, "logging": log.logging_logprobs, "none": None}[LISTWISE[name].reference]
    formula = {"lipo": lipo_lambda, "oapl": optimal_advantage, "weighted-sft": weighted_sft}[name]
    data = ScoredSlates(totals, reference, log.utility, log.slate_offsets, log.tokens)
    expected = formula(data, **LISTWISE[name].options).mean()
    expected.backward()
    torch.testing.assert_close(loss.detach().double(), expected.detach(), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("name", LISTWISE)
def test_a_run_lowers_its_loss_and_leaves_what_pope_leaves(
    name, make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    scores = LISTWISE[name].reference == "logging"
    slates = make_slates(8, sizes=(3,), scored=scores)  # propensities only where they are needed
    args = config(
        tmp_path / "run", name, per_device_train_batch_size=8, max_steps=15, learning_rate=3e-3, eval_on_start=True
    )
    args.eval_strategy, args.eval_steps = "steps", 15
    trainer = run_training(make_tiny_model(), args, slates, slates, processing_class=tiny_tokenizer)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    folder = tmp_path / "run"
    written = read_training_objective(folder)
    assert written["method"] == name
    assert {key: written[key] for key in LISTWISE[name].options} == dict(LISTWISE[name].options)
    card = (folder / "README.md").read_text()
    assert ABOUT[name] in card
    assert f"| reference | {LISTWISE[name].reference} |" in card
    assert json.loads((folder / "metrics.json").read_text())["method"] == name
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_a_method_that_compares_with_the_logging_policy_needs_its_log_probabilities(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    slates = make_slates(2, scored=False)
    with pytest.raises(ValueError, match=r"train_dataset: slate 1 .*logging_logprobs: expected one per response"):
        ListwiseTrainer(
            make_tiny_model(), config(tmp_path, "oapl"), train_dataset=slates, processing_class=tiny_tokenizer
        )


def test_a_list_wise_run_resumes_to_the_same_bits(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    def weights(name: str, **options) -> list[torch.Tensor]:
        args = config(tmp_path / name, "lipo", max_steps=4, save_strategy="steps", save_steps=2, **options)
        trainer = run_training(make_tiny_model(), args, make_slates(5), processing_class=tiny_tokenizer)
        return [parameter.detach().clone() for parameter in trainer.model.parameters()]

    whole = weights("whole", logging_steps=3)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed = weights("resumed", logging_steps=3, resume_from_checkpoint=checkpoint)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(resumed, whole, strict=True))


def test_early_stopping_needs_no_propensities(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """The held-out gain is relative to the start, whatever the method."""
    slates = make_slates(4, sizes=(3,), scored=False)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    args = config(tmp_path, "weighted-sft", early_stopping_patience=1, learning_rate=1e-2, **steps)
    trainer = run_training(make_tiny_model(), args, slates, slates, processing_class=tiny_tokenizer)
    gains = [entry["eval_index/gain"] for entry in trainer.state.log_history if "eval_index/gain" in entry]
    assert trainer.state.best_metric == max(gains)
    assert "held_out_gain_at_best_step" in (tmp_path / "README.md").read_text()


def test_the_command_trains_with_every_list_wise_method(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path, monkeypatch
) -> None:
    from pope_align import cli

    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    slates = [replace(slate, logging_policy={"how": "proxy", "max_length": 64}) for slate in make_slates(6)]
    write_slates(slates, tmp_path / "log.jsonl")
    for name in LISTWISE:
        out = tmp_path / name
        arguments = ["--model", tmp_path / "model", "-o", out, "--method", name, "--max-steps", 1, "--use-cpu"]
        monkeypatch.setattr(
            "sys.argv", [*map(str, ["pope", "train", tmp_path / "log.jsonl", *arguments]), "--report-to", "none"]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        assert (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "sizes", "equal", "expected"),
    [
        ("lipo", (2,), True, "a slate with responses of different scores"),
        ("lipo", (1,), False, "a slate with responses of different scores"),
        ("oapl", (1,), False, "a slate of two or more responses"),
    ],
)
def test_a_log_that_teaches_a_method_nothing_is_refused(
    method: str,
    sizes: tuple[int, ...],
    equal: bool,
    expected: str,
    make_tiny_model,
    tiny_tokenizer,
    make_slates,
    tmp_path,
) -> None:
    slates = [replace(each, scores=[1.0] * len(each.scores)) if equal else each for each in make_slates(3, sizes=sizes)]
    with pytest.raises(ValueError, match=f"train_dataset: expected {expected}.* for method '{method}'"):
        ListwiseTrainer(
            make_tiny_model(), config(tmp_path, method), train_dataset=slates, processing_class=tiny_tokenizer
        )
