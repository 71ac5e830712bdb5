"""Adapters merged into weights: the log-probabilities of the model with its adapter, tied to its head or not."""

from __future__ import annotations

import pytest
import torch
from pope_align.data.tokenize import EncodedSlate
from pope_align.generation.generate import load_adapter
from pope_align.models.loading import load_model
from pope_align.propensity.scoring import score_responses

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
