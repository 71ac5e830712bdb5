"""A prompt computed once for all its responses gives the hidden states, the loss and the gradient of separate rows."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from pope_align.data import SlateCollator, Tree, lay_out
from pope_align.models.causal_lm import response_hidden_states
from pope_align.models.sharing import sharing_obstacle
from pope_align.training.config import PopeConfig
from pope_align.training.examples import slate_examples
from pope_align.training.trainer import PopeTrainer
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SMALL = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
#: Windows of 6 tokens are shorter than prompt and response, so that a wrong window shows.
ARCHITECTURES = {
    "llama": lambda **o: LlamaForCausalLM(LlamaConfig(**SMALL, **o)),
    "gpt2": lambda **o: GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **o)
    ),
    "qwen3": lambda **o: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **SMALL, **o)),
    "phi3": lambda **o: Phi3ForCausalLM(Phi3Config(**SMALL, **o)),
    "phi3 with a window": lambda **o: Phi3ForCausalLM(Phi3Config(sliding_window=6, **SMALL, **o)),
    "mistral": lambda **o: MistralForCausalLM(MistralConfig(sliding_window=6, **SMALL, **o)),
    "gemma3": lambda **o: Gemma3ForCausalLM(
        Gemma3TextConfig(
            head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"], **SMALL, **o
        )
    ),
}
TREES = [
    Tree(list(range(10, 19)), [[21, 22], [31, 32, 33, 34, 35, 36, 37], [41]]),
    Tree([51, 52], [[61, 62, 63]]),
    Tree([71, 72, 73], [[81], [91, 92, 93, 94]]),
]
LAYOUTS = {"a slate a row": None, "all in one row": 1000, "some together": 16}


def make(architecture: str, implementation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return ARCHITECTURES[architecture](attn_implementation=implementation)


def states_and_gradient(model: torch.nn.Module, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states, and the gradient of all parameters for an upstream that tells positions apart."""
    hidden = response_hidden_states(model, rows).hidden
    upstream = torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)
    parameters = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((hidden * upstream).sum(), parameters)
    return hidden, torch.cat([gradient.reshape(-1) for gradient in gradients])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shared_prompts_give_the_hidden_states_and_gradients_of_separate_rows(architecture, implementation) -> None:
    model = make(architecture, implementation)
    apart, d_apart = states_and_gradient(model, lay_out(TREES, share_prompt=False))
    for max_tokens in LAYOUTS.values():
        shared, d_shared = states_and_gradient(model, lay_out(TREES, share_prompt=True, max_tokens_per_row=max_tokens))
        torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(d_shared, d_apart, rtol=1e-4, atol=1e-5 * float(d_apart.abs().max()))
    assert sharing_obstacle(model, TREES) is None
    assert sharing_obstacle(model, TREES, max_tokens_per_row=1000) is None


def test_the_gradient_through_a_shared_position_is_the_same_to_the_bit_on_several_threads() -> None:
    """Many responses read their prompt's last state: what they send back is added in one order."""
    body = make("llama", "sdpa")
    tree = Tree([5, 6, 7], [[8 + index % 5] * 4 for index in range(400)])
    rows = lay_out([tree], share_prompt=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [states_and_gradient(body, rows)[1] for _ in range(6)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients[1:])


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_flex_attention_takes_the_same_mask(architecture) -> None:
    model, flex = make(architecture, "sdpa").eval(), make(architecture, "flex_attention").eval()
    with torch.no_grad():  # on a CPU, FlexAttention has no backward
        apart = response_hidden_states(model, lay_out(TREES, share_prompt=False)).hidden
        shared = response_hidden_states(flex, lay_out(TREES, share_prompt=True, max_tokens_per_row=1000)).hidden
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)


def test_a_model_with_a_recurrent_state_is_refused_with_the_reason_or_falls_back_and_says_so(
    tiny_tokenizer, make_slates, tmp_path, caplog
) -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1, state_size=4))
    options = {"report_to": "none", "use_cpu": True, "max_length": 64}
    with pytest.raises(ValueError, match="model: "):
        PopeTrainer(
            model,
            PopeConfig(str(tmp_path), prompt_sharing="on", **options),
            train_dataset=make_slates(2),
            processing_class=tiny_tokenizer,
        )
    with caplog.at_level(logging.WARNING):
        trainer = PopeTrainer(
            model, PopeConfig(str(tmp_path), **options), train_dataset=make_slates(2), processing_class=tiny_tokenizer
        )
    assert "prompt_sharing: off, every response computes its prompt again" in caplog.text
    assert not trainer.data_collator.collate.share_prompt


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "phi3", "gemma3"])
def test_the_loss_and_its_gradient_do_not_depend_on_sharing(
    architecture, tiny_tokenizer, make_slates, tmp_path
) -> None:
    slates = make_slates(5)
    losses, gradients = [], []
    for sharing, max_tokens in (("off", None), ("on", None), ("on", 200)):
        args = PopeConfig(
            str(tmp_path),
            report_to="none",
            use_cpu=True,
            max_length=64,
            prompt_sharing=sharing,
            max_tokens_per_row=max_tokens,
        )
        trainer = PopeTrainer(make(architecture, "sdpa"), args, train_dataset=slates, processing_class=tiny_tokenizer)
        assert trainer.data_collator.collate.share_prompt == (sharing == "on")
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(5)])
        loss = trainer.compute_loss(trainer.model.train(), batch, num_items_in_batch=5)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters() if p.grad is not None]))
    for loss, gradient in zip(losses[1:], gradients[1:]):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


def test_the_collator_batches_the_same_responses_in_every_layout(tiny_tokenizer, make_slates, tmp_path) -> None:
    args = PopeConfig(str(tmp_path), report_to="none", use_cpu=True, max_length=64)
    examples = slate_examples("slates", make_slates(6), tiny_tokenizer, args)
    plain = SlateCollator(0)
    for options in ({"share_prompt": True}, {"share_prompt": True, "max_tokens_per_row": 150}):
        batch, other = plain(examples), dataclasses.replace(plain, **options)(examples)
        for name in ("labels", "response_offsets"):
            assert torch.equal(batch[name], other[name]), name
        for name, value in batch["log"]._asdict().items():
            assert torch.equal(value, getattr(other["log"], name)), name
        assert other["input_ids"].numel() < batch["input_ids"].numel()
