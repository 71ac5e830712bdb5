"""A language model and a tokenizer small enough to train inside a test, made offline."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

# A graph compiled by an earlier run does not know that an operator has other outputs now.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

if importlib.util.find_spec("triton") and not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of triton: its kernels run on the CPU
    import triton
    from triton.runtime import interpreter

    # Every call between kernels patches triton.language anew, half of the interpreter's time. Once is enough.
    patch_once = functools.cache(interpreter._patch_lang)

    def call(self, *args, **kwargs):
        patch_once(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call

    # bfloat16 is kept as the bits of an integer, and the interpreter's product would multiply these.
    multiply = interpreter.InterpreterBuilder.create_dot

    def product_of_bfloat16(self, a, b, *others):
        if a.dtype.scalar == triton.language.bfloat16:
            a, b = (
                interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), triton.language.float32)
                for x in (a, b)
            )
        return multiply(self, a, b, *others)

    interpreter.InterpreterBuilder.create_dot = product_of_bfloat16

    # A compiled kernel gets a Python float as float32; the interpreter would hand over all of it.
    convert = interpreter._implicit_cvt
    interpreter._implicit_cvt = lambda arg: float(np.float32(arg)) if isinstance(arg, float) else convert(arg)


#: Of a test with more interpreted cases than this, CI runs about a third, always the same ones. All of them are run by
#: ``pytest -m interpreted`` and, before a release, by ``make examples``.
FEW_CASES = 24


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a backend on a GPU carry the marker ``gpu``, those of an interpreted backend ``interpreted``."""
    interpreted: dict[str, list[pytest.Item]] = {}
    for item in items:
        target = item.callspec.params.get("target") if hasattr(item, "callspec") else None
        if target is not None and target.device == "cuda":
            item.add_marker(pytest.mark.gpu)
        elif target is not None and target.backend == "triton":
            item.add_marker(pytest.mark.interpreted)
            interpreted.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in interpreted.values():
        for item in cases:
            if len(cases) > FEW_CASES and zlib.crc32(item.nodeid.encode()) % 3 != 0:
                item.add_marker(pytest.mark.release)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Bytes as tokens, with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    vocab = {token: i for i, token in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'][0] + ':' + message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def make_tiny_model() -> Callable[..., object]:
    """``make_tiny_model(seed)``: a random Llama of two layers, its embeddings tied to its head as in SmolLM2."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def make(seed: int = 0, **options: object) -> object:
        torch.manual_seed(seed)
        config = {
            "vocab_size": 257,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "tie_word_embeddings": True,
        }
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **options}))

    return make


@pytest.fixture(scope="session")
def make_slates() -> Callable[..., list]:
    """``make_slates(n)``: slates of 1 to 4 short responses to a few prompts, with scores and log-probabilities."""
    from pope_align.data import Slate

    def make(count: int, *, seed: int = 0, scored: bool = True, sizes: tuple[int, ...] = (2, 3, 1, 4)) -> list:
        rng = random.Random(seed)
        slates = []
        for index in range(count):
            k = sizes[index % len(sizes)]
            words = ["red", "green", "blue", "no idea", "perhaps blue"]
            completions = [f"{rng.choice(words)} {rng.randrange(100)}" for _ in range(k)]
            slates.append(
                Slate(
                    prompt=f"Colour {index % 5}?",
                    completions=completions,
                    scores=[float(rng.randrange(10)) for _ in range(k)],
                    logging_logprobs=[-(len(text) + 1) * (4.0 + rng.random()) for text in completions]
                    if scored
                    else None,
                    slate_id=f"colour/{index % 5}#slate{index:02d}",
                )
            )
        return slates

    return make
