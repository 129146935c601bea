"""Who waits for a commit."""

from __future__ import annotations

import asyncio

import pytest

from asynctune.errors import StorageError
from asynctune.state.mirror.waiting import Waiters


async def test_each_is_told_when_its_commit_is_there():
    waiters = Waiters()
    tasks = [asyncio.get_running_loop().create_task(waiters.wait(seq)) for seq in (3, 5, 9)]
    await asyncio.sleep(0)
    assert len(waiters) == 3
    waiters.reached(5)
    await asyncio.gather(*tasks[:2])
    assert len(waiters) == 1
    waiters.fail(StorageError("no"))
    with pytest.raises(StorageError, match="no"):
        await tasks[2]
    assert len(waiters) == 0


async def test_a_cancelled_one_is_forgotten():
    waiters = Waiters()
    task = asyncio.get_running_loop().create_task(waiters.wait(3))
    await asyncio.sleep(0)
    task.cancel()
    waiters.fail(StorageError("too late"))
    with pytest.raises((asyncio.CancelledError, StorageError)):
        await task
    assert len(waiters) == 0
    waiters.reached(9)
