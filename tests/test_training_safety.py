"""What guards a run: slates named where a loss is no number, overlap watched, the start held, the best model kept."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pope_align.data import SlateCollator
from pope_align.models.causal_lm import response_logprobs
from pope_align.training.callbacks import OverlapWatch, best_evaluation
from pope_align.training.config import PopeConfig
from pope_align.training.examples import PADDING, IndexedCollator, SlateDataset
from pope_align.training.held_out_index import held_out_gain
from pope_align.training.policy_loss import penalty_to_start
from pope_align.training.trainer import PopeTrainer
from transformers import TrainerControl, TrainerState

import pope_core
from pope_core.slates import LogData, offsets_from_lengths


def config(path: Path, **options) -> PopeConfig:
    defaults = {"gradient_accumulation_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    defaults |= {"normalization": "none", "diversity_form": "neg_log_prob", "clip": 10.0}
    return PopeConfig(str(path), **{**defaults, "save_strategy": "no", "max_length": 64, "max_steps": 2, **options})


# --- numbers that are none ------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_its_slates_and_the_cause(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    trainer = PopeTrainer(
        make_tiny_model(), config(tmp_path), train_dataset=make_slates(3), processing_class=tiny_tokenizer
    )
    batch = trainer.data_collator([trainer.train_dataset[2], trainer.train_dataset[0]])
    trainer.model.train()
    with torch.no_grad():
        trainer.model.model.layers[1].mlp.down_proj.weight[3, 4] = math.nan
    with pytest.raises(ValueError, match=r"step 1, slates colour/2#slate02, colour/0#slate00: ") as error:
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=2)
    assert "1 parameters (model.layers.1.mlp.down_proj.weight, ...) are NaN or infinite" in str(error.value)


def test_a_weight_beyond_all_bounds_names_its_slates(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    slates = make_slates(1)
    slates[0].logging_logprobs[1] = -1e4
    trainer = PopeTrainer(
        make_tiny_model(), config(tmp_path, clip=None), train_dataset=slates, processing_class=tiny_tokenizer
    )
    with pytest.raises(ValueError, match=r"step 1, slates colour/0#slate00: .*clip"):
        trainer.train()


# --- overlap --------------------------------------------------------------------------------------------------------


def test_lost_overlap_warns_once_and_stops_where_asked(caplog, tmp_path) -> None:
    args, state = config(tmp_path), TrainerState()
    logs = [(0.5, 0.0), (0.05, 0.0), (0.04, 0.9), (0.01, 0.9)]
    stops = []
    with caplog.at_level(logging.WARNING):
        watch = OverlapWatch(stop_if_ess_below=0.02)
        for ess, clipped in logs:
            control = TrainerControl()
            watch.on_log(args, state, control, {"is/ess_fraction": ess, "is/clip_fraction": clipped})
            stops.append(control.should_training_stop)
        watch.on_log(args, state, control, {"eval_loss": 1.0})
    assert stops == [False, False, False, True]
    text = [record.getMessage() for record in caplog.records]
    assert [sum(part in line for line in text) for part in ("sample size is 5.0%", "90% of", "stopped, because")] == [
        1,
        1,
        1,
    ]


def test_a_run_without_overlap_stops_itself(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    slates = make_slates(8, sizes=(4,))
    for slate in slates:
        slate.logging_logprobs[0] -= 100.0  # one response of four has all the weight
    args = config(tmp_path, per_device_train_batch_size=8, clip=10.0, max_steps=9, stop_if_ess_below=0.5)
    trainer = PopeTrainer(make_tiny_model(), args, train_dataset=slates, processing_class=tiny_tokenizer)
    assert trainer.train().global_step == 1


# --- the start ------------------------------------------------------------------------------------------------------


def test_the_penalty_is_an_unbiased_divergence_on_responses_of_the_policy() -> None:
    """By enumeration: its mean under the policy is the divergence from the policy to the start."""
    generator = torch.Generator().manual_seed(0)
    policy, start = torch.randn(2, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    divergence = (policy.exp() * (policy - start)).sum()
    torch.testing.assert_close((policy.exp() * penalty_to_start(policy - start)).sum(), divergence)
    assert penalty_to_start(policy - policy).abs().max() == 0
    assert penalty_to_start(policy - start).min() > 0


def test_the_penalty_has_its_weight_and_its_gradient(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """Against the sum of objective and penalty on the model's own log-probabilities, after the model has moved."""
    slates = make_slates(4)
    args = config(tmp_path, kl_weight=0.7, clip=2.0, optim="sgd")
    trainer = PopeTrainer(
        make_tiny_model(), args, train_dataset=slates, eval_dataset=slates, processing_class=tiny_tokenizer
    )
    start = make_tiny_model()
    trainer.score_start()
    trainer.model.load_state_dict(make_tiny_model(seed=1).state_dict())
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=4)
    loss.backward()
    twin = make_tiny_model(seed=1)
    logprobs, tokens = response_logprobs(twin, batch), batch["response_offsets"].diff()
    per_token = (logprobs - response_logprobs(start, batch).detach()) / tokens
    log = batch["log"]
    data = log.logging_logprobs, log.utility, log.slate_offsets
    objective = pope_core.slate_objective(logprobs, *data, tokens=tokens, objective=args.objective)
    penalty = torch.segment_reduce(penalty_to_start(per_token), "mean", offsets=log.slate_offsets).mean()
    expected = objective.loss + 0.7 * penalty
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(trainer.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    metrics = trainer.evaluate()
    assert metrics["eval_kl_to_start"] == pytest.approx(float(penalty_to_start(per_token).mean().detach()), rel=1e-4)


def test_a_penalty_anchors_what_would_run_away(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """Self-normalised weights with -l as reward: refused alone, and held with a penalty."""
    options = {"normalization": "slate", "diversity_form": "neg_log_prob", "diversity_weight": 1.0}
    with pytest.raises(ValueError, match="a kl_weight > 0"):
        config(tmp_path, **options)
    slates = make_slates(8, sizes=(3,))
    falls = []
    for weight in (1e-9, 30.0):
        args = config(
            tmp_path, kl_weight=weight, per_device_train_batch_size=8, max_steps=20, learning_rate=3e-3, **options
        )
        trainer = PopeTrainer(make_tiny_model(), args, train_dataset=slates, processing_class=tiny_tokenizer)
        trainer.train()
        policy = [entry["logps/policy"] for entry in trainer.state.log_history if "loss" in entry]
        falls.append(policy[0] - policy[-1])
    assert falls[1] < 0.2 * falls[0]


def test_padding_is_no_slate(make_slates, tiny_tokenizer, tmp_path) -> None:
    example = {
        "prompt_ids": [1],
        "completion_ids": [[2], [3, 4]],
        "utility": [0.0, 1.0],
        "logging_logprobs": [-1.0] * 2,
    }
    collate = IndexedCollator(SlateCollator(0))
    for start in (None, [[-2.0, -4.0]]):
        data = SlateDataset([example], [], start_logprobs=start)
        batch = collate([data[PADDING], data[0]])
        assert batch["slate_index"].tolist() == [0]
        assert batch["log"].slate_offsets.tolist() == [0, 2]
        empty = collate([data[PADDING], data[PADDING]])
        assert empty["slate_index"].tolist() == []
        assert empty["log"].slate_offsets.tolist() == [0, 1]
        assert ("start_logprobs" in batch) == ("start_logprobs" in empty) == (start is not None)
    assert batch["start_logprobs"].tolist() == [-2.0, -4.0]  # totals


# --- the best model -------------------------------------------------------------------------------------------------


STOPPING = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 30,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "early_stopping_patience": 3,
}


def opposite(slates):
    """The same responses with opposite scores: training makes them worse from the first step."""
    return [replace(slate, scores=[-score for score in slate.scores]) for slate in slates]


def test_early_stopping_keeps_the_model_of_the_best_held_out_gain(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path, caplog
) -> None:
    train = make_slates(4, sizes=(3,))
    args = config(tmp_path, diversity_weight=0.0, **STOPPING)
    trainer = PopeTrainer(
        make_tiny_model(), args, train_dataset=train, eval_dataset=opposite(train), processing_class=tiny_tokenizer
    )
    trainer.train()
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    gains = [entry["eval_index/gain"] for entry in evaluations]
    best = max(range(len(gains)), key=gains.__getitem__)
    assert len(gains) == best + 4 < 30
    assert gains[-1] < 0
    again = trainer.evaluate()
    assert again["eval_index/gain"] == pytest.approx(gains[best], rel=1e-5)
    state = json.loads((Path(trainer.state.best_model_checkpoint) / "trainer_state.json").read_text())
    assert state["best_metric"] == gains[best]
    p_value = evaluations[best]["eval_index/p_value"]
    assert p_value > 0.5  # a loss: most permuted utilities do better
    (line,) = [record.getMessage() for record in caplog.records if "is the best" in record.getMessage()]
    assert f"step {best + 1} is the best, but its held-out gain {gains[best]:+.4f} is no larger than" in line
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert f"| best_step | {best + 1} |" in card
    assert f"| placebo_p_value | {p_value:.2g} |" in card
    assert f"| placebo_p_value_of_the_best | 1 (times {len(gains)} evaluations) |" in card


def test_the_placebo_of_the_best_of_several_evaluations_counts_them() -> None:
    state = TrainerState(best_global_step=2)
    state.log_history = [
        {"step": step, "eval_loss": 0.0, "eval_index/gain": gain, "eval_index/p_value": p_value}
        for step, gain, p_value in ((1, 0.1, 0.2), (2, 0.3, 0.01), (3, 0.2, 0.03))
    ]
    best = best_evaluation(state)
    assert (best["eval_index/gain"], best["evaluations"]) == (0.3, 3)
    assert best["p_of_best"] == pytest.approx(0.03)


def test_early_stopping_needs_held_out_slates_that_can_show_a_gain(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    train, alone = make_slates(4, sizes=(3,)), make_slates(4, sizes=(1,))
    args = config(tmp_path, diversity_weight=0.0, **STOPPING)
    with pytest.raises(ValueError, match=r"eval_dataset: expected a slate of two or more responses with early_stop"):
        PopeTrainer(make_tiny_model(), args, train_dataset=train, eval_dataset=alone, processing_class=tiny_tokenizer)


def test_another_metric_may_be_watched(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    train = make_slates(4, sizes=(3,))
    watched = "eval_pope/value_self_normalized"
    args = config(tmp_path, diversity_weight=0.0, metric_for_best_model=watched, greater_is_better=True, **STOPPING)
    trainer = PopeTrainer(
        make_tiny_model(), args, train_dataset=train, eval_dataset=opposite(train), processing_class=tiny_tokenizer
    )
    trainer.train()
    values = [entry[watched] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.state.best_metric == max(values)
    assert len(values) == values.index(max(values)) + 4


def test_the_held_out_gain_is_its_formula_and_has_a_placebo() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [3, 1, 4] * 20
    count = sum(sizes)
    start = -20 * torch.rand(count, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 6, (count,), generator=generator)
    utility = torch.rand(count, generator=generator, dtype=torch.float64)
    log = LogData(torch.full_like(start, math.nan), utility, offsets_from_lengths(sizes), tokens)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    policy = start + tokens * noise
    expected, at = 0.0, 0
    for size in sizes:
        part = slice(at, at + size)
        weights = noise[part].softmax(0)
        expected += float(weights @ utility[part] - utility[part].mean()) / len(sizes)
        at += size
    unrelated = held_out_gain(policy, start, log)
    assert unrelated.gain == pytest.approx(expected, rel=1e-12)
    assert unrelated.p_value > 0.05
    learned = held_out_gain(start + tokens * utility, start, log)
    assert learned.gain > 0.02
    assert learned.p_value == 1 / 1001
    likelier = held_out_gain(start + tokens * (utility + 3.0), start, log)  # all of them alike
    assert likelier.gain == pytest.approx(learned.gain)
    ones = LogData(start[:2], utility[:2], offsets_from_lengths([1, 1]), tokens[:2])
    assert held_out_gain(policy[:2], start[:2], ones) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_weight": -1.0}, "kl_weight: expected a finite number >= 0"),
        ({"stop_if_ess_below": 1.0}, "stop_if_ess_below: expected None or a share"),
        ({"logging_nan_inf_filter": True}, "logging_nan_inf_filter: expected False"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: expected 'random' or"),
    ],
    ids=["kl_weight", "stop_if_ess_below", "logging_nan_inf_filter", "train_sampling_strategy"],
)
def test_options_that_do_not_fit_are_refused(options, message, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
