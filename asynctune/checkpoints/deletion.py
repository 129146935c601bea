"""Owns the deletion of checkpoints: which are retired, and in what order they disappear.

Retention says which (`retention`); here is when and how. A record is marked `deleting` and that mark,
together with the record of whatever replaces it, is durable before a file is touched; then go the manifest,
the files and, last, the record. A crash anywhere leaves a marked record, and the next opening goes on from
there. While the bucket has something of the checkpoint the record stays: `bucket_deletion` removes it.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable
from typing import Final, Protocol

from asynctune.checkpoints.context import Context, logger
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.retention import Candidate, plan_retention
from asynctune.checkpoints.turns import Leases
from asynctune.config import CheckpointConfig
from asynctune.errors import CorruptStateError
from asynctune.trial import MANIFEST_FILE

__all__ = ["Deletions", "Elsewhere"]

_TRIALS_BETWEEN_YIELDS: Final = 64


class Elsewhere(Protocol):
    """Knows of copies that are not on this disk. Loop only, no I/O."""

    def retired(self, trial_id: str, step: int) -> None:
        """A checkpoint is marked as being deleted."""
        ...

    def local_gone(self, record: CheckpointRecord) -> bool:
        """The local files of a retired checkpoint are gone; whether its record may go as well."""
        ...


class _Nowhere:
    """No bucket is known to this opening; but one may hold what records say, and a later opening may know it."""

    def retired(self, trial_id: str, step: int) -> None:
        pass

    def local_gone(self, record: CheckpointRecord) -> bool:
        return not (record.mirrored or record.bucket_deleting)


class Deletions:
    """Works off what is to be deleted, in the background.

    Args:
        context: What the room shares.
        config: How many checkpoints are kept.

    Attributes:
        elsewhere: Told what is retired, and asked before a record goes.
    """

    def __init__(self, context: Context, config: CheckpointConfig) -> None:
        self.elsewhere: Elsewhere = _Nowhere()
        self._context = context
        self._config = config
        self._leases = Leases(self.request)
        self._due: dict[str, None] = {}
        self._queue: dict[tuple[str, int], None] = {}
        self._failed: dict[tuple[str, int], None] = {}
        self._leftovers: dict[str, None] = {}
        self._warned = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def leases(self) -> Leases:
        """The leases that retention respects."""
        return self._leases

    @property
    def pending(self) -> int:
        """How many checkpoints are retired and not deleted yet."""
        return len(self._queue) + len(self._failed)

    # -- asking, on the loop, no I/O -----------------------------------------------------------------

    def request(self, trial_id: str) -> None:
        """Apply retention to the trial soon."""
        if self._config.num_to_keep is not None:
            self._due[trial_id] = None
            self._wake_up()

    def retire(self, trial_id: str) -> None:
        """Apply retention now: what goes is marked, in the same commit as whatever was put just before."""
        keep = self._config.num_to_keep
        if keep is None or len(self._context.records.steps(trial_id)) <= keep:
            return
        try:
            records = {record.step: record for record in self._context.records.live(trial_id)}
        except CorruptStateError as error:
            # Nothing of this trial is deleted while one of its records cannot be read.
            logger.warning("retention leaves trial %s alone: %s", trial_id, error)
            return
        candidates = [Candidate(record.step, record.metrics) for record in records.values()]
        plan = plan_retention(candidates, self._config, self._leases.steps(trial_id))
        if plan.warning is not None and not self._warned:
            self._warned = True
            logger.warning("trial %s: %s", trial_id, plan.warning)
        for step in plan.delete:
            self._context.records.retire(records[step])
            self.resume(trial_id, step)

    def resume(self, trial_id: str, step: int) -> None:
        """Delete a checkpoint whose record is marked."""
        self._queue[trial_id, step] = None
        self.elsewhere.retired(trial_id, step)
        self._wake_up()

    def remove_soon(self, paths: Iterable[str]) -> None:
        """Remove what no record names: private copies, unfinished stages of another opening."""
        self._leftovers.update(dict.fromkeys(paths))
        if self._leftovers:
            self._wake_up()

    # -- doing ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until closed. The store's TaskGroup owns this call, and gets what stops it.

        Raises:
            StorageError: The journal's disk failed for good.
            FencedError: Another opening owns the experiment.
        """
        self._ended.clear()
        try:
            while not (self._closing and not self._has_work()):
                await self._wake.wait()
                self._wake.clear()
                await self._work()
                if not self._wake.is_set():
                    self._idle.set()
        finally:
            self._ended.set()

    async def drain(self) -> None:
        """Return when nothing waits to be deleted, except what failed. `run` has to be under way."""
        await self._idle.wait()

    async def close(self) -> None:
        """Let `run` finish what is retired, and wait for its end; returns at once if it is not running."""
        self._closing = True
        self._wake.set()
        await self._ended.wait()

    def _wake_up(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _has_work(self) -> bool:
        return bool(self._due or self._queue or self._leftovers)

    async def _work(self) -> None:
        while self._due or self._leftovers:
            await self._apply_due()
            leftovers, self._leftovers = self._leftovers, {}
            for path in leftovers:
                await self.remove(path)
        if not self._queue:
            return
        # Marked before this line, so durable after it, and so is the record of what replaces them.
        marked = [*self._queue, *self._failed]
        await self._context.records.commit()
        for trial_id, step in marked:
            await self._delete(trial_id, step)

    async def _apply_due(self) -> None:
        count = 0
        while self._due:
            trial_id = next(iter(self._due))
            del self._due[trial_id]
            self.retire(trial_id)
            count += 1
            if count % _TRIALS_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)

    async def _delete(self, trial_id: str, step: int) -> None:
        context, key = self._context, (trial_id, step)
        record = context.records.get(trial_id, step)
        if record is None or not record.deleting:
            self._queue.pop(key, None)
            self._failed.pop(key, None)
            return
        path = context.path_of(record)
        try:
            was_there = await context.threads.run(self._delete_files, path)
        except OSError as error:
            # The mark stays: tried again with the next deletion, and at the next opening.
            self._queue.pop(key, None)
            if key not in self._failed:
                self._failed[key] = None
                message = f"cannot delete checkpoint {step} of trial {trial_id}: {error}; tried again later"
                logger.warning("%s", message)
                context.emit("write_failed", trial_id=trial_id, step=step, message=message, path=path)
            return
        self._queue.pop(key, None)
        self._failed.pop(key, None)
        record = context.records.get(trial_id, step) or record
        if self.elsewhere.local_gone(record):
            context.records.remove(trial_id, step)
        elif not was_there:
            return  # on this disk it was deleted before
        context.emit(
            "checkpoint_deleted",
            trial_id=trial_id,
            step=step,
            message=f"checkpoint {step} of trial {trial_id} was deleted",
            path=path,
            size_bytes=record.size_bytes,
        )

    def _delete_files(self, path: str) -> bool:
        files = self._context.files
        was_there = files.exists(path)
        if was_there:
            manifest = os.path.join(path, MANIFEST_FILE)
            if files.exists(manifest):
                files.unlink(manifest)
            files.remove_tree(path)
        parent = os.path.dirname(path)
        if files.exists(parent):
            files.sync_dir(parent)  # gone for good before the record goes
        return was_there

    async def remove(self, path: str) -> None:
        """Remove what no record names; a failure is logged, and the next opening tries again."""

        def remove() -> None:
            files = self._context.files
            if not files.exists(path):
                return
            if stat.S_ISDIR(files.stat(path).st_mode):
                files.remove_tree(path)
            else:
                files.unlink(path)

        try:
            await self._context.threads.run(remove)
        except OSError as error:
            logger.warning("cannot remove %s: %s; the next opening tries again", path, error)
