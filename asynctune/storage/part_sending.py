"""Owns the way of one file to the bucket in parts: begun or gone on with, completed, or left so that nothing stays.

An upload is written down before its first part is sent. Who goes on with it asks the storage which parts it holds,
and compares their checksums with the file's; what fits is not sent again.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, Never

from asynctune.errors import AuthenticationError, NotFoundError, StorageError
from asynctune.storage.carrying import in_parallel
from asynctune.storage.crc import crc32c_joined
from asynctune.storage.leftovers import abort_leftovers
from asynctune.storage.outgoing import Outgoing
from asynctune.storage.values import Always, Conflict, FileRange, Stored, Upload, UploadedPart

__all__ = ["PartSending"]

logger = logging.getLogger(__name__)

_MOST_BEGINNINGS: Final = 4
_GOODBYE_S: Final = 5.0
"""How long a transfer that has failed or is cancelled waits for what tells or frees its upload, seconds."""


class _GoneError(Exception):
    """The upload is not there any more, or useless, and no object came of it: begin anew."""


class PartSending:
    """One file on its way in parts.

    Attributes:
        resumed: How many parts an earlier call had sent.
    """

    def __init__(self, out: Outgoing) -> None:
        self.resumed = 0
        self._out = out
        self._storage = out.means.storage
        self._rules = out.means.storage.upload_rules
        self._notes = out.means.notes
        self._doubtful = False
        self._damaged = False

    async def run(self) -> str:
        """The version of the object.

        Raises:
            StorageError: See `asynctune.storage.transfer.Transfer.send`.
        """
        for _ in range(_MOST_BEGINNINGS):
            try:
                version = await self._one_upload()
            except _GoneError:
                continue
            if self._doubtful:
                await self._sweep()
            return version
        raise StorageError(
            f"upload of {self._out.key!r}: begun {_MOST_BEGINNINGS} times, and nothing came of it",
            operation="complete_upload",
            key=self._out.key,
            retryable=True,
            hint="see what else removes uploads from the bucket, and whether bytes are damaged on their way",
        )

    async def _one_upload(self) -> str:
        self.resumed = 0
        upload = await self._noted()
        there: dict[int, UploadedPart] = {}
        if upload is None:
            begun = await self._begin()
            if isinstance(begun, Conflict):
                return await self._met()
            upload = begun
        else:
            try:
                there = await self._listed(upload)
            except AuthenticationError:
                raise
            except StorageError as gone:
                if gone.retryable:
                    raise
                return await self._after(gone)  # also what is no upload of this storage, whatever it answers
        try:
            if not there and self._notes is not None:
                await self._notes.remember(upload)
            version = await self._complete(upload, await self._send_parts(upload, there))
        except NotFoundError as gone:
            return await self._after(gone)
        except BaseException as error:
            await self._leave(upload, error)
            raise
        await self._forget()
        return version

    # -- the beginning -------------------------------------------------------------------------------------------

    async def _noted(self) -> Upload | None:
        """An upload of this very content that an earlier call has begun."""
        out = self._out
        upload = None if self._notes is None else await self._notes.find(out.key)
        if upload is None:
            return None
        wanted = out.size_bytes, out.crc32c, out.condition
        if (upload.size_bytes, upload.crc32c, upload.condition) == wanted:
            return upload
        await self._abort(upload)
        await self._forget()
        return None

    async def _listed(self, upload: Upload) -> dict[int, UploadedPart]:
        """The parts that the storage holds."""
        parts = await self._out.patience.run(
            partial(self._storage.list_parts, upload), "list_parts", upload.key
        )
        return {part.number: part for part in parts}

    async def _begin(self) -> Upload | Conflict:
        out = self._out
        part_bytes = self._rules.part_bytes(out.size_bytes, out.means.part_bytes)
        failed = 0
        while True:
            try:
                return await out.patience.once(
                    lambda: self._begin_to_the_end(part_bytes), "begin_upload", out.key
                )
            except StorageError as error:
                self._doubtful = True  # an upload may have been begun, and nobody knows its id
                failed += 1
                await out.patience.pause(error, failed)

    async def _begin_to_the_end(self, part_bytes: int) -> Upload | Conflict:
        out = self._out
        beginning = asyncio.ensure_future(
            self._storage.begin_upload(
                out.key,
                size_bytes=out.size_bytes,
                part_bytes=part_bytes,
                condition=out.condition,
                crc32c=out.crc32c,
            )
        )
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            # An upload whose id got lost on its way could be aborted by nobody.
            try:
                with suppress(TimeoutError):
                    async with out.means.clock.timeout(_GOODBYE_S):
                        await asyncio.wait([beginning])
            finally:
                beginning.cancel()
            await asyncio.wait([beginning])
            if not beginning.cancelled() and beginning.exception() is None:
                begun = beginning.result()
                if isinstance(begun, Upload):
                    await self._abort(begun)
            raise

    # -- the parts -----------------------------------------------------------------------------------------------

    async def _send_parts(self, upload: Upload, there: dict[int, UploadedPart]) -> list[UploadedPart]:
        """Send what is not there yet, and see whether the file is still what it was; all parts, by number."""
        parts: dict[int, UploadedPart] = {}
        work = (
            partial(self._send_part, upload, number, there.get(number), parts)
            for number in range(1, upload.num_parts + 1)
        )
        await in_parallel(work, 1 if self._rules.in_order else self._out.means.parts_at_once)
        await self._out.check_unchanged()
        ordered = [parts[number] for number in sorted(parts)]
        known = [(part.crc32c, part.size_bytes) for part in ordered if part.crc32c is not None]
        if len(known) == len(ordered):
            joined = await self._out.means.threads.run(crc32c_joined, known)
            if joined != self._out.crc32c:
                await self._refused(
                    self._out.changed(f"has the checksum {joined:08x}, not {self._out.crc32c:08x}")
                )
        return ordered

    async def _send_part(
        self, upload: Upload, number: int, there: UploadedPart | None, parts: dict[int, UploadedPart]
    ) -> None:
        out = self._out
        offset, size_bytes = upload.part_range(number)
        async with out.means.budget.take(size_bytes):
            out.patience.progressed()
            crc32c = None
            # Parts in order are not checksummed one by one: what is sent cannot be replaced, the whole has to be right.
            if not self._rules.in_order or (there is not None and there.crc32c is not None):
                crc32c = await out.checksum(offset, size_bytes)
            if there is not None and await self._fits(there, offset, size_bytes, crc32c):
                parts[number] = replace(there, crc32c=crc32c, md5=None)
                self.resumed += 1
                return
            if there is not None and self._rules.in_order:
                raise _GoneError
            source = FileRange(out.path, offset, size_bytes)
            parts[number] = await out.patience.run(
                partial(self._storage.put_part, upload, number, source, crc32c=crc32c), "put_part", out.key
            )
            out.patience.progressed()
            out.sent_bytes += size_bytes

    async def _fits(self, there: UploadedPart, offset: int, size_bytes: int, crc32c: int | None) -> bool:
        """Whether a part that the storage holds is this part of the file."""
        if there.size_bytes != size_bytes:
            return False
        if there.crc32c is None and there.md5 is not None:
            return there.md5 == await self._out.md5(offset, size_bytes)
        return there.crc32c == crc32c

    # -- the end -------------------------------------------------------------------------------------------------

    async def _complete(self, upload: Upload, parts: list[UploadedPart]) -> str:
        out = self._out
        failed = 0
        while True:
            error: StorageError | None = None
            try:
                outcome = await out.patience.once(
                    partial(self._storage.complete_upload, upload, parts), "complete_upload", out.key
                )
            except NotFoundError:
                raise
            except StorageError as caught:
                if not caught.retryable:
                    await self._refused(caught)
                error = caught
            else:
                if isinstance(outcome, Stored):
                    return outcome.version
            version = await out.settled(error)
            if version is not None:
                await self._abort(upload)  # what is there may have been there before
                return version
            if error is None:
                if isinstance(out.condition, Always):
                    raise _GoneError  # it met another write, which ends an upload
                raise out.lost()
            failed += 1
            await out.patience.pause(error, failed)

    async def _refused(self, error: StorageError) -> Never:
        """What was sent is not to be the object: if the file is what it should be, begin once more."""
        if not isinstance(error, AuthenticationError) and not self._damaged:
            self._damaged = True
            if await self._out.checksum(0, self._out.size_bytes) == self._out.crc32c:
                logger.warning("damaged on its way, as the file is right; it is sent again: %s", error)
                raise _GoneError
        raise error

    async def _met(self) -> str:
        """The condition does not hold: the version, if what is there is what was to be stored."""
        version = await self._out.settled(None)
        if version is None:
            raise self._out.lost()
        return version

    async def _after(self, gone: StorageError) -> str:
        """The upload is gone: the version, if it was completed."""
        await self._forget()
        version = await self._out.settled(None)
        if version is None:
            raise _GoneError from gone
        return version

    async def _leave(self, upload: Upload, error: BaseException) -> None:
        """Abort an upload that failed; one that is noted, and can be gone on with, stays."""
        passing = isinstance(error, StorageError) and (
            error.retryable or isinstance(error, AuthenticationError)
        )
        if self._notes is not None and (passing or not isinstance(error, Exception)):
            return
        if not await self._abort(upload):
            error.add_note("its upload in parts could not be aborted; the next start does it")
        await self._forget()

    async def _abort(self, upload: Upload) -> bool:
        """Abort an upload, if that goes quickly; one that is gone is fine."""
        try:
            async with self._out.means.clock.timeout(_GOODBYE_S):
                await self._storage.abort_upload(upload.key, upload.upload_id)
        except (StorageError, TimeoutError) as failure:
            logger.debug("an upload of %r is left: %s", upload.key, failure)
            self._doubtful = True
            return False
        return True

    async def _forget(self) -> None:
        if self._notes is not None:
            await self._notes.forget(self._out.key)

    async def _sweep(self) -> None:
        """Abort uploads of this object that were begun unknown to us, or could not be aborted."""
        try:
            await abort_leftovers(self._out.means, self._out.key, (), key=self._out.key)
        except StorageError as error:
            logger.warning("an upload may be left, which the next start aborts: %s", error)
