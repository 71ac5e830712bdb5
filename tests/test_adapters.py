"""Adapters merged into weights: the log-probabilities of the model with its adapter, tied to its head or not."""

from __future__ import annotations

import pytest
import torch
from pope_align.data.tokenize import EncodedSlate
from pope_align.generation.generate import load_adapter
from pope_align.models.loading import load_model
from pope_align.propensity.scoring import score_responses
from pope_align.training.config import PopeConfig
from pope_align.training.trainer import PopeTrainer

SLATES = [EncodedSlate([10, 11, 12], [[20, 21, 22, 23], [30]])]
TARGETS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "trained embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "trained head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both, trained as one": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
}


def totals_of_logits(model) -> list[float]:
    """From the logits of the model with its adapter beside its weights."""
    totals = []
    for ids in SLATES[0].completion_ids:
        prompt = SLATES[0].prompt_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
        logprobs = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
        totals.append(float(logprobs.gather(1, torch.tensor(ids)[:, None]).sum()))
    return totals


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_merged_adapter_computes_what_it_computed_beside_the_weights(targets, tied, make_tiny_model, tmp_path):
    peft = pytest.importorskip("peft")
    if targets.get("ensure_weight_tying") and not tied:
        pytest.skip("nothing is tied")
    torch.manual_seed(0)
    adapted = peft.get_peft_model(
        make_tiny_model(3, tie_word_embeddings=tied), peft.LoraConfig(r=2, init_lora_weights=False, **targets)
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = totals_of_logits(adapted.eval())
    whole = load_adapter(make_tiny_model(3, tie_word_embeddings=tied), tmp_path / "adapter")
    (totals,) = score_responses(SLATES, whole)
    assert totals == pytest.approx(expected, abs=1e-3)
    whole.save_pretrained(tmp_path / "whole")  # untied embeddings are written and read as such
    assert score_responses(SLATES, load_model(tmp_path / "whole")) == [totals]


@pytest.mark.parametrize("name", ["attention", "embedding", "trained embedding", "both, trained as one"])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_trained_adapter_is_what_was_trained(name, make_tiny_model, make_slates, tiny_tokenizer, tmp_path):
    """Through training and saving: whatever the adapter stands on, up to the head that the loss reads."""
    peft = pytest.importorskip("peft")
    args = PopeConfig(str(tmp_path), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True, max_length=64)
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=2, **TARGETS[name])
    model = make_tiny_model(3)
    if name == "both, trained as one":
        with pytest.raises(ValueError, match="output layer that is a plain torch"):
            PopeTrainer(model, args, train_dataset=make_slates(4), processing_class=tiny_tokenizer, peft_config=adapter)
        return
    trainer = PopeTrainer(
        model, args, train_dataset=make_slates(4), processing_class=tiny_tokenizer, peft_config=adapter
    )
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    whole = load_adapter(make_tiny_model(3), tmp_path / "adapter")
    (totals,) = score_responses(SLATES, whole)
    assert totals == pytest.approx(totals_of_logits(trainer.model.eval()), abs=1e-3)
    (start,) = score_responses(SLATES, make_tiny_model(3))
    assert totals != pytest.approx(start, abs=1e-2)
