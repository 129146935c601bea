"""A real `moto_server` for a test session: a process of its own on a free port of this machine, ended by its pid."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

WITHIN_S = 30.0


@contextmanager
def moto_server() -> Iterator[str]:
    """Its endpoint."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _await_answer(server, endpoint)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def make_bucket(endpoint: str, name: str) -> None:
    """A new one on such a server."""
    request = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    urllib.request.urlopen(request, timeout=20).close()


def _await_answer(server: subprocess.Popen[bytes], endpoint: str) -> None:
    ends = time.monotonic() + WITHIN_S
    while True:
        try:
            with urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > ends:
                raise
            time.sleep(0.05)
