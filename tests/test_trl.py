"""TRL's trainers with our log-probabilities and loss: the numbers of TRL's own, with the real package."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer

from pope_core import Objective

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
from pope_align.integrations.trl import use_linear_logprobs, use_pope_loss  # noqa: E402

CPU = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
}
#: GRPO's loss with one ratio per sequence and nothing clipped.
SEQUENCE_GRPO = {"importance_sampling_level": "sequence", "loss_type": "grpo", "epsilon": 1e3, "epsilon_high": 1e3}


@pytest.fixture(autouse=True)
def _no_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL reports every trainer over the network, except in continuous integration."""
    monkeypatch.setenv("CI", "1")


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


PAIRS = [
    {"prompt": turn("user", prompt), "chosen": turn("assistant", good), "rejected": turn("assistant", bad)}
    for prompt, good, bad in (
        ("Which colour?", "Red, I would say.", "No."),
        ("And then?", "Blue.", "It depends on what you like best."),
        ("Why?", "Because", "Green and grey, perhaps."),
    )
]


def dpo(model: Any, tokenizer: Any, path: Path, **options: Any) -> Any:
    args = trl.DPOConfig(str(path), max_length=96, gradient_checkpointing=False, **{**CPU, **options})
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():  # so that the loss is not log 2
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return trl.DPOTrainer(
        model, reference, args, train_dataset=datasets.Dataset.from_list(PAIRS), processing_class=copy.copy(tokenizer)
    )


def step(trainer: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor], dict[str, list[float]]]:
    """The loss, the gradients and what is logged of one batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    logged = {name: list(values) for name, values in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    return float(loss.detach()), [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None], logged


def close(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert len(ours[1]) == len(theirs[1]) > 0
    for mine, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_dpo_has_the_loss_gradients_and_metrics_of_trl(loss_type, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    trainer = dpo(make_tiny_model(), tiny_tokenizer, tmp_path, loss_type=loss_type, use_weighting=True)
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    theirs = step(trainer, batch)
    use_linear_logprobs(trainer)
    ours = step(trainer, batch)
    close(ours, theirs)
    assert set(ours[2]) == set(theirs[2]) >= {"entropy", "logits/chosen", "mean_token_accuracy", "rewards/margins"}
    for name, values in theirs[2].items():
        if name != "num_tokens":  # of all steps so far
            assert ours[2][name] == pytest.approx(values, rel=1e-4, abs=1e-5), name


def test_slates_of_preferences_have_the_tokens_of_trl(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    theirs = dpo(make_tiny_model(), tiny_tokenizer, tmp_path).train_dataset
    args = PopeConfig(str(tmp_path), max_length=96, **CPU)
    ours = PopeTrainer(make_tiny_model(), args, train_dataset=PAIRS, processing_class=tiny_tokenizer).train_dataset
    assert len(ours) == len(theirs) == 3
    for example, row in zip(ours.examples, theirs, strict=True):
        assert example["prompt_ids"] == row["prompt_ids"]
        assert example["completion_ids"] == [row["chosen_ids"], row["rejected_ids"]]
        assert example["utility"] == [1.0, 0.0]


def test_the_logits_of_prompts_and_padding_are_not_computed(make_tiny_model, tiny_tokenizer, tmp_path, monkeypatch):
    import pope_core

    trainer = dpo(make_tiny_model(), tiny_tokenizer, tmp_path)
    use_linear_logprobs(trainer)
    seen, real = [], pope_core.linear_response_logprobs
    monkeypatch.setattr(
        pope_core,
        "linear_response_logprobs",
        lambda states, weight, labels, **options: seen.append(len(states)) or real(states, weight, labels, **options),
    )
    batch = trainer.data_collator([trainer.train_dataset[0]])
    step(trainer, batch)
    assert seen == [int(batch["completion_mask"].sum())] * 2  # policy and reference


def test_an_adapter_is_trained_with_the_base_as_reference(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    args = trl.DPOConfig(str(tmp_path), max_length=96, max_steps=2, gradient_checkpointing=True, **CPU)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])

    def trained(ours: bool) -> list[float]:
        trainer = trl.DPOTrainer(
            make_tiny_model(),
            args=copy.deepcopy(args),
            train_dataset=datasets.Dataset.from_list(PAIRS),
            processing_class=copy.copy(tiny_tokenizer),
            peft_config=adapter,
        )
        if ours:
            use_linear_logprobs(trainer)
        trainer.train()
        return [float(p.detach().sum()) for p in trainer.model.parameters() if p.requires_grad]

    assert trained(True) == pytest.approx(trained(False), rel=1e-3, abs=1e-5)


def grpo(model: Any, tokenizer: Any, path: Path, **options: Any) -> Any:
    defaults = {"num_generations": 3, "per_device_train_batch_size": 6, "steps_per_generation": 1, "max_steps": 2}
    args = trl.GRPOConfig(
        str(path),
        max_completion_length=6,
        gradient_checkpointing=False,
        **{**CPU, **defaults, **options},
    )
    rows = datasets.Dataset.from_list([{"prompt": row["prompt"]} for row in PAIRS])
    return trl.GRPOTrainer(
        model,
        reward_funcs=lambda completions, **rest: [float(len(text[0]["content"])) for text in completions],
        args=args,
        train_dataset=rows,
        processing_class=copy.copy(tokenizer),
    )


def sampled(groups: int = 2, k: int = 3, width: int = 5) -> dict[str, torch.Tensor]:
    """A micro-batch as GRPOTrainer makes it: groups shuffled, prompts padded on the left."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, 200, (groups, 4), generator=generator).repeat_interleave(k, 0)
    mask = (torch.arange(width) < torch.randint(1, width + 1, (groups * k, 1), generator=generator)).long()
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.randint(3, 200, (groups * k, width), generator=generator),
        "completion_mask": mask,
        "advantages": torch.randn(groups * k, generator=generator),
        "old_per_token_logps": -5.0 - 0.3 * torch.rand(groups * k, width, generator=generator),
        "num_items_in_batch": mask.sum(),
    }
    shuffled = torch.randperm(groups * k, generator=generator)
    return {name: value[shuffled] if value.dim() else value for name, value in batch.items()}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("on_policy", [True, False])
def test_the_pope_loss_of_a_group_is_that_of_grpo_where_they_say_the_same(
    temperature, on_policy, make_tiny_model, tiny_tokenizer, tmp_path
) -> None:
    trainer = grpo(make_tiny_model(), tiny_tokenizer, tmp_path, temperature=temperature, **SEQUENCE_GRPO)
    trainer.current_gradient_accumulation_steps = 4
    batch = sampled()
    if on_policy:
        del batch["old_per_token_logps"]
    theirs = step(trainer, batch)
    use_linear_logprobs(trainer)
    close(step(trainer, batch), theirs)
    use_pope_loss(trainer, Objective(normalization="none", diversity_weight=0.0, clip=None))
    ours = step(trainer, batch)
    close(ours, theirs)
    assert ours[2]["pope/value"] == pytest.approx([-4 * theirs[0]], rel=1e-4)
    assert ours[2]["entropy"] == pytest.approx(theirs[2]["entropy"], rel=1e-4)


def test_the_default_objective_is_that_of_the_slates_of_the_groups(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    """Against the reference objective on TRL's own log-probabilities, a prompt at a time."""
    from pope_core import reference

    trainer = grpo(make_tiny_model(), tiny_tokenizer, tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    batch = sampled()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    per_token, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attention, 5)
    mask = batch["completion_mask"]
    values = []
    for prompt in batch["prompt_ids"].unique(dim=0):
        own = (batch["prompt_ids"] == prompt).all(1)
        values.append(
            reference.slate_objective(
                (per_token * mask).sum(1)[own],
                (batch["old_per_token_logps"] * mask).sum(1)[own],
                batch["advantages"][own],
                torch.tensor([0, int(own.sum())]),
                tokens=mask.sum(1)[own],
                objective=Objective(),
            ).value
        )
    use_pope_loss(trainer)
    loss, _, _ = step(trainer, batch)
    assert loss == pytest.approx(-float(torch.stack(values).mean()), rel=1e-4)


def test_grpo_samples_and_trains_with_the_pope_loss(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    trainer = grpo(make_tiny_model(max_position_embeddings=512), tiny_tokenizer, tmp_path, learning_rate=1e-2)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    use_pope_loss(trainer)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "pope/value" in entry]
    assert len(logged) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"beta": 0.1}, "without beta"),
        ({"steps_per_generation": 2}, "steps_per_generation=1 and a per_device_train_batch_size of whole groups"),
        ({"per_device_train_batch_size": 3, "num_generations": 3, "top_entropy_quantile": 0.5}, "top_entropy_quantile"),
    ],
)
def test_options_without_effect_are_refused(options, error, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    model = make_tiny_model()
    model.save_pretrained(tmp_path / "model")
    model.config._name_or_path = str(tmp_path / "model")  # from which TRL reads the reference
    with pytest.raises(ValueError, match=error):
        use_pope_loss(grpo(model, tiny_tokenizer, tmp_path, **options))


def test_other_trainers_and_objectives_are_refused(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    with pytest.raises(TypeError, match="DPOTrainer or GRPOTrainer, got SimpleNamespace"):
        use_linear_logprobs(SimpleNamespace())
    trainer = dpo(make_tiny_model(), tiny_tokenizer, tmp_path)
    with pytest.raises(TypeError, match="GRPOTrainer, got DPOTrainer"):
        use_pope_loss(trainer)
