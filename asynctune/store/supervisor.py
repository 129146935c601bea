"""Owns the tasks of one store: a TaskGroup in a task of its own, whose failure becomes the store's failed state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from asynctune.errors import AsynctuneError, StoreClosedError

__all__ = ["Supervisor", "first_error"]


def first_error(error: BaseException) -> BaseException:
    """The first leaf of an exception group, however deep; this library's own errors come first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [first_error(e) for e in error.exceptions]
    return next((e for e in leaves if isinstance(e, AsynctuneError)), leaves[0])


class Supervisor:
    """Runs the store's tasks until `stop`. A failure of one ends them all and is told to `on_failure`.

    It never cancels the task that opened the store.
    """

    def __init__(
        self,
        runs: Sequence[Callable[[], Coroutine[Any, Any, None]]],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._runs = runs
        self._on_failure = on_failure
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the tasks on the running loop."""
        self._task = asyncio.create_task(self._supervise(), name="asynctune-store")

    async def stop(self) -> None:
        """Cancel the tasks and return when they have ended; a second call only waits."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def cancel_soon(self) -> None:
        """Cancel the tasks without waiting; from any thread, and after the loop has ended."""
        task = self._task
        if task is not None and not task.done():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                task.get_loop().call_soon_threadsafe(task.cancel)

    async def _supervise(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run()) for run in self._runs]
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        except asyncio.CancelledError:
            self._on_failure(StoreClosedError("the event loop ended before the store was closed"))
            raise
        except BaseException as error:  # noqa: BLE001 - becomes the failed state, which every later call raises
            self._on_failure(first_error(error))
