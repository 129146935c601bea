"""Owns the copy of a checkpoint in a bucket: how its files get there, are deleted there, and come back.

The same tree as on the disk: `<trial_name>/checkpoint_000005/...`, with the manifest last when it is made and first
when it is deleted. So what has a manifest is complete. When that happens is decided elsewhere (`uploads`,
`bucket_deletion`); single files are moved by `asynctune.storage.transfer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import google_crc32c

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    ManifestError,
    ManifestFile,
    digest_of,
)
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.verify import Problem, VerifyReport, make_directories, sync_directories
from asynctune.errors import NotFoundError, UploadError
from asynctune.files import LocalFiles
from asynctune.storage.base import ObjectStorage
from asynctune.storage.carrying import in_parallel
from asynctune.storage.notes import UploadNotes
from asynctune.storage.receiving import DamagedObjectError
from asynctune.storage.threads import Threads
from asynctune.storage.values import Directory, ObjectInfo, Upload
from asynctune.trial import MANIFEST_FILE

__all__ = ["BucketCopies", "FileTransfer"]

_FILES_AT_ONCE: Final = 32
_REMEMBERED: Final = 64
"""Of how many unfinished directories is remembered what is there; of others the bucket is asked."""


class FileTransfer(Protocol):
    """What is asked of `asynctune.storage.transfer.Transfer`."""

    async def send(self, key: str, path: str, *, size_bytes: int, crc32c: int) -> Any:
        """Store a file under a key; has `sent_bytes` afterwards."""
        ...

    async def receive(self, key: str, path: str, *, size_bytes: int, crc32c: int, sha256: str) -> None:
        """Bring an object into a new file, checked and synced."""
        ...

    async def holds(self, key: str, *, size_bytes: int, crc32c: int) -> str | None:
        """The version of the object with this size and checksum; `None`: there is none."""
        ...

    async def abort_leftovers(self, prefix: str = ..., known: Collection[str] = ...) -> int:
        """Abort uploads below a prefix but those that are known by their ids."""
        ...


@dataclass(slots=True)
class _Source:
    """A committed directory that is to be sent."""

    path: str
    prefix: str
    files: dict[str, ManifestFile]
    """By key, the manifest itself not among them."""
    manifest: ManifestFile

    def path_of(self, file: ManifestFile) -> str:
        return os.path.join(self.path, file.path)


@dataclass(slots=True)
class _Sent:
    """What was acknowledged of one directory."""

    confirmed: set[str]
    progress: Callable[[int], None]
    total_bytes: int = 0

    def add(self, key: str, size_bytes: int) -> None:
        self.confirmed.add(key)
        self.total_bytes += size_bytes
        self.progress(size_bytes)


class BucketCopies:
    """Copies of checkpoints in an object storage whose root is the experiment; a `TreeCopies`.

    Args:
        storage: The bucket.
        transfer: Moves single files there and back.
        notes: What is written down of uploads in parts, as the transfer has it.
        files: The disk; tests replace it.
        files_at_once: How many files of one checkpoint are moved at once.
    """

    def __init__(
        self,
        storage: ObjectStorage,
        transfer: FileTransfer,
        *,
        notes: UploadNotes | None = None,
        files: LocalFiles | None = None,
        files_at_once: int = _FILES_AT_ONCE,
    ) -> None:
        self._storage = storage
        self._transfer = transfer
        self._notes = notes
        self._files = LocalFiles() if files is None else files
        self._files_at_once = files_at_once
        self._threads = Threads("copies", 2)
        self._confirmed: dict[str, set[str]] = {}
        """Keys that were acknowledged or seen to be right in this opening, by directory."""

    @property
    def location(self) -> str:
        """That of the storage."""
        return self._storage.location

    def close(self) -> None:
        """Let the threads end; call it when nothing is under way."""
        self._threads.close()

    # -- there -----------------------------------------------------------------------------------------------

    async def put_tree(
        self, record: CheckpointRecord, path: str, *, new: bool, progress: Callable[[int], None]
    ) -> int:
        """See `TreeCopies.put_tree`."""
        source = await self._threads.run(_look, self._files, record, path)
        confirmed = self._confirmed.setdefault(record.directory, set())
        if len(self._confirmed) > _REMEMBERED:
            del self._confirmed[next(iter(self._confirmed))]
        if not new:
            noted = await self._noted(source.prefix)
            # Those whose ids are not written down here, nobody can go on with.
            await self._transfer.abort_leftovers(source.prefix, {upload.upload_id for upload in noted})
            await self._confirm(source, confirmed)
            await self._give_up(upload for upload in noted if upload.key in confirmed)
        sent = _Sent(confirmed, progress)
        work = (
            partial(self._send, key, source.path_of(file), file, sent)
            for key, file in source.files.items()
            if key not in confirmed
        )
        await in_parallel(work, self._files_at_once)
        key = source.prefix + MANIFEST_FILE
        if key not in confirmed:
            await self._send(key, source.path_of(source.manifest), source.manifest, sent)
        self._confirmed.pop(record.directory, None)
        return sent.total_bytes

    async def _send(self, key: str, path: str, file: ManifestFile, sent: _Sent) -> None:
        done = await self._transfer.send(key, path, size_bytes=file.size_bytes, crc32c=file.crc32c)
        sent.add(key, done.sent_bytes)

    async def _confirm(self, source: _Source, confirmed: set[str]) -> None:
        """Find out what an earlier attempt has brought there, by size and checksum."""
        wanted = {**source.files, source.prefix + MANIFEST_FILE: source.manifest}
        unsure: list[str] = []
        async with aclosing(self._storage.list_objects(source.prefix)) as there:
            async for info in there:
                file = None if isinstance(info, Directory) else wanted.get(info.key)
                if file is None or isinstance(info, Directory) or info.key in confirmed:
                    continue
                if info.crc32c is None and info.size_bytes == file.size_bytes:
                    unsure.append(info.key)
                elif _same(info, file):
                    confirmed.add(info.key)

        async def ask(key: str) -> None:
            file = wanted[key]
            if await self._transfer.holds(key, size_bytes=file.size_bytes, crc32c=file.crc32c) is not None:
                confirmed.add(key)

        await in_parallel((partial(ask, key) for key in unsure), self._files_at_once)

    async def _noted(self, prefix: str) -> list[Upload]:
        """Uploads in parts below a directory that are written down."""
        notes = [] if self._notes is None else await self._notes.every()
        return [upload for upload in notes if upload.key.startswith(prefix)]

    async def _give_up(self, uploads: Iterable[Upload]) -> None:
        """Abort uploads that are of no use any more, and forget them; one that is gone is fine."""
        for upload in uploads:
            await self._storage.abort_upload(upload.key, upload.upload_id)
            assert self._notes is not None
            await self._notes.forget(upload.key)

    # -- away ------------------------------------------------------------------------------------------------

    async def delete_tree(self, record: CheckpointRecord) -> None:
        """See `TreeCopies.delete_tree`."""
        prefix = f"{record.directory}/"
        self._confirmed.pop(record.directory, None)
        await self._storage.delete([prefix + MANIFEST_FILE])
        keys = await self._threads.run(lambda: [prefix + path for path in record.files])
        await self._storage.delete(keys)
        if record.mirrored:
            return
        await self._give_up(await self._noted(prefix))
        await self._transfer.abort_leftovers(prefix, ())

    # -- back ------------------------------------------------------------------------------------------------

    async def is_complete(self, record: CheckpointRecord) -> bool:
        """See `TreeCopies.is_complete`."""
        try:
            found = await self._storage.read(
                f"{record.directory}/{MANIFEST_FILE}", max_bytes=MAX_MANIFEST_BYTES
            )
        except NotFoundError:
            return False
        return await self._threads.run(digest_of, found.data) == record.manifest_sha256

    async def fetch_tree(self, record: CheckpointRecord, to: str) -> VerifyReport:
        """See `TreeCopies.fetch_tree`."""
        prefix = f"{record.directory}/"
        where = f"{self._storage.location}/{record.directory}"
        try:
            found = await self._storage.read(prefix + MANIFEST_FILE, max_bytes=MAX_MANIFEST_BYTES)
        except NotFoundError:
            return _damaged(where, "is missing")
        decoded = await self._threads.run(_decode, found.data, record.manifest_sha256)
        if isinstance(decoded, str):
            return _damaged(where, decoded)
        directories = await self._threads.run(make_directories, self._files, to, decoded)
        problems: list[Problem] = []
        work = (partial(self._receive, prefix, file, to, problems) for file in decoded.files)
        await in_parallel(work, self._files_at_once)
        if not problems:
            await self._threads.run(sync_directories, self._files, to, directories)
        return VerifyReport(where, tuple(sorted(problems, key=lambda problem: problem.path)), decoded)

    async def _receive(self, prefix: str, file: ManifestFile, to: str, problems: list[Problem]) -> None:
        try:
            await self._transfer.receive(
                prefix + file.path,
                os.path.join(to, file.path),
                size_bytes=file.size_bytes,
                crc32c=file.crc32c,
                sha256=file.sha256,
            )
        except NotFoundError:
            problems.append(Problem("missing", file.path, "is missing"))
        except DamagedObjectError as error:
            problems.append(Problem("content", file.path, str(error)))


def _same(info: ObjectInfo, file: ManifestFile) -> bool:
    return info.size_bytes == file.size_bytes and info.crc32c == file.crc32c


def _damaged(where: str, detail: str) -> VerifyReport:
    return VerifyReport(where, (Problem("manifest", MANIFEST_FILE, detail),))


def _decode(encoded: bytes, digest: str) -> Manifest | str:
    """In a thread: the manifest, or what is wrong with it."""
    if digest_of(encoded) != digest:
        return "is not the recorded one (its SHA-256 differs)"
    try:
        return Manifest.decode(encoded)
    except ManifestError as error:
        return str(error)


def _look(files: LocalFiles, record: CheckpointRecord, path: str) -> _Source:
    """In a thread: what is to be sent."""
    try:
        encoded = files.read(os.path.join(path, MANIFEST_FILE))
    except OSError as error:
        raise UploadError(f"{path} cannot be uploaded: its manifest cannot be read ({error})") from error
    manifest = _decode(encoded, record.manifest_sha256)
    if isinstance(manifest, str):
        raise UploadError(f"{path} cannot be uploaded: its manifest {manifest}")
    prefix = f"{record.directory}/"
    itself = ManifestFile(MANIFEST_FILE, len(encoded), google_crc32c.value(encoded), record.manifest_sha256)
    return _Source(path, prefix, dict(_by_key(prefix, manifest)), itself)


def _by_key(prefix: str, manifest: Manifest) -> Iterator[tuple[str, ManifestFile]]:
    for number, file in enumerate(manifest.files):
        if number % FILES_BETWEEN_BREATHS == 0:
            breathe()
        yield prefix + file.path, file
