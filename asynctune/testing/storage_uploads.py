"""Owns the part of the suite for storages that is about transfers: uploads in parts, cancellation, memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from pathlib import Path
from typing import ClassVar, Final

import google_crc32c
import pytest

from asynctune.errors import ConfigError, NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.values import (
    Condition,
    Conflict,
    FileRange,
    IfVersion,
    OnlyCreate,
    Stored,
    Upload,
    UploadedPart,
)
from asynctune.testing.storage_scenes import (
    cancelled,
    entries,
    file_of,
    let_run,
    pattern,
    sparse_file,
    version_of,
)

__all__ = ["TransferTests"]

_SMALL_PART: Final = 256 << 10


class TransferTests:
    """Part of `asynctune.testing.ObjectStorageTests`, which has the fixtures."""

    pytestmark: ClassVar = [pytest.mark.asyncio]
    large_bytes: ClassVar[int] = 64 << 20
    stream_allowance_bytes: ClassVar[int] = 32 << 20

    # -- uploads in parts ------------------------------------------------------------------------------------

    async def test_an_object_is_made_of_its_parts(
        self, storage: ObjectStorage, other: ObjectStorage, tmp_path: Path
    ) -> None:
        """Sent last part first where any order is allowed; nothing can be seen before the end."""
        upload, data = await _begin(storage, "a/b")
        numbers = range(1, upload.num_parts + 1)
        order = list(numbers if storage.upload_rules.in_order else reversed(numbers))
        path = await file_of(tmp_path, data)
        parts = []
        for number in order:
            source = FileRange(path, *upload.part_range(number))
            parts.append(await storage.put_part(upload, number, source))
            assert await other.head("a/b") is None
            assert await entries(other) == []
        assert [part.number for part in parts] == order
        outcome = await storage.complete_upload(upload, parts)
        content = await other.read("a/b", max_bytes=len(data))
        assert content.data == data
        assert content.info.version == version_of(outcome)
        assert content.info.crc32c in (None, google_crc32c.value(data))
        assert await _pending(storage) == []

    async def test_parts_may_be_sent_at_the_same_time(self, storage: ObjectStorage) -> None:
        """Where any order is allowed."""
        if storage.upload_rules.in_order:
            pytest.skip("parts go in order")
        upload, data = await _begin(storage, "a")
        parts = await asyncio.gather(
            *(_put(storage, upload, data, number) for number in range(1, upload.num_parts + 1))
        )
        version_of(await storage.complete_upload(upload, parts))
        assert (await storage.read("a", max_bytes=len(data))).data == data

    async def test_another_process_goes_on_with_an_upload(
        self, storage: ObjectStorage, other: ObjectStorage
    ) -> None:
        """From what was written down of it, with the parts that are there."""
        upload, data = await _begin(storage, "a")
        first = await _put(storage, upload, data, 1)
        known = Upload.from_record(upload.to_record())
        assert known == upload
        assert upload.upload_id not in repr(upload)
        there = await other.list_parts(known)
        assert [(part.number, part.size_bytes) for part in there] == [(1, first.size_bytes)]
        assert there[0].crc32c in (None, google_crc32c.value(data[: upload.part_bytes]))
        again = await _put(other, known, data, 1)  # a part may be sent twice
        parts = [again, *[await _put(other, known, data, n) for n in range(2, known.num_parts + 1)]]
        version_of(await other.complete_upload(known, parts))
        assert (await storage.read("a", max_bytes=len(data))).data == data

    async def test_an_object_of_a_single_part(self, storage: ObjectStorage) -> None:
        """It may be smaller than the least part."""
        data = pattern(1000)
        upload = await storage.begin_upload(
            "a", size_bytes=1000, part_bytes=storage.upload_rules.part_bytes(1000, _SMALL_PART)
        )
        assert isinstance(upload, Upload)
        part = await storage.put_part(upload, 1, data)
        version_of(await storage.complete_upload(upload, [part]))
        assert (await storage.read("a")).data == data

    async def test_an_abort_leaves_nothing(self, storage: ObjectStorage, other: ObjectStorage) -> None:
        """It may be repeated, and come from another process."""
        upload, data = await _begin(storage, "a/b")
        part = await _put(storage, upload, data, 1)
        if storage.upload_rules.listed:
            assert await _pending(other) == ["a/b"]
            assert await _pending(other, "a/") == ["a/b"]
            assert await _pending(other, "b") == []
        await other.abort_upload(upload.key, upload.upload_id)
        await storage.abort_upload(upload.key, upload.upload_id)
        assert await _pending(storage) == []
        assert await storage.head("a/b") is None
        with pytest.raises(NotFoundError):
            await storage.list_parts(upload)
        with pytest.raises(NotFoundError):
            await _put(storage, upload, data, 2)
        with pytest.raises(NotFoundError):
            await storage.complete_upload(upload, _parts_like(upload, part))

    @pytest.mark.parametrize("condition", [OnlyCreate(), IfVersion("none")], ids=["create", "version"])
    async def test_the_condition_holds_at_the_end(self, storage: ObjectStorage, condition: Condition) -> None:
        """Somebody may have stored the object since the upload began."""
        if not storage.supports_conditions:
            pytest.skip("no conditional writes")
        if isinstance(condition, IfVersion):
            condition = IfVersion(version_of(await storage.put("a", b"first")))
        upload, data = await _begin(storage, "a", condition=condition)
        parts = [await _put(storage, upload, data, n) for n in range(1, upload.num_parts + 1)]
        await storage.put("a", b"another's")
        assert isinstance(await storage.complete_upload(upload, parts), Conflict)
        assert (await storage.read("a")).data == b"another's"
        await storage.abort_upload(upload.key, upload.upload_id)
        assert await _pending(storage) == []
        if isinstance(condition, OnlyCreate):
            await storage.delete(["a"])
        else:
            condition = IfVersion(version_of(await storage.put("a", b"again")))
        upload, data = await _begin(storage, "a", condition=condition)
        parts = [await _put(storage, upload, data, n) for n in range(1, upload.num_parts + 1)]
        assert isinstance(await storage.complete_upload(upload, parts), Stored)

    async def test_wrong_parts_are_refused(self, storage: ObjectStorage) -> None:
        """Of another size, of a number that is not there, missing, or with another checksum."""
        upload, data = await _begin(storage, "a")
        for number, size in ((1, upload.part_bytes - 1), (0, 1), (upload.num_parts + 1, 1)):
            with pytest.raises(ConfigError):
                await storage.put_part(upload, number, bytes(size))
        with pytest.raises(StorageError) as caught:
            await storage.put_part(upload, 1, data[: upload.part_bytes], crc32c=google_crc32c.value(b"x"))
        assert not caught.value.retryable
        assert await storage.list_parts(upload) == []
        part = await _put(storage, upload, data, 1)
        with pytest.raises(ConfigError):
            await storage.complete_upload(upload, [part])
        assert await storage.head("a") is None
        rules = storage.upload_rules
        with pytest.raises(ConfigError):
            await storage.begin_upload("a", size_bytes=0, part_bytes=rules.part_bytes(1, 1))
        with pytest.raises(ConfigError):
            await storage.begin_upload("a", size_bytes=1 << 30, part_bytes=rules.min_part_bytes - 1)
        await storage.abort_upload(upload.key, upload.upload_id)

    async def test_the_checksum_of_the_whole_is_checked(self, storage: ObjectStorage) -> None:
        """A wrong one stores nothing."""
        upload, data = await _begin(storage, "a", crc32c=google_crc32c.value(b"something else"))
        parts = [await _put(storage, upload, data, n) for n in range(1, upload.num_parts + 1)]
        with pytest.raises(StorageError) as caught:
            await storage.complete_upload(upload, parts)
        assert not caught.value.retryable
        assert await storage.head("a") is None
        await storage.abort_upload(upload.key, upload.upload_id)
        upload, data = await _begin(storage, "a", crc32c=google_crc32c.value(data))
        parts = [await _put(storage, upload, data, n) for n in range(1, upload.num_parts + 1)]
        version_of(await storage.complete_upload(upload, parts))
        await storage.delete(["a"])
        assert await _pending(storage) == []

    async def test_a_cancelled_part_can_be_sent_again(self, storage: ObjectStorage, tmp_path: Path) -> None:
        """Cancelled at whatever moment, and no object comes of it."""
        upload, data = await _begin(storage, "a")
        path = await file_of(tmp_path, data)
        for turns in (0, 1, 3, 10, 30):
            source = FileRange(path, *upload.part_range(1))
            sending = asyncio.create_task(storage.put_part(upload, 1, source))
            await let_run(turns)
            await cancelled(sending)
        assert await storage.head("a") is None
        parts = [await _put(storage, upload, data, n) for n in range(1, upload.num_parts + 1)]
        version_of(await storage.complete_upload(upload, parts))
        assert (await storage.read("a", max_bytes=len(data))).data == data

    # -- cancellation and memory -----------------------------------------------------------------------------

    async def test_a_cancelled_put_stores_all_or_nothing(
        self, storage: ObjectStorage, tmp_path: Path
    ) -> None:
        """At whatever moment; and no upload is left behind."""
        data = pattern(4 << 20)
        path = await file_of(tmp_path, data)
        for turns in (0, 1, 2, 5, 10, 20, 40):
            writing = asyncio.create_task(storage.put(f"k{turns}", FileRange(path, 0, len(data))))
            await let_run(turns)
            await cancelled(writing)
            info = await storage.head(f"k{turns}")
            assert info is None or info.size_bytes == len(data)
        assert await _pending(storage) == []

    async def test_large_objects_take_little_memory(self, storage: ObjectStorage, tmp_path: Path) -> None:
        """On the way out and on the way back."""
        path = await sparse_file(tmp_path, self.large_bytes)
        tracemalloc.start()
        try:
            await storage.put("large", FileRange(path, 0, self.large_bytes))
            count = 0
            async with storage.get("large") as body:
                async for chunk in body:
                    count += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == self.large_bytes
        assert peak <= self.stream_allowance_bytes


async def _begin(
    storage: ObjectStorage, key: str, *, condition: Condition | None = None, crc32c: int | None = None
) -> tuple[Upload, bytes]:
    """An upload of three parts, the last of them small; and what it is to be."""
    part_bytes = storage.upload_rules.part_bytes(1, _SMALL_PART)
    data = pattern(2 * part_bytes + 1000)
    more = {} if condition is None else {"condition": condition}
    upload = await storage.begin_upload(
        key, size_bytes=len(data), part_bytes=part_bytes, crc32c=crc32c, **more
    )
    assert isinstance(upload, Upload)
    return upload, data


async def _put(storage: ObjectStorage, upload: Upload, data: bytes, number: int) -> UploadedPart:
    offset, size_bytes = upload.part_range(number)
    piece = data[offset : offset + size_bytes]
    part = await storage.put_part(upload, number, piece, crc32c=google_crc32c.value(piece))
    assert (part.number, part.size_bytes) == (number, size_bytes)
    return part


async def _pending(storage: ObjectStorage, prefix: str = "") -> list[str]:
    return [upload.key async for upload in storage.list_uploads(prefix)]


def _parts_like(upload: Upload, part: UploadedPart) -> list[UploadedPart]:
    numbers = range(1, upload.num_parts + 1)
    return [UploadedPart(n, upload.part_range(n)[1], part.tag, part.crc32c) for n in numbers]
