"""Bytes in flight are bounded, and handed out in the order in which they were asked for."""

from __future__ import annotations

import asyncio

import pytest

from asynctune.errors import ConfigError
from asynctune.storage.budget import ByteBudget
from asynctune.testing.storage_scenes import cancelled, let_run


class Takers:
    """Tasks that take bytes and keep them until they are told to go."""

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.have: list[str] = []
        self.go: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self, name: str, size_bytes: int) -> None:
        self.go[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._take(name, size_bytes))
        await let_run(3)

    async def _take(self, name: str, size_bytes: int) -> None:
        async with self.budget.take(size_bytes):
            self.have.append(name)
            await self.go[name].wait()
        self.have.remove(name)

    async def end(self, name: str) -> None:
        self.go[name].set()
        await self.tasks[name]
        await let_run(3)


@pytest.fixture
def takers():
    return Takers(ByteBudget(10))


async def test_no_more_than_there_is(takers):
    await takers.start("a", 6)
    await takers.start("b", 4)
    await takers.start("c", 1)
    assert takers.have == ["a", "b"]
    assert takers.budget.taken_bytes == 10
    await takers.end("b")
    assert takers.have == ["a", "c"]
    await takers.end("a")
    await takers.end("c")
    assert takers.budget.taken_bytes == 0


async def test_who_wants_much_is_not_overtaken(takers):
    await takers.start("a", 6)
    await takers.start("large", 8)
    await takers.start("small", 1)
    assert takers.have == ["a"]
    await takers.end("a")
    assert takers.have == ["large", "small"]


async def test_who_wants_more_than_there_is_gets_all(takers):
    await takers.start("a", 1)
    await takers.start("all", 11)
    assert takers.have == ["a"]
    await takers.end("a")
    assert takers.have == ["all"]
    assert takers.budget.taken_bytes == 10
    await takers.end("all")
    assert takers.budget.taken_bytes == 0


async def test_nothing_is_taken_by_who_wants_nothing(takers):
    await takers.start("a", 10)
    await takers.start("nothing", 0)
    assert takers.have == ["a", "nothing"]


async def test_who_is_cancelled_makes_room(takers):
    await takers.start("a", 6)
    await takers.start("large", 8)
    await takers.start("small", 4)
    await cancelled(takers.tasks["large"])
    await let_run(3)
    assert takers.have == ["a", "small"]
    await cancelled(takers.tasks["a"])
    await takers.end("small")
    assert takers.budget.taken_bytes == 0


async def test_one_cancelled_in_the_middle_is_passed_over(takers):
    await takers.start("a", 10)
    await takers.start("b", 10)
    await takers.start("c", 10)
    await takers.start("d", 10)
    await cancelled(takers.tasks["c"])
    await takers.end("a")
    await takers.end("b")
    assert takers.have == ["d"]


async def test_cancelled_in_the_moment_of_its_turn(takers):
    async with takers.budget.take(10):
        await takers.start("b", 10)
        await takers.start("c", 10)
    await cancelled(takers.tasks["b"])  # it has its turn, and has not run since
    await let_run(3)
    assert takers.have == ["c"]
    await takers.end("c")
    assert takers.budget.taken_bytes == 0


async def test_any_order_of_ends_gives_all_back(rng):
    budget = ByteBudget(100)
    most = 0

    async def take() -> None:
        nonlocal most
        async with budget.take(rng.randrange(130)):
            most = max(most, budget.taken_bytes)
            await let_run(rng.randrange(5))

    tasks = [asyncio.create_task(take()) for _ in range(200)]
    for task in rng.sample(tasks, 40):
        await let_run(rng.randrange(3))
        task.cancel()
    await asyncio.wait(tasks)
    assert most <= 100
    assert budget.taken_bytes == 0


def test_there_is_something_to_take():
    with pytest.raises(ConfigError):
        ByteBudget(0)
    assert ByteBudget(7).max_bytes == 7
