"""A client for OpenAI-compatible endpoints with retries, back-off, rate limit and budget; the key is never shown."""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .._extras import require
from .._text import passwords, redact, utf8, without_password
from .replies import BadReply, Choice, Reply, read_choices

#: Statuses that are retried, in addition to 5xx.
_TRANSIENT = {408, 409, 425, 429}
#: Words in a refusal that concern only this request (its length or contents).
_THIS_REQUEST = re.compile(
    r"context.?(length|window|size)|maximum.?context|too long|string_above_max|content.?(filter|policy)", re.I
)

logger = logging.getLogger(__name__)


class EndpointError(ConnectionError):
    """One request failed: its attempts are used up, or the endpoint rejects it."""


class EndpointRefused(ValueError):
    """The endpoint refuses all requests: wrong key, wrong address, unknown model, unsupported parameter."""


class BudgetExceeded(ValueError):
    """The budget allows no further request."""


@dataclass(slots=True)
class Budget:
    """A limit on requests and tokens, and what is spent. Checked before every request; running requests may finish."""

    max_requests: int | None = None  # attempts, failed ones included
    max_tokens: int | None = None  # of prompts and answers
    requests: int = 0
    tokens: int = 0

    def check(self) -> None:
        """Raise `BudgetExceeded` if nothing is left."""
        for name, spent, limit in (
            ("requests", self.requests, self.max_requests),
            ("tokens", self.tokens, self.max_tokens),
        ):
            if limit is not None and spent >= limit:
                raise BudgetExceeded(f"budget: {spent} of {limit} {name} are spent")


@dataclass
class Endpoint:
    """Chat completions of one model, called from any number of threads.

    A request that meets a rate limit, a server error, a timeout, a cut connection or an unreadable body is sent again
    after 0.5, 1, 2 ... seconds (with jitter, at most ``max_wait``), or after ``Retry-After``; after a rate limit all
    threads wait.

    Args:
        model: name at the endpoint.
        base_url: e.g. ``http://localhost:8000/v1``; None is OpenAI's.
        key_variable: environment variable with the API key. Neither it nor a password in ``base_url`` is ever logged,
            stored or put into an error, even if the endpoint repeats it.
        timeout: seconds to wait for an answer.
        max_attempts: attempts per request.
        requests_per_minute: limit for all threads together.

    Raises:
        ImportError: the openai client is not installed.
        ValueError: no key in the environment and no ``base_url``; a key with invalid characters.
    """

    model: str
    base_url: str | None = field(default=None, repr=False)  # may contain a password; `address` does not
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 120.0
    max_attempts: int = 6
    max_wait: float = 60.0
    requests_per_minute: float | None = None
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        self._openai = require("openai", extra="eval", purpose="to call an endpoint")
        self._key = os.environ.get(self.key_variable, "").strip()
        if not self._key and self.base_url is None:
            raise ValueError(f"{self.key_variable}: expected an API key in the environment, got none")
        if not (self._key.isascii() and self._key.isprintable()):
            raise ValueError(f"{self.key_variable}: expected an API key of printable ASCII characters, got others")
        self._secrets = [self._key, *passwords(self.base_url or "")]
        self._client = self._openai.OpenAI(
            base_url=self.base_url, api_key=self._key or "none", timeout=self.timeout, max_retries=0
        )
        self._lock = threading.Lock()
        self._not_before = 0.0  # monotonic time before which nothing is sent

    def chat(self, messages: Sequence[dict[str, str]], **parameters: Any) -> Reply:
        """The model's answer to ``messages``; as `choices`, of which it is the first."""
        return self.choices(messages, **parameters)[0].reply

    def choices(self, messages: Sequence[dict[str, str]], **parameters: Any) -> list[Choice]:
        """The model's answers to ``messages``; ``parameters`` are those of the chat completions API.

        With ``n`` there should be so many, and at least one.

        Raises:
            EndpointError: this request failed.
            EndpointRefused: every request would fail.
            BudgetExceeded: the budget is spent.
        """
        for attempt in range(1, self.max_attempts + 1):
            self._wait_for_turn()
            try:
                return self._send(messages, parameters)
            except self._openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in _TRANSIENT:
                    refusal = EndpointError if _only_this_request(error) else EndpointRefused
                    raise refusal(self._say(error)) from None
                problem, wait = error, _retry_after(error.response.headers)
            # A connection that breaks off, a body that is not what the API promises.
            except (self._openai.OpenAIError, BadReply) as error:
                problem, wait = error, None
            if attempt < self.max_attempts:
                self._back_off(attempt, wait, rate_limited=getattr(problem, "status_code", None) == 429)
                logger.info("attempt %d of %d failed: %s", attempt, self.max_attempts, self._say(problem))
        raise EndpointError(f"{self.max_attempts} attempts failed, the last with: {self._say(problem)}")

    @property
    def address(self) -> str | None:
        """``base_url`` without passwords and keys, to be shown and stored."""
        return None if self.base_url is None else without_password(self.base_url)

    def _send(self, messages: Sequence[dict[str, str]], parameters: dict[str, Any]) -> list[Choice]:
        with self._lock:
            self.budget.check()
            self.budget.requests += 1
        api = self._client.chat.completions.with_raw_response
        response = api.create(model=self.model, messages=list(messages), **parameters)
        try:
            choices, counted = read_choices(response.http_response.content, self._clean)
        except BadReply as error:
            self._charge(error.tokens)
            raise
        if not counted:  # without token counts, four characters count as a token
            sent = sum(len(message["content"]) for message in messages)
            choices = [
                replace(choice, reply=_counted(choice.reply, sent * (at == 0))) for at, choice in enumerate(choices)
            ]
        self._charge(sum(choice.reply.prompt_tokens + choice.reply.completion_tokens for choice in choices))
        return choices

    def _charge(self, tokens: int) -> None:
        with self._lock:
            self.budget.tokens += tokens

    def _wait_for_turn(self) -> None:
        while True:
            with self._lock:
                now = time.monotonic()
                if now >= self._not_before:
                    if self.requests_per_minute:
                        self._not_before = now + 60 / self.requests_per_minute
                    return
                wait = self._not_before - now
            time.sleep(wait)

    def _back_off(self, attempt: int, asked: float | None, *, rate_limited: bool) -> None:
        wait = min(0.5 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25), self.max_wait)
        if asked is not None:
            wait = min(asked, self.max_wait)
        if rate_limited:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + wait)
        else:
            time.sleep(wait)

    def _say(self, error: Exception) -> str:
        return self._clean(f"{type(error).__name__}: {error}")

    def _clean(self, text: str) -> str:
        return utf8(redact(text, self._secrets))


def _counted(reply: Reply, sent: int) -> Reply:
    """The reply with tokens counted by its characters."""
    said = len(reply.text) + len(reply.reasoning)
    return replace(reply, prompt_tokens=sent // 4, completion_tokens=said // 4)


def _only_this_request(error: Any) -> bool:
    """Whether a refusal is about this request's length or contents, not about all requests."""
    return error.status_code == 413 or bool(_THIS_REQUEST.search(str(error)))


def _retry_after(headers: Any) -> float | None:
    try:
        return max(float(headers.get("retry-after", "")), 0.0)
    except ValueError:  # absent, or a date
        return None
