"""A model behind an OpenAI-compatible endpoint: several requests at a time, several answers to a request."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from ..data.checks import SlateError
from ..data.formats.base import Nothing
from ..data.formats.completions import answer
from ..data.records import Record
from .endpoint import Endpoint, EndpointError
from .generate import Completion, Prompt, Request, turns_of
from .generations import RecordedTotal
from .recordable import SERVER_SETTINGS, Server, check_recordable
from .replies import Choice
from .sampling import Sampling


class EndpointEngine:
    """Answers by an OpenAI-compatible endpoint.

    The seed is sent with every request; the endpoint may ignore it.

    Args:
        concurrency: number of concurrent requests.
        answers_per_request: at most so many answers to one prompt are asked for at once (``n``), with the seed of the
            first. An endpoint that gives fewer is asked again for the rest.
        logprobs: record the log-probability of every answer, as a propensity.
        server: what answers, for ``logprobs``. To vLLM and SGLang ``top_k``, ``min_p`` and ``repetition_penalty`` are
            sent, too, since their defaults may come from the model's files.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrency: int = 8,
        answers_per_request: int = 1,
        logprobs: bool = False,
        server: Server = "openai",
    ) -> None:
        for name, value in (("concurrency", concurrency), ("answers_per_request", answers_per_request)):
            if value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value}")
        self.endpoint, self.concurrency, self.answers_per_request = endpoint, concurrency, answers_per_request
        self.logprobs, self.server = logprobs, server
        self.about: dict[str, Any] = {"engine": "openai", "model": endpoint.model, "base_url": endpoint.address}
        if answers_per_request > 1:
            self.about["answers_per_request"] = answers_per_request
        if logprobs:
            self.about |= {"engine": server, "logprobs": True}

    def run(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Answers in the order in which they arrive.

        Raises:
            ValueError: ``top_k``, which the API does not have; with ``logprobs``, settings that the endpoint's
                log-probabilities leave out.
            EndpointError, EndpointRefused, BudgetExceeded: as `Endpoint.choices`; answers that arrived before are kept.
        """
        if sampling.top_k:
            raise ValueError(f"top_k: expected 0 (off) with an OpenAI-compatible endpoint, got {sampling.top_k}")
        if self.logprobs:
            check_recordable(sampling, self.server)
        failure: BaseException | None = None
        stop = threading.Event()

        def ask(group: list[int]) -> tuple[list[tuple[int, Completion]], BaseException | None]:
            return ([], None) if stop.is_set() else self._ask(group, requests, sampling)

        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(ask, group) for group in self._groups(requests)]
            for future in as_completed(futures):
                answers, error = future.result()
                if error is not None:
                    failure = failure or error
                    stop.set()
                yield from answers  # also after a failure, because they are paid for
        if failure is not None:
            raise failure

    def _groups(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Numbers of requests that are asked at once: consecutive ones with one prompt."""
        for _, same in itertools.groupby(range(len(requests)), key=lambda index: _key(requests[index].prompt)):
            while group := list(itertools.islice(same, self.answers_per_request)):
                yield group

    def _ask(
        self, group: list[int], requests: Sequence[Request], sampling: Sampling
    ) -> tuple[list[tuple[int, Completion]], BaseException | None]:
        """Answers to requests with one prompt, and the error that ended the work before all were there."""
        answers: list[tuple[int, Completion]] = []
        try:
            while rest := group[len(answers) :]:
                choices = self.endpoint.choices(
                    turns_of(requests[rest[0]].prompt), **self._parameters(requests[rest[0]], len(rest), sampling)
                )
                answers += [(index, self._completion(choice)) for index, choice in zip(rest, choices)]
        except Exception as error:  # raised by `run`, after the answers that came before it
            return answers, error
        return answers, None

    def _parameters(self, request: Request, count: int, sampling: Sampling) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request.seed % 2**31,  # a range that every server supports
        }
        if count > 1:
            parameters["n"] = count
        if self.logprobs:
            parameters["logprobs"] = True
            if self.server != "openai":
                parameters["extra_body"] = dict(SERVER_SETTINGS)
        return parameters

    def _completion(self, choice: Choice) -> Completion:
        reply = choice.reply
        found = self._recorded(choice) if self.logprobs else None
        tokens = reply.completion_tokens if found is None else found.tokens
        return Completion(reply.text, tokens, reply.finish_reason == "stop", None, found)

    def _recorded(self, choice: Choice) -> RecordedTotal | None:
        """The total of an answer's tokens; None if they are not those of its text.

        Raises:
            EndpointError: an answer without log-probabilities, or with some that are none.
        """
        record = Record(self.endpoint.address or self.endpoint.model, 1, choice.given)
        try:
            read = answer(record, Record(record.source, 1, {}), None)
        except SlateError as error:
            raise EndpointError(f"logprobs: expected token log-probabilities, got an invalid answer: {error}") from None
        if isinstance(read, Nothing) or (read.logprobs is None and read.unusable is None):
            raise EndpointError(
                "logprobs: expected an endpoint that sends log-probabilities with its answers, got an answer without"
            )
        if read.logprobs is None:
            return None
        return RecordedTotal(sum(read.logprobs), len(read.logprobs), read.ends)


def _key(prompt: Prompt) -> str:
    return repr(prompt)
