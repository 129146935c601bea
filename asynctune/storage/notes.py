"""Owns what is written down of uploads in parts, so that another process can go on with them; decides nothing.

One file for each upload, of this user alone (0600), because an upload's id may be a secret. It is written before the
first part is sent: synced under another name, and renamed, so that a note is whole or not there. A note that cannot be
read is as good as none: the upload is begun anew, and `Transfer.abort_leftovers` finds what it left.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

from asynctune.errors import ConfigError
from asynctune.files import LocalFiles
from asynctune.packing import UnpackError, pack, unpack
from asynctune.storage.local_lock import disk_errors
from asynctune.storage.threads import Threads
from asynctune.storage.values import Upload

__all__ = ["UploadNotes"]

T = TypeVar("T")

_NAME: Final = re.compile(r"note-[0-9a-f]{32}")
_MAX_BYTES: Final = 64 << 10


class UploadNotes:
    """The notes of uploads to one storage. Every method is one hop into a thread.

    Others may keep their files in the same directory; the notes are called `note-*`, and nothing else is touched.

    Args:
        directory: Absolute path; made (0700) with the first note, if its parent is there.
        location: Of the storage: an upload to another place is not taken for one to this.
        files: The disk; tests replace it.
    """

    def __init__(self, directory: str, *, location: str, files: LocalFiles | None = None) -> None:
        self._directory = directory.rstrip("/")
        self._location = location
        self._files = LocalFiles() if files is None else files
        self._threads = Threads("upload-notes", 1)

    async def remember(self, upload: Upload) -> None:
        """Write an upload down, in place of an earlier one of the same key. Durable when it returns.

        Raises:
            StorageError: The disk refuses.
        """
        await self._run("remember", upload.key, lambda: self._write(upload))

    async def find(self, key: str) -> Upload | None:
        """The upload of this key that was written down, if it can be read.

        Raises:
            StorageError: The disk refuses.
        """
        return await self._run("find", key, lambda: self._read(self._path(key), key))

    async def forget(self, key: str) -> None:
        """Remove the note of this key; one that is not there is fine.

        Raises:
            StorageError: The disk refuses.
        """
        await self._run("forget", key, lambda: self._remove(self._path(key)))

    async def every(self) -> list[Upload]:
        """All uploads to this storage that are written down.

        Raises:
            StorageError: The disk refuses.
        """
        return await self._run("find", None, self._read_all)

    def close(self) -> None:
        """Let the thread end; the notes stay."""
        self._threads.close()

    # -- in the thread ---------------------------------------------------------------------------------------

    def _write(self, upload: Upload) -> None:
        path = self._path(upload.key)
        record = {"location": self._location, "upload": upload.to_record()}
        data = pack(record, "the note of an upload", max_bytes=_MAX_BYTES)
        fresh = f"{path}.new"
        self._remove(fresh)  # of a process that was killed
        fd = self._create(fresh)
        try:
            try:
                self._files.write_all(fd, data)
                self._files.sync(fd)
            finally:
                self._files.close(fd)
            self._files.rename(fresh, path)
        except BaseException:
            with suppress(OSError):  # the error that led here is the one to report
                self._remove(fresh)
            raise
        self._files.sync_dir(self._directory)

    def _create(self, path: str) -> int:
        try:
            return self._files.create(path)
        except FileNotFoundError:
            self._files.make_dir(self._directory)
            self._files.sync_dir(os.path.dirname(self._directory))
            return self._files.create(path)

    def _read(self, path: str, key: str | None = None) -> Upload | None:
        try:
            data = self._files.read_from(path, 0, _MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            note: Any = unpack(data)
            if note["location"] != self._location:
                return None
            upload = Upload.from_record(note["upload"])
        except (UnpackError, ConfigError, TypeError, KeyError):
            return None
        return upload if key in (None, upload.key) else None

    def _read_all(self) -> list[Upload]:
        try:
            names = sorted(self._files.list_dir(self._directory))
        except FileNotFoundError:
            return []
        found = [self._read(f"{self._directory}/{name}") for name in names if _NAME.fullmatch(name)]
        return [upload for upload in found if upload is not None]

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.unlink(path)

    # -- small things ----------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        digest = hashlib.sha256(f"{self._location}\0{key}".encode()).hexdigest()
        return f"{self._directory}/note-{digest[:32]}"

    async def _run(self, operation: str, key: str | None, function: Callable[[], T]) -> T:
        with disk_errors(operation, key):
            return await self._threads.run(function)
