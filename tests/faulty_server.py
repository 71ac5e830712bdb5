"""A chat-completions server on the loopback interface that misbehaves by a script."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What may go wrong with one sending.
FAULTS = ("429", "429 wait", "500", "503", "broken body", "no choices", "cut", "slow")
#: Bodies that are JSON and no chat completion, or no JSON that anyone should read.
BAD_BODIES = {
    "deep": "[" * 200_000,
    "list": "[]",
    "null": "null",
    "choices text": '{"choices": "x"}',
    "choices of text": '{"choices": ["x"]}',
    "choices object": '{"choices": {"0": {}}}',
    "no message": '{"choices": [{"finish_reason": "stop"}]}',
    "content number": '{"choices": [{"message": {"content": 3}}]}',
    "content null": '{"choices": [{"finish_reason": "stop", "message": {"content": null}}]}',
    "usage null counts": '{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": null}}',
    "usage text": '{"choices": [{"message": {"content": "x"}}], "usage": "much"}',
    "usage negative": '{"choices": [{"message": {"content": "x"}}], '
    '"usage": {"prompt_tokens": -5, "completion_tokens": 1}}',
    "huge integer": '{"created": ' + "9" * 5000 + "}",
    "not utf-8": b"\xff\xfe",
}


class FaultyServer:
    """Answers every distinct request after the faults that ``script`` gives it, one a sending.

    Args:
        answer: messages to the text of the reply, or to the fields of its message and ``finish_reason``.
        script: number of the distinct request (0, 1, 2 ...) to its faults.
        delay: seconds that a "slow" sending takes.
    """

    def __init__(
        self,
        answer: Callable[[list[dict[str, str]]], str | dict[str, Any]],
        script: Callable[[int], Sequence[str]] = lambda number: (),
        delay: float = 2.5,
    ) -> None:
        self.answer, self.script, self.delay = answer, script, delay
        self.sendings: Counter[str] = Counter()
        self.served: Counter[str] = Counter()  # replies that went out whole, by request
        self.faults: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.url = ""
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()

    def answers(self, body: dict[str, Any]) -> list[str | dict[str, Any]]:
        """One reply for each of the ``n`` that are asked for."""
        return [self.answer(body["messages"]) for _ in range(body.get("n", 1))]

    def fault(self, body: dict[str, Any]) -> tuple[str, str | None]:
        """The request's name, and what goes wrong with this sending."""
        name = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        with self._lock:
            self.requests.append(body)
            number = self._numbers.setdefault(name, len(self._numbers))
            faults = self.script(number)
            sending = self.sendings[name]
            self.sendings[name] += 1
            fault = faults[sending] if sending < len(faults) else None
            if fault is not None:
                self.faults[fault] += 1
            return name, fault


@contextmanager
def running(server: FaultyServer) -> Iterator[FaultyServer]:
    """Serve on a free port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.keys.add(self.headers.get("Authorization", ""))
            name, fault = server.fault(body)
            if fault is not None and fault[0].isdigit():
                status, _, wait = fault.partition(" ")
                headers = {"Retry-After": "0.2"} if wait else {}
                return self.send(int(status), json.dumps({"error": {"message": f"fault {fault}"}}), headers)
            if fault == "broken body":
                return self.send(200, '{"choices": [{"message"')
            if fault == "no choices":
                return self.send(200, json.dumps({"id": "x", "object": "chat.completion", "choices": []}))
            if fault in BAD_BODIES:
                return self.send(200, BAD_BODIES[fault])
            text = json.dumps(completion(body, *server.answers(body)))
            if fault == "cut":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                with suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(text.encode()[: len(text) // 2])
                self.close_connection = True
                return None
            if fault == "slow":
                time.sleep(server.delay)
            else:
                server.served[name] += 1
            return self.send(200, text)

        def send(self, status: int, text: str | bytes, headers: dict[str, str] | None = None) -> None:
            data = text.encode() if isinstance(text, str) else text
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # the client may have stopped waiting
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def completion(body: dict[str, Any], *said: str | dict[str, Any]) -> dict[str, Any]:
    """The JSON of a chat completion; the tokens of all its answers are counted together."""
    choices, usage = [], (10, 5 * len(said))
    for index, each in enumerate(said):
        message = {"role": "assistant", "content": each} if isinstance(each, str) else {"role": "assistant", **each}
        usage = message.pop("usage", usage)
        of_choice = {name: message.pop(name) for name in ("finish_reason", "logprobs") if name in message}
        choices.append({"index": index, "finish_reason": "stop", "message": message, **of_choice})
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": choices}
    if usage is not None:
        counts = (*usage, sum(usage))
        reply["usage"] = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts))
    return reply
