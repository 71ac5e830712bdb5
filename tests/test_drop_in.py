"""What a user of transformers' or TRL's trainers expects of ours: defaults, data, evaluation sets, metrics, the hub."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pope_align.data import Slate, SlateCollator
from pope_align.data.preference_rows import PreferenceLog
from pope_align.models.causal_lm import response_logprobs
from pope_align.propensity.logging_policy import score_slates
from pope_align.training.callbacks import StopWithPlacebo
from pope_align.training.config import ListwiseConfig, PopeConfig
from pope_align.training.listwise_trainer import ListwiseTrainer
from pope_align.training.run import run_training
from pope_align.training.sources import as_slates
from pope_align.training.trainer import PopeTrainer
from transformers import TrainingArguments

from pope_core import Objective

PAIRS = [
    {"prompt": "Colour?", "chosen": "Red, I would say.", "rejected": "No."},
    {"prompt": "And then?", "chosen": "Blue.", "rejected": "It depends."},
    {"prompt": "Colour?", "chosen": "Green.", "rejected": "No."},
]


def turns(*texts: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def config(path: Path, **options: Any) -> PopeConfig:
    defaults = {"gradient_accumulation_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return PopeConfig(str(path), **{**defaults, "save_strategy": "no", "max_length": 64, "max_steps": 2, **options})


@pytest.fixture
def make(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> Callable[..., PopeTrainer]:
    """A trainer of a tiny model on four slates, with other arguments where given."""

    def trainer(args: PopeConfig | None = None, **options: Any) -> PopeTrainer:
        defaults = {"model": make_tiny_model(), "train_dataset": make_slates(4), "processing_class": tiny_tokenizer}
        return PopeTrainer(**{**defaults, "args": args or config(tmp_path), **options})

    return trainer


def proxies(slates: list[Slate]) -> list[Slate]:
    return [replace(slate, logging_policy={"how": "proxy"}) for slate in slates]


def weights(trainer: PopeTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainer.model.parameters()])


# --- the constructor ------------------------------------------------------------------------------------------------


def test_a_folder_and_slates_are_enough(make_tiny_model, tiny_tokenizer, make_slates, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_tiny_model().save_pretrained("start")
    tiny_tokenizer.save_pretrained("start")
    trainer = PopeTrainer("start", train_dataset=make_slates(3))
    assert (trainer.args.output_dir, trainer.args.objective) == ("start-aligned", Objective())
    assert trainer.train().global_step == 3  # epochs of one step
    other = PopeTrainer(Path("start"), PopeConfig("start-aligned"), train_dataset=make_slates(3))
    other.train()
    assert torch.equal(weights(trainer), weights(other))
    unnamed = PopeTrainer(make_tiny_model(), train_dataset=make_slates(3), processing_class=tiny_tokenizer)
    assert unnamed.args.output_dir == "trainer_output"


def test_other_methods_need_no_configuration_either(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = ListwiseTrainer(make_tiny_model(), train_dataset=make_slates(2), processing_class=tiny_tokenizer)
    assert (trainer.method, type(trainer.args)) == ("lipo", ListwiseConfig)


def test_arguments_that_cannot_work_are_refused_by_name(make, make_tiny_model, make_slates, tmp_path) -> None:
    def refused(message: str, error: Any = ValueError, args: Any = None, **options: Any) -> None:
        with pytest.raises(error, match=message):
            make(args, **options)

    refused("train_dataset: expected slates to train on", train_dataset=None)
    refused("args: expected a PopeConfig, got TrainingArguments", TypeError, TrainingArguments(str(tmp_path)))
    refused("model: expected a name, a folder or a model", TypeError, model=3)
    refused("processing_class: expected a tokenizer, got str", TypeError, processing_class="gpt2")
    refused("processing_class: expected the tokenizer of a model without a name", processing_class=None)
    make_tiny_model().save_pretrained(tmp_path / "bare")
    bare = str(tmp_path / "bare")
    refused(r"processing_class: expected a tokenizer in .*bare", model=bare, processing_class=None)
    refused("data_collator: expected a function .*give it by name", TypeError, data_collator=make_slates(2))
    refused("data_collator: expected a function of examples .*KeyError", data_collator=lambda rows: rows[0]["chosen"])
    refused("without input_ids, position_ids", data_collator=lambda rows: {"log": 1})
    refused("compute_metrics: expected a function", TypeError, compute_metrics="accuracy")
    once = config(tmp_path, batch_eval_metrics=True)
    refused("compute_metrics: expected batch_eval_metrics=False", args=once, compute_metrics=len)
    refused("eval_dataset: expected slates with eval_strategy='steps'", args=config(tmp_path, eval_strategy="steps"))
    refused("eval_dataset: expected at least one evaluation set", eval_dataset={})
    refused("eval_dataset: expected names of letters.*'a b'", eval_dataset={"a b": make_slates(1)})
    refused(r"eval_dataset\['a'\]: expected the columns of slates", eval_dataset={"a": [{"text": "x"}]})
    two = {"a": make_slates(2), "b": make_slates(2)}
    best = config(tmp_path, eval_strategy="steps", save_strategy="steps", load_best_model_at_end=True)
    refused(
        "metric_for_best_model: .* such as eval_a_index/gain, eval_b_index/gain, got 'loss'",
        args=best,
        eval_dataset=two,
    )
    with pytest.raises(ValueError, match="logging_policy: expected 'log', 'start' or None"):
        config(tmp_path, logging_policy="proxy")


def test_an_optimizer_and_its_schedule_are_used(make, make_tiny_model) -> None:
    def trained(lr: float, factor: float | None) -> torch.Tensor:
        model = make_tiny_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        schedule = None if factor is None else torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor)
        trainer = make(model=model, optimizers=(optimizer, schedule))
        trainer.train()
        assert trainer.optimizer.optimizer is optimizer
        return weights(trainer)

    start = weights(make())
    assert torch.equal(trained(0.0, None), start)
    assert torch.equal(trained(0.5, 0.0), start)
    assert not torch.equal(trained(0.5, 1.0), start)
    with pytest.raises(ValueError, match="optimizers: expected an optimizer of trainable parameters"):
        make(optimizers=(torch.optim.SGD(make_tiny_model().parameters(), lr=0.5), None))


def test_a_collator_makes_the_batches(make, make_slates, tmp_path) -> None:
    own = SlateCollator(0)
    expected = make(config(tmp_path, prompt_sharing="off"))
    same = make(data_collator=lambda examples: own(examples))
    for trainer in (expected, same):
        trainer.train()
    assert torch.equal(weights(same), weights(expected))

    def reversed_feedback(examples: Any) -> Any:
        return own([{**example, "utility": [1 - u for u in example["utility"]]} for example in examples])

    slates = [replace(slate, scores=[-score for score in slate.scores]) for slate in make_slates(4)]
    opposite = make(config(tmp_path, prompt_sharing="off"), train_dataset=slates)
    collated = make(data_collator=reversed_feedback)
    for trainer in (opposite, collated):
        trainer.train()
    torch.testing.assert_close(weights(collated), weights(opposite))
    shared = make(data_collator=SlateCollator(0))
    assert shared.data_collator.collate.share_prompt


# --- what the model before training is asked ------------------------------------------------------------------------


def test_the_start_is_scored_once_and_not_by_the_constructor(make, make_slates, tmp_path, monkeypatch) -> None:
    from pope_align.training import start

    scored: list[int] = []
    real = start.score_responses
    monkeypatch.setattr(
        start, "score_responses", lambda slates, model: scored.append(len(slates)) or real(slates, model)
    )
    trainer = make(config(tmp_path, kl_weight=0.5), eval_dataset={"a": make_slates(2), "b": make_slates(3)})
    assert scored == []
    trainer.evaluate("b")
    assert scored == [3]
    trainer.train()
    assert scored == [3, 4, 2]
    trainer.evaluate()
    trainer.train()
    assert scored == [3, 4, 2]
    with pytest.raises(ValueError, match="expected an evaluation set of the constructor"):
        trainer.evaluate(make_slates(2, seed=3))


def test_preferences_are_trained_with_the_start_as_logging_policy(
    make, make_tiny_model, tiny_tokenizer, tmp_path, caplog
) -> None:
    """As with `score_slates(how="proxy")` before, and the weights of the first step are 1."""
    with caplog.at_level("WARNING"):
        trainer = make(config(tmp_path, per_device_train_batch_size=2), train_dataset=PAIRS, eval_dataset=PAIRS)
    assert "the model before training stands in for it" in caplog.text
    assert all(slate.logging_logprobs is None for slate in trainer.train_dataset.slates)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["is/ess_fraction"] == pytest.approx(1.0)
    assert first["logps/policy"] == pytest.approx(first["logps/logging"], rel=1e-5)
    assert {slate.logging_policy["how"] for slate in trainer.train_dataset.slates} == {"proxy"}
    scored = score_slates(as_slates(PAIRS), make_tiny_model(), tiny_tokenizer, how="proxy", max_length=64)
    other = make(config(tmp_path, per_device_train_batch_size=2), train_dataset=scored)
    other.train()
    assert torch.equal(weights(trainer), weights(other))
    trainer.create_model_card()
    assert "those of a model that did not write the responses" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match="expected slates with logging_logprobs after training has begun"):
        trainer.evaluate(PAIRS)


def test_who_stands_in_for_the_logging_policy_is_said_and_not_guessed(make, make_slates, tmp_path) -> None:
    unscored = make_slates(2, scored=False)
    with pytest.raises(ValueError, match=r"slate 1 .*pope score.*logging_policy='start'"):
        make(train_dataset=unscored)
    trainer = make(config(tmp_path, logging_policy="start"), train_dataset=unscored)
    trainer.train()
    assert trainer.state.log_history[0]["is/ess_fraction"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected none with logging_policy='start'"):
        make(config(tmp_path, logging_policy="start"))
    with pytest.raises(ValueError, match=r"train_dataset: slate 1 .*logging_logprobs: expected one per response"):
        make(config(tmp_path, logging_policy="log"), train_dataset=PAIRS)


def test_a_resumed_run_on_preferences_has_the_weights_of_its_start(make, tmp_path) -> None:
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = make(config(tmp_path / "whole", **options), train_dataset=PAIRS)
    whole.train()
    resumed = make(config(tmp_path / "resumed", **options), train_dataset=PAIRS)
    resumed.train(str(tmp_path / "whole" / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))


# --- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_sets_have_their_own_metrics_tables_and_estimates(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    sets = {"short": proxies(make_slates(6)), "long": proxies(make_slates(8, seed=1))}
    args = config(
        tmp_path / "run",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        log_slates=1,
        early_stopping_patience=3,
        metric_for_best_model="eval_long_index/gain",
        greater_is_better=True,
    )
    trainer = run_training(make_tiny_model(), args, make_slates(4), sets, processing_class=tiny_tokenizer)
    metrics = trainer.evaluate()
    alone = trainer.evaluate(sets["short"])
    for name in ("loss", "pope/utility_self_normalized", "is/ess_fraction"):
        assert metrics[f"eval_short_{name}"] == alone[f"eval_{name}"]
        assert metrics[f"eval_long_{name}"] != metrics[f"eval_short_{name}"]
    gains = [entry["eval_long_index/gain"] for entry in trainer.state.log_history if "eval_long_index/gain" in entry]
    assert trainer.state.best_metric == max(gains[:2])
    card = (tmp_path / "run" / "README.md").read_text()
    assert card.count("Verdict: **") == 2
    assert "### short" in card
    assert "| held_out_gain_at_best_step |" in card
    table = (tmp_path / "run" / "slates.md").read_text()
    assert table.count("## eval_dataset[") == 2
    assert (tmp_path / "run" / "training.png").exists()


def test_early_stopping_of_a_resumed_run_watches_the_same_set() -> None:
    callback = StopWithPlacebo(3, prefix="eval_a_")
    callback.early_stopping_patience_counter = 2
    restored = StopWithPlacebo.from_state(callback.state())
    assert (restored.prefix, restored.early_stopping_patience) == ("eval_a_", 3)
    assert restored.early_stopping_patience_counter == 2


def test_metrics_of_a_user_get_log_probabilities_and_utilities(make, make_slates, tmp_path) -> None:
    seen = []

    def best_first(prediction: Any) -> dict[str, Any]:
        seen.append(prediction)
        found = np.nanargmax(prediction.predictions.policy_logprobs, 1)
        return {"best_first": np.mean(found == np.nanargmax(prediction.label_ids, 1)), "eval_a_named": np.float64(2)}

    slates = make_slates(5)
    trainer = make(eval_dataset={"a": slates, "b": slates[:2]}, compute_metrics=best_first)
    metrics = trainer.evaluate()
    assert len(seen) == 2
    predictions, labels = seen[0].predictions, seen[0].label_ids
    assert labels.shape == (5, 4)
    data = trainer.eval_sets["a"]
    batch = trainer.data_collator([data[index] for index in range(5)])
    totals = response_logprobs(trainer.model, batch).tolist()
    for name, column in (("utility", labels), ("logging_logprobs", predictions.logging_logprobs)):
        for row, example in zip(column, data.examples, strict=True):
            k = len(example[name])
            assert row[:k].tolist() == example[name]
            assert np.isnan(row[k:]).all()
    tokens = [len(ids) for example in data.examples for ids in example["completion_ids"]]
    assert predictions.tokens[~np.isnan(predictions.tokens)].tolist() == tokens
    assert predictions.policy_logprobs[~np.isnan(labels)].tolist() == pytest.approx(totals, rel=1e-5)
    assert 0 <= metrics["eval_a_best_first"] <= 1
    assert metrics["eval_a_named"] == 2.0
    assert any("eval_b_best_first" in entry for entry in trainer.state.log_history)
    output = trainer.predict(slates)
    np.testing.assert_array_equal(output.predictions.policy_logprobs, predictions.policy_logprobs)
    assert math.isfinite(output.metrics["test_pope/value"])
    assert "test_best_first" in output.metrics


# --- the card and the hub -------------------------------------------------------------------------------------------


class FakeHub:
    """Records what would be uploaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import huggingface_hub

        self.created: list[str] = []
        self.pushed: list[tuple[dict[str, Any], str, set[str]]] = []

        def create_repo(api: Any, repo_id: str, **options: Any) -> Any:
            self.created.append(repo_id)
            return huggingface_hub.RepoUrl(f"https://huggingface.co/someone/{repo_id.rpartition('/')[2]}")

        def upload_folder(api: Any, *, folder_path: str, **options: Any) -> None:
            files = {str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*")}
            card = Path(folder_path, "README.md")
            self.pushed.append((options, card.read_text() if card.exists() else "", files))

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)


def test_a_card_says_what_its_caller_says(make, tmp_path) -> None:
    trainer = make(config(tmp_path / "run", max_steps=1))
    trainer.train()
    trainer.create_model_card(
        language=["en", "no"],
        license="cc0-1.0",
        tags="votes",
        model_name="A model | of ours",
        finetuned_from="org/base",
        tasks=["question-answering"],
        dataset_tags=["org/data"],
        dataset="Votes [of 2026]",
    )
    card = (tmp_path / "run" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1]) == {
        "language": ["en", "no"],
        "license": "cc0-1.0",
        "base_model": "org/base",
        "datasets": ["org/data"],
        "library_name": "transformers",
        "pipeline_tag": "question-answering",
        "tags": ["pope", "off-policy", "alignment", "votes"],
    }
    assert "\n# A model \\| of ours\n" in card
    assert "Votes \\[of 2026\\]: 4 slates" in card


def test_a_push_uploads_the_model_and_its_card(make, tmp_path, monkeypatch) -> None:
    hub = FakeHub(monkeypatch)
    trainer = make(config(tmp_path / "run", max_steps=1))
    trainer.train()
    trainer.push_to_hub("Aligned", tags=["votes"], license="mit")
    assert hub.created == ["run"]
    ((options, card, files),) = hub.pushed
    assert (options["repo_id"], options["commit_message"]) == ("someone/run", "Aligned")
    assert yaml.safe_load(card.split("---")[1])["tags"][-1] == "votes"
    assert "\n# run\n" in card
    assert files >= {"model.safetensors", "README.md", "training_objective.json", "tokenizer.json"}


def test_a_run_pushes_its_card_and_metrics_at_the_end(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path, monkeypatch
) -> None:
    hub = FakeHub(monkeypatch)
    args = config(tmp_path / "run", max_steps=1, push_to_hub=True, hub_model_id="someone/votes")
    slates = proxies(make_slates(8))
    run_training(make_tiny_model(), args, slates, slates, processing_class=tiny_tokenizer)
    ((options, card, files),) = hub.pushed
    assert options["repo_id"] == "someone/votes"
    assert "Verdict: **" in card
    assert files >= {"model.safetensors", "README.md", "metrics.json", "training.png"}


# --- preference datasets --------------------------------------------------------------------------------------------


def test_pairs_of_a_prompt_make_one_slate() -> None:
    slates = as_slates(PAIRS)
    assert isinstance(slates, PreferenceLog)
    assert [slate.prompt for slate in slates] == ["Colour?", "And then?"]  # as they come
    assert slates[0].completions == ["Red, I would say.", "No.", "Green."]
    assert slates[0].scores == [1.0, 0.0, 1.0]
    assert slates[1].scores == [1.0, 0.0]


def test_every_format_of_trl_gives_the_same_slates(tmp_path) -> None:
    """Explicit and implicit prompts, text and turns, paired and unpaired, rows, datasets, iterators and files."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    paired = datasets.Dataset.from_list(PAIRS[:2])
    unpaired = trl.unpair_preference_dataset(paired)
    paired.to_json(tmp_path / "pairs.jsonl")
    unpaired.to_parquet(tmp_path / "unpaired.parquet")
    expected = [("Colour?", {"Red, I would say.": 1.0, "No.": 0.0}), ("And then?", {"Blue.": 1.0, "It depends.": 0.0})]

    def read(source: Any) -> list[tuple[Any, dict[str, float]]]:
        return [
            (slate.prompt, dict(zip(map(str, slate.completions), slate.scores, strict=True)))
            for slate in as_slates(source)
        ]

    sources = [paired, unpaired, iter(PAIRS[:2]), unpaired.to_list(), unpaired.to_iterable_dataset()]
    for source in [*sources, tmp_path / "pairs.jsonl", str(tmp_path / "unpaired.parquet")]:
        assert read(source) == expected

    def conversation(row: dict[str, str]) -> dict[str, Any]:
        return {
            "prompt": turns(row["prompt"]),
            "chosen": turns(row["prompt"], row["chosen"])[1:],
            "rejected": turns(row["prompt"], row["rejected"])[1:],
        }

    explicit = [conversation(row) for row in PAIRS[:2]]
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    assert [trl.extract_prompt(row) for row in implicit] == explicit
    assert as_slates(implicit) == as_slates(explicit)
    assert as_slates(explicit)[0].completions == [turns("", "Red, I would say.")[1:], turns("", "No.")[1:]]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("The sky is blue.", "The sky is green."), ("One: two", "One: three"), ("a b c", "a b d e")],
)
def test_a_prompt_within_texts_is_that_of_trl(chosen, rejected) -> None:
    trl = pytest.importorskip("trl")
    (slate,) = as_slates([{"chosen": chosen, "rejected": rejected}])
    expected = trl.extract_prompt({"chosen": chosen, "rejected": rejected})
    assert [slate.prompt, *slate.completions] == [expected["prompt"], expected["chosen"], expected["rejected"]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}], "rows: expected the columns of slates .* got prompt, completion"),
        ([{"text": "a"}], "got text"),
        ([{"prompt": "a", "chosen": "b", "rejected": ["c"]}], "row 1: (rejected|completions)"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}],
            r"row 2: rejected: .*nothing",
        ),
        ([{"prompt": "a", "completion": "b", "label": "maybe"}], "row 1: label: expected true or false"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "images": ["x"]}], "row 1: images: expected nothing"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "tools": "[]"}], "row 1: tools"),
        ([{"chosen": "The same", "rejected": "The same and more"}], "row 1: prompt: .*beginning of the other"),
        ([{"chosen": "One", "rejected": "Two"}], "row 1: prompt: .*begin differently"),
        (
            [{"chosen": turns("a", "b", "c", "d"), "rejected": turns("a", "x", "c", "d")}],
            "row 1: rejected: expected the turns of chosen but for the last",
        ),
        ([], "rows|at least one slate"),
    ],
)
def test_rows_that_are_no_slates_are_refused(rows, message) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        as_slates(rows, "rows")


def test_several_splits_are_refused_where_one_is_expected() -> None:
    with pytest.raises(TypeError, match="train: expected a file or rows, got a dict of a, b; pass one of them"):
        as_slates({"a": [], "b": []}, "train")  # type: ignore[arg-type]


def test_slates_stay_what_they_are(make_slates) -> None:
    slates = make_slates(2)
    assert as_slates(slates) is slates
    rows = [{"prompt": s.prompt, "completions": s.completions, "scores": s.scores} for s in slates]
    assert list(as_slates(iter(rows))) == [Slate(s.prompt, s.completions, s.scores) for s in slates]
