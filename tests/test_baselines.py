"""SFT and DPO through TRL: the pairs of a log, the very tokens of POPE, and losses equal to their formulas."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pope_align import cli
from pope_align.cli.train import parse
from pope_align.data import encode_slates, write_slates
from pope_align.training.baselines import dpo_rows, make_baseline, sft_rows
from pope_align.training.config import PopeConfig
from pope_align.training.run import run_baseline

trl = pytest.importorskip("trl")

OPTIONS = {
    "max_length": 64,
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def log(make_slates, tiny_tokenizer):
    slates = make_slates(4, sizes=(3,), scored=False)
    scores = [[1.0, 3.0, 2.0], [5.0, 5.0, 1.0], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0]]
    slates = [replace(slate, scores=of_slate) for slate, of_slate in zip(slates, scores, strict=True)]
    return slates, encode_slates(slates, tiny_tokenizer, max_length=64)[0]


def test_sft_takes_the_best_response_of_every_slate(log) -> None:
    slates, encoded = log
    rows = sft_rows(slates, encoded)
    for row, ids, best in zip(rows, encoded, [1, 0, 0, 0], strict=True):
        assert row["input_ids"] == ids.prompt_ids + ids.completion_ids[best]
        assert row["labels"] == [-100] * len(ids.prompt_ids) + ids.completion_ids[best]


def test_dpo_takes_best_against_worst_or_all_pairs(log) -> None:
    slates, encoded = log
    best_worst = [(0, 1, 0), (1, 0, 2), (3, 0, 1)]  # nothing of the slate of equals
    everything = [(0, 1, 0), (0, 1, 2), (0, 2, 0), (1, 0, 2), (1, 1, 2), (3, 0, 1), (3, 0, 2)]
    for pairs, expected in (("best-worst", best_worst), ("all", everything)):
        rows = dpo_rows(slates, encoded, pairs)
        assert rows == [
            {
                "prompt_ids": encoded[slate].prompt_ids,
                "chosen_ids": encoded[slate].completion_ids[chosen],
                "rejected_ids": encoded[slate].completion_ids[rejected],
            }
            for slate, chosen, rejected in expected
        ]
    with pytest.raises(ValueError, match="no pairs"):
        dpo_rows(slates[2:3], encoded[2:3])


def response_logprob(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Total, from the model's logits."""
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).sum()


def first_loss(method: str, log, tokenizer, model, path: Path, **options) -> float:
    config = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig}[method]
    trainer = make_baseline(
        method, model, config(str(path), **{**OPTIONS, **options}), log[0], processing_class=tokenizer
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def test_the_loss_of_sft_is_that_of_the_best_responses(log, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    model = make_tiny_model()
    _, encoded = log
    best = [ids.completion_ids[at] for ids, at in zip(encoded, [1, 0, 0, 0], strict=True)]
    with torch.no_grad():
        nats = -sum(response_logprob(model, ids.prompt_ids, ids_of) for ids, ids_of in zip(encoded, best, strict=True))
    expected = float(nats) / sum(map(len, best))
    assert first_loss("sft", log, tiny_tokenizer, model, tmp_path) == pytest.approx(expected, rel=1e-4)


def test_the_loss_of_dpo_is_its_formula(log, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    """After a step, when policy and reference differ."""
    model = make_tiny_model()
    reference = copy.deepcopy(model)
    slates, encoded = log
    args = trl.DPOConfig(
        str(tmp_path), **{**OPTIONS, "beta": 0.5, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    )
    trainer = make_baseline("dpo", model, args, slates, processing_class=tiny_tokenizer)
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    with torch.no_grad():
        ours = float(trainer.compute_loss(trainer.model.eval(), batch))
        losses = []
        for row in dpo_rows(slates, encoded):
            margin = sum(
                sign
                * (
                    response_logprob(model, row["prompt_ids"], ids)
                    - response_logprob(reference, row["prompt_ids"], ids)
                )
                for sign, ids in ((1, row["chosen_ids"]), (-1, row["rejected_ids"]))
            )
            losses.append(float(-torch.nn.functional.logsigmoid(0.5 * margin)))
    assert ours == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert abs(ours - math.log(2)) > 1e-3


def test_a_baseline_leaves_a_model_and_its_metrics(log, make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    args = trl.DPOConfig(str(tmp_path / "dpo"), **{**OPTIONS, "beta": 0.5})
    adapter = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    options = {"pairs": "all", "processing_class": tiny_tokenizer, "peft_config": adapter}
    run_baseline("dpo", make_tiny_model(), args, log[0], **options)
    metrics = json.loads((tmp_path / "dpo" / "metrics.json").read_text())
    assert metrics["method"] == "dpo"
    assert metrics["history"][0]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert (tmp_path / "dpo" / "adapter_model.safetensors").exists()
    card = (tmp_path / "dpo" / "README.md").read_text()  # the same card and curves as those of POPE
    assert "direct preference optimisation on pairs of responses (DPO)" in card
    assert "## Held-out estimate" in card
    assert (tmp_path / "dpo" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_methods_share_the_defaults_of_training(tmp_path, caplog) -> None:
    """One file, three methods: what they have in common is equal unless it is changed."""
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ntrain_data: t\nuse_cpu: true\nseed: 7\n")
    _, pope = parse(["--config", str(path)])
    assert isinstance(pope, PopeConfig)
    for method, kind in (("sft", trl.SFTConfig), ("dpo", trl.DPOConfig)):
        run, args = parse(["--config", str(path), "--method", method])
        assert run.method == method
        assert isinstance(args, kind)
        for name in ("learning_rate", "gradient_accumulation_steps", "max_length", "bf16", "seed", "logging_steps"):
            assert getattr(args, name) == getattr(pope, name), name
    _, args = parse(["--config", str(path), "--method", "dpo", "--beta", "0.3", "--learning_rate", "1e-6"])
    assert (args.beta, args.learning_rate) == (0.3, 1e-6)
    path.write_text("model: m\ntrain_data: t\nuse_cpu: true\nlog_slates: 8\nclip: 2.0\n")  # of pope alone
    assert parse(["--config", str(path)])[1].log_slates == 8
    run, args = parse(["--config", str(path), "--method", "sft"])
    assert not hasattr(args, "clip")
    assert "not for method sft, left out: clip, log_slates" in caplog.text
    path.write_text("model: m\ntrain_data: t\nmethod: ppo\n")
    with pytest.raises(ValueError, match="method: expected one of pope, sft, dpo, lipo"):
        parse(["--config", str(path)])


def test_the_command_trains_dpo_on_all_pairs(make_tiny_model, tiny_tokenizer, log, tmp_path, monkeypatch) -> None:
    """From the file to the model; the number of pairs per epoch shows that all were used."""
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_slates(log[0], tmp_path / "log.jsonl")
    epochs = {}
    for pairs in ("best-worst", "all"):
        options = ["--max-length", "64", "--per-device-train-batch-size", "1", "--gradient-accumulation-steps", "1"]
        command = ["train", tmp_path / "log.jsonl", "--model", tmp_path / "model", "-o", tmp_path / pairs]
        command += ["--method", "dpo", "--pairs", pairs, "--num-train-epochs", "1", "--use-cpu", "--report-to", "none"]
        monkeypatch.setattr("sys.argv", ["pope", *map(str, command), *options])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code
        history = json.loads((tmp_path / pairs / "metrics.json").read_text())["history"]
        epochs[pairs] = max(entry["step"] for entry in history)
        assert f"| pairs | {pairs} |" in (tmp_path / pairs / "README.md").read_text()
    assert epochs == {"best-worst": 3, "all": 7}
