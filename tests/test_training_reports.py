"""What a run tells before, meanwhile and after: the plan, the table of slates, the card with its verdict."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from pope_align._text import in_markdown, printable
from pope_align.cli.train import parse
from pope_align.models.causal_lm import lm_head, response_logprobs
from pope_align.models.loading import load_model
from pope_align.ope import evaluate_policies
from pope_align.propensity.scores import score_model
from pope_align.training.card import RunFacts, model_card
from pope_align.training.config import PopeConfig
from pope_align.training.curves import plot_training
from pope_align.training.examples import slate_dataset
from pope_align.training.objective_file import read_training_objective
from pope_align.training.plan import activation_bytes, plan_training
from pope_align.training.run import run_training
from pope_align.training.trainer import PopeTrainer
from transformers import Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from pope_core import Objective
from pope_core.devices import DEVICES

EXAMPLES = Path(__file__).parents[1] / "examples"


def config(path: Path, **options) -> PopeConfig:
    defaults = {"gradient_accumulation_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    defaults |= {"normalization": "none", "diversity_form": "neg_log_prob", "clip": 10.0}
    return PopeConfig(str(path), **{**defaults, "save_strategy": "no", "max_length": 64, **options})


# --- before ---------------------------------------------------------------------------------------------------------


def test_the_plan_is_what_training_then_does(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    slates = make_slates(7)
    args = config(tmp_path / "out", num_train_epochs=2, per_device_train_batch_size=2, logging_steps=1)
    for sharing in ("auto", "off"):
        args.prompt_sharing = sharing
        plan = plan_training(str(tmp_path / "model"), args, slates, slates[:2])
        trainer = PopeTrainer(str(tmp_path / "model"), args, train_dataset=slates)
        batches = list(trainer.get_train_dataloader())
        assert plan.positions == sum(int((batch["tree"] >= 0).sum()) for batch in batches)
        assert plan.longest_row == max(batch["input_ids"].shape[1] for batch in batches)
    assert plan.positions == plan.positions_unshared
    assert trainer.train().global_step == plan.steps == 4
    assert (plan.slates, plan.eval_slates, plan.slates_per_step, plan.steps_per_epoch) == (7, 2, 4, 2)
    assert plan.parameters == plan.trainable == sum(p.numel() for p in trainer.model.parameters())
    assert [size // plan.parameters for size in (plan.weights, plan.gradients, plan.optimizer)] == [4, 4, 8]
    assert "7 slates of 2.29 responses, and 2 held out" in str(plan)


@pytest.mark.parametrize("trained", [True, False])
def test_a_plan_counts_what_the_gradient_of_a_bfloat16_head_is_summed_in(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path, trained: bool
) -> None:
    peft = pytest.importorskip("peft")
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    adapter = None if trained else peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    for chunk_bytes in (None, 1000):
        args = config(tmp_path, model_dtype="bfloat16", chunk_bytes=chunk_bytes)
        plan = plan_training(str(tmp_path / "model"), args, make_slates(2), peft_config=adapter)
        head = lm_head(make_tiny_model()).weight
        assert plan.logits == (chunk_bytes or DEVICES["cpu"].chunk_bytes) + (4 * head.numel() if trained else 0)


def test_a_plan_counts_the_adapter_alone_as_trained(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    adapter = peft.LoraConfig(r=3, target_modules=["q_proj"], task_type="CAUSAL_LM")
    plan = plan_training(str(tmp_path / "model"), config(tmp_path), make_slates(2), peft_config=adapter)
    assert plan.trainable == 2 * 3 * (32 + 32)
    assert plan.gradients == 4 * plan.trainable


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "phi3"])
def test_activations_are_about_what_layers_keep(kind, checkpointed, make_tiny_model) -> None:
    """Against the storage that autograd saved, parameters left out."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 257}
    model = {
        "llama": lambda: make_tiny_model(**sizes),
        "qwen3": lambda: Qwen3ForCausalLM(
            Qwen3Config(head_dim=16, num_attention_heads=4, num_key_value_heads=2, **sizes)
        ),
        "phi3": lambda: Phi3ForCausalLM(
            Phi3Config(num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, **sizes)
        ),
    }[kind]()
    model.config._attn_implementation = "sdpa"
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(0, 257, (2, 96))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.train().base_model(ids, use_cache=False).last_hidden_state
    estimate = activation_bytes(model.config, ids.numel(), 4, checkpointed=checkpointed)
    if checkpointed:  # the layer that is recomputed is not there yet
        estimate -= activation_bytes(model.config, ids.numel(), 4) // 4
    assert hidden.requires_grad
    assert estimate == pytest.approx(sum(kept.values()), rel=0.35)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_run(path: Path) -> None:
    """Every argument of the shipped recipes exists and fits."""
    run, args = parse(["--config", str(path), "--bf16", "false", "--use_cpu"])
    assert isinstance(args, PopeConfig)
    assert run.train_data != run.eval_data
    assert yaml.safe_load(path.read_text())["output_dir"] == args.output_dir


# --- meanwhile and after --------------------------------------------------------------------------------------------


def test_a_run_leaves_a_table_of_slates_and_a_card(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    slates = [replace(slate, logging_policy={"how": "proxy"}) for slate in make_slates(8)]
    slates[0] = replace(slates[0], completions=["a | b\nc", *slates[0].completions[1:]])
    args = config(
        tmp_path / "run",
        max_steps=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        eval_on_start=True,
        log_slates=2,
    )
    start = make_tiny_model()
    trainer = run_training(make_tiny_model(), args, slates, slates, processing_class=tiny_tokenizer)
    table = (tmp_path / "run" / "slates.md").read_text()
    assert "a \\| b c" in table
    data = slate_dataset("slates", slates, tiny_tokenizer, args)
    batch = trainer.data_collator([data[0], data[1]])
    for model, column in ((start, -2), (trainer.model.eval(), -1)):
        totals = response_logprobs(model, batch).detach() - batch["log"].logging_logprobs
        weights = totals / batch["response_offsets"].diff()
        rows = [line.split(" | ")[column].strip(" |") for line in table.splitlines() if line.startswith("| ")]
        shown = [float(cell) for cell in rows if cell[0] in "+-" and cell[-1].isdigit()]
        assert shown == pytest.approx(weights.tolist(), abs=1e-3)
    card = (tmp_path / "run" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["pipeline_tag"] == "text-generation"
    assert "8 slates, 20 responses. Log-probabilities of the logging policy: those of a model that did not" in card
    estimate = trainer.held_out_estimate()
    assert f"Verdict: **{estimate.verdict}**" in card
    assert f"| value | {estimate.value:.4g} | {estimate.low:.4g} to {estimate.high:.4g} |" in card
    assert "the logging policy is a proxy" in card


def test_the_table_of_a_resumed_run_compares_with_the_start(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    def table(name: str, **options) -> str:
        args = config(
            tmp_path / name, num_train_epochs=2, eval_strategy="epoch", log_slates=2, learning_rate=0.01, **options
        )
        slates = make_slates(4)
        run_training(make_tiny_model(), args, slates, slates, processing_class=tiny_tokenizer)
        return (tmp_path / name / "slates.md").read_text()

    whole = table("whole", eval_on_start=True, save_strategy="epoch")
    resumed = table("resumed", eval_on_start=True, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed == whole


def test_a_run_without_held_out_slates_says_so(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    run_training(make_tiny_model(), config(tmp_path, max_steps=1), make_slates(2), processing_class=tiny_tokenizer)
    assert "None: the run had no held-out slates" in (tmp_path / "README.md").read_text()


def test_the_card_of_an_adapter_says_what_loads_it(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    args = config(tmp_path, max_steps=1)
    run_training(make_tiny_model(), args, make_slates(2), processing_class=tiny_tokenizer, peft_config=adapter)
    assert yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])["library_name"] == "peft"


def test_curves_have_whole_steps_and_plain_numbers(tmp_path, monkeypatch) -> None:
    figures = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: figures.append(figure))
    names = ("pope/value", "pope/utility", "pope/diversity", "logps/policy", "is/ess_fraction", "grad_norm")
    history = [{"step": step, **dict.fromkeys(names, 1e5 + 1e-3 * step)} for step in (1, 2, 3)]
    plot_training(history, tmp_path / "training.png")
    (figure,) = figures
    figure.canvas.draw()
    assert len(figure.axes) == 6
    for panel in figure.axes:
        assert all(float(tick).is_integer() for tick in panel.get_xticks())
        assert panel.yaxis.get_offset_text().get_text() == ""


def test_text_of_others_stays_text_in_a_card() -> None:
    evil = "a: {b} | <script>x</script> [click](http://x)\n---\n# title\x1b[31m"
    facts = RunFacts("pope", f"/runs/{evil}", evil, False, [], {"utility_transform": evil}, {"steps": 1})
    card = model_card(facts, {"": evil})
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["base_model"] == printable(evil)
    assert "\x1b" not in card
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[click", body)
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        f"# {in_markdown(evil.rpartition('/')[2])}"
    ]
    assert body.count(in_markdown(evil)) == 3  # the model, the table, the reason that there is no estimate
    plain = model_card(RunFacts("pope", "run", "org/model-1.5_b", False, [], {}, {}), {"": "no"})
    assert "base_model: org/model-1.5_b\n" in plain


def test_the_final_model_is_evaluated_once(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    """At the end of an epoch, or after it; again only where the best weights were loaded."""

    def evaluations(name: str, **options) -> list[int]:
        args = config(tmp_path / name, num_train_epochs=2, **options)
        trainer = run_training(make_tiny_model(), args, make_slates(4), make_slates(4), processing_class=tiny_tokenizer)
        assert trainer.held_out_estimate() is not None
        return [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]

    assert evaluations("epochs", eval_strategy="epoch") == [2, 4]
    assert evaluations("end") == [4]
    assert evaluations("steps", eval_strategy="steps", eval_steps=3) == [3, 4]
    best = {"save_strategy": "epoch", "load_best_model_at_end": True}
    assert evaluations("best", eval_strategy="epoch", **best) == [2, 4, 4]


def test_the_card_says_what_an_evaluation_of_the_saved_model_says(
    make_tiny_model, tiny_tokenizer, make_slates, tmp_path
) -> None:
    """To the digit, whatever objective and precision the model was trained with."""
    slates = make_slates(9)
    held_out = [replace(slate, logging_policy={"how": "proxy", "max_length": 64}) for slate in make_slates(8, seed=1)]
    args = config(tmp_path / "run", max_steps=2, bf16=True, utility_transform="rank", diversity_weight=0.5)
    trainer = run_training(make_tiny_model(), args, slates, held_out, processing_class=tiny_tokenizer)
    evaluation = evaluate_policies(held_out, {"trained": str(tmp_path / "run")})
    expected, ours = evaluation.of("trained"), trainer.held_out_estimate()
    assert (ours.value, ours.low, ours.high) == (expected.value, expected.low, expected.high)
    assert (ours.utility, ours.diversity) == (expected.utility, expected.diversity)
    assert ours.verdict == expected.verdict
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"| value | {expected.value:.4g} | {expected.low:.4g} to {expected.high:.4g} |" in card


def test_what_a_model_was_trained_for_stands_beside_it(make_tiny_model, tiny_tokenizer, make_slates, tmp_path) -> None:
    args = config(tmp_path, max_steps=1, diversity_weight=0.25)
    run_training(make_tiny_model(), args, make_slates(2), processing_class=tiny_tokenizer)
    written = read_training_objective(tmp_path)
    assert written["method"] == "pope"
    assert Objective.from_dict(written["objective"]) == args.objective
    scores = score_model(make_slates(2), load_model(tmp_path), tiny_tokenizer, max_length=64)
    assert scores.provenance["training"] == written
    assert read_training_objective(tmp_path / "nowhere") is None
