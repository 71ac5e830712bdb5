"""Models and tokenizers by name: a folder, a GGUF file, the packaged SmolLM2, or a name on the Hugging Face hub."""

from __future__ import annotations

import functools
import logging
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from .places import locate
from .unpacked import copy_of, unpack

logger = logging.getLogger(__name__)


def load_model(name_or_path: str | Path, *, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """A causal language model: a hub name, a local folder, a GGUF file, a folder with one, or ``smollm2-135m``.

    No code that comes with a model is run, and weights must be tensors: a pickle of anything else is refused. A GGUF
    file is converted once, into the user's cache folder (`models.unpacked`), with identical weights.

    Args:
        dtype: of the weights; "auto" keeps the file's. float32 is the default because 16-bit weights round away updates
            at fine-tuning learning rates; for speed, train with ``bf16=True``.

    Raises:
        FileNotFoundError: no such model; a folder without ``config.json`` and not with exactly one GGUF file.
        ValueError: weights that are not tensors; a model that needs its own code.
    """
    folder, gguf_file = locate(name_or_path)
    if gguf_file is None:
        return _read_model(folder, None, dtype)
    copy = unpack(Path(folder, gguf_file), lambda copy: _save(folder, gguf_file, copy))
    model = _read_model(folder, gguf_file, dtype) if copy is None else _read_model(str(copy), None, dtype)
    model.name_or_path = model.config.name_or_path = folder
    return model


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the model with this name, as for `load_model`."""
    folder, gguf_file = locate(name_or_path)
    copy = None if gguf_file is None else copy_of(Path(folder, gguf_file))
    if copy is None or not copy.is_dir():
        return _read_tokenizer(folder, gguf_file)
    tokenizer = _read_tokenizer(str(copy), None)
    tokenizer.name_or_path = folder
    return tokenizer


def load_config(name_or_path: str | Path) -> PreTrainedConfig:
    """The configuration of the model with this name; no weights are read."""
    folder, gguf_file = locate(name_or_path)
    with _quiet_gguf():
        return AutoConfig.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)


def _save(folder: str, gguf_file: str, copy: Path) -> None:
    logger.info("unpacking %s once, to %s", gguf_file, copy.parent)
    _read_model(folder, gguf_file, torch.float32).save_pretrained(copy)
    _read_tokenizer(folder, gguf_file).save_pretrained(copy)


def _read_model(folder: str, gguf_file: str | None, dtype: torch.dtype | str) -> PreTrainedModel:
    with _quiet_gguf():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=gguf_file, dtype=dtype, trust_remote_code=False
            )
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"model: expected weights as tensors in {folder}, got a pickle that holds something else, which could "
                "run code when it is read; convert it to safetensors"
            ) from error
    quantizer = getattr(model, "hf_quantizer", None)
    if gguf_file is not None and quantizer is not None:
        # The weights are in ``dtype`` now; with the quantisation mark the model could not be saved.
        quantizer.remove_quantization_config(model)
        # As in a saved model, because scores are cached by configuration.
        model.config.architectures = [type(model).__name__]
    return model


def _read_tokenizer(folder: str, gguf_file: str | None) -> PreTrainedTokenizerBase:
    with _quiet_gguf():
        return AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)


def best_device() -> torch.device:
    """The accelerator that torch sees, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Disable the progress bar of the GGUF reader unless there is a terminal."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    if not sys.stderr.isatty():
        reader.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
