"""The trainer: its loss is the reference objective on the model's own logits, however a step is split and whatever
wraps the model; its configuration refuses what training would drive to nonsense."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plain import plain
from pope_align.data import SlateCollator, Tree
from pope_align.models.causal_lm import check_head, lm_head, response_hidden_states, response_logprobs
from pope_align.models.loading import load_model, load_tokenizer
from pope_align.models.modes import disable_dropout
from pope_align.training.config import PopeConfig
from pope_align.training.examples import IndexedCollator, slate_dataset
from pope_align.training.trainer import PopeTrainer
from torch.nn.functional import softplus
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import pope_core
from pope_core import Objective, reference
from pope_core.objective import CHOICES

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
ARCHITECTURES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=4, n_positions=64)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **SMALL)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SMALL)),
    "gemma2 (soft cap)": lambda: Gemma2ForCausalLM(Gemma2Config(head_dim=8, final_logit_softcapping=2.0, **SMALL)),
    "cohere (scale)": lambda: CohereForCausalLM(CohereConfig(logit_scale=0.25, **SMALL)),
    "granite (divisor)": lambda: GraniteForCausalLM(GraniteConfig(logits_scaling=4.0, **SMALL)),
}


TREE = Tree([11, 12, 13], [[21, 22], [31, 32, 33, 34], [41]])


def config(path: Path, **options) -> PopeConfig:
    defaults = {"gradient_accumulation_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    defaults |= {"normalization": "none", "diversity_form": "neg_log_prob", "clip": 10.0}  # as reference.pope_loss
    return PopeConfig(str(path), **{**defaults, "save_strategy": "no", "max_length": 64, "max_steps": 2, **options})


def batch_of(slates, tokenizer, args: PopeConfig) -> dict[str, torch.Tensor]:
    dataset = slate_dataset("slates", slates, tokenizer, args)
    return IndexedCollator(SlateCollator(0))([dataset[index] for index in range(len(slates))])


def reference_output(model, batch, objective: Objective):
    """The float64 objective on the model's own logits."""
    logits = model(input_ids=batch["input_ids"], attention_mask=(batch["tree"] >= 0).long()).logits
    return reference.pope_loss(
        logits,
        batch["input_ids"].where(batch["branch"] > 0, -100),
        batch["log"].logging_logprobs,
        batch["log"].utility,
        batch["log"].slate_offsets,
        objective=objective,
    )


# --- the model as the objective sees it -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_hidden_states_and_head_give_the_logits_of_every_architecture(
    make, tiny_tokenizer, make_slates, tmp_path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    args = config(tmp_path)
    batch = batch_of(make_slates(3), tiny_tokenizer, args)
    assert response_hidden_states(model, batch).hidden.shape[0] == batch["labels"].numel()  # no prompt, no padding
    ours = response_logprobs(model, batch)
    torch.testing.assert_close(
        ours.double(), reference_output(model, batch, args.objective).response_logprobs, rtol=1e-5, atol=1e-5
    )


def test_a_model_that_treats_its_logits_in_an_unknown_way_is_refused(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
):
    class Doubled(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = 2 * output.logits
            return output

    model = make_tiny_model()
    check_head(model, TREE)
    model.__class__ = Doubled
    with pytest.raises(ValueError, match="in a way that is not supported"):
        check_head(model, TREE)


def test_a_model_trained_in_mixed_precision_is_scored_in_its_own(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    """accelerate leaves its autocast around ``forward``; what the head computes is judged without it."""
    from pope_align.propensity.logging_policy import score_slates

    slates = make_slates(2)
    trainer, _ = trained(make_tiny_model(), slates, tiny_tokenizer, config(tmp_path, bf16=True))
    fresh = make_tiny_model()
    fresh.load_state_dict(trainer.model.state_dict())
    ours, expected = (
        score_slates(slates, model, tiny_tokenizer, how="proxy", max_length=64, overwrite=True)
        for model in (trainer.model, fresh)
    )
    assert [slate.logging_logprobs for slate in ours] == [slate.logging_logprobs for slate in expected]


def test_an_adapted_head_is_refused_and_an_adapted_body_is_used(make_tiny_model, tiny_tokenizer, make_slates, tmp_path):
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match=r"plain torch\.nn\.Linear.*target_modules"):
        lm_head(
            peft.get_peft_model(make_tiny_model(tie_word_embeddings=False), peft.LoraConfig(target_modules=["lm_head"]))
        )
    model = peft.get_peft_model(
        make_tiny_model(), peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    batch = batch_of(make_slates(2), tiny_tokenizer, config(tmp_path))
    check_head(model, TREE)
    with model.disable_adapter():
        plain = response_hidden_states(model, batch).hidden
    adapted = response_hidden_states(model, batch).hidden
    assert not torch.allclose(plain, adapted, atol=1e-3)


def test_models_load_from_a_folder_and_bad_places_are_named(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    assert load_model(tmp_path / "model").dtype == torch.float32
    assert load_tokenizer(tmp_path / "model").chat_template == tiny_tokenizer.chat_template
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="found 0 GGUF files"):
        load_model(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="found none at"):
        load_model(tmp_path / "none.gguf")


# --- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length_normalize", [True, False])
def test_a_step_has_the_loss_and_gradient_of_the_reference(
    length_normalize, make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    args = config(tmp_path, length_normalize=length_normalize, diversity_weight=0.3, clip=2.0)
    slates = make_slates(4)
    trainer = PopeTrainer(make_tiny_model(), args, train_dataset=slates, processing_class=tiny_tokenizer)
    batch = batch_of(slates, tiny_tokenizer, args)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=4)
    loss.backward()
    twin = make_tiny_model()
    expected = reference_output(twin, batch, args.objective)
    expected.loss.backward()
    torch.testing.assert_close(loss.double(), expected.loss, rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(trainer.model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def trained(model, slates, tokenizer, args: PopeConfig, **options) -> tuple[PopeTrainer, torch.Tensor]:
    trainer = PopeTrainer(model, args, train_dataset=slates, processing_class=tokenizer, **options)
    trainer.train()
    return trainer, torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters() if p.requires_grad])


def test_micro_batches_add_up_to_the_batch(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """1 x 4 == 4 x 1 == 2 x 2: the same weights after 3 steps over ragged slates, and the same logged metrics.

    SGD, because Adam's first steps are the sign of the gradient and would hide a wrong scale.
    """
    results = {}
    for size in (1, 2, 4):
        args = config(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            max_steps=3,
            num_train_epochs=2,
        )
        results[size] = trained(make_tiny_model(), make_slates(10), tiny_tokenizer, args)
    (trainer, weights), start = (
        results[4],
        PopeTrainer(make_tiny_model(), config(tmp_path), train_dataset=make_slates(1), processing_class=tiny_tokenizer),
    )
    assert not torch.allclose(weights, torch.cat([p.reshape(-1) for p in start.model.parameters()]), atol=1e-3)
    for size in (1, 2):
        other, other_weights = results[size]
        torch.testing.assert_close(other_weights, weights, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(other.state.log_history, trainer.state.log_history, strict=True):
            for name in ("loss", "pope/value", "is/ess", "is/clip_fraction", "is/log_weight_p95", "slate/k_mean"):
                if name in ours:
                    assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name


def test_the_last_step_of_an_epoch_takes_the_mean_of_the_slates_it_has(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    args = config(tmp_path, gradient_accumulation_steps=4, max_steps=-1, num_train_epochs=1)
    trainer, _ = trained(make_tiny_model(), make_slates(6), tiny_tokenizer, args)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [round(-entry["pope/value"], 5) for entry in logs] == [round(entry["loss"], 5) for entry in logs]


@pytest.mark.parametrize(
    "options",
    [{"gradient_checkpointing": True}, {"bf16": True}, {"optim": "adamw_torch"}],
    ids=["gradient checkpointing", "bf16 autocast", "plain"],
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_training_raises_the_value(options, lora, make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    args = config(tmp_path, per_device_train_batch_size=4, learning_rate=3e-3, max_steps=15, **options)
    adapter = peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"]) if lora else None
    slates = make_slates(8)
    trainer, _ = trained(make_tiny_model(), slates, tiny_tokenizer, args, eval_dataset=slates, peft_config=adapter)
    values = [entry["pope/value"] for entry in trainer.state.log_history if "loss" in entry]
    assert values[-1] > 1.2 * values[0]
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(-metrics["eval_pope/value"])
    assert {name.removeprefix("eval_") for name in metrics} >= {
        "pope/value_self_normalized",
        "is/ess_fraction",
        "is/log_weight_p05",
        "logps/policy",
        "slate/k_mean",
    }
    assert all(math.isfinite(value) for value in metrics.values())


def test_checkpointing_and_accumulation_leave_the_gradient_alone(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
):
    plain, checkpointed = (
        trained(
            make_tiny_model(), make_slates(4), tiny_tokenizer, config(tmp_path, optim="sgd", gradient_checkpointing=on)
        )[1]
        for on in (False, True)
    )
    torch.testing.assert_close(plain, checkpointed)


def test_torch_compile_compiles_the_layers_that_the_loss_runs(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    compiled = torch._dynamo.utils.counters["stats"]
    compiled.clear()
    slates, gradients = make_slates(2, sizes=(2, 3)), []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        args = config(tmp_path, max_steps=1, **options)
        gradients.append(trained(make_tiny_model(), slates, tiny_tokenizer, args)[1])
        assert (compiled["calls_captured"] > 100) == bool(options)  # two layers of it; the rest is a few calls
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_the_direction_of_the_gradient(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """With utility alone, the better of two responses gains on the worse one."""
    slates = [replace(slate, scores=[1.0, 0.0]) for slate in make_slates(4, sizes=(2,))]
    args = config(tmp_path, per_device_train_batch_size=4, learning_rate=3e-3, max_steps=10, diversity_weight=0.0)
    batch = batch_of(slates, tiny_tokenizer, args)
    before = reference_output(make_tiny_model(), batch, args.objective).response_logprobs.reshape(-1, 2)
    trainer, _ = trained(make_tiny_model(), slates, tiny_tokenizer, args)
    after = reference_output(trainer.model.eval(), batch, args.objective).response_logprobs.reshape(-1, 2)
    assert ((after - before)[:, 0] > (after - before)[:, 1]).all()


def test_evaluation_does_not_depend_on_its_batches(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    slates = make_slates(5)
    one, all_ = (
        PopeTrainer(
            make_tiny_model(),
            config(tmp_path, per_device_eval_batch_size=size),
            train_dataset=slates,
            eval_dataset=slates,
            processing_class=tiny_tokenizer,
        ).evaluate()
        for size in (1, 5)
    )
    timed = ("second", "time")
    names = [name for name in one if not any(word in name for word in timed)]
    assert {name: one[name] for name in names} == pytest.approx({name: all_[name] for name in names}, rel=1e-4)


def test_logged_metrics_are_those_of_the_reference(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    slates = make_slates(5)
    args = config(tmp_path, clip=1.5)
    metrics = PopeTrainer(
        make_tiny_model(), args, train_dataset=slates, eval_dataset=slates, processing_class=tiny_tokenizer
    ).evaluate()
    batch = batch_of(slates, tiny_tokenizer, args)
    raw = reference_output(make_tiny_model(), batch, args.objective)
    normalised = reference_output(make_tiny_model(), batch, replace(args.objective, normalization="batch"))
    tokens = batch["response_offsets"].diff()
    expected = {
        "pope/value": raw.value,
        "pope/utility": raw.utility_value,
        "pope/diversity": raw.diversity_value,
        "is/ess": raw.effective_sample_size,
        "is/ess_fraction": raw.effective_sample_size / raw.log_weights.numel(),
        "is/clip_fraction": raw.clip_fraction,
        "is/log_weight_p50": raw.log_weights.quantile(0.5),
        "logps/policy": (raw.response_logprobs / tokens).mean(),
        "logps/logging": (batch["log"].logging_logprobs / tokens).mean(),
        "slate/k_mean": raw.log_weights.numel() / 5,
        "pope/value_self_normalized": normalised.value,
    }
    for name, value in expected.items():
        assert metrics[f"eval_{name}"] == pytest.approx(float(value), rel=1e-4), name


def test_dropout_is_off(make_tiny_model, make_slates, tiny_tokenizer, tmp_path) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=4))
    llama = make_tiny_model(attention_dropout=0.5)
    for model in (gpt2, llama):
        disable_dropout(model)
        ids = torch.arange(8)[None]
        model.train()
        assert torch.equal(model(ids).logits, model(ids).logits)
    kept = PopeTrainer(
        make_tiny_model(attention_dropout=0.5),
        config(tmp_path, disable_dropout=False),
        train_dataset=make_slates(1),
        processing_class=tiny_tokenizer,
    )
    assert kept.model.model.layers[0].self_attn.attention_dropout == 0.5


# --- what is refused ------------------------------------------------------------------------------------------------


def test_unscored_slates_are_refused_before_a_model_is_loaded(make_slates, tmp_path) -> None:
    with pytest.raises(
        ValueError, match=r"train_dataset: slate 1 \(colour/0#slate00\): logging_logprobs: .*pope score"
    ):
        PopeTrainer("no/such-model", config(tmp_path), train_dataset=make_slates(2, scored=False))


def test_log_probabilities_of_other_tokens_are_refused(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    from pope_align.propensity.logging_policy import score_slates

    scored = score_slates(make_slates(2, scored=False), make_tiny_model(), tiny_tokenizer, how="proxy", max_length=12)
    with pytest.raises(ValueError, match=r"train_dataset: slate 1 .*max_length"):
        PopeTrainer(make_tiny_model(), config(tmp_path), train_dataset=scored, processing_class=tiny_tokenizer)


def test_slates_come_as_rows_files_and_datasets(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    from pope_align.data import read_slates, write_slates

    datasets = pytest.importorskip("datasets")
    slates = make_slates(3)
    write_slates(slates, tmp_path / "slates.jsonl")
    log = read_slates(tmp_path / "slates.jsonl")
    rows = [
        {"prompt": s.prompt, "completions": s.completions, "scores": s.scores, "logging_logprobs": s.logging_logprobs}
        for s in slates
    ]
    sources = [slates, log, tmp_path / "slates.jsonl", rows, datasets.Dataset.from_list(rows)]
    trainers = [
        PopeTrainer(make_tiny_model(), config(tmp_path), train_dataset=source, processing_class=tiny_tokenizer)
        for source in sources
    ]
    assert all(trainer.train_dataset.examples == trainers[0].train_dataset.examples for trainer in trainers)


def objectives():
    names = ("normalization", "weighting", "utility_form", "diversity_form", "diversity_weight")
    options = (
        *(CHOICES[name] for name in names[:4]),
        (0.0, 0.3),
    )
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*options)]


def test_what_is_refused_is_what_runs_away_and_nothing_else_in_the_table(tmp_path) -> None:
    """docs/training.md's table, spelt out independently of the code that refuses."""
    for options in objectives():
        normalized = options["normalization"] != "none"
        by_likelihood = options["utility_form"] == "log_likelihood"
        refused = (
            (normalized and options["diversity_form"] == "neg_log_prob" and options["diversity_weight"] > 0)
            or (options["normalization"] == "slate" and options["weighting"] != "response" and not by_likelihood)
            or (by_likelihood and (not normalized or options["weighting"] == "response"))
        )
        if refused:
            with pytest.raises(ValueError, match="; use "):
                config(tmp_path, **options)
        else:
            config(tmp_path, **options)


def ascend(steps: int, utility: list[float], learning_rate: float = 0.05, **options) -> torch.Tensor:
    """Free log-probabilities of one or more slates of two, driven uphill; they stay below 0."""
    raw = torch.full((len(utility),), 2.0, requires_grad=True)
    logging = -softplus(raw).detach()
    offsets = torch.arange(0, len(utility) + 1, 2)
    for _ in range(steps):
        objective = plain(clip=10.0, length_normalize=False, **options)
        output = pope_core.slate_objective(
            -softplus(raw), logging, torch.tensor(utility), offsets, backend="reference", **objective
        )
        (gradient,) = torch.autograd.grad(output.loss, raw)
        raw = (raw - learning_rate * gradient).detach().requires_grad_()
    return (-softplus(raw)).detach()


def test_why_each_is_refused() -> None:
    """The four reasons of docs/training.md, on log-probabilities that are free to move (all start at -2.13)."""
    start = -2.13
    runaway = ascend(4000, [1.0, 0.0], normalization="slate", diversity_weight=0.5)
    assert runaway.max() < start - 10  # -l without bound: everything falls
    anchored = ascend(4000, [1.0, 0.0], normalization="none", diversity_weight=0.5)
    assert anchored.min() > start - 1
    cancelled = ascend(200, [1.0, 0.0], normalization="slate", weighting="geometric", diversity_weight=0.0)
    torch.testing.assert_close(cancelled, torch.full((2,), start), rtol=0, atol=0.01)  # the feedback does nothing
    falling = ascend(50, [1.0, 0.0], utility_form="log_likelihood", diversity_weight=0.0)
    assert falling[0] < start - 0.01  # the good response is pushed down
    inverted = ascend(200, [1.0, 0.0], utility_form="log_likelihood", normalization="batch", diversity_weight=0.0)
    assert inverted[1] > inverted[0]  # the worst response wins
    likelihood = ascend(
        200,
        [1.0, 0.0],
        utility_form="log_likelihood",
        normalization="slate",
        weighting="geometric",
        diversity_weight=0.0,
    )
    assert likelihood[0] > start + 0.5  # the remedy: likelihood weighted by utility
    assert likelihood[1] == pytest.approx(start, abs=0.01)


def test_slates_of_one_with_slate_normalisation_are_refused(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    args = config(tmp_path, normalization="slate", diversity_form="entropy")
    with pytest.raises(ValueError, match="whose weight cancels"):
        PopeTrainer(make_tiny_model(), args, train_dataset=make_slates(2, sizes=(1,)), processing_class=tiny_tokenizer)


def test_options_that_do_not_exist_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match="weighting: expected one of"):
        config(tmp_path, weighting="token")
    with pytest.raises(ValueError, match="remove_unused_columns"):
        config(tmp_path, remove_unused_columns=True)
