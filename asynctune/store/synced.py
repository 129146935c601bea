"""Owns the way to a copy that a `Syncer` of the user's keeps: the state is mirrored beside, and carried from there.

What the syncer brings of the state is put into a directory of a moment, which is a storage like others; so who reads
the copy, claims it or mirrors into it does as ever. Each swap of CURRENT there is carried by the syncer before it is
acknowledged. There is no fencing between hosts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

from asynctune.checkpoints.bucket import TreeCopies
from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.state_exports import ExportFile, StateExports
from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.checkpoints.syncing import SyncedResults, SyncedTrees, tell_unfenced
from asynctune.clock import Clock
from asynctune.errors import StorageError
from asynctune.files import LocalFiles
from asynctune.results.mirroring import ResultSender
from asynctune.state.mirror.current import CURRENT_KEY, PREFIX, decode_current
from asynctune.storage.base import ObjectStorage
from asynctune.storage.local import LocalStorage
from asynctune.storage.values import Always, Condition, Conflict, IfVersion, OnlyCreate, Outcome, Source
from asynctune.store.finding import STATE_DIR
from asynctune.store.place import Remote

__all__ = ["SyncedStorage", "SyncerAccess"]

_ALWAYS: Final = Always()


class SyncedStorage(LocalStorage):
    """A directory of which a syncer carries the mirror's objects whenever CURRENT is replaced.

    Args:
        root: Absolute path of the directory.
        exports: Carries them.
        files: The disk.
        clock: Time.
    """

    def __init__(self, root: str, exports: StateExports, *, files: LocalFiles, clock: Clock) -> None:
        super().__init__(root, files=files, clock=clock)
        self._exports = exports

    async def put(
        self, key: str, data: Source, *, condition: Condition = _ALWAYS, crc32c: int | None = None
    ) -> Outcome:
        """See `ObjectStorage.put`; of CURRENT, when the copy has it."""
        if key == CURRENT_KEY and isinstance(data, bytes):
            info = await self.head(key)
            version = None if info is None else info.version
            if (isinstance(condition, OnlyCreate) and version is not None) or (
                isinstance(condition, IfVersion) and version != condition.version
            ):
                return Conflict(version)
            await self._exports.send(self._named_by(data), data)
        return await super().put(key, data, condition=condition, crc32c=crc32c)

    def _named_by(self, data: bytes) -> list[ExportFile]:
        refs = decode_current(data).refs
        return [ExportFile(ref.name, f"{self.location}/{PREFIX}{ref.name}") for ref in refs]


class SyncerAccess:
    """Through a syncer. See `Access`.

    Args:
        remote: The copy.
        path: The experiment's directory.
        clock: Time.
        files: The disk.
    """

    def __init__(self, remote: Remote, path: str, *, clock: Clock, files: LocalFiles) -> None:
        syncer = remote.sync.syncer
        assert syncer is not None
        assert syncer != "auto"
        self._path = path
        self._place = remote.place
        self._clock = clock
        self._files = files
        self._threads = DiskThreads()
        calls = SyncerCalls(syncer, timeout_s=remote.sync.sync_timeout, clock=clock)
        self._exports = StateExports(calls, remote.place, path, files=files, threads=self._threads)
        self._results = SyncedResults(calls, remote.place, path, files=files, threads=self._threads)
        self.copies: TreeCopies = SyncedTrees(calls, remote.place, files=files, threads=self._threads)
        self.finish: Callable[[], Awaitable[None]] | None = self._results.finish
        self._calls = calls
        self._scratch: str | None = None
        self._storage: SyncedStorage | None = None

    def sender(self, check_owner: Callable[[], Awaitable[None]]) -> ResultSender:
        """See `Access.sender`. Nothing of it is fenced."""
        del check_owner
        return self._results

    @property
    def storage(self) -> ObjectStorage:
        """Holds the objects of the state's mirror, as `look` found them."""
        assert self._storage is not None
        return self._storage

    async def look(self, *, may_make: bool = False) -> None:
        """Let the syncer bring the newest whole state. See `Access.look`.

        Raises:
            StorageError: The syncer or the disk failed.
            CorruptStateError: There is a state, and none of it is whole.
        """
        if self._scratch is None:
            self._scratch = await self._threads.run(tempfile.mkdtemp, None, "asynctune-synced-")
        number = len(await self._threads.run(os.listdir, self._scratch))
        into, root = (f"{self._scratch}/{kind}-{number}" for kind in ("fetched", "mirror"))
        await self._threads.run(os.mkdir, into)
        found = await self._exports.fetch(into, may_make=may_make)
        await self._threads.run(self._arrange, root, {} if found is None else found.files)
        before, self._storage = (
            self._storage,
            SyncedStorage(root, self._exports, files=self._files, clock=self._clock),
        )
        if before is not None:
            await before.aclose()
        if found is not None:
            # not by `put`, which would have the syncer carry it back
            await LocalStorage.put(self._storage, CURRENT_KEY, found.current)
        await self._threads.run(self._files.remove_tree, into)

    def _arrange(self, root: str, found: dict[str, str]) -> None:
        os.makedirs(f"{root}/{PREFIX}")
        for name, path in found.items():
            os.rename(path, f"{root}/{PREFIX}{name}")

    def announce(self, emit: Callable[..., None]) -> None:
        """Say that nothing keeps two machines apart."""
        tell_unfenced(self._calls, self._place, emit)

    async def begin(self) -> bool:
        """See `Access.begin`."""
        await self._exports.begin()
        return not await self._results.begin()

    async def noted_uploads(self) -> Collection[str]:
        """None: a syncer has no uploads in parts."""
        return ()

    async def fetch_results(self, path: str, wanted: Callable[[str], bool]) -> None:
        """Bring all result files of the copy: a syncer knows no trials."""
        del path, wanted
        await self._results.fetch(may_make=True)

    async def fetch_file(self, key: str, path: str) -> bool:
        """See `Access.fetch_file`; the whole tree of result files comes, for a syncer knows no single file."""
        return await self._threads.run(self._copy_of, key, path, await self._results_here())

    async def _results_here(self) -> str:
        await self._threads.run(self._make_state_dir)
        await self._results.fetch()
        return self._path

    def _make_state_dir(self) -> None:
        os.makedirs(f"{self._path}/{STATE_DIR}", mode=0o700, exist_ok=True)

    def _copy_of(self, key: str, path: str, root: str) -> bool:
        try:
            shutil.copyfile(os.path.join(root, *key.split("/")), path)
        except FileNotFoundError:
            return False
        return True

    async def aclose(self) -> None:
        """See `Access.aclose`."""
        storage, self._storage = self._storage, None
        if storage is not None:
            await storage.aclose()
        scratch, self._scratch = self._scratch, None
        if scratch is not None:
            with suppress(StorageError, OSError):
                await self._threads.run(self._files.remove_tree, scratch)
            self._threads.close()
