"""vLLM inside this process, if it is installed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

from .._extras import require
from .generate import Completion, Prompt, Request, turns_of
from .generations import RecordedTotal
from .sampling import Sampling


class VllmEngine:
    """A model served inside this process by vLLM, which batches by itself.

    Every answer has its own seed, but vLLM's kernels depend on the batch, so near-ties may differ.

    Args:
        model: hub name or folder.
        adapter: folder of a LoRA adapter.
        logprobs: record the log-probability of every answer under the distribution that it was drawn from
            (``logprobs_mode="processed_logprobs"``), as a propensity.
    """

    def __init__(
        self,
        model: str,
        *,
        adapter: str | os.PathLike[str] | None = None,
        dtype: str = "auto",
        logprobs: bool = False,
    ) -> None:
        vllm = require("vllm", extra="vllm", purpose="for --engine vllm")
        self.about: dict[str, Any] = {
            "engine": f"vllm {vllm.__version__}",
            "model": model,
            "adapter": os.fspath(adapter) if adapter is not None else None,
            "dtype": dtype,
        }
        self.logprobs, self._vllm = logprobs, vllm
        options: dict[str, Any] = {"model": model, "dtype": dtype, "enable_lora": adapter is not None}
        if logprobs:
            self.about["logprobs"] = True
            options["logprobs_mode"] = "processed_logprobs"
        self._model = vllm.LLM(**options)
        self._lora: Any = None
        if adapter is not None:
            lora = require("vllm.lora.request", extra="vllm", purpose="to load adapters into vLLM")
            self._lora = lora.LoRARequest("adapter", 1, os.fspath(adapter))

    def run(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answer requests in rounds, so that a killed run keeps finished rounds.

        Raises:
            ValueError: greedy answers with ``logprobs``.
        """
        if self.logprobs:
            sampling.check_logprobs()
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
                    logprobs=0 if self.logprobs else None,  # of the sampled token alone
                )
                for request in some
            ]
            ask = self._model.chat if template else self._model.generate
            inputs = [turns_of(request.prompt) if template else _text(request.prompt) for request in some]
            outputs = ask(inputs, options, use_tqdm=False, lora_request=self._lora)
            for index, output in enumerate(outputs, start=start):
                answer = output.outputs[0]
                ended = answer.finish_reason == "stop"
                found = self._recorded(answer, ended) if self.logprobs else None
                yield index, Completion(answer.text, len(answer.token_ids), ended, None, found)

    def _recorded(self, answer: Any, ended: bool) -> RecordedTotal:
        """The total of the sampled tokens, of which the last is the end-of-turn token if the answer ended."""
        totals = [step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)]
        return RecordedTotal(min(math.fsum(totals), 0.0), len(totals), ended)


#: Number of requests per call of vLLM.
_ROUND = 4096


def _text(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise ValueError("prompt: expected text, got chat turns, and the model's tokenizer has no chat template")
    return prompt
