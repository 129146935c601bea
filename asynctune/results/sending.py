"""Owns one pass of result files to the mirror: frozen batch after batch, named by the state, and then sent.

When a pass begins, and what becomes of its failures, is `results.mirroring`'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from asynctune.errors import AsynctuneError, AuthenticationError, FencedError, StorageError
from asynctune.results.freezing import LOG_FILES, Freezer, Frozen, Seen
from asynctune.storage.threads import Threads

__all__ = ["LocalResults", "ResultBatches", "ResultSender", "as_storage_error", "disk_error"]

logger = logging.getLogger("asynctune")

T = TypeVar("T")

_TRIALS: Final = 64  # in a batch, for which the state is swapped once
_BYTES: Final = 256 << 20  # of copies on this disk; the files that are copied just then come on top
_MAX_FAILURES_IN_A_ROW: Final = 8  # then the mirror is at fault, and the rest is tried with the next pass


class ResultSender(Protocol):
    """What makes an object of a file; `Transfer` is one."""

    async def send(self, key: str, path: str, *, size_bytes: int, crc32c: int) -> object:
        """Make the object `key` of a frozen file, in place of what is there. It may take the file away.

        Raises:
            StorageError: It could not.
        """
        ...


class LocalResults(Protocol):
    """The result files on this disk; `ResultFiles` is one."""

    async def sync(self) -> int | None:
        """Return when they have all that was committed before the call: the seq of that; `None`: they cannot.

        Raises:
            StorageError: They cannot.
        """
        ...

    async def between_writes(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread while nothing is written to them."""
        ...


@dataclass(slots=True)
class _Pass:
    """What is left of one pass, and how it goes."""

    todo: dict[str, None]
    waiting: deque[str]
    failures: list[StorageError] = field(default_factory=list)
    fenced: FencedError | None = None
    is_over: bool = False

    def failed(self, error: Exception) -> None:
        if isinstance(error, FencedError):
            self.fenced, self.is_over = error, True
            return
        self.failures.append(as_storage_error(error))
        self.is_over = self.is_over or isinstance(error, AuthenticationError)


class ResultBatches:
    """Sends what trials have that the mirror has not.

    A batch is frozen, then the state is brought to name what its files hold, then they are sent: so the mirror's files
    are never ahead of its state, and a swap of the state serves many trials. Copies take the disk's room, not memory.

    Args:
        sender: Sends one file; several are under way at once.
        results: The local files.
        freezer: Makes the copies.
        threads: Where the disk is waited for.
        named: Awaited between freezing and sending; when it returns, the state knows all that was committed before.
            `None`: nothing is awaited.
        at_once: How many trials' files are copied, or sent, at once.

    Attributes:
        sent_files: How many files were sent.
        sent_bytes: How many bytes.
    """

    def __init__(
        self,
        sender: ResultSender,
        results: LocalResults,
        *,
        freezer: Freezer,
        threads: Threads,
        named: Callable[[], Awaitable[None]] | None,
        at_once: int,
    ) -> None:
        self.sent_files = 0
        self.sent_bytes = 0
        self._sender = sender
        self._results = results
        self._freezer = freezer
        self._threads = threads
        self._named = named
        self._at_once = at_once
        self._seen = Seen()

    async def send(self, todo: dict[str, None]) -> list[StorageError]:
        """Send the files of these trials that have changed; what failed.

        Args:
            todo: Names of trials. Those of which the mirror has everything are taken out, whatever is raised.

        Raises:
            FencedError: Another opening owns the mirror.
        """
        run = _Pass(todo, deque(todo))
        while run.waiting and not run.is_over:
            await self._send_batch(run)
        if run.fenced is not None:
            raise run.fenced
        return run.failures

    async def _send_batch(self, run: _Pass) -> None:
        batch: dict[str, list[Frozen]] = {}
        try:
            await self._freeze_batch(run, batch)
            if batch and run.fenced is None and await self._is_named(run):
                await self._send_frozen(run, batch)
        finally:
            try:
                await self._discard([each for frozen in batch.values() for each in frozen])
            except OSError as error:  # what stays is removed by the next opening
                run.failed(disk_error(error))

    async def _freeze_batch(self, run: _Pass, batch: dict[str, list[Frozen]]) -> None:
        taken = size_bytes = in_a_row = 0

        async def work() -> None:
            nonlocal taken, size_bytes, in_a_row
            while run.waiting and taken < _TRIALS and size_bytes < _BYTES and not run.is_over:
                taken += 1
                name = run.waiting.popleft()
                try:
                    frozen = await self._freeze(name)
                except Exception as error:  # noqa: BLE001 - a fault in a copy must not end what it is a copy of
                    run.failed(error)
                    in_a_row += 1
                    run.is_over = run.is_over or in_a_row >= _MAX_FAILURES_IN_A_ROW
                    continue
                in_a_row = 0
                if frozen:
                    batch[name] = frozen
                    size_bytes += sum(each.size_bytes for each in frozen)
                else:
                    run.todo.pop(name, None)

        await self._together(work)

    async def _is_named(self, run: _Pass) -> bool:
        if self._named is not None:
            try:
                await self._named()
            except Exception as error:  # noqa: BLE001 - likewise
                run.failed(error)
                run.is_over = True  # it would be no other for the next batch
                return False
        return True

    async def _send_frozen(self, run: _Pass, batch: dict[str, list[Frozen]]) -> None:
        in_a_row, is_over = 0, False

        async def work() -> None:
            nonlocal in_a_row, is_over
            while batch and not is_over:
                name = next(iter(batch))
                try:
                    await self._send(name, batch.pop(name))
                except Exception as error:  # noqa: BLE001 - likewise
                    run.failed(error)
                    in_a_row += 1
                    run.is_over = run.is_over or in_a_row >= _MAX_FAILURES_IN_A_ROW
                    is_over = run.is_over
                else:
                    run.todo.pop(name, None)
                    in_a_row = 0

        await self._together(work)

    async def _together(self, work: Callable[[], Any]) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._at_once):
                tasks.create_task(work())

    async def _send(self, trial_name: str, frozen: list[Frozen]) -> None:
        try:
            for each in frozen:
                await self._sender.send(
                    f"{trial_name}/{each.name}", each.path, size_bytes=each.size_bytes, crc32c=each.crc32c
                )
                self.sent_files += 1
                self.sent_bytes += each.size_bytes
                self._seen.note(trial_name, [each])
        finally:
            await self._discard(frozen)

    async def _freeze(self, trial_name: str) -> list[Frozen]:
        """Copies of what has changed. Nothing is written meanwhile but logs, which only grow."""
        made: list[Frozen] = []

        def freeze(names: list[str]) -> None:
            for name in names:
                seen = self._seen.stamp(trial_name, name)
                found = self._freezer.freeze(trial_name, name, numbers[name], seen)
                if found is not None:
                    made.append(found)

        try:
            names = await self._threads.run(self._freezer.names, trial_name)
            numbers = {name: self._freezer.number() for name in names}
            await self._results.between_writes(
                lambda: freeze([each for each in names if each not in LOG_FILES])
            )
            await self._threads.run(freeze, [each for each in names if each in LOG_FILES])
        except BaseException as error:
            await self._discard(made)
            if isinstance(error, OSError):
                raise disk_error(error) from error
            raise
        return made

    async def _discard(self, frozen: list[Frozen]) -> None:
        if frozen:
            await self._threads.run(self._freezer.discard, [each.path for each in frozen])


def as_storage_error(error: Exception) -> StorageError:
    """Itself, or one that stands for it: of a name that the mirror cannot hold, say, which concerns one trial."""
    if isinstance(error, StorageError):
        return error
    if not isinstance(error, AsynctuneError):
        logger.error("result files cannot be copied to the mirror: %r", error, exc_info=error)
    made = StorageError(str(error) or repr(error), operation="put")
    made.__cause__ = error
    return made


def disk_error(error: OSError) -> StorageError:
    """What the disk refused, for whoever asked for a pass."""
    where: Any = error.filename
    return StorageError(
        f"cannot copy result files aside: {error}",
        operation="read",
        key=where if isinstance(where, str) else None,
        retryable=True,
    )
