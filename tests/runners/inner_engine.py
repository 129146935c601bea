"""An engine whose agents are tasks of the test's own loop: nothing of theirs may block it, or be left behind."""

from __future__ import annotations

import asyncio

from asynctune.runners import bringing
from asynctune.runners.agent import Order, _Agent


class InnerEngine:
    """Agents that see nothing of the driver's directory, unless `together`; their workers are processes."""

    capacity = 2

    def __init__(self, monkeypatch, *, together=False):
        if not together:
            monkeypatch.setattr(bringing, "_is_there", lambda path: False)
        monkeypatch.setattr(bringing, "_PATIENCE_S", 0.2)
        self.placements = []

    async def start(self):
        return "127.0.0.1"

    async def launch(self, order):
        placement = InnerPlacement(_Agent(Order.unpack(order), "inside"))
        self.placements.append(placement)
        return placement

    async def aclose(self):
        """Nothing was started."""


class InnerPlacement:
    """One agent."""

    def __init__(self, agent):
        self.agent = agent
        self.task = asyncio.create_task(agent.run())

    async def ended(self):
        await asyncio.wait([self.task])
        if self.task.cancelled():
            return "was killed"
        error = self.task.exception()
        return f"has failed: {error!r}" if error is not None else f"has ended: {self.task.result()}"

    async def kill(self):
        self.task.cancel()
        await asyncio.wait([self.task])
