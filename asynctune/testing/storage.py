"""Owns the suite for storages: what the mirror and the uploads rely on. Needs pytest and pytest-asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import ClassVar, Final

import google_crc32c
import pytest
import pytest_asyncio

from asynctune.errors import ConditionFailedError, ConfigError, NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.keys import MAX_KEY_BYTES
from asynctune.storage.settling import put_settled
from asynctune.storage.values import (
    Conflict,
    FileRange,
    IfVersion,
    ObjectInfo,
    OnlyCreate,
    Source,
    Stored,
)
from asynctune.testing.storage_scenes import (
    at_once,
    cancelled,
    entries,
    expected_entries,
    file_of,
    get,
    key_of,
    let_run,
    pattern,
    version_of,
)
from asynctune.testing.storage_uploads import TransferTests

__all__ = ["ObjectStorageTests"]

MakeStorage = Callable[[], Awaitable[ObjectStorage]]

_SIZE: Final = 100_000
_LARGER: Final = 3_000_000
_VERSIONS: Final = 5
_INCREMENTS: Final = 5
_TASKS: Final = 4
_LONG_AGO: Final = 1e9


class ObjectStorageTests(TransferTests):
    """Inherit from this class, and say how a storage is opened; pytest runs its tests for it.

    Example::

        class TestMyStorage(ObjectStorageTests):
            @pytest.fixture
            def make_storage(self, tmp_path):
                async def make():
                    return MyStorage(tmp_path)
                return make

    Attributes:
        many: How many objects the test of long listings makes; more than a page has.
        large_bytes: Size of what is streamed to see whether memory is bounded.
        stream_allowance_bytes: How much memory that may take.
    """

    pytestmark: ClassVar = [pytest.mark.asyncio]
    many: ClassVar[int] = 1010

    @pytest.fixture
    def make_storage(self) -> MakeStorage:
        """Override: a coroutine function that opens a storage of this test's own place, which is empty at first.

        Each call opens another one of the same place, as another process would.
        """
        raise NotImplementedError

    @pytest_asyncio.fixture
    async def storage(self, make_storage: MakeStorage) -> AsyncGenerator[ObjectStorage, None]:
        """One of them."""
        storage = await make_storage()
        yield storage
        await storage.aclose()

    @pytest_asyncio.fixture
    async def other(self, make_storage: MakeStorage) -> AsyncGenerator[ObjectStorage, None]:
        """Another one of the same place."""
        storage = await make_storage()
        yield storage
        await storage.aclose()

    # -- whole objects ---------------------------------------------------------------------------------------

    async def test_it_has_the_methods_of_a_storage(self, storage: ObjectStorage) -> None:
        """See `asynctune.storage.base.ObjectStorage`."""
        assert isinstance(storage, ObjectStorage)
        assert storage.location
        assert 0 < storage.max_key_bytes <= MAX_KEY_BYTES

    @pytest.mark.parametrize("size", [0, 1, _SIZE, _LARGER])
    async def test_what_was_put_is_there(
        self, storage: ObjectStorage, other: ObjectStorage, size: int
    ) -> None:
        """For others too, with its size, its version, and its checksum if that is kept."""
        data = pattern(size)
        outcome = await storage.put("a/b", data, crc32c=google_crc32c.value(data))
        assert isinstance(outcome, Stored)
        info = await other.head("a/b")
        assert info is not None
        assert (info.key, info.size_bytes, info.version) == ("a/b", size, outcome.version)
        assert info.crc32c in (None, google_crc32c.value(data))
        assert info.modified_at > _LONG_AGO
        content = await other.read("a/b")
        assert content.data == data
        assert content.info.version == outcome.version

    async def test_what_is_not_there_is_missing(self, storage: ObjectStorage) -> None:
        """A value for `head`, an error for who wants bytes."""
        assert await storage.head("a") is None
        with pytest.raises(NotFoundError) as caught:
            await storage.read("a")
        assert caught.value.key == "a"
        assert not caught.value.retryable
        with pytest.raises(NotFoundError):
            await get(storage, "a")
        assert await entries(storage) == []

    async def test_another_content_has_another_version(self, storage: ObjectStorage) -> None:
        """Of the same size too, one right after the other."""
        versions = [version_of(await storage.put("a", b"%d" % number)) for number in range(_VERSIONS)]
        assert len(set(versions)) == _VERSIONS
        assert (await storage.read("a")).data == b"4"

    async def test_a_file_range_is_stored_as_bytes_are(self, storage: ObjectStorage, tmp_path: Path) -> None:
        """All of a file, a part of it, nothing of it."""
        data = pattern(_SIZE)
        path = await file_of(tmp_path, data)
        for start, size in ((0, _SIZE), (10, 1000), (_SIZE, 0)):
            expected = data[start : start + size]
            source = FileRange(path, start, size)
            await storage.put("a", source, crc32c=google_crc32c.value(expected))
            assert (await storage.read("a")).data == expected

    async def test_a_source_that_is_not_what_it_should_be_is_refused(
        self, storage: ObjectStorage, tmp_path: Path
    ) -> None:
        """Too short, missing, or with another checksum: an error that no repetition helps, and nothing stored."""
        path = await file_of(tmp_path, pattern(_SIZE))
        wrong = google_crc32c.value(b"something else")
        attempts: list[tuple[Source, int | None]] = [
            (FileRange(path, 10, _SIZE), None),
            (FileRange(f"{path}.missing", 0, 1), None),
            (FileRange(path, 0, _SIZE), wrong),
            (pattern(_SIZE), wrong),
            (b"", wrong),
        ]
        for source, crc32c in attempts:
            with pytest.raises(StorageError) as caught:
                await storage.put("a", source, crc32c=crc32c)
            assert not caught.value.retryable
            assert await storage.head("a") is None

    @pytest.mark.parametrize(
        ("start", "length"),
        [(0, 10), (10, 10), (0, 0), (50, None), (90, 100), (100, None), (100, 1), (1000, None), (1000, 5)],
    )
    async def test_ranges(self, storage: ObjectStorage, start: int, length: int | None) -> None:
        """At and behind the end they are empty."""
        data = pattern(100)
        await storage.put("a", data)
        end = None if length is None else start + length
        async with storage.get("a", start=start, length=length) as body:
            assert (body.info.key, body.info.size_bytes) == ("a", 100)
            assert b"".join([chunk async for chunk in body]) == data[start:end]

    async def test_ranges_of_an_empty_object_are_empty(self, storage: ObjectStorage) -> None:
        """Also the one from its beginning."""
        await storage.put("a", b"")
        for start, length in ((0, None), (0, 10), (5, None)):
            assert await get(storage, "a", start=start, length=length) == b""

    async def test_a_version_is_read_or_none(self, storage: ObjectStorage) -> None:
        """So that ranges read one after the other fit together."""
        first = version_of(await storage.put("a", pattern(100)))
        assert await get(storage, "a", start=3, length=4, version=first) == pattern(100)[3:7]
        await storage.put("a", bytes(100))
        with pytest.raises(ConditionFailedError):
            await get(storage, "a", start=3, length=4, version=first)

    async def test_a_body_may_be_left_unread(self, storage: ObjectStorage) -> None:
        """It holds no connection afterwards, nor does one whose reader was cancelled."""
        await storage.put("a", pattern(_LARGER))
        for _ in range(30):
            async with storage.get("a") as body:
                async for chunk in body:
                    assert chunk
                    break
        for turns in range(20):
            reading = asyncio.create_task(get(storage, "a"))
            await let_run(turns)
            await cancelled(reading)
        assert len((await storage.read("a")).data) == _LARGER

    async def test_what_is_too_large_is_not_read(self, storage: ObjectStorage) -> None:
        """By `read`, which holds all of it."""
        await storage.put("a", b"12345")
        assert (await storage.read("a", max_bytes=5)).data == b"12345"
        with pytest.raises(StorageError) as caught:
            await storage.read("a", max_bytes=4)
        assert not caught.value.retryable

    # -- conditions ------------------------------------------------------------------------------------------

    async def test_conditions_are_kept_or_refused(self, storage: ObjectStorage) -> None:
        """Never ignored."""
        if not storage.supports_conditions:
            for condition in (OnlyCreate(), IfVersion("1")):
                with pytest.raises(ConfigError):
                    await storage.put("a", b"1", condition=condition)
            pytest.skip("no conditional writes")
        assert isinstance(await storage.put("a", b"0", condition=IfVersion("none")), Conflict)
        assert await storage.head("a") is None
        first = version_of(await storage.put("a", b"1", condition=OnlyCreate()))
        conflict = await storage.put("a", b"2", condition=OnlyCreate())
        assert isinstance(conflict, Conflict)
        assert conflict.version in (None, first)
        second = version_of(await storage.put("a", b"3", condition=IfVersion(first)))
        assert isinstance(await storage.put("a", b"4", condition=IfVersion(first)), Conflict)
        content = await storage.read("a")
        assert (content.data, content.info.version) == (b"3", second)
        await storage.delete(["a"])
        assert isinstance(await storage.put("a", b"5", condition=IfVersion(second)), Conflict)
        assert isinstance(await storage.put("a", b"6", condition=OnlyCreate()), Stored)

    async def test_of_many_that_create_one_does(self, storage: ObjectStorage, other: ObjectStorage) -> None:
        """And what is there is its."""
        self._needs_conditions(storage)
        for key in ("a", "b/c", "d"):
            outcomes = await asyncio.gather(
                *((storage, other)[n % 2].put(key, b"%d" % n, condition=OnlyCreate()) for n in range(10))
            )
            winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Stored)]
            assert len(winners) == 1
            assert (await storage.read(key)).data == b"%d" % winners[0]

    async def test_no_increment_is_lost(self, storage: ObjectStorage, other: ObjectStorage) -> None:
        """Each reads, adds one, and swaps, until it succeeds."""
        self._needs_conditions(storage)
        await storage.put("n", json.dumps([0, ""]).encode())

        async def increment(mine: ObjectStorage, name: str) -> None:
            done = 0
            while done < _INCREMENTS:
                content = await mine.read("n")
                data = json.dumps([json.loads(content.data)[0] + 1, f"{name}{done}"]).encode()
                done += isinstance(
                    await mine.put("n", data, condition=IfVersion(content.info.version)), Stored
                )

        await asyncio.gather(*(increment((storage, other)[n % 2], f"{n}-") for n in range(_TASKS)))
        assert json.loads((await storage.read("n")).data)[0] == _TASKS * _INCREMENTS

    async def test_a_settled_write_says_whose_it_is(self, storage: ObjectStorage) -> None:
        """By reading back."""
        self._needs_conditions(storage)
        assert isinstance(await put_settled(storage, "a", b"mine", condition=OnlyCreate()), Stored)
        assert isinstance(await put_settled(storage, "a", b"mine", condition=OnlyCreate()), Stored)
        assert isinstance(await put_settled(storage, "a", b"hers", condition=OnlyCreate()), Conflict)

    # -- keys ------------------------------------------------------------------------------------------------

    async def test_keys_are_text_of_any_kind(self, storage: ObjectStorage) -> None:
        """Each is its own object, and is listed as it was put."""
        names = "a b|+|a+b|%|%20|a%2Fb|?|#|&|=|'|\"|<x>|*|\\|~|[x]|{}|;|:|,|@|!|$|.hidden|a.|a..b| x |é|e\u0301|日本|😀"
        keys = [f"k/{name}/{name}" for name in names.split("|")]
        await at_once(storage.put(key, key.encode()) for key in keys)
        assert await entries(storage, "k/") == sorted(keys)
        contents = await at_once(storage.read(key) for key in keys)
        assert [content.data for content in contents] == [key.encode() for key in keys]
        await storage.delete(keys)
        assert await entries(storage) == []

    @pytest.mark.parametrize(
        "key",
        ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\n", "a\0b", "\ud800", "n" * 256],
        ids=ascii,
    )
    async def test_other_keys_are_refused(self, storage: ObjectStorage, key: str) -> None:
        """Before anything is asked of the storage."""
        with pytest.raises(ConfigError):
            await storage.head(key)
        with pytest.raises(ConfigError):
            await get(storage, key)
        with pytest.raises(ConfigError):
            await storage.put(key, b"")
        with pytest.raises(ConfigError):
            await storage.delete([key])

    async def test_a_key_may_be_so_long_and_no_longer(self, storage: ObjectStorage) -> None:
        """Counted in UTF-8."""
        longest = key_of(storage.max_key_bytes)
        await storage.put(longest, b"1")
        assert (await storage.read(longest)).data == b"1"
        assert await entries(storage) == [longest]
        with pytest.raises(ConfigError):
            await storage.put(longest + "x", b"1")

    # -- listing and deleting --------------------------------------------------------------------------------

    async def test_listings_begin_where_they_are_told_to(self, storage: ObjectStorage) -> None:
        """By prefix, by delimiter, behind a key; in the order of UTF-8, in which `/` sorts as any character."""
        keys = [
            "a",
            "a-b",
            "b/-",
            "b/c/1",
            "b/c/2",
            "b/c-",
            "b/d",
            "b0",
            "ba/x",
            "c/d/e/f",
            "é/1",
            "\ufb00",
            "😀",
        ]
        await at_once(storage.put(key, key.encode()) for key in keys)
        afters = [None, "0", "a", "b/", "b/c", "b/c/", "b/c/1", "b/c0", "b0", "c/d", "z", "é/", "😀"]
        for prefix in ("", "a", "b", "b/", "b/c", "b/c/", "c/d/e/f", "c/d/", "é", "x"):
            for after in afters:
                for delimiter in (None, "/"):
                    listed = await entries(storage, prefix, delimiter, after)
                    assert listed == expected_entries(keys, prefix, delimiter, after), (
                        prefix,
                        after,
                        delimiter,
                    )
        for prefix in ("/", "a//", "../"):
            with pytest.raises(ConfigError):
                await entries(storage, prefix)

    async def test_listings_and_deletions_may_be_long(self, storage: ObjectStorage) -> None:
        """Longer than what one request tells, or deletes."""
        keys = [f"many/{number % 7}/{number:05d}" for number in range(self.many)]
        await at_once(storage.put(key, key[-5:].encode()) for key in [*keys, "many-1", "man", "z"])
        assert await entries(storage, "many/") == sorted(keys)
        assert await entries(storage, "many/", "/") == [f"many/{number}/" for number in range(7)]
        assert await entries(storage, start_after=sorted(keys)[9]) == [*sorted(keys)[10:], "z"]
        async with aclosing(storage.list_objects("many/")) as listing:
            first = await anext(listing)
            assert isinstance(first, ObjectInfo)
            assert first.size_bytes == len(first.key[-5:])
            head = await storage.head(first.key)
            assert head is not None
            assert head.version == first.version
        missing = [f"missing/{number}" for number in range(20)]
        await storage.delete([*missing, *keys])
        assert await entries(storage) == ["man", "many-1", "z"]

    async def test_what_is_missing_is_deleted_already(self, storage: ObjectStorage) -> None:
        """Nothing at all, too."""
        await storage.delete([])
        await storage.delete(["a", "b/c"])
        await storage.put("b/c", b"1")
        await storage.delete(["b/c", "a"])
        await storage.put("b/c", b"2")
        assert (await storage.read("b/c")).data == b"2"

    # -- the end ---------------------------------------------------------------------------------------------

    async def test_after_the_close_nothing_works(self, make_storage: MakeStorage) -> None:
        """A second close does no harm."""
        storage = await make_storage()
        await storage.put("a", b"1")
        await storage.aclose()
        await storage.aclose()
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: storage.head("a"),
            lambda: storage.read("a"),
            lambda: storage.put("a", b"2"),
            lambda: storage.delete(["a"]),
            lambda: entries(storage),
        ]
        for call in calls:
            with pytest.raises(StorageError):
                await call()

    def _needs_conditions(self, storage: ObjectStorage) -> None:
        if not storage.supports_conditions:
            pytest.skip("no conditional writes")
