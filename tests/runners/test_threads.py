"""Trials that run elsewhere are awaited: however many there are, no thread of the driver's process waits for one."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from asynctune.runners.agent import Order
from asynctune.runners.meeting import dial
from asynctune.runners.peer import Peer
from asynctune.runners.ray import _RayEngine
from asynctune.runners.remote import RemoteRunner
from tests.runners.world import Reports, task, until

FEW, MANY = 2, 24
POOL = 2


class StandIns:
    """An engine whose agents are tasks of this loop without threads: each reports once, and idles until it is ended."""

    capacity = MANY

    def __init__(self):
        self.running = 0

    async def start(self):
        return "127.0.0.1"

    async def launch(self, order):
        return StandIn(Order.unpack(order), self)

    async def aclose(self):
        """Nothing was started."""


class StandIn:
    """One agent, and its placement."""

    def __init__(self, order, engine):
        self.order = order
        self.engine = engine
        self.peer = Peer(self.handle, name="the driver", lost_after_s=30)
        self.over = asyncio.Event()
        self.task = asyncio.create_task(self.run())

    async def run(self):
        self.peer.attach(
            *await dial(self.order.host, self.order.port, self.order.agent_id, self.order.secret)
        )
        await self.peer.run()

    async def handle(self, op, arguments):
        match op:
            case "open":
                return {"node": "n", "host": "h", "pid": 1}
            case "run":
                await self.peer.call("placed", {"run": arguments["run"], "shared": True})
                report = {"run": arguments["run"], "metrics": {"loss": 1.0}, "checkpoint": None}
                await self.peer.call("report", report)
                self.engine.running += 1
                await self.over.wait()
                self.engine.running -= 1
                return {"kind": "aborted"}
            case "abort":
                self.over.set()
            case "bye":
                self.peer.close("said good-bye")
        return None

    async def ended(self):
        await asyncio.wait([self.task])
        return "has ended"

    async def kill(self):
        self.peer.close("was killed")
        await asyncio.wait([self.task])


async def fill(pool, count):
    """Have all threads of a pool: how many there are depends on what is run at once, and only up to `count`."""
    meeting = threading.Barrier(count)
    await asyncio.gather(*[asyncio.wrap_future(pool.submit(meeting.wait, 10)) for _ in range(count)])


@pytest.fixture
async def pool():
    """That of `asyncio.to_thread`: two threads, which are there."""
    made = ThreadPoolExecutor(POOL)
    asyncio.get_running_loop().set_default_executor(made)
    await fill(made, POOL)
    return made


def threads():
    """As the kernel names them: those of other tests may end meanwhile."""
    return set(os.listdir("/proc/self/task"))


@pytest.mark.usefixtures("pool")
async def test_agents_are_awaited_without_a_thread_for_each(tmp_path):
    engine, reports = StandIns(), Reports()
    runner = RemoteRunner(engine)
    await runner.start(lambda config: None, {})
    assert runner._threads is not None
    await fill(runner._threads.executor, runner._threads.executor._max_workers)
    trials: list[asyncio.Task[None]] = []
    counted = []
    try:
        for count in (FEW, MANY):
            tasks = [task(tmp_path, f"t{number}") for number in range(len(trials), count)]
            trials += [asyncio.create_task(runner.run_trial(each, reports)) for each in tasks]
            async with asyncio.timeout(20):
                await until(lambda count=count: engine.running == count)
            counted.append(threads())
        assert len(reports.got) == MANY
    finally:
        for trial in trials:
            trial.cancel()
        await asyncio.wait(trials)
        await runner.aclose()
    assert engine.running == 0
    assert len(counted[1] - counted[0]) < (MANY - FEW) // 2


class Reference:
    """What Ray will answer, some time."""

    def __init__(self):
        self.answered: Future[Any] = Future()

    def future(self):
        return self.answered


class Actors:
    """A class of actors that never end."""

    def __init__(self):
        self.waited_for: list[Reference] = []

    def remote(self):
        there = Reference()
        there.answered.set_result(True)
        return SimpleNamespace(
            __ray_ready__=SimpleNamespace(remote=lambda: there), run=SimpleNamespace(remote=self.run)
        )

    def run(self, order):
        self.waited_for.append(Reference())
        return self.waited_for[-1]


@pytest.mark.usefixtures("pool")
async def test_actors_of_ray_are_awaited_without_a_thread_for_each():
    pytest.importorskip("ray.exceptions")
    placing: Any = SimpleNamespace(check_group=lambda: None, has_group=False)
    engine = _RayEngine("10.0.0.1:6379", placing)
    engine._ray = SimpleNamespace(check=lambda: None, leave=lambda: None)  # type: ignore[assignment]
    engine._actor = actors = Actors()
    before = threads()
    placements = [await engine.launch(b"") for _ in range(MANY)]
    waiting = [asyncio.create_task(placement.ended()) for placement in placements]
    await asyncio.sleep(0.1)
    assert len(threads() - before) < MANY // 2
    assert not any(each.done() for each in waiting)
    for each in actors.waited_for:
        each.answered.set_result("said good-bye")
    async with asyncio.timeout(20):
        assert set(await asyncio.gather(*waiting)) == {"has ended: said good-bye"}
    await engine.aclose()
