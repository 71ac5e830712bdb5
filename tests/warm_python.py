"""A Python process that has imported the heavy packages and forks to run commands.

Importing torch, transformers and sentence-transformers takes longer than what most blocks of the documentation do
afterwards. `WarmPython` starts ``python warm_python.py SOCKET`` and writes a script that is run in place of ``python``:
the script hands its arguments, folder, environment and standard streams to that process and exits with the code of the
fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

PACKAGES = ("torch", "transformers", "sentence_transformers", "peft", "pyarrow.parquet", "pope_align.cli")

CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    code = server.recv(1)
sys.exit(code[0] if code else "the warm Python process has ended")
"""


class WarmPython:
    """A context in which ``client`` runs ``-c CODE`` and ``-m MODULE`` as ``python`` does, without the imports."""

    def __init__(self, folder: Path) -> None:
        self.address = folder / "socket"
        self.client = folder / "python"
        self.client.write_text(CLIENT.format(python=sys.executable, address=str(self.address)), encoding="utf-8")
        self.client.chmod(0o755)

    def __enter__(self) -> WarmPython:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}  # is read on import
        command = [sys.executable, __file__, str(self.address)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        self.process.wait()


def run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` runs."""
    kind, what, *others = arguments
    sys.argv = [kind, *others]
    sys.path.insert(0, "")
    if kind == "-c":
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        raise ValueError(f"arguments: expected -c CODE or -m MODULE, got {arguments}")


def exit_code(arguments: list[str]) -> int:
    """Run in this fork, and say what the process would have ended with."""
    try:
        run(arguments)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def answer(client: socket.socket) -> None:
    """Run one request, in a fork of this process, and send back its code."""
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    request = b""
    while len(request) < int.from_bytes(head, "big"):
        if not (part := client.recv(1 << 16)):
            return  # the client has died
        request += part
    arguments, where, environment = json.loads(request)
    if (child := os.fork()) == 0:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(where)
        os.environ.clear()
        os.environ.update(environment)
        code = exit_code(arguments)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(child, 0)
    client.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))


def main(address: str) -> None:
    for package in PACKAGES:
        __import__(package)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            client, _ = server.accept()
            with client:
                if os.fork() == 0:  # commands of a page may run side by side
                    answer(client)
                    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
