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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from asynctune.checkpoints.borrowing import fetch_tree
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homeward import send_tree
from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.checkpoints.travelling import Call
from asynctune.checkpoints.trial_sending import FileSender
from asynctune.errors import AsynctuneError, ConfigError
from asynctune.runners.bucket_bringing import BucketSending

__all__ = ["Bringing", "Settings", "bringing_of"]

logger = logging.getLogger("asynctune")

_LOOK_AGAIN_S: Final = 0.2
_PATIENCE_S: Final = 10.0


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
        home: Directory of the agent; `None`: the node sees the driver's own.
    """

    def __init__(
        self, call: Call, task: Mapping[str, Any], settings: Settings, *, copy: str | None, home: str | None
    ) -> None:
        self._call = call
        self._task = task
        self._copy = copy
        self._settings = settings
        self._home = home
        self._hurry = asyncio.Event()
        self._numbers = 0
        self._waiting: dict[int, Mapping[str, Any]] = {}
        self._bucket: BucketSending | None = None
        self._threads: DiskThreads | None = None
        self._files: FileSender | None = None
        self._sending_files: asyncio.Task[None] | None = None
        self.trial_id = str(task["trial_id"])

    @property
    def is_shared(self) -> bool:
        """Whether the node sees the driver's directory."""
        return self._home is None

    @property
    def is_allowed(self) -> bool:
        """Whether the trial may run here."""
        return self.is_shared or not self._settings.must_be_shared

    # -- before --------------------------------------------------------------------------------------------

    async def task(self) -> dict[str, Any]:
        """What the worker is told: with paths of this node, where the checkpoint to go on from is.

        Raises:
            TrialFailedError, StorageError: It cannot be brought here.
        """
        task = dict(self._task)
        if self._home is None:
            return task
        task["trial_dir"] = os.path.join(self._home, task["trial_name"])
        await asyncio.to_thread(_make_empty, task["trial_dir"])
        if task["checkpoint"] is not None:
            to = os.path.join(self._home, f"restored-{secrets.token_hex(4)}")
            await fetch_tree(self._call, to)
            task["checkpoint"] = to
        self._threads = DiskThreads(2)
        self._files = FileSender(task["trial_dir"], threads=self._threads)
        self._sending_files = asyncio.create_task(self._send_files_now_and_then())
        if self._copy is not None:
            self._bucket = await BucketSending.open(
                self._copy, self._settings.storage_options, self._settings.sync_timeout_s
            )
        return task

    # -- meanwhile -----------------------------------------------------------------------------------------

    async def offer(self, staged: Mapping[str, Any]) -> dict[str, Any]:
        """Of a checkpoint that the worker has staged here: what the driver is told of it.

        Raises:
            StorageError: The driver's disk or this one refuses.
            ConfigError: It cannot be a checkpoint.
        """
        if self._home is None:
            return dict(staged)
        if self._bucket is None and self._settings.sync_on_checkpoint:
            return await send_tree(self._call, StagedCheckpoint.from_value(staged))
        self._numbers += 1
        self._waiting[self._numbers] = staged
        return {"waits": self._numbers, "bucket": self._bucket is not None, "manifest": staged["manifest"]}

    async def taken(self, staged: Mapping[str, Any]) -> None:
        """The driver has answered the report: what it has need not be here any more."""
        if self._home is not None and all(each is not staged for each in self._waiting.values()):
            await asyncio.to_thread(shutil.rmtree, staged["path"], True)

    async def bring(self, op: str, arguments: Mapping[str, Any]) -> Any:
        """Bring one that waits: `bring` home in the next round, or `upload` it to the bucket under its name.

        Raises:
            ConfigError: None waits by this number.
            StorageError: The bucket, the driver's disk or this one refuses.
        """
        staged = self._waiting.get(arguments["waits"])
        if staged is None:
            raise ConfigError(f"no checkpoint {arguments['waits']!r} waits on this node")
        if not self._settings.sync_on_checkpoint:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(arguments["in_s"]):
                    await self._hurry.wait()
        try:
            if op == "upload":
                if self._bucket is None:
                    raise ConfigError("this node was given no bucket")
                await self._bucket.send(staged["path"], arguments["directory"], arguments["manifest"])
                return None
            return await send_tree(self._call, StagedCheckpoint.from_value(staged))
        finally:
            del self._waiting[arguments["waits"]]
            await asyncio.to_thread(shutil.rmtree, staged["path"], True)

    async def _send_files_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._settings.sync_period_s)
            await self._send_files()

    async def _send_files(self) -> None:
        assert self._files is not None
        try:
            await self._files.send_changed(self._call)
        except (AsynctuneError, OSError) as error:
            # They are sent with the next round; a trial does not fail for its log.
            logger.warning("files of trial %s could not be sent to the driver: %s", self.trial_id, error)

    # -- after ---------------------------------------------------------------------------------------------

    async def finish(self) -> None:
        """The trial has ended: what waits goes now, and its other files as they are at the end."""
        self._hurry.set()
        if self._sending_files is not None:
            self._sending_files.cancel()
            await asyncio.wait([self._sending_files])
            self._sending_files = None
            await self._send_files()

    async def aclose(self) -> None:
        """Nothing of it is wanted any more. Again: does nothing."""
        self._hurry.set()
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
        if self._home is not None:
            await asyncio.to_thread(shutil.rmtree, self._home, True)


async def bringing_of(
    call: Call, arguments: Mapping[str, Any], settings: Settings, agent_dir: str
) -> Bringing:
    """That of a trial that is to run, as the driver has asked for it.

    Args:
        call: Asks the driver.
        arguments: Of the call `run`: `task`, `copy`, and `marker`, a file that the driver has made in the trial's
            directory.
        settings: See there.
        agent_dir: The agent's directory on this node.
    """
    patience_s = (
        _PATIENCE_S if settings.must_be_shared else 0.0
    )  # a network filesystem may be late to show it
    while not (is_shared := await asyncio.to_thread(_is_there, arguments["marker"])) and patience_s > 0:
        await asyncio.sleep(_LOOK_AGAIN_S)
        patience_s -= _LOOK_AGAIN_S
    home = None if is_shared else os.path.join(agent_dir, f"run-{secrets.token_hex(4)}")
    return Bringing(call, arguments["task"], settings, copy=arguments["copy"], home=home)


def _make_empty(path: str) -> None:
    os.makedirs(path, mode=0o700)


def _is_there(path: str) -> bool:
    return os.path.exists(path)
