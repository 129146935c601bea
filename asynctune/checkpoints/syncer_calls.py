"""Owns how a `Syncer` of the user's is called: in a thread or on the loop, in turn, under a deadline, and its failures.

A plain method that hangs cannot be ended. It is given up after its deadline, and until it returns the calls after it in
the same direction wait for it, each no longer than its own deadline: none is doubled. Knows nothing of what is copied.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal

from asynctune.checkpoints.commands import in_daemon_thread
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.scrubbing import scrubbed, scrubbed_end, secret_values
from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, StorageError
from asynctune.files import LocalFiles
from asynctune.protocols import Syncer

__all__ = ["SyncerCalls", "make_place"]

_MOST_TEXT: Final = 2048

Direction = Literal["up", "down"]


class SyncerCalls:
    """Calls one `Syncer`; at most one `sync_up` or `delete`, and beside it one `sync_down`, at a time.

    A cancelled call of an `async` method is cancelled; that of a plain one goes on in its thread, and nobody waits
    for it but the next call.

    Args:
        syncer: The user's.
        timeout_s: Seconds after which a call has failed; waiting for its turn does not count.
        clock: Counts them.
    """

    def __init__(self, syncer: Syncer, *, timeout_s: float, clock: Clock) -> None:
        self._syncer = syncer
        self._timeout_s = timeout_s
        self._clock = clock
        self._lines: dict[Direction, _Line] = {"up": _Line(), "down": _Line()}

    @property
    def name(self) -> str:
        """Of the syncer's class, for messages."""
        return type(self._syncer).__name__

    async def up(
        self,
        local_dir: str,
        remote_dir: str,
        exclude: Sequence[str] | None = None,
        *,
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """Copy a directory, which must not change meanwhile, to the remote place.

        Args:
            local_dir: Absolute path.
            remote_dir: Where to.
            exclude: What is left out.
            waiting: Called whenever a call before this one has ended, and when it begins.

        Raises:
            StorageError: It failed, or did not end in time; retryable.
        """
        arguments = (local_dir, remote_dir, *_given(exclude))
        await self._call("sync_up", remote_dir, "up", arguments, waiting)

    async def down(self, remote_dir: str, local_dir: str, exclude: Sequence[str] | None = None) -> None:
        """Copy from the remote place to an existing directory. Errors as for `up`."""
        await self._call("sync_down", remote_dir, "down", (remote_dir, local_dir, *_given(exclude)))

    async def delete(self, remote_dir: str) -> None:
        """Delete what is at the remote place. Errors as for `up`."""
        await self._call("delete", remote_dir, "up", (remote_dir,))

    async def _call(
        self,
        operation: str,
        remote_dir: str,
        direction: Direction,
        arguments: tuple[Any, ...],
        waiting: Callable[[], object] = lambda: None,
    ) -> None:
        line = self._lines[direction]
        async with line.turn(waiting):
            try:
                async with self._clock.timeout(self._timeout_s):
                    await line.the_one_given_up()
                    await self._perform(line, operation, arguments)
            except TimeoutError:
                raise self._failure(
                    operation, remote_dir, f"did not end within {self._timeout_s:g} s"
                ) from None
            except AsynctuneError:
                raise
            except _FailedError as error:
                raise self._failure(operation, remote_dir, str(error)) from None
            except Exception as error:  # noqa: BLE001 - whatever a user's method raises is its failure
                raise self._failure(operation, remote_dir, _told(error)) from None

    async def _perform(self, line: _Line, operation: str, arguments: tuple[Any, ...]) -> None:
        for name, given in ((operation, arguments), ("wait", ())):
            method = getattr(self._syncer, name, None)
            if name == "wait" and not callable(method):
                return
            assert method is not None
            try:
                if inspect.iscoroutinefunction(method):
                    result = await method(*given)
                else:
                    result = await line.in_thread(name, method, given)
                    if inspect.isawaitable(result):
                        result = await result
            except TimeoutError as error:
                raise _FailedError(_told(error)) from None  # its own, and not that of the deadline
            if result is False:
                raise _FailedError(f"{name} returned False")

    def _failure(self, operation: str, remote_dir: str, what: str) -> StorageError:
        place = scrubbed(remote_dir)
        return StorageError(
            f"{operation} of the syncer {self.name}, {place}: {what}",
            operation=operation,
            key=place,
            retryable=True,
        )


async def make_place(
    calls: SyncerCalls, remote_dir: str, beside: str, files: LocalFiles, threads: DiskThreads
) -> None:
    """Put something into a remote directory of its own, so that what it lies in is there.

    Args:
        calls: The syncer.
        remote_dir: That directory.
        beside: A local path, beside which another one may be made for a moment.
        files: The operating system.
        threads: Where the blocking calls go.

    Raises:
        StorageError: The syncer failed.
        OSError: The disk said no.
    """
    local = f"{beside.rstrip('/')}.place"

    def write() -> None:
        remove()
        files.make_dir(local)
        fd = files.create(f"{local}/README")
        try:
            files.write_all(fd, b"What asynctune keeps of an experiment is beside this directory.\n")
        finally:
            files.close(fd)

    def remove() -> None:
        with suppress(FileNotFoundError):
            files.remove_tree(local)

    try:
        await threads.run(write)
        await calls.up(local, remote_dir)
    finally:
        await threads.run(remove)


class _FailedError(Exception):
    """A method failed; says how."""


class _Line:
    """Who calls in one direction, in the order in which they came."""

    def __init__(self) -> None:
        self._tickets: deque[object] = deque()
        self._moved = asyncio.Event()
        self._given_up: asyncio.Future[Any] | None = None

    @asynccontextmanager
    async def turn(self, waiting: Callable[[], object]) -> AsyncGenerator[None, None]:
        ticket = object()
        self._tickets.append(ticket)
        try:
            while self._tickets[0] is not ticket:
                await self._moved.wait()
                waiting()
            waiting()
            yield
        finally:
            self._tickets.remove(ticket)
            self._moved.set()
            self._moved = asyncio.Event()

    async def the_one_given_up(self) -> None:
        """Wait for a call that nobody waits for any more."""
        if self._given_up is not None:
            await asyncio.wait([self._given_up])
            self._given_up = None

    async def in_thread(self, name: str, method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        future = in_daemon_thread(f"asynctune-{name}", lambda: method(*arguments))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                self._given_up = future
                future.add_done_callback(_forget)
            raise


def _given(exclude: Sequence[str] | None) -> tuple[list[str], ...]:
    """A syncer need not have an argument for it."""
    return () if exclude is None else (list(exclude),)


def _forget(future: asyncio.Future[Any]) -> None:
    """What became of it is of no interest any more; a coroutine that came of it is not begun."""
    if future.cancelled() or future.exception() is not None:
        return
    if inspect.iscoroutine(future.result()):
        future.result().close()


def _told(error: Exception) -> str:
    text = scrubbed_end(str(error), _MOST_TEXT, secret_values(os.environ))
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})" if frames else ""
    return (
        f"raised {type(error).__name__}{where}: {text}" if text else f"raised {type(error).__name__}{where}"
    )
