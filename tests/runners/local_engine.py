"""An engine that starts agents on this machine: what a second engine has to be, and no more."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

BOOT = """\
import base64, os, sys
if sys.argv[2] == "apart":  # as on a machine that sees nothing of the driver's disk
    from asynctune.runners import bringing
    bringing._is_there = lambda path: False
    bringing._PATIENCE_S = 0.5
from asynctune.runners.agent import run_agent
run_agent(base64.b64decode(sys.argv[1]), sys.argv[3])
"""


class LocalEngine:
    """Starts processes.

    Args:
        capacity: How many there may be.
        apart: They see nothing of the driver's directory.
        nodes: What the machines are called that they say they are on, in turn.
    """

    def __init__(
        self, capacity: int = 2, *, apart: bool = True, nodes: tuple[str, ...] = ("node-a",)
    ) -> None:
        self.capacity = capacity
        self.apart = apart
        self.nodes = nodes
        self.placements: list[LocalPlacement] = []
        self.is_open = False

    async def start(self) -> str:
        self.is_open = True
        return "127.0.0.1"

    async def launch(self, order: bytes) -> LocalPlacement:
        node = self.nodes[len(self.placements) % len(self.nodes)]
        how = "apart" if self.apart else "together"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BOOT, base64.b64encode(order).decode(), how, node,
            cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        placement = LocalPlacement(process, node)
        self.placements.append(placement)
        return placement

    async def aclose(self) -> None:
        self.is_open = False


class LocalPlacement:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, node: str) -> None:
        self.process = process
        self.node = node

    async def ended(self) -> str:
        return f"ended with exit code {await self.process.wait()}"

    async def kill(self) -> None:
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
