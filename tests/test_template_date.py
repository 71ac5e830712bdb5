"""Chat templates that write today's date: the day is fixed when a log or a run begins, kept, and can be given."""

from __future__ import annotations

import copy
import datetime
import json
import shutil
from dataclasses import replace

import pope_align.data.tokenize as tokenize
import pytest
import torch
import transformers.utils.chat_template_utils as chat_templates
from pope_align.cli import app
from pope_align.data import Slate, encode_slate, read_slates, slate_group, write_slates
from pope_align.generation.generate import Sampling, TransformersEngine, generate, generate_for_slates
from pope_align.generation.generations import GenerationSet
from pope_align.ope.provenance import provenance_differences
from pope_align.propensity.behaviour_cloning import cross_fitted_slates, fit_behaviour_policy
from pope_align.propensity.fit_report import BehaviourConfig, FitReport
from pope_align.propensity.logging_policy import score_slates
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from typer.testing import CliRunner


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """Writes the date as Llama 3 does: in a first turn that nobody asked for."""
    dated = copy.deepcopy(tiny_tokenizer)
    dated.chat_template = "{{ 's:' + strftime_now('%d %b %Y') + '<|end|>' }}" + tiny_tokenizer.chat_template
    return dated


@pytest.fixture
def clock(monkeypatch):
    """``clock(day)``: a new process begins on that day of November 2026; templates and we see the same clock."""

    def turn_to(day: int) -> None:
        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.datetime(2026, 11, day)

        class Today(datetime.date):
            @classmethod
            def today(cls):
                return datetime.date(2026, 11, day)

        monkeypatch.setattr(chat_templates, "datetime", Clock)
        monkeypatch.setattr(tokenize.datetime, "date", Today)
        chat_templates._compile_jinja_template.cache_clear()
        tokenize.today.cache_clear()

    yield turn_to
    tokenize.today.cache_clear()


SLATE = Slate("What day is it?", ["The 27th.", "Friday."], [1.0, 0.0])


def prompt(tokenizer, slate=SLATE, **options) -> str:
    return tokenizer.decode(encode_slate(slate, tokenizer, max_length=128, **options).prompt_ids)


def test_a_day_can_be_given_and_holds_against_the_clock(tokenizer, tiny_tokenizer, clock) -> None:
    clock(28)
    assert prompt(tokenizer).startswith("s:28 Nov 2026<|end|>")
    assert prompt(tokenizer, template_date="2024-07-26").startswith("s:26 Jul 2024<|end|>")
    with pytest.raises(ValueError, match="template_date: expected a date such as 2026-11-28, got '26 Jul 2024'"):
        prompt(tokenizer, template_date="26 Jul 2024")
    assert encode_slate(SLATE, tiny_tokenizer, max_length=128, template_date="2024-07-26").template_date is None


def test_a_log_keeps_the_day_it_was_scored_on(tokenizer, make_tiny_model, clock) -> None:
    model = make_tiny_model()
    clock(27)
    (first,) = score_slates([SLATE], model, tokenizer, how="proxy", max_length=128)
    assert first.logging_policy["template_date"] == "2026-11-27"
    clock(28)
    (again,) = score_slates([first], model, tokenizer, how="proxy", max_length=128, overwrite=True)
    assert again == first
    (anew,) = score_slates([SLATE], model, tokenizer, how="proxy", max_length=128)
    assert anew.logging_logprobs != first.logging_logprobs
    assert anew.logging_policy["template_date"] == "2026-11-28"
    assert any("dates" in reason for reason in provenance_differences(first.logging_policy, anew.logging_policy))


def test_a_policy_is_scored_on_the_day_of_its_fit(tokenizer, make_tiny_model, make_slates, clock, tmp_path) -> None:
    config = BehaviourConfig(max_length=96, epochs=1, learning_rate=1e-3)
    slates = make_slates(8, scored=False)
    clock(27)
    policy = fit_behaviour_policy(make_tiny_model(), tokenizer, slates[:6], slates[6:], config)
    assert policy.report.config.template_date == "2026-11-27"
    clock(28)
    (scored,) = score_slates([SLATE], policy.model, tokenizer, how="behaviour_cloned", max_length=96, fit=policy.report)
    assert scored.logging_policy["template_date"] == "2026-11-27"
    with pytest.raises(
        ValueError, match="template_date: expected 2026-11-27, which the policy was fitted with, got 20"
    ):
        score_slates(
            [SLATE],
            policy.model,
            tokenizer,
            how="behaviour_cloned",
            max_length=96,
            fit=policy.report,
            template_date="2026-11-28",
        )


def test_all_folds_have_the_day_on_which_the_first_began(
    tokenizer, make_tiny_model, make_slates, clock, tmp_path
) -> None:
    config = BehaviourConfig(max_length=96, epochs=1, learning_rate=1e-3)
    slates = make_slates(10, scored=False)

    def fit(**options):
        given = replace(config, **options)
        model, folder = make_tiny_model(), tmp_path / "folds"
        return cross_fitted_slates(model, tokenizer, slates, slate_group, given, folds=2, work_dir=folder, resume=True)

    clock(27)
    (first, _) = fit()
    shutil.rmtree(tmp_path / "folds" / "fold1-of-2")  # as if the run had been killed in its second fold
    clock(28)
    (again, reports) = fit()
    assert [slate.logging_logprobs for slate in again] == [slate.logging_logprobs for slate in first]
    assert {slate.logging_policy["template_date"] for slate in again} == {"2026-11-27"}
    assert {report.config.template_date for report in reports} == {"2026-11-27"}


@pytest.fixture
def files(tokenizer, make_tiny_model, make_slates, tmp_path):
    make_tiny_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_slates(make_slates(12, scored=False), tmp_path / "log.jsonl")
    return tmp_path


def run(*arguments: object) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def days(path) -> set[str]:
    return {slate.logging_policy["template_date"] for slate in read_slates(path)}


def test_the_day_can_be_given_to_every_command_that_scores(files, clock) -> None:
    clock(28)
    log, model, cache, day = files / "log.jsonl", files / "model", files / "cache", ["--template-date", "2024-07-26"]
    score = ["score", log, "--model", model, "--how", "recorded", "--cache", cache]
    run(*score, "-o", files / "given.jsonl", *day)
    run(*score, "-o", files / "today.jsonl")
    assert (days(files / "given.jsonl"), days(files / "today.jsonl")) == ({"2024-07-26"}, {"2026-11-28"})
    fit = ["fit-logger", log, "--model", model, "--epochs", "1", "--max-length", "96", "--cache", cache]
    run(*fit, "--folds", "2", "-o", files / "fitted.jsonl", *day)
    assert days(files / "fitted.jsonl") == {"2024-07-26"}
    run(*fit, "-o", files / "logger", *day)
    assert FitReport.read(files / "logger").config.template_date == "2024-07-26"
    evaluate = ["evaluate", files / "given.jsonl", f"--policy=m={model}", "--cache", cache]
    run(*evaluate, "-o", files / "as-logged.json")
    run(*evaluate, "-o", files / "other.json", "--template-date", "2026-11-27")
    doubts = [json.dumps(json.loads((files / name).read_text())) for name in ("as-logged.json", "other.json")]
    differ = "dates in the chat template differ: the log was scored with 2024-07-26, the policy with 2026-11-27"
    assert [differ in doubt for doubt in doubts] == [False, True]


def test_a_template_without_a_date_leaves_provenance_as_it_was(tiny_tokenizer, make_tiny_model) -> None:
    (scored,) = score_slates([SLATE], make_tiny_model(), tiny_tokenizer, how="proxy", max_length=128)
    assert "template_date" not in scored.logging_policy
    assert "template_date" not in TransformersEngine(make_tiny_model(), tiny_tokenizer).about


def test_one_process_keeps_its_day_over_midnight(tokenizer, clock, monkeypatch) -> None:
    clock(27)
    before = prompt(tokenizer)
    monkeypatch.setattr(tokenize.datetime.date, "today", classmethod(lambda cls: datetime.date(2026, 11, 28)))
    assert prompt(tokenizer) == before


@pytest.mark.parametrize("dated_log", [False, True])
def test_training_resumes_after_midnight(dated_log, tokenizer, make_tiny_model, make_slates, tmp_path, clock) -> None:
    def trainer(steps: int) -> PopeTrainer:
        args = PopeConfig(
            str(tmp_path),
            max_steps=steps,
            save_steps=1,
            max_length=96,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            gradient_accumulation_steps=1,
        )
        return PopeTrainer(make_tiny_model(), args, train_dataset=slates, processing_class=tokenizer)

    clock(27)
    slates = make_slates(4)
    if dated_log:
        slates = score_slates(slates, make_tiny_model(), tokenizer, how="proxy", max_length=96, overwrite=True)
    first = trainer(1)
    first.train()
    clock(28)
    second = trainer(2)
    assert second.train_dataset.fingerprint() == first.train_dataset.fingerprint()
    second.train("last")
    assert second.state.global_step == 2
    assert second.args.template_date == (None if dated_log else "2026-11-27")
    again = trainer(3)
    again.train("last")  # the day goes on from checkpoint to checkpoint
    assert again.state.global_step == 3


def test_generation_writes_the_day_beside_its_answers(tokenizer, make_tiny_model, clock) -> None:
    clock(28)
    model = make_tiny_model()
    assert TransformersEngine(model, tokenizer).about["template_date"] == "2026-11-28"
    sampling = Sampling(max_new_tokens=4, temperature=0)
    texts = {
        day: generate(model, tokenizer, ["What day is it?"], sampling=sampling, template_date=day)
        for day in ("2026-11-28", "2026-11-27")
    }
    torch.manual_seed(0)
    assert generate(model, tokenizer, ["What day is it?"], sampling=sampling) == texts["2026-11-28"]


def test_generation_resumes_after_midnight_on_its_own_day(tokenizer, make_tiny_model, clock, tmp_path) -> None:
    def answers(slates: list[Slate], **options) -> GenerationSet:
        engine = TransformersEngine(make_tiny_model(), tokenizer, **options)
        sampling = Sampling(max_new_tokens=4)
        return generate_for_slates(engine, slates, name="m", n=1, sampling=sampling, journal=tmp_path / "journal")

    slates = [Slate("What day is it?", ["a"], [0.0], slate_id="a"), Slate("And now?", ["b"], [0.0], slate_id="b")]
    clock(27)
    answers(slates[:1])
    clock(28)
    both = answers(slates)
    assert both.settings["template_date"] == "2026-11-27"
    with pytest.raises(ValueError, match="template_date '2026-11-27' -> '2026-11-28'"):
        answers(slates, template_date="2026-11-28")
