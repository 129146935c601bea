from __future__ import annotations

import asyncio

import pytest

from asynctune.errors import ConfigError, FencedError, StoreClosedError
from asynctune.store.supervisor import Supervisor, first_error


def test_the_first_error_of_a_group_is_one_of_this_library_where_there_is_one():
    own, other = FencedError("fenced"), ValueError("other")
    assert first_error(other) is other
    assert first_error(ExceptionGroup("g", [other])) is other
    nested = ExceptionGroup("g", [other, ExceptionGroup("h", [KeyError("k"), own])])
    assert first_error(nested) is own


class Failing:
    def __init__(self, error):
        self.error = error
        self.go = asyncio.Event()
        self.ended = False

    async def fails(self):
        await self.go.wait()
        raise self.error

    async def waits(self):
        try:
            await asyncio.Event().wait()
        finally:
            self.ended = True


@pytest.mark.parametrize("error", [ConfigError("x"), ValueError("x"), KeyError("x")])
async def test_the_failure_of_one_task_ends_all_and_is_told_once(error):
    told: list[BaseException] = []
    failing = Failing(error)
    was_told = asyncio.Event()

    def tell(error):
        told.append(error)
        was_told.set()

    supervisor = Supervisor([failing.fails, failing.waits], tell)
    supervisor.start()
    await asyncio.sleep(0)
    failing.go.set()
    await was_told.wait()
    await supervisor.stop()
    await supervisor.stop()
    assert told == [error]
    assert failing.ended
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_stop_ends_all_tasks_and_is_no_failure():
    told: list[BaseException] = []
    waiting = Failing(None)
    supervisor = Supervisor([waiting.waits], told.append)
    supervisor.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await supervisor.stop()
    assert waiting.ended
    assert told == []


async def test_a_stop_before_the_start_returns():
    await Supervisor([], lambda error: None).stop()


def test_a_loop_that_ends_first_is_a_failure_that_says_so():
    told: list[BaseException] = []

    async def main():
        supervisor = Supervisor([Failing(None).waits], told.append)
        supervisor.start()
        await asyncio.sleep(0)

    asyncio.run(main())
    (error,) = told
    assert isinstance(error, StoreClosedError)
    assert "event loop ended" in str(error)
