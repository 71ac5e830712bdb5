"""Prompts are shared where that changes nothing: every family of models gives its own numbers, shared or not."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers as hf
from pope_align.data import Slate, Tree
from pope_align.data.tokenize import EncodedSlate
from pope_align.models.attention import why_not
from pope_align.models.sharing import probes, sharing_obstacle
from pope_align.propensity.scoring import score_responses
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12, **SMALL}
GPT = {"vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 4}
#: The windows are longer than the first slate and shorter than the second's sequences or its row.
SHARED = {
    "mistral": lambda: hf.MistralConfig(sliding_window=12, **SMALL),
    "gemma2": lambda: hf.Gemma2Config(head_dim=8, **MIXED),
    "gemma3": lambda: hf.Gemma3TextConfig(head_dim=8, **MIXED),
    "cohere2": lambda: hf.Cohere2Config(**MIXED),
    "olmo3": lambda: hf.Olmo3Config(**MIXED),
    "gpt-oss": lambda: hf.GptOssConfig(head_dim=8, num_local_experts=4, num_experts_per_tok=2, **MIXED),
    "opt": lambda: hf.OPTConfig(
        vocab_size=257, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32
    ),
}
#: And what a warning says of those that cannot.
APART = {
    "gpt-neo": (
        lambda: hf.GPTNeoConfig(
            vocab_size=257,
            hidden_size=32,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=4,
            intermediate_size=64,
            window_size=20,
        ),
        "along the row",
    ),
    "openai-gpt": (lambda: hf.OpenAIGPTConfig(**GPT), "takes no mask of its own (RuntimeError"),
    "xlnet": (
        lambda: hf.XLNetConfig(vocab_size=257, d_model=32, n_layer=2, n_head=4, d_inner=48),
        "takes no mask of its own (RuntimeError",
    ),
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=257, hidden_size=32, n_layer=2, n_head=4),
        "takes no mask of its own (ValueError",
    ),
    "mpt": (
        lambda: hf.MptConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2),
        "log-probabilities with a shared prompt are others",
    ),
    "mamba": (lambda: hf.MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1, state_size=4), "carry"),
    "jamba": (
        lambda: hf.JambaConfig(
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=2,
            use_mamba_kernels=False,
            mamba_d_state=4,
            **SMALL,
        ),
        "carry a state",
    ),
    "falcon-h1": (
        lambda: hf.FalconH1Config(
            head_dim=8, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, **SMALL
        ),
        "carry a state",
    ),
}


def ids(length: int) -> list[int]:
    return torch.randint(1, 257, (length,), generator=torch.Generator().manual_seed(length)).tolist()


SLATES = [EncodedSlate(ids(4), [ids(2), ids(3)]), EncodedSlate(ids(8), [ids(9), ids(10), ids(11)])]


def make(config):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.copy_(0.25 * torch.randn_like(parameter))
    return model


def plain_totals(model, slate: EncodedSlate) -> list[float]:
    totals = []
    for response in slate.completion_ids:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([slate.prompt_ids + response]), use_cache=False).logits[0]
        logprobs = logits.double().log_softmax(-1)[len(slate.prompt_ids) - 1 : -1]
        totals.append(float(logprobs.gather(1, torch.tensor(response)[:, None]).sum()))
    return totals


@pytest.mark.parametrize("name", [*SHARED, *APART])
def test_every_family_is_scored_as_it_computes_alone(name, caplog) -> None:
    config, reason = (SHARED[name], "") if name in SHARED else APART[name]
    model = make(config())
    with caplog.at_level(logging.WARNING):
        totals = score_responses(SLATES, model)
    for got, slate in zip(totals, SLATES, strict=True):
        assert got == pytest.approx(plain_totals(model, slate), abs=2e-3)
    if reason:
        assert "every response computes its prompt again" in caplog.text
        assert reason in caplog.text
    else:
        assert "computes its prompt again" not in caplog.text


@pytest.mark.parametrize("max_tokens_per_row", [None, 60])
def test_what_a_model_does_with_places_in_a_row_is_seen_whatever_its_configuration_says(
    max_tokens_per_row, monkeypatch
) -> None:
    """GPT-Neo's window, were it not known by name: no pair of responses exceeds it, but a row of the run does."""
    for module in ("sharing", "causal_lm"):
        monkeypatch.setattr(f"pope_align.models.{module}.why_not", lambda config: None)
    model = make(APART["gpt-neo"][0]())
    small = Tree(SLATES[0].prompt_ids, SLATES[0].completion_ids)
    assert sharing_obstacle(model, [small]) is None
    rows = [small] * 20 if max_tokens_per_row else [small, Tree(SLATES[1].prompt_ids, SLATES[1].completion_ids)]
    reason = sharing_obstacle(model, rows, max_tokens_per_row=max_tokens_per_row)
    assert reason is not None
    assert "are others" in reason


@pytest.mark.parametrize(("prompt", "responses"), [(60, (80, 90, 100)), (400, (5, 6)), (1, (1, 1)), (30, (2,) * 40)])
def test_probes_reach_as_far_as_the_run_and_no_further(prompt, responses) -> None:
    tree = Tree(ids(prompt), [ids(length) for length in responses])
    sample, row = probes([tree, Tree([1], [[2]])], None)
    assert len(sample.prompt_ids) + max(map(len, sample.response_ids)) == prompt + max(responses)
    assert len(row) <= max(len(tree), 3)
    assert len(row) > 0.6 * len(tree)
    assert len(row.response_ids) >= 2


def test_a_model_that_takes_no_mask_is_trained_without_sharing_unless_it_was_asked_for(
    tiny_tokenizer, tmp_path, caplog
) -> None:
    def train(sharing: str, model_seed: int = 0) -> float:
        torch.manual_seed(model_seed)
        options = {"report_to": "none", "use_cpu": True, "max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        args = PopeConfig(str(tmp_path), prompt_sharing=sharing, max_length=64, **options)
        slates = [Slate("tea?", ["green", "black"], [1.0, 0.0], logging_logprobs=[-30.0, -40.0])] * 2
        model = hf.AutoModelForCausalLM.from_config(hf.OpenAIGPTConfig(**GPT))
        trainer = PopeTrainer(model, args, train_dataset=slates, processing_class=tiny_tokenizer)
        return float(trainer.train().training_loss)

    with pytest.raises(ValueError, match=r"prompt_sharing: model: OpenAIGPT.* it takes no mask of its own"):
        train("on")
    with caplog.at_level(logging.WARNING):
        fallen_back = train("auto")
    assert "prompt_sharing: off, every response computes its prompt again" in caplog.text
    assert fallen_back == train("off")


def test_a_plan_knows_local_layers_from_the_configuration() -> None:
    def reason(kind: str) -> str | None:
        config = hf.GPTNeoConfig(num_layers=2, attention_types=[[[kind], 2]], attn_implementation="eager")
        return why_not(config)

    assert "local layers" in str(reason("local"))
    assert reason("global") is None
