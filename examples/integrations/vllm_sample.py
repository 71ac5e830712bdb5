"""Sample from a tiny model with vLLM and record propensities; transformers gives the same log-probabilities.

vLLM has requirements that exclude ours (transformers below 5.20 in 0.32), so it has an environment of its own::

    make integrations-vllm

    python examples/integrations/vllm_sample.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import transformers
from pope_align.data import Slate
from pope_align.generation.generate import generate_for_slates
from pope_align.generation.labelled import labelled_slates
from pope_align.generation.sampling import Sampling
from pope_align.generation.vllm_engine import VllmEngine
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def tiny_model(folder: Path) -> None:
    """A random Llama with one token a letter of ASCII, so that every answer is text."""
    letters = [chr(code) for code in range(33, 127)]
    vocab = {token: i for i, token in enumerate(["<|end|>", "\u0120", *letters])}  # U+0120 stands for the space
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocab), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path) -> None:
    """Sample, and compare the recorded totals with those of transformers."""
    tiny_model(folder)
    slates = [Slate(f"Tea {n}?", ["x"], [0.0], slate_id=f"q{n}") for n in range(3)]
    engine = VllmEngine(str(folder), dtype="float32", logprobs=True)
    print(engine.about["engine"], "torch", torch.__version__, "transformers", transformers.__version__)
    temperature = 0.7
    made = generate_for_slates(engine, slates, name="tiny", n=4, sampling=Sampling(8, temperature=temperature), seed=1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    worst, compared = 0.0, 0
    for row in made.rows:
        for text, total in zip(row.texts, row.recorded or []):
            prompt, written = tokenizer(row.prompt)["input_ids"], tokenizer(text)["input_ids"]
            ids = [*written, tokenizer.eos_token_id] if total.ends else written
            if tokenizer.decode(written) != text or len(ids) != total.tokens:
                continue  # e.g. a space that the decoder drops
            with torch.no_grad():
                logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / temperature
            expected = float(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum())
            worst, compared = max(worst, abs(total.logprob - expected)), compared + 1
    print(f"{compared} answers whose text has the sampled tokens; largest difference of totals {worst:.1e} nats")
    if not compared or worst > 1e-3:
        raise SystemExit("vLLM's processed log-probabilities are not those of the distribution that was sampled")
    log, report = labelled_slates(made, [[1.0] * 4] * 3, {"labeller": "example"})
    print(f"log: {report}; propensities {log[0].logging_policy['how']} by {log[0].logging_policy['engine']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
