"""What is asked of Ray in threads: nothing of it is left behind by who was cancelled, or asked once Ray was left."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from asynctune import ConfigError, TrialFailedError
from asynctune.runners import ray as ray_module
from asynctune.runners.ray import _Placement, _RayEngine


class Connection:
    def __init__(self) -> None:
        self.is_left = False

    def check(self) -> None:
        if self.is_left:
            raise ConfigError("this process was disconnected from Ray")

    def leave(self) -> None:
        self.is_left = True


class Actors:
    """An actor class, each of whose actors takes until `go` is set to be made."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.begun = threading.Event()
        self.go = threading.Event()
        self.made: list[SimpleNamespace] = []
        self.killed: list[SimpleNamespace] = []
        self.error: Exception | None = None

    def remote(self) -> SimpleNamespace:
        self.begun.set()
        assert self.go.wait(10)
        assert not self.connection.is_left, "Ray would connect by itself"
        call = SimpleNamespace(remote=lambda *_: None)
        actor = SimpleNamespace(__ray_ready__=call, run=call, is_there=call)
        self.made.append(actor)
        return actor

    def kill(self, actor: SimpleNamespace, *, no_restart: bool) -> None:
        assert not self.connection.is_left
        assert no_restart
        if self.error is not None:
            raise self.error
        self.killed.append(actor)


@pytest.fixture
def actors(monkeypatch):
    made = Actors(Connection())
    module = ModuleType("ray")
    module.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setattr(module, "kill", made.kill, raising=False)
    monkeypatch.setitem(sys.modules, "ray", module)
    yield made
    made.go.set()


@pytest.fixture
def engine(actors):
    placing: Any = SimpleNamespace(check_group=lambda: None, has_group=False)
    made = _RayEngine("10.0.0.1:6379", placing)
    made._ray, made._actor = actors.connection, actors
    return made


async def until_begun(actors):
    assert await asyncio.to_thread(actors.begun.wait, 10)


async def test_an_actor_that_nobody_waits_for_any_more_is_ended_before_ray_is_left(engine, actors):
    launching = asyncio.create_task(engine.launch(b""))
    await until_begun(actors)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    closing = asyncio.create_task(engine.aclose())
    await asyncio.sleep(0.05)
    assert not actors.connection.is_left
    actors.go.set()
    await closing
    assert actors.connection.is_left
    assert len(actors.made) == 1
    assert actors.killed == actors.made


async def test_an_actor_that_cannot_be_made_has_nothing_to_end(engine, actors):
    engine._placing.check_group = lambda: 1 / 0
    with pytest.raises(TrialFailedError, match="ZeroDivisionError"):
        await engine.launch(b"")
    await engine.aclose()
    assert actors.killed == []


async def test_ray_that_does_not_answer_is_left_all_the_same(engine, actors, monkeypatch):
    monkeypatch.setattr(ray_module, "_ANSWERS_WITHIN_S", 0.05)
    launching = asyncio.create_task(engine.launch(b""))
    await until_begun(actors)
    launching.cancel()
    async with asyncio.timeout(5):
        await engine.aclose()
        await engine.aclose()
    assert actors.connection.is_left
    actors.go.set()
    await asyncio.wait([launching])


async def test_who_is_cancelled_twice_has_left_ray_too(engine, actors):
    """A second Ctrl-C, while the first is being obeyed."""
    launching = asyncio.create_task(engine.launch(b""))
    await until_begun(actors)
    launching.cancel()
    closing = asyncio.create_task(engine.aclose())
    for _ in range(2):
        await asyncio.sleep(0.02)
        closing.cancel()
    actors.go.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert actors.connection.is_left
    assert actors.killed == actors.made


async def test_an_actor_that_is_made_in_place_of_another_is_ended_with_it(engine, actors):
    actors.go.set()
    placement = await engine.launch(b"")
    assert isinstance(placement, _Placement)
    actors.go.clear()
    actors.begun.clear()
    again = asyncio.create_task(asyncio.to_thread(placement._start_again, placement._now))
    await until_begun(actors)
    ending = asyncio.create_task(placement.kill())
    await asyncio.sleep(0.02)
    actors.go.set()
    await asyncio.gather(again, ending)
    assert len(actors.made) == 2
    assert actors.killed == actors.made[1:], "the first one never ran"
    await asyncio.to_thread(placement._start_again, placement._now)
    assert len(actors.made) == 2, "it was killed"
    await engine.aclose()


async def test_an_actor_that_cannot_be_ended_fails_nobody(engine, actors):
    """Such as a trial that is told to stop, and has to be ended."""
    actors.go.set()
    placement = await engine.launch(b"")
    actors.error = type("RaySystemError", (Exception,), {})("the cluster is gone")
    await placement.kill()
    await engine.aclose()


def test_a_runner_may_be_used_in_one_loop_after_the_other(engine):
    """What waits for a turn belongs to a loop."""

    async def look():
        engine._connect = lambda: "10.0.0.1"
        await engine.start()
        async with engine._looking:
            waiting = asyncio.create_task(engine._looking.acquire())
            await asyncio.sleep(0)
        await waiting
        engine._looking.release()

    for _ in range(2):
        asyncio.run(look())


async def test_two_that_see_that_an_actor_never_ran_start_one_in_its_place(engine, actors):
    actors.go.set()
    placement = await engine.launch(b"")
    failed = placement._now
    said = await asyncio.gather(placement._elsewhere(failed), placement._elsewhere(failed))
    assert set(said) == {None}
    assert len(actors.made) == 2
    assert placement._now.actor is actors.made[1]
    await engine.aclose()


async def test_one_that_cannot_be_started_elsewhere_says_why(engine, actors, monkeypatch):
    actors.go.set()
    placement = await engine.launch(b"")

    def refuse():
        raise ValueError("no such actor")

    monkeypatch.setattr(placement, "_start", refuse)
    why = await placement._elsewhere(placement._now)
    assert why == "could not be started elsewhere: ValueError: no such actor"


async def test_where_somebody_has_left_ray_the_experiment_ends(engine, actors, monkeypatch):
    """And no trial fails for it: none can run in this process any more. Some answers of Ray's never come then."""
    monkeypatch.setattr(ray_module, "_BETWEEN_S", 0.01)
    actors.go.set()
    placement = await engine.launch(b"")
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors_of_ray())
    never: Any = SimpleNamespace(future=concurrent.futures.Future)
    placement._now = placement._now._replace(ready=never)
    ending = asyncio.create_task(placement.ended())
    await asyncio.sleep(0.05)
    assert not ending.done()
    actors.connection.leave()
    with pytest.raises(ConfigError, match="disconnected"):
        await ending
    with pytest.raises(ConfigError, match="disconnected"):
        await engine.launch(b"")


def errors_of_ray():
    module = ModuleType("ray.exceptions")
    for name in ("ActorUnavailableError", "RayActorError", "RuntimeEnvSetupError", "ActorUnschedulableError"):
        setattr(module, name, type(name, (Exception,), {}))
    return module
