"""Owns uploads in parts to a directory: one sparse file, in which each part has its place. Blocking.

Below the storage's own directory, for each upload::

    upload-<id>/about               the Upload, packed; written last, so that what has none is a leftover
    upload-<id>/data                the bytes, all parts in their places
    upload-<id>/part-<n>-<crc32c>   an empty file: part n is in `data`, synced, and has this checksum
    upload-<id>/done                what was `data`, from the moment that it becomes the object

No part can be written any more once `data` has its other name: it would be written into the object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import google_crc32c

from asynctune.errors import AsynctuneError
from asynctune.packing import pack, unpack
from asynctune.storage.checks import no_upload
from asynctune.storage.local_files import ObjectFiles
from asynctune.storage.streams import mismatch, source_chunks
from asynctune.storage.threads import Stop
from asynctune.storage.values import FileRange, Outcome, PendingUpload, Source, Stored, Upload, UploadedPart

__all__ = ["PartFiles"]

_ID: Final = re.compile(r"[0-9a-f]{16}")
_PART: Final = re.compile(r"part-([0-9]+)-([0-9a-f]{8})")
_NAME: Final = re.compile(r"upload-([0-9a-f]{16})")


class PartFiles:
    """The uploads that have begun below one directory."""

    def __init__(self, objects: ObjectFiles) -> None:
        self._objects = objects
        self._files = objects.files

    def begin(self, upload: Upload) -> None:
        """Make the place for an upload, whose id is a new `ObjectFiles.token`."""
        directory = self._directory(upload.upload_id)
        self._objects.make_dirs(directory)
        self._files.close(self._files.create(f"{directory}/data"))
        fd = self._files.create(f"{directory}/about.new")
        try:
            self._files.write_all(fd, pack(upload.to_record(), "the upload"))
            self._files.sync(fd)
        finally:
            self._files.close(fd)
        self._files.rename(f"{directory}/about.new", f"{directory}/about")
        self._files.sync_dir(directory)

    def put(self, upload: Upload, number: int, data: Source, crc32c: int | None, stop: Stop) -> UploadedPart:
        """Write one part into its place."""
        directory = self._directory_of(upload, "put_part")
        offset, size_bytes = upload.part_range(number)
        for earlier, name in self._markers(directory, upload):
            if earlier.number == number:
                self._files.unlink(f"{directory}/{name}")
        try:
            fd = self._files.open_update(f"{directory}/data")
        except FileNotFoundError:
            raise no_upload("put_part", upload.key) from None
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            check = self._objects.write(fd, data, "put_part", upload.key, crc32c, stop)
            self._files.sync_data(fd)
        finally:
            self._files.close(fd)
        part = UploadedPart(number, size_bytes, "", check)
        try:
            self._files.close(self._files.create(f"{directory}/part-{number}-{check:08x}"))
            self._files.sync_dir(directory)
        except FileExistsError:
            pass  # the same part was put at the same time
        except FileNotFoundError:
            raise no_upload("put_part", upload.key) from None
        return part

    def parts(self, upload: Upload, operation: str = "list_parts") -> list[UploadedPart]:
        """The parts that are there."""
        found = [part for part, _ in self._markers(self._directory_of(upload, operation), upload)]
        return sorted(found, key=lambda part: part.number)

    def complete(self, upload: Upload, parts: Sequence[UploadedPart], stop: Stop) -> Outcome:
        """Make the object of all parts, which are given in order."""
        there = {part.number: part for part in self.parts(upload, "complete_upload")}
        for part in parts:
            if there.get(part.number) != part:
                raise no_upload("complete_upload", f"{upload.key} (part {part.number})")
        directory = self._directory(upload.upload_id)
        data, done = f"{directory}/data", f"{directory}/done"
        if upload.crc32c is not None:
            check = self._crc32c(data, upload, stop)
            if check != upload.crc32c:
                raise mismatch("complete_upload", upload.key, upload.crc32c, check)
        fd = self._files.open_update(data)
        try:
            self._objects.finish(fd)
        finally:
            self._files.close(fd)
        self._files.rename(data, done)
        outcome = self._objects.commit(done, upload.key, upload.condition, stop)
        if isinstance(outcome, Stored):
            self._remove(directory)
        return outcome

    def abort(self, upload_id: str) -> None:
        """Remove an upload, if it is there."""
        if _ID.fullmatch(upload_id):
            self._remove(self._directory(upload_id))

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """The uploads that are there, of keys with this prefix."""
        try:
            names = sorted(self._files.list_dir(self._objects.staging))
        except (FileNotFoundError, NotADirectoryError):
            return
        for name in names:
            if (found := _NAME.fullmatch(name)) is None:
                continue
            about = f"{self._objects.staging}/{name}/about"
            try:
                upload = Upload.from_record(unpack(self._files.read(about)))
                begun_at = self._files.stat(about).st_mtime
            except (FileNotFoundError, NotADirectoryError, AsynctuneError):
                continue
            if upload.key.startswith(prefix):
                yield PendingUpload(upload.key, found[1], begun_at)

    def _directory(self, upload_id: str) -> str:
        return f"{self._objects.staging}/upload-{upload_id}"

    def _directory_of(self, upload: Upload, operation: str) -> str:
        directory = self._directory(upload.upload_id)
        if not _ID.fullmatch(upload.upload_id) or not self._files.exists(f"{directory}/data"):
            raise no_upload(operation, upload.key)
        return directory

    def _markers(self, directory: str, upload: Upload) -> Iterator[tuple[UploadedPart, str]]:
        for name in self._files.list_dir(directory):
            if (found := _PART.fullmatch(name)) is not None:
                number = int(found[1])
                yield UploadedPart(number, upload.part_range(number)[1], "", int(found[2], 16)), name

    def _crc32c(self, path: str, upload: Upload, stop: Stop) -> int:
        check = 0
        whole = FileRange(path, 0, upload.size_bytes)
        for chunk in source_chunks(whole, operation="complete_upload", key=upload.key):
            stop.check()
            check = google_crc32c.extend(check, chunk)
        return check

    def _remove(self, directory: str) -> None:
        with suppress(FileNotFoundError):
            self._files.remove_tree(directory)
