"""Owns the way of result files to the mirror: when, which, and what becomes of failures.

Whole files are sent as they were at one moment, and replace what the mirror has of them. How a pass does that is
`results.sending`'s; the bytes are a `ResultSender`'s, `asynctune.storage.transfer.Transfer` or what calls a syncer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, ConfigError, FencedError, StorageError
from asynctune.files import LocalFiles
from asynctune.results.freezing import Freezer
from asynctune.results.sending import (
    LocalResults,
    ResultBatches,
    ResultSender,
    as_storage_error,
    disk_error,
)
from asynctune.storage.threads import Threads

__all__ = ["LocalResults", "ResultSender", "ResultUploads"]

logger = logging.getLogger("asynctune")

_AT_ONCE: Final = 8
_FIRST_RETRY_S: Final = 5.0
_LAST_RETRY_S: Final = 300.0


class ResultUploads:
    """Keeps the result files of all trials in the mirror.

    A pass sends what has changed since the last one. Passes begin `period_s` apart, and whenever `project` is called.
    A file that could not be sent is tried again, sooner than that.

    Args:
        sender: Sends one file; several are under way at once.
        results: The local files.
        root: The experiment's directory; keys are relative to it.
        stage_dir: Where frozen copies are made; of these uploads alone.
        files: The operating system.
        clock: For the pace.
        emit: Called on the loop as `emit(kind, message=..., **data)`, with kind `results_upload_failed` (once until it
            works again) or `results_upload_back`.
        period_s: Seconds from the beginning of a pass to that of the next.
        covered: Called with each seq that the mirror's files cover.
        finish: Awaited at the end of a pass: what was sent is in the mirror when it returns.
        named: Awaited before a batch of frozen files is sent (with `finish`: before that): when it returns, the
            mirror's state knows all that they hold. Else who goes on from the mirror finds rows cut off that its state
            has, or rows that it never had.
        at_once: How many trials' files are sent at once.

    Raises:
        ConfigError: A number that makes no sense.
    """

    def __init__(
        self,
        sender: ResultSender,
        results: LocalResults,
        *,
        root: str,
        stage_dir: str,
        files: LocalFiles,
        clock: Clock,
        emit: Callable[..., None],
        period_s: float,
        covered: Callable[[int], object] = lambda _seq: None,
        finish: Callable[[], Awaitable[None]] | None = None,
        named: Callable[[], Awaitable[None]] | None = None,
        at_once: int = _AT_ONCE,
    ) -> None:
        if not period_s > 0 or at_once < 1:
            raise ConfigError(
                f"period_s must be above 0 and at_once at least 1, not {period_s!r} and {at_once!r}"
            )
        self._results = results
        self._freezer = Freezer(root, stage_dir, files, clock)
        self._threads = Threads("result-uploads", 2)
        self._batches = ResultBatches(
            sender,
            results,
            freezer=self._freezer,
            threads=self._threads,
            named=named if finish is None else None,
            at_once=at_once,
        )
        self._clock = clock
        self._emit = emit
        self._period_s = period_s
        self._tell_covered = covered
        self._finish = finish
        self._named = named
        self._dirty: dict[str, None] = {}  # a set in order
        self._work = asyncio.Event()
        self._moved = asyncio.Event()  # `_next_at` is another one
        self._closing = asyncio.Event()
        self._turn = asyncio.Lock()
        self._next_at = clock.monotonic()
        self._retry_s = 0.0  # 0 while all is well
        self._covered = 0

    @property
    def pending(self) -> int:
        """How many trials have files that the mirror may not have."""
        return len(self._dirty)

    @property
    def covered_seq(self) -> int:
        """The commit whose rows, with all before it, are in the mirror's files; 0: none, as far as is known here."""
        return self._covered

    @property
    def sent(self) -> tuple[int, int]:
        """How many files and bytes were sent."""
        return self._batches.sent_files, self._batches.sent_bytes

    def changed(self, trial_name: str) -> None:
        """A trial's files have changed, or may have. Loop only, no I/O."""
        self._dirty[trial_name] = None
        self._work.set()

    async def begin(self) -> None:
        """Remove what an earlier opening left half done.

        Raises:
            StorageError: The disk refuses.
        """
        try:
            await self._threads.run(self._freezer.begin)
        except OSError as error:
            raise disk_error(error) from error

    async def run(self) -> None:
        """Make passes while there is something to send, until `aclose`. A mirror that fails does not end it."""
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(self._beat())
            await self._closing.wait()
            beat.cancel()

    async def project(self, seq: int | None = None) -> int:
        """Return when the mirror's files have all that was committed before the call.

        Args:
            seq: This much is enough, if it is known to be there already.

        Returns:
            The seq that they cover.

        Raises:
            StorageError: Some could not be written here, or not be sent. They are tried again.
        """
        async with self._turn:
            if seq is None or self._covered < seq:
                await self._pass()
            return self._covered

    async def aclose(self) -> None:
        """Make no further pass; `run` returns. What is to be in the mirror at the end is `project`ed before."""
        self._closing.set()
        async with self._turn:
            self._threads.close()

    # -- passes ------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            if not self._dirty and not self._retry_s:
                self._work.clear()
                await self._work.wait()
            if (pause_s := self._next_at - self._clock.monotonic()) > 0:
                self._moved.clear()
                await self._clock.wait(self._moved, pause_s)
                continue  # somebody may have asked for a pass meanwhile
            async with self._turn:
                if self._next_at > self._clock.monotonic():
                    continue  # somebody has, while it waited for its turn
                with suppress(StorageError):  # it was told, and is tried again
                    await self._pass()

    async def _pass(self) -> None:
        began = self._clock.monotonic()
        try:
            problem: StorageError | None = None
            try:
                covered = await self._results.sync()
            except StorageError as error:
                covered, problem = None, error
            failures = await self._send_all()
            if self._finish is not None:
                try:
                    if self._named is not None:
                        await self._named()
                    await self._finish()
                except FencedError:
                    raise
                except AsynctuneError as error:
                    raise as_storage_error(error) from error.__cause__
            if failures:
                raise _joined(failures)
            if covered is None:
                raise problem or StorageError("the result files cannot be written", operation="write")
        except StorageError as error:
            self._failed(error, began)
            raise
        except BaseException:
            self._next_at = began + self._period_s
            raise
        self._next_at = began + self._period_s
        self._worked()
        if covered > self._covered:
            self._covered = covered
            self._tell_covered(covered)

    async def _send_all(self) -> list[StorageError]:
        """Send what every changed trial has; what could not be sent stays marked as changed."""
        todo, self._dirty = self._dirty, {}
        try:
            return await self._batches.send(todo)
        finally:
            self._dirty = {**todo, **self._dirty}

    # -- failures ----------------------------------------------------------------------------------------------

    def _failed(self, error: StorageError, began: float) -> None:
        if self._retry_s == 0:
            message = f"result files cannot be copied to the mirror, and are tried again: {error}"
            logger.warning("%s", message)
            self._emit("results_upload_failed", message=message, pending=len(self._dirty))
        self._retry_s = min(max(2 * self._retry_s, _FIRST_RETRY_S), _LAST_RETRY_S)
        self._next_at = min(began + self._period_s, self._clock.monotonic() + self._retry_s)
        self._work.set()
        self._moved.set()

    def _worked(self) -> None:
        if self._retry_s:
            self._retry_s = 0.0
            message = "result files are copied to the mirror again; nothing is missing there"
            logger.warning("%s", message)
            self._emit("results_upload_back", message=message)


def _joined(failures: list[StorageError]) -> StorageError:
    """The first of them, which says how many there are."""
    first = failures[0]
    others = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    error = StorageError(
        f"{first}{others}",
        operation=first.operation,
        key=first.key,
        retryable=all(each.retryable for each in failures),
    )
    error.__cause__ = first
    return error
