from __future__ import annotations

import asyncio
import errno
import threading

import pytest

from asynctune.checkpoints.disk import SourceError, disk_errors, to_the_end
from asynctune.errors import ConfigError, StorageError


async def test_a_cancelled_caller_waits_for_its_thread(threads):
    entered, leave = threading.Event(), threading.Event()
    done = []

    def work() -> None:
        entered.set()
        leave.wait()
        done.append(1)

    task = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # impatience changes nothing
    await asyncio.sleep(0)
    assert not task.done()
    leave.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done


async def test_an_error_under_a_cancellation_is_not_lost(threads):
    entered, leave = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        leave.wait()
        raise OSError(errno.EIO, "a fault")

    task = asyncio.create_task(threads.run(work))
    await asyncio.to_thread(entered.wait)
    task.cancel()
    await asyncio.sleep(0)
    leave.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert "a fault" in str(caught.value.__notes__)


async def test_an_error_of_the_thread_reaches_the_caller(threads):
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(max, 1, 2) == 2


async def test_work_that_is_cancelled_itself_does_not_hang():
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await to_the_end(work())


@pytest.mark.parametrize(
    ("number", "retryable", "says"),
    [
        (errno.ENOSPC, True, "free some space"),
        (errno.EDQUOT, True, "free some space"),
        (errno.EIO, False, "reports a fault"),
        (errno.EACCES, False, "permissions"),
        (errno.EMFILE, True, "ulimit -n"),
        (errno.EROFS, False, "read-only"),
    ],
)
def test_what_the_operating_system_says_becomes_advice(number, retryable, says):
    with pytest.raises(StorageError) as caught, disk_errors("save checkpoint 5", "/exp"):
        raise OSError(number, "reason", "/exp/t/file")
    error = caught.value
    assert (error.operation, error.key, error.retryable) == ("save", "/exp/t/file", retryable)
    assert says in str(error)
    assert "cannot save checkpoint 5: /exp/t/file: reason" in str(error)


def test_an_error_without_a_path_names_the_one_at_hand():
    with pytest.raises(StorageError, match="/exp: EIO") as caught, disk_errors("write it", "/exp"):
        raise OSError(errno.EIO, "EIO")
    assert caught.value.key == "/exp"


def test_sources_and_other_errors():
    with (
        pytest.raises(StorageError, match=r"/src/f changed.*finish writing") as caught,
        disk_errors("x", "/exp"),
    ):
        raise SourceError("/src/f", "changed while it was read")
    assert caught.value.retryable
    with pytest.raises(StorageError, match="Permission") as caught, disk_errors("x", "/exp"):
        raise SourceError("/src/f", "no", PermissionError(errno.EACCES, "Permission denied"))
    assert caught.value.key == "/src/f"
    with pytest.raises(ConfigError), disk_errors("x", "/exp"):
        raise ConfigError("stays what it is")


def test_where_no_path_is_known_none_is_named():
    with pytest.raises(StorageError, match="cannot save it: EIO"), disk_errors("save it", ""):
        raise OSError(errno.EIO, "EIO")
