"""A fitted logging policy: it learns the log, stops in time, is reproducible, and never scores what it saw unsaid."""

from __future__ import annotations

import logging
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pope_align.cli import app
from pope_align.data import Slate, encode_slates, group_folds, group_split, read_slates, write_slates
from pope_align.models.loading import load_model, load_tokenizer
from pope_align.propensity.behaviour_cloning import (
    BehaviourConfig,
    cross_fitted_slates,
    fit_behaviour_policy,
    nats_per_token,
)
from pope_align.propensity.fit_report import FitReport, response_key
from pope_align.propensity.logging_policy import score_slates
from pope_align.training import slate_trainer
from transformers import get_linear_schedule_with_warmup
from typer.testing import CliRunner

CONFIG = BehaviourConfig(max_length=64, epochs=4, learning_rate=3e-3, batch_slates=2)


def group(slate: Slate) -> str:
    return (slate.slate_id or "").partition("#")[0]


def coin_log(slates: int, *, heads: float = 0.8, seed: int = 0) -> list[Slate]:
    """Responses drawn from a known policy: "yes" with probability ``heads``, else "no"; prompts tell nothing."""
    rng = random.Random(seed)
    log = []
    for number in range(slates):
        completions = ["yes" if rng.random() < heads else "no" for _ in range(4)]
        log.append(Slate(f"Question {seed}.{number}?", completions, [0.0, 1.0, 2.0, 3.0], slate_id=f"{number}#0"))
    return log


def test_a_fit_recovers_the_policy_that_wrote_the_log(make_tiny_model, tiny_tokenizer) -> None:
    policy = fit_behaviour_policy(
        make_tiny_model(), tiny_tokenizer, coin_log(60), coin_log(30, seed=1), replace(CONFIG, epochs=8)
    )
    scored = score_slates(
        [Slate(f"Question 1.{number}?", ["yes", "no"], [0.0, 0.0]) for number in range(30)],
        policy.model,
        tiny_tokenizer,
        how="behaviour_cloned",
        max_length=64,
        fit=policy.report,
    )
    yes, no = np.exp([slate.logging_logprobs for slate in scored]).mean(0)
    assert yes == pytest.approx(0.8, abs=0.06)
    assert no == pytest.approx(0.2, abs=0.06)
    entropy = -(0.8 * math.log(0.8) + 0.2 * math.log(0.2)) / (0.8 * 4 + 0.2 * 3)  # nats per token, end of turn included
    assert policy.report.heldout_nats_per_token == pytest.approx(entropy, abs=0.03)
    assert policy.report.heldout_nats_per_token_before > 4


def test_the_report_is_what_the_kept_policy_does(make_tiny_model, tiny_tokenizer, make_slates) -> None:
    model = make_tiny_model()
    before = [parameter.clone() for parameter in model.parameters()]
    train, heldout = group_split(make_slates(30, scored=False), group, 0.3, 0)
    seen: list[tuple[int, int]] = []
    policy = fit_behaviour_policy(
        model, tiny_tokenizer, train, heldout, CONFIG, progress=lambda done, of: seen.append((done, of))
    )
    report = policy.report
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    encoded, _ = encode_slates(heldout, tiny_tokenizer, max_length=64)
    assert nats_per_token(encoded, policy.model) == pytest.approx(report.heldout_nats_per_token, rel=1e-6)
    assert nats_per_token(encoded, model) == pytest.approx(report.heldout_nats_per_token_before, rel=1e-6)
    assert report.heldout_nats_per_token == min(e.heldout_nats_per_token for e in report.evaluations)
    assert report.heldout_nats_per_token < report.heldout_nats_per_token_before - 1
    responses = sum(len(slate.completions) for slate in train)
    assert (report.train_responses, report.train_slates) == (responses, len(train))
    assert report.train_tokens == sum(len(c) + 1 for slate in train for c in slate.completions)  # bytes, and the end
    assert seen[-1] == (len(train) * 4, len(train) * 4)
    assert len(report.evaluations) == 1 + 4 * 2


def test_the_same_seed_gives_the_same_policy_and_moves_no_random_state(
    make_tiny_model, tiny_tokenizer, make_slates
) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    model = make_tiny_model()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = fit_behaviour_policy(model, tiny_tokenizer, train, heldout, replace(CONFIG, epochs=1))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(8)
    again = fit_behaviour_policy(model, tiny_tokenizer, train, heldout, replace(CONFIG, epochs=1))
    other = fit_behaviour_policy(model, tiny_tokenizer, train, heldout, replace(CONFIG, epochs=1, seed=1))
    assert first.report == again.report
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    assert other.report.evaluations != first.report.evaluations


def test_sharing_prompts_does_not_change_the_fit(make_tiny_model, tiny_tokenizer, make_slates, monkeypatch) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    config = replace(CONFIG, epochs=1)
    shared = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, heldout, config).report
    monkeypatch.setattr(slate_trainer, "sharing_obstacle", lambda model, trees, **options: "not today")
    apart = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, heldout, config).report
    for a, b in zip(shared.evaluations, apart.evaluations, strict=True):
        assert a.heldout_nats_per_token == pytest.approx(b.heldout_nats_per_token, rel=1e-4)


def test_a_fit_that_only_gets_worse_keeps_its_start_and_stops(make_tiny_model, tiny_tokenizer, make_slates) -> None:
    """Held-out responses that contradict the training ones: every step makes them less likely."""
    model = make_tiny_model()
    start = fit_behaviour_policy(model, tiny_tokenizer, coin_log(20, heads=0.0), coin_log(9, heads=0.0, seed=1), CONFIG)
    worse = fit_behaviour_policy(
        start.model, tiny_tokenizer, coin_log(20, heads=1.0), coin_log(9, heads=0.0, seed=1), CONFIG
    )
    assert worse.report.best == 0
    assert len(worse.report.evaluations) == 1 + CONFIG.patience
    assert all(torch.equal(a, b) for a, b in zip(worse.model.parameters(), start.model.parameters(), strict=True))
    assert worse.report.train_nats_per_token is None


def test_an_adapter_is_fitted_and_merged(make_tiny_model, tiny_tokenizer, make_slates) -> None:
    train, heldout = group_split(make_slates(30, scored=False), group, 0.3, 0)
    model = make_tiny_model()
    policy = fit_behaviour_policy(
        model, tiny_tokenizer, train, heldout, replace(CONFIG, lora_rank=4, learning_rate=2e-2)
    )
    assert type(policy.model) is type(model)
    assert policy.report.heldout_nats_per_token < policy.report.heldout_nats_per_token_before - 0.5
    encoded, _ = encode_slates(heldout, tiny_tokenizer, max_length=64)
    assert nats_per_token(encoded, policy.model) == pytest.approx(policy.report.heldout_nats_per_token, rel=1e-5)


def test_a_saved_policy_and_its_report_come_back(make_tiny_model, tiny_tokenizer, make_slates, tmp_path: Path) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    policy = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, heldout, replace(CONFIG, epochs=1))
    policy.save(tmp_path, tiny_tokenizer)
    assert FitReport.read(tmp_path) == policy.report
    assert FitReport.read(tmp_path / "nothing") is None
    encoded, _ = encode_slates(heldout, load_tokenizer(tmp_path), max_length=64)
    assert nats_per_token(encoded, load_model(tmp_path)) == pytest.approx(policy.report.heldout_nats_per_token)


class Interrupted(Exception):
    pass


def dying(after: int):
    """Progress that ends the run once so many slates were trained on."""

    def progress(done: int, of: int) -> None:
        if done >= after:
            raise Interrupted

    return progress


def weights(model) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def test_a_fit_is_the_plain_loop(make_tiny_model, tiny_tokenizer, make_slates) -> None:
    """AdamW, clipping, the schedule of transformers, and a step's tokens all alike: the same weights."""
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    config = replace(CONFIG, epochs=2, patience=100)
    fitted = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, heldout, config)
    assert fitted.report.best == len(fitted.report.evaluations) - 1  # so that the last weights are kept
    model = make_tiny_model()
    encoded, _ = encode_slates(train, tiny_tokenizer, max_length=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)
    steps = -(-len(train) // config.batch_slates) * config.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(config.epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        for start in range(0, len(order), config.batch_slates):
            batch = [encoded[index] for index in order[start : start + config.batch_slates]]
            nats = torch.zeros(())
            for slate in batch:
                for ids in slate.completion_ids:
                    logits = model(torch.tensor([slate.prompt_ids + ids])).logits[0, len(slate.prompt_ids) - 1 : -1]
                    nats = nats + torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum")
            (nats / sum(len(ids) for slate in batch for ids in slate.completion_ids)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    for ours, plain in zip(weights(fitted.model), weights(model), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("after", [5, 9, 15])
def test_a_fit_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(
    after: int, make_tiny_model, tiny_tokenizer, make_slates, tmp_path: Path
) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    dropout = {"attention_dropout": 0.2}  # random numbers go on where they stood
    options = (tiny_tokenizer, train, heldout, replace(CONFIG, epochs=3))
    straight = fit_behaviour_policy(make_tiny_model(**dropout), *options)
    with pytest.raises(Interrupted):
        fit_behaviour_policy(make_tiny_model(**dropout), *options, checkpoints=tmp_path, progress=dying(after))
    assert [path.name.rpartition("-")[0] for path in tmp_path.iterdir()] == ["checkpoint"]
    seen: list[int] = []
    resumed = fit_behaviour_policy(
        make_tiny_model(**dropout),
        *options,
        checkpoints=tmp_path,
        resume=True,
        progress=lambda done, of: seen.append(done),
    )
    assert seen[0] > 2  # not from the start
    assert resumed.report == straight.report
    assert all(map(torch.equal, weights(resumed.model), weights(straight.model)))


def test_cross_fitting_goes_on_with_the_fold_it_was_in(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path: Path
) -> None:
    slates = make_slates(20, scored=False)
    config = replace(CONFIG, epochs=2)
    options = (tiny_tokenizer, slates, group, config)
    seen: list[tuple[int, int]] = []
    straight = cross_fitted_slates(
        make_tiny_model(), *options, folds=2, progress=lambda done, of: seen.append((done, of))
    )
    assert len({of for _, of in seen}) == 1  # folds of other sizes, and one total
    assert seen == sorted(seen)
    assert seen[-1][0] <= seen[-1][1]
    folder = tmp_path / "work"
    with pytest.raises(Interrupted):
        cross_fitted_slates(make_tiny_model(), *options, folds=2, work_dir=folder, progress=dying(14))
    assert FitReport.read(folder / "fold0-of-2") == straight[1][0]
    assert (folder / "fold1-of-2" / "checkpoints").exists()
    other = (tiny_tokenizer, slates, group, replace(config, epochs=1))
    with pytest.raises(ValueError, match=r"resume: .*fold0-of-2: expected a fit with .*epochs=1"):
        cross_fitted_slates(make_tiny_model(), *other, folds=2, work_dir=folder, resume=True)
    resumed = cross_fitted_slates(make_tiny_model(), *options, folds=2, work_dir=folder, resume=True)
    assert resumed[1] == straight[1]
    ours, expected = (
        [[slate.logging_logprobs, slate.logging_policy["model_fingerprint"]] for slate in scored]
        for scored in (resumed[0], straight[0])
    )
    assert [row[0] for row in ours] == [row[0] for row in expected]


def test_slates_of_a_forward_pass_and_precision_change_no_more_than_rounding(
    make_tiny_model, tiny_tokenizer, make_slates
) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    options = (tiny_tokenizer, train, heldout)
    one, two, half, again = (
        fit_behaviour_policy(make_tiny_model(), *options, replace(CONFIG, epochs=1, **changes)).report
        for changes in ({}, {"micro_batch_slates": 2}, {"bf16": True}, {"gradient_checkpointing": True})
    )
    for other, tolerance in ((two, 1e-4), (again, 1e-4), (half, 2e-2)):
        assert other.heldout_nats_per_token == pytest.approx(one.heldout_nats_per_token, rel=tolerance)
        assert other.train_nats_per_token == pytest.approx(one.train_nats_per_token, rel=tolerance)
    assert half.heldout_nats_per_token != one.heldout_nats_per_token
    with pytest.raises(ValueError, match="batch_slates: expected a multiple of micro_batch_slates x processes"):
        fit_behaviour_policy(make_tiny_model(), *options, replace(CONFIG, micro_batch_slates=3))


def test_scoring_says_which_responses_were_fitted_to(
    make_tiny_model, tiny_tokenizer, make_slates, caplog: pytest.LogCaptureFixture
) -> None:
    train, heldout = group_split(make_slates(12, scored=False), group, 0.3, 0)
    policy = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, heldout, replace(CONFIG, epochs=1))
    options = {"how": "behaviour_cloned", "max_length": 64, "fit": policy.report}
    scored = score_slates([train[0], heldout[0]], policy.model, tiny_tokenizer, **options)
    fits = [slate.logging_policy["fit"] for slate in scored]
    assert [fit["in_sample"] for fit in fits] == [len(train[0].completions), 0]
    assert fits[0]["heldout_nats_per_token"] == policy.report.heldout_nats_per_token
    assert f"{len(train[0].completions)} of {sum(len(s.completions) for s in scored)} responses were" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        score_slates([heldout[0]], policy.model, tiny_tokenizer, **options)
    assert not caplog.records
    with pytest.raises(ValueError, match="how: expected 'behaviour_cloned' for a model with the report of a fit"):
        score_slates(heldout, policy.model, tiny_tokenizer, **{**options, "how": "proxy"})
    with pytest.raises(ValueError, match="max_length: expected 64, which the policy was fitted with, got 32"):
        score_slates(heldout, policy.model, tiny_tokenizer, **{**options, "max_length": 32})


def test_cross_fitting_scores_every_response_by_a_policy_that_saw_nothing_of_its_group(
    make_tiny_model, tiny_tokenizer, make_slates, caplog: pytest.LogCaptureFixture
) -> None:
    slates = make_slates(30, scored=False)
    config = replace(CONFIG, epochs=1)
    with caplog.at_level(logging.WARNING):
        scored, reports = cross_fitted_slates(make_tiny_model(), tiny_tokenizer, slates, group, config, folds=3)
    assert not caplog.records
    assert [replace(s, logging_logprobs=None, completion_tokens=None, logging_policy=None) for s in scored] == slates
    folds = group_folds(slates, group, 3, config.seed)
    for slate, fold in zip(scored, folds, strict=True):
        fit = slate.logging_policy["fit"]
        assert (fit["fold"], fit["folds"], fit["in_sample"]) == (fold, 3, 0)
        assert not {response_key(slate.prompt, text) for text in slate.completions} & set(reports[fold].trained_on)
    train, stop = group_split([s for s, f in zip(slates, folds, strict=True) if f != 1], group, 1 / 3, config.seed)
    policy = fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, train, stop, config)
    again = score_slates(
        [s for s, f in zip(slates, folds, strict=True) if f == 1],
        policy.model,
        tiny_tokenizer,
        how="behaviour_cloned",
        max_length=64,
    )
    expected = [slate.logging_logprobs for slate in again]
    assert [s.logging_logprobs for s, f in zip(scored, folds, strict=True) if f == 1] == expected


def test_bad_fits_are_refused(make_tiny_model, tiny_tokenizer, make_slates) -> None:
    slates = make_slates(8, scored=False)
    with pytest.raises(ValueError, match="epochs: expected a number > 0, got 0"):
        BehaviourConfig(epochs=0)
    with pytest.raises(ValueError, match="heldout_slates: expected at least one slate, got none"):
        fit_behaviour_policy(make_tiny_model(), tiny_tokenizer, slates, [], CONFIG)
    with pytest.raises(ValueError, match=r"heldout_slates: slate 2: completions\[0\]: expected a response that is not"):
        fit_behaviour_policy(
            make_tiny_model(), tiny_tokenizer, slates, [Slate("new", ["new"], [1.0]), slates[3]], CONFIG
        )
    with pytest.raises(ValueError, match="learning_rate: expected finite gradients"):
        fit_behaviour_policy(
            make_tiny_model(), tiny_tokenizer, slates[:6], coin_log(1), replace(CONFIG, learning_rate=1e30)
        )
    with pytest.raises(ValueError, match="folds: expected fewer than the groups"):
        cross_fitted_slates(make_tiny_model(), tiny_tokenizer, slates, group, CONFIG, folds=5)


def test_folds_keep_groups_whole_and_are_even(make_slates) -> None:
    slates = make_slates(40)
    folds = group_folds(slates, lambda slate: slate.slate_id or "", 4, 0)
    assert sorted(folds.count(fold) for fold in range(4)) == [10, 10, 10, 10]
    reordered = group_folds(slates[::-1], lambda slate: slate.slate_id or "", 4, 0)
    assert reordered[::-1] == folds
    by_group = group_folds(slates, group, 5, 0)
    assert len({(group(slate), fold) for slate, fold in zip(slates, by_group, strict=True)}) == 5
    with pytest.raises(ValueError, match="at least 6 groups, one a fold, got 5"):
        group_folds(slates, group, 6, 0)
    with pytest.raises(ValueError, match="folds: expected an integer >= 2"):
        group_folds(slates, group, 1, 0)


@pytest.fixture
def log_and_model(tmp_path: Path, make_tiny_model, tiny_tokenizer, make_slates) -> tuple[str, str]:
    write_slates(make_slates(30, scored=False), tmp_path / "log.jsonl")
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "log.jsonl"), str(tmp_path / "model")


QUICK = ["--max-length", "64", "--epochs", "1", "--learning-rate", "3e-3", "--batch-slates", "4"]


def test_the_command_fits_a_policy_that_the_scoring_command_recognises(
    log_and_model: tuple[str, str], tmp_path: Path
) -> None:
    log, model = log_and_model
    fitted, scored = tmp_path / "logger", tmp_path / "scored.jsonl"
    result = CliRunner().invoke(app, ["fit-logger", log, "--model", model, "--output", str(fitted), *QUICK])
    assert result.exit_code == 0, result.output
    report = FitReport.read(fitted)
    assert f"{report.heldout_nats_per_token:.4f}" in result.output
    arguments = ["score", log, "--model", str(fitted), "--how", "behaviour_cloned", "--max-length", "64"]
    result = CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / "cache"), "--output", str(scored)])
    assert result.exit_code == 0, result.output
    in_sample = [slate.logging_policy["fit"]["in_sample"] for slate in read_slates(scored)]
    assert 0 < sum(in_sample) <= sum(len(slate.completions) for slate in read_slates(log))
    assert 0 in in_sample


def test_the_command_replaces_nothing_unasked(log_and_model: tuple[str, str], tmp_path: Path) -> None:
    log, model = log_and_model
    fitted = tmp_path / "logger"
    arguments = ["fit-logger", log, "--model", model, "-o", str(fitted), *QUICK]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not (fitted / "checkpoints").exists()
    before = (fitted / "model.safetensors").read_bytes()
    refused = CliRunner().invoke(app, arguments)
    assert "holds files already; pass --resume" in str(refused.exception)
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--seed", "1"]).exit_code == 0
    assert (fitted / "model.safetensors").read_bytes() != before


def test_the_command_cross_fits(log_and_model: tuple[str, str], tmp_path: Path) -> None:
    log, model = log_and_model
    arguments = ["fit-logger", log, "--model", model, "--folds", "2", "--output", str(tmp_path / "scored.jsonl")]
    result = CliRunner().invoke(app, [*arguments, *QUICK])
    assert result.exit_code == 0, result.output
    rows = [line.split("\t") for line in result.output.splitlines()]
    assert ["fold", "trained on"] in [row[:2] for row in rows]  # what each fold's policy was fitted to
    assert [row[0] for row in rows if len(row) > 5] == ["fold", "0", "1"]
    scored = read_slates(tmp_path / "scored.jsonl")
    assert {slate.logging_policy["fit"]["fold"] for slate in scored} == {0, 1}
    assert all(slate.logging_policy["fit"]["in_sample"] == 0 for slate in scored)


@pytest.mark.parametrize("folds", [[], ["--folds", "2"]])
def test_two_processes_with_one_output_leave_one_whole_fit(folds, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    """Without a lock each removed the other's checkpoints while it trained."""
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_slates(coin_log(24), tmp_path / "log.jsonl")
    out = tmp_path / ("scored.jsonl" if folds else "fitted")
    command = [sys.executable, "-m", "pope_align.cli", "fit-logger", str(tmp_path / "log.jsonl")]
    command += ["--model", str(tmp_path / "model"), "-o", str(out), "--max-length", "64", "--epochs", "2", *folds]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(2)]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 2], errors
    (refused,) = (error for run, error in zip(runs, errors, strict=True) if run.returncode)
    assert re.search("another process is writing|exists already|holds files already", refused), refused
    if folds:
        assert all(slate.logging_logprobs is not None for slate in read_slates(out))
        assert len(read_slates(out)) == 24
    else:
        assert FitReport.read(out) is not None
        assert load_model(out).config.hidden_size == 32
        assert not (out / "checkpoints").exists()
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".") and path.name != ".pope_cache"]
    assert left == []
