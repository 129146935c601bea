"""Owns how what a trial saves on a node gets to the driver: where it writes, what is sent, and when.

There are three ways. The node sees the driver's directory (a marker file is there): the trial writes to it, as on the
driver's own machine. It does not: the trial writes to a directory of the agent's, and what it saves is sent home to
the driver; or, with a bucket, straight to the bucket, and the driver is only told. How trees travel is
`asynctune.checkpoints`'; what the driver makes of it is `arrivals`'.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homeward import abandon_tree, send_tree
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.checkpoints.travelling import Call
from asynctune.checkpoints.trial_sending import FileSender
from asynctune.errors import AsynctuneError, ConfigError, StorageError
from asynctune.runners.bucket_bringing import NodeBucket
from asynctune.runners.fetching import fetch_from_head, fetch_in_place, fetch_own_files
from asynctune.runners.told_errors import FullDiskError

__all__ = ["Bringing", "Settings", "bringing_of"]

logger = logging.getLogger("asynctune")

_LOOK_AGAIN_S: Final = 0.2
_PATIENCE_S: Final = 10.0
_ATTEMPTS: Final = 3
_BETWEEN_S: Final = 1.0
_ABANDON_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the driver's `SyncConfig` means for a node.

    Attributes:
        must_be_shared: `syncer=None`: every node has to see the driver's directory.
        storage_options: Credentials and endpoint of the bucket that the experiment's copy is in.
        sync_on_checkpoint: Checkpoints go at once; otherwise every `sync_period_s`.
        sync_period_s: Seconds between two rounds; other files of a trial go then, too.
        sync_timeout_s: Seconds after which a transfer without progress has failed.
    """

    must_be_shared: bool = False
    storage_options: Mapping[str, Any] | None = None
    sync_on_checkpoint: bool = True
    sync_period_s: float = 300.0
    sync_timeout_s: float = 1800.0

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Take back what `to_value` made."""
        return cls(**value)

    def to_value(self) -> dict[str, Any]:
        """As a msgpack value."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        return f"Settings(must_be_shared={self.must_be_shared})"  # no options: they may hold credentials


class Bringing:
    """What one start of a trial saves on this node.

    Args:
        call: Asks the driver.
        task: The trial, as the driver's worker would get it.
        settings: See there.
        copy: URI of the experiment's copy, where checkpoints go straight to; `None`: they go home.
        is_shared: Whether the node sees the driver's directory.
        scratch: A directory of this node that is not there, for what this start has on it.
        place: Where the checkpoint is that the trial goes on from, if the node is to fetch it there: attributes of a
            `CheckpointPlace`.
        has_files: Earlier starts have left files of their own in the trial's directory, which this one goes on with.
    """

    def __init__(
        self,
        call: Call,
        task: Mapping[str, Any],
        settings: Settings,
        *,
        copy: str | None,
        is_shared: bool,
        scratch: str,
        place: Mapping[str, Any] | None = None,
        has_files: bool = False,
    ) -> None:
        self._call = call
        self._task = task
        self._copy = copy
        self._settings = settings
        self._scratch = scratch
        self._place = place
        self._has_files = has_files
        self._numbers = 0
        self._waiting: dict[int, Mapping[str, Any]] = {}
        self._moving: dict[int, asyncio.Task[Any]] = {}
        self._last: tuple[int, Callable[[], Awaitable[None]]] | None = None
        """What was brought last, and how that is undone."""
        self._is_told = False
        self._bucket: NodeBucket | None = None
        self._threads: DiskThreads | None = None
        self._files: FileSender | None = None
        self._sending_files: asyncio.Task[None] | None = None
        self.trial_id = str(task["trial_id"])
        self.is_shared: Final = is_shared
        """Whether the node sees the driver's directory."""

    @property
    def _waits(self) -> bool:
        """Whether checkpoints stay here until the driver has said where they go, or when."""
        return self._bucket is not None or not self._settings.sync_on_checkpoint

    @property
    def is_allowed(self) -> bool:
        """Whether the trial may run here."""
        return self.is_shared or not self._settings.must_be_shared

    # -- before --------------------------------------------------------------------------------------------

    async def task(self) -> dict[str, Any]:
        """What the worker is told: with paths of this node, where the checkpoint to go on from is.

        Raises:
            CheckpointNotFoundError: It cannot be read at its place.
            ConfigError, MissingExtraError: This node cannot open the bucket.
            StorageError: It, or files of earlier starts, cannot be brought here.
        """
        task = dict(self._task)
        threads = self._threads = DiskThreads(2)
        task["checkpoint"] = await self._fetched(task["checkpoint"], threads)
        if self.is_shared:
            return task
        task["trial_dir"] = os.path.join(self._scratch, task["trial_name"])
        await asyncio.to_thread(_make_empty, task["trial_dir"])
        if self._has_files:
            await fetch_own_files(self._call, task["trial_dir"], threads=threads)
        self._files = FileSender(task["trial_dir"], threads=threads)
        if self._has_files:
            await self._files.take_stock()
        self._sending_files = asyncio.create_task(self._send_files_now_and_then())
        if self._copy is not None:
            await (await self._opened_bucket()).check()
        return task

    async def _fetched(self, checkpoint: str | None, threads: DiskThreads) -> str | None:
        """A private copy of what the trial goes on from, on this node; `checkpoint`: its path on the driver's."""
        to = os.path.join(self._scratch, f"restored-{secrets.token_hex(4)}")
        if self._place is not None:
            bucket = None if self._copy is None else self._opened_bucket
            await fetch_in_place(self._place, to, is_shared=self.is_shared, bucket=bucket, threads=threads)
            return to
        if checkpoint is None or self.is_shared:
            return checkpoint
        await fetch_from_head(self._call, to, threads=threads)
        return to

    async def _opened_bucket(self) -> NodeBucket:
        if self._bucket is None:
            assert self._copy is not None
            self._bucket = await NodeBucket.open(
                self._copy, self._settings.storage_options, self._settings.sync_timeout_s
            )
        return self._bucket

    # -- meanwhile -----------------------------------------------------------------------------------------

    async def offer(self, staged: Mapping[str, Any]) -> dict[str, Any]:
        """Of a checkpoint that the worker has staged here: what the driver is told of it.

        Raises:
            StorageError: The driver's disk or this one refuses.
            ConfigError: It cannot be a checkpoint.
        """
        if self.is_shared:
            return dict(staged)
        if not self._waits:
            return await self._sent_home(staged)
        self._numbers += 1
        self._waiting[self._numbers] = staged
        return {"waits": self._numbers, "bucket": self._bucket is not None, "manifest": staged["manifest"]}

    async def taken(self, staged: Mapping[str, Any]) -> None:
        """The driver has answered the report: what was sent need not be here any more."""
        if not self.is_shared and not self._waits:
            await asyncio.to_thread(shutil.rmtree, staged["path"], True)

    def refused(self, staged: Mapping[str, Any]) -> None:
        """The driver does not take the report; the worker removes what it has staged."""
        for number in [number for number, each in self._waiting.items() if each is staged]:
            del self._waiting[number]

    async def bring(self, op: str, arguments: Mapping[str, Any]) -> Any:
        """Bring one that waits: `bring` home, or `upload` it to the bucket; it is not here any more then.

        Raises:
            ConfigError: None waits by this number.
            StorageError: The bucket, the driver's disk or this one refuses.
        """
        number = arguments["waits"]
        staged = self._waiting.pop(number, None)
        if staged is None:
            raise ConfigError(f"no checkpoint {number!r} waits on this node")
        moving = self._moving[number] = asyncio.create_task(self._move(op, staged, arguments))
        try:
            return await moving
        finally:
            del self._moving[number]
            await asyncio.to_thread(shutil.rmtree, staged["path"], True)

    async def _move(self, op: str, staged: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        self._last = None
        if op == "bring":
            value = await self._sent_home(staged)
            self._last = arguments["waits"], lambda: self._abandoned(staged)
            return value
        if (bucket := self._bucket) is None:
            raise ConfigError("this node was given no bucket")
        directory, manifest = arguments["directory"], arguments["manifest"]
        await bucket.send(staged["path"], directory, manifest)
        self._last = arguments["waits"], lambda: bucket.take_back(directory, manifest)
        return None

    async def drop(self, number: int) -> None:
        """Nobody wants this one: what has come of it is taken back."""
        if (moving := self._moving.get(number)) is not None:
            moving.cancel()
            await asyncio.wait([moving])
        if (staged := self._waiting.pop(number, None)) is not None:
            await asyncio.to_thread(shutil.rmtree, staged["path"], True)
        if self._last is not None and self._last[0] == number:
            (_, undo), self._last = self._last, None
            await undo()

    async def _sent_home(self, staged: Mapping[str, Any]) -> dict[str, Any]:
        """Waits for space on the driver's disk, as a worker does that writes there itself."""
        checkpoint = await asyncio.to_thread(StagedCheckpoint.from_value, staged)
        failures = 0
        try:
            while True:
                try:
                    return await send_tree(self._call, checkpoint, threads=self._threads)
                except StorageError as error:
                    failures += 0 if isinstance(error, FullDiskError) else 1
                    if not error.retryable or failures > _ATTEMPTS:
                        raise
                    if isinstance(error, FullDiskError) and not self._is_told:
                        self._is_told = True
                        logger.warning("trial %s waits for space: %s", self.trial_id, error)
                await asyncio.sleep(_BETWEEN_S)
        except BaseException:
            await self._abandoned(staged)
            raise

    async def _abandoned(self, staged: Mapping[str, Any]) -> None:
        with contextlib.suppress(AsynctuneError, OSError, TimeoutError):
            async with asyncio.timeout(_ABANDON_S):
                await abandon_tree(self._call, await asyncio.to_thread(StagedCheckpoint.from_value, staged))

    async def _send_files_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sync_period_s)
            await self._send_files()

    async def _send_files(self) -> None:
        assert self._files is not None
        try:
            await self._files.send_changed(self._call)
        except Exception as error:  # noqa: BLE001 - whatever it is
            # They are sent with the next round; a trial does not fail for its log.
            logger.warning("files of trial %s could not be sent to the driver: %s", self.trial_id, error)

    # -- after ---------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """The trial has ended: its own files go as they are at the end."""
        if self._sending_files is not None:
            self._sending_files.cancel()
            await asyncio.wait([self._sending_files])
            self._sending_files = None
            await self._send_files()

    async def aclose(self) -> None:
        """Nothing of it is wanted any more. Again: does nothing."""
        for moving in list(self._moving.values()):
            moving.cancel()
        if self._moving:
            await asyncio.wait(list(self._moving.values()))
        if self._sending_files is not None:
            self._sending_files.cancel()
            await asyncio.wait([self._sending_files])
            self._sending_files = None
        if self._bucket is not None:
            await self._bucket.aclose()
            self._bucket = None
        if self._threads is not None:
            self._threads.close()
            self._threads = None
        await asyncio.to_thread(shutil.rmtree, self._scratch, True)


async def bringing_of(
    call: Call, arguments: Mapping[str, Any], settings: Settings, agent_dir: str
) -> Bringing:
    """That of a trial that is to run, as the driver has asked for it.

    Args:
        call: Asks the driver.
        arguments: Of the call `run`: `task`, `place`, `copy` and the `storage_options` for it, and `marker`, a file
            that the driver has made in the trial's directory.
        settings: See there.
        agent_dir: The agent's directory on this node.
    """
    patience_s = (
        _PATIENCE_S if settings.must_be_shared else 0.0
    )  # a network filesystem may be late to show it
    while not (is_shared := await asyncio.to_thread(_is_there, arguments["marker"])) and patience_s > 0:
        await asyncio.sleep(_LOOK_AGAIN_S)
        patience_s -= _LOOK_AGAIN_S
    settings = replace(settings, storage_options=arguments.get("storage_options"))
    return Bringing(
        call,
        arguments["task"],
        settings,
        copy=arguments["copy"],
        is_shared=is_shared,
        scratch=os.path.join(agent_dir, f"run-{secrets.token_hex(4)}"),
        place=arguments.get("place"),
        has_files=arguments.get("own", False),
    )


def _make_empty(path: str) -> None:
    os.makedirs(path, mode=0o700)


def _is_there(path: str) -> bool:
    return os.path.exists(path)
