"""Owns how a Tuner comes to its open store: a new experiment, one that goes on, and a signal that ends the opening."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asynctune.config import SyncConfig
from asynctune.errors import AsynctuneError, ExperimentExistsError, StorageError
from asynctune.store.pending import PendingStore
from asynctune.store.place import is_uri, place_of
from asynctune.store.store import ExperimentStore
from asynctune.tuning.endings import Interrupted
from asynctune.tuning.settings import Plan

__all__ = ["Opening", "Whence", "is_unbegun"]


@dataclass(frozen=True, slots=True)
class Whence:
    """What a restored experiment is opened from.

    Attributes:
        location: Its directory, or the URI of its copy.
        local_dir: Where it is staged then.
        options: Credentials and endpoint of the bucket.
        sync: How the copy is kept, if that was given again; a `Syncer` has to be.
    """

    location: str
    local_dir: str | os.PathLike[str] | None = None
    options: Mapping[str, Any] | None = field(default=None, repr=False)
    sync: SyncConfig | None = None

    def reading(self) -> PendingStore[ExperimentStore]:
        """Open it to look at it."""
        return ExperimentStore.open(self.location, mode="read", **self.read_with())

    def read_with(self) -> dict[str, Any]:
        """What else it takes to read it."""
        by_syncer = self.sync is not None and self.sync.syncer not in (None, "auto")
        return {
            "storage_options": self.options if is_uri(self.location) else None,
            "sync_config": self.sync if by_syncer else None,
        }

    def directory(self) -> Path:
        """Where it is, or will be, on this disk."""
        place = place_of(
            self.location,
            "resume",
            local_dir=self.local_dir,
            sync_config=self.sync,
            storage_options=self.options,
        )
        return Path(place.path)


class Opening:
    """The opening of one run.

    Args:
        plan: What is run.
        path: The experiment's directory.
        whence: What a restored one is opened from; `None`: it is a new one.
    """

    def __init__(self, plan: Plan, path: Path, whence: Whence | None) -> None:
        self._plan = plan
        self._path = path
        self._whence = whence
        self._task: asyncio.Task[ExperimentStore] | None = None
        self._is_given_up = False

    async def open(self) -> ExperimentStore:
        """The store, for writing.

        Raises:
            Interrupted: `give_up` was called meanwhile; nothing is open.
            ExperimentExistsError: There is one already, and it was to be new.
            Other errors as for `ExperimentStore.open`.
        """
        if self._is_given_up:
            raise Interrupted
        self._task = asyncio.ensure_future(self._open())
        try:
            return await self._task
        except asyncio.CancelledError:
            if self._is_given_up and not _is_cancelled():
                raise Interrupted from None
            raise

    def give_up(self) -> None:
        """Somebody wants this process to end: an opening that goes on waits for nothing any more."""
        self._is_given_up = True
        if self._task is not None:
            self._task.cancel()

    @property
    def again(self) -> str | None:
        """From what the experiment can be restored though it was not opened; `None`: there was none yet."""
        return None if self._whence is None else self._whence.location

    async def _open(self) -> ExperimentStore:
        if self._whence is not None:
            return await self._reopen(self._whence)
        plan, parent = self._plan, self._path.parent
        try:
            await asyncio.to_thread(os.makedirs, parent, exist_ok=True)
            return await ExperimentStore.open(
                self._path,
                mode="resume" if await self._was_cut_short() else "create",
                sync_config=plan.run.sync_config,
                checkpoint_config=plan.run.checkpoint_config,
                tensorboard=plan.run.tensorboard,
            )
        except ExperimentExistsError as error:
            where = self._where_it_exists(error)
            staged = "" if where == str(self._path) else f", local_dir={str(parent)!r}"
            raise ExperimentExistsError(
                f"there is an experiment at {where} already, and it is never overwritten; go on with it "
                f"(Tuner.restore({where!r}{staged})), or choose another name (RunConfig(name=...))"
            ) from error
        except OSError as error:
            raise StorageError(
                f"cannot make the directory {parent}: {error}", operation="mkdir", key=str(parent)
            ) from error

    def _where_it_exists(self, error: ExperimentExistsError) -> str:
        """The directory, or the copy, if that is what stands in the way."""
        sync = self._plan.run.sync_config
        place = place_of(self._path, "create", local_dir=None, sync_config=sync, storage_options=None)
        copy = "" if place.remote is None else str(place.remote.uri)
        return copy if copy and copy in str(error) else str(self._path)

    async def _reopen(self, whence: Whence) -> ExperimentStore:
        run = self._plan.run
        return await ExperimentStore.open(
            whence.location,
            mode="resume",
            local_dir=whence.local_dir,
            sync_config=whence.sync,
            checkpoint_config=run.checkpoint_config,
            storage_options=whence.options,
            tensorboard=run.tensorboard,
        )

    async def _was_cut_short(self) -> bool:
        """Whether a Tuner was killed here after it made the experiment, and before it recorded anything in it."""
        try:
            async with ExperimentStore.open(self._path, mode="read") as store:
                return is_unbegun(store)
        except AsynctuneError:  # none, or not one to go on with: opening it says so
            return False


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_unbegun(store: ExperimentStore) -> bool:
    """Whether nothing is in an experiment that was read, and its maker is gone: a Tuner records its settings first."""
    writer = store.writer_info  # none of one that was closed: whoever made that had begun it
    has_something = (
        len(store.trials)
        or store.metadata
        or store.saved_state("searcher")
        or store.saved_state("scheduler")
        or any(True for _ in store.logged_events())
    )
    return not has_something and writer is not None and writer["alive"] is False
