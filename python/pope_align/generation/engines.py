"""Other engines: vLLM (if installed) and any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from .._extras import require
from .endpoint import Endpoint
from .generate import Completion, Prompt, Request
from .sampling import Sampling


class VllmEngine:
    """A model served inside this process by vLLM, which batches by itself.

    Every answer has its own seed, but vLLM's kernels depend on the batch, so near-ties may differ.

    Args:
        model: hub name or folder.
        adapter: folder of a LoRA adapter.
    """

    def __init__(self, model: str, *, adapter: str | os.PathLike[str] | None = None, dtype: str = "auto") -> None:
        vllm = require("vllm", extra="vllm", purpose="for --engine vllm")
        self.about: dict[str, Any] = {
            "engine": f"vllm {vllm.__version__}",
            "model": model,
            "adapter": os.fspath(adapter) if adapter is not None else None,
            "dtype": dtype,
        }
        self._vllm = vllm
        self._model = vllm.LLM(model=model, dtype=dtype, enable_lora=adapter is not None)
        self._lora: Any = None
        if adapter is not None:
            lora = require("vllm.lora.request", extra="vllm", purpose="to load adapters into vLLM")
            self._lora = lora.LoRARequest("adapter", 1, os.fspath(adapter))

    def run(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer requests in rounds, so that a killed run keeps finished rounds."""
        template = self._model.get_tokenizer().chat_template
        for start in range(0, len(requests), _ROUND):
            some = requests[start : start + _ROUND]
            options = [
                self._vllm.SamplingParams(
                    max_tokens=sampling.max_new_tokens,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k or -1,
                    seed=request.seed,
                )
                for request in some
            ]
            ask = self._model.chat if template else self._model.generate
            inputs = [_turns(request.prompt) if template else _text(request.prompt) for request in some]
            outputs = ask(inputs, options, use_tqdm=False, lora_request=self._lora)
            for index, output in enumerate(outputs, start=start):
                answer = output.outputs[0]
                yield index, Completion(answer.text, len(answer.token_ids), answer.finish_reason == "stop")


class EndpointEngine:
    """A model behind an OpenAI-compatible endpoint, several requests at a time.

    The seed is sent with every request; the endpoint may ignore it.

    Args:
        concurrency: number of concurrent requests.
    """

    def __init__(self, endpoint: Endpoint, *, concurrency: int = 8) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: expected an integer >= 1, got {concurrency}")
        self.endpoint, self.concurrency = endpoint, concurrency
        self.about: dict[str, Any] = {"engine": "openai", "model": endpoint.model, "base_url": endpoint.address}

    def run(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answers in the order in which they arrive.

        Raises:
            ValueError: ``top_k``, which the API does not have.
            EndpointError, EndpointRefused, BudgetExceeded: as `Endpoint.chat`; answers that arrived before are kept.
        """
        if sampling.top_k:
            raise ValueError(f"top_k: expected 0 (off) with an OpenAI-compatible endpoint, got {sampling.top_k}")
        failure: BaseException | None = None
        stop = threading.Event()

        def ask(request: Request) -> Completion | None:
            return None if stop.is_set() else self._ask(request, sampling)

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = {pool.submit(ask, request): index for index, request in enumerate(requests)}
            for future in as_completed(futures):
                if (error := future.exception()) is not None:
                    failure = failure or error
                    stop.set()
                elif (completion := future.result()) is not None:  # also after a failure, because it is paid for
                    yield futures[future], completion
        if failure is not None:
            raise failure

    def _ask(self, request: Request, sampling: Sampling) -> Completion:
        reply = self.endpoint.chat(
            _turns(request.prompt),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request.seed % 2**31,  # a range that every server supports
        )
        return Completion(reply.text, reply.completion_tokens, reply.finish_reason == "stop")


#: Number of requests per call of vLLM.
_ROUND = 4096


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _text(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise ValueError("prompt: expected text, got chat turns, and the model's tokenizer has no chat template")
    return prompt
