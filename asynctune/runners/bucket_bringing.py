"""Owns the way of a checkpoint between a node and the bucket: there under the name that the driver chose, and back.

What is in the bucket otherwise, and what is deleted there, is the driver's.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Self

from asynctune.checkpoints.manifest import Manifest, digest_of
from asynctune.checkpoints.mirroring import BucketCopies
from asynctune.checkpoints.records import CheckpointRecord
from asynctune.checkpoints.sizes import FileSizes
from asynctune.checkpoints.verify import VerifyReport
from asynctune.errors import AsynctuneError, AuthenticationError, ConfigError, StorageError
from asynctune.files import FILE_MODE, LocalFiles
from asynctune.storage.base import ObjectStorage
from asynctune.storage.transfer import Transfer
from asynctune.storage.uri import open_storage
from asynctune.trial import MANIFEST_FILE

__all__ = ["NodeBucket"]

logger = logging.getLogger("asynctune")

_MOST_S: Final = 300.0
_TAKE_BACK_S: Final = 30.0
_LOOKED_AT: Final = ".asynctune/CURRENT"


class NodeBucket:
    """The experiment's copy, as a node uses it. Made by `open`."""

    def __init__(self, storage: ObjectStorage, timeout_s: float) -> None:
        self._storage = storage
        self._files = LocalFiles()
        self._transfer = Transfer(storage, timeout_s=min(timeout_s, _MOST_S))
        self._copies = BucketCopies(storage, self._transfer, files=self._files)

    @classmethod
    async def open(cls, uri: str, options: Mapping[str, Any] | None, timeout_s: float) -> Self:
        """For the copy at a URI.

        Args:
            uri: Of the experiment in the bucket.
            options: Credentials and endpoint; what is not given comes from where the cloud's tools look on this node.
            timeout_s: Seconds without progress after which a transfer has failed.

        Raises:
            ConfigError: It cannot be opened.
            MissingExtraError: The client is not installed on this node.
        """
        return cls(await open_storage(uri, options), timeout_s)

    async def check(self) -> None:
        """See whether this node may look at the bucket: if not, that is told before a trial runs for nothing.

        Raises:
            ConfigError: It has no credentials for it, or none that the bucket takes.
        """
        try:
            await self._storage.head(_LOOKED_AT)
        except AuthenticationError as error:
            raise ConfigError(
                f"{error}; this is said on a node: give it credentials, or give them as "
                "SyncConfig(storage_options=...), which is sent to the nodes"
            ) from error
        except StorageError as error:  # what passes is waited for when there is something to send
            logger.info("%s does not answer yet: %s", self._copies.location, error)

    async def send(self, path: str, directory: str, manifest: bytes) -> None:
        """Send a staged directory; the manifest last. Complete and durable when this returns, else taken back.

        Args:
            path: The directory on this node.
            directory: Its name in the experiment, which nothing else ever had.
            manifest: That with which it is committed.

        Raises:
            UploadError: The directory is not what the manifest says.
            StorageError: The bucket or the disk said no.
        """
        await asyncio.to_thread(self._write_manifest, path, manifest)
        record = await asyncio.to_thread(_record_of, directory, manifest)
        try:
            await self._copies.put_tree(record, path, new=True, progress=_ignore)
        except BaseException:
            await self._take_back(record)
            raise

    async def fetch(self, directory: str, manifest_sha256: str, to: str) -> VerifyReport:
        """Bring a committed checkpoint into an empty directory; what that holds is of use only if it is `intact`.

        Args:
            directory: Its name in the experiment.
            manifest_sha256: Of its manifest, as it was recorded.
            to: The directory.

        Raises:
            StorageError: The bucket or the disk said no.
        """
        record = _record(directory, manifest_sha256)
        return await self._copies.fetch_tree(record, to)

    async def take_back(self, directory: str, manifest: bytes) -> None:
        """Delete what `send` has sent, as far as that can be done; what stays is found by `inspect gc`."""
        await self._take_back(await asyncio.to_thread(_record_of, directory, manifest))

    async def _take_back(self, record: CheckpointRecord) -> None:
        try:
            async with asyncio.timeout(_TAKE_BACK_S):
                await self._copies.delete_tree(record)
        except (AsynctuneError, OSError) as error:
            logger.warning(
                "%s/%s is of no use and could not be removed (%s); `inspect gc` finds it",
                self._copies.location,
                record.directory,
                error,
            )

    def _write_manifest(self, path: str, encoded: bytes) -> None:
        target = os.path.join(path, MANIFEST_FILE)
        with suppress(FileNotFoundError):
            self._files.unlink(target)
        fd = self._files.create(target, FILE_MODE)
        try:
            self._files.write_all(fd, encoded)
        finally:
            self._files.close(fd)

    async def aclose(self) -> None:
        """Close what was opened."""
        self._copies.close()
        self._transfer.close()
        await self._storage.aclose()


def _record_of(directory: str, encoded: bytes) -> CheckpointRecord:
    manifest = Manifest.decode(encoded)
    return replace(
        _record(directory, digest_of(encoded)),
        trial_id=manifest.trial_id or "",
        step=manifest.step,
        files=FileSizes.of(manifest.sizes),
        size_bytes=manifest.size_bytes,
        epoch=manifest.epoch,
        attempt=manifest.attempt,
    )


def _record(directory: str, manifest_sha256: str) -> CheckpointRecord:
    """What the ways to the bucket go by; a node has no other."""
    return CheckpointRecord(
        trial_id="",
        step=0,
        directory=directory,
        manifest_sha256=manifest_sha256,
        files={},
        size_bytes=0,
        committed_at=0.0,
        metrics={},
        epoch=0,
        attempt=0,
    )


def _ignore(_: int) -> None:
    """Nobody asks how far it is."""
