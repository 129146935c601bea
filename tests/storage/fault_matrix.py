"""Every operation of a storage under every fault between it and its server: right, or a clear error.

A case is one operation (a *scene*) on a prefix of its own, through a proxy of its own, with one fault at the n-th of
its requests, once or from then on. What came of it is looked at by another storage that goes to the server directly.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import secrets
import traceback
import typing
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import google_crc32c

from asynctune.errors import NotFoundError, StorageError
from asynctune.storage.base import ObjectStorage
from asynctune.storage.gcs import open_storage as open_gcs
from asynctune.storage.retry import Retry, RetryPolicy
from asynctune.storage.s3 import S3Storage
from asynctune.storage.s3_client import make_client, read_options
from asynctune.storage.settling import put_settled
from asynctune.storage.threads import Threads
from asynctune.storage.uri import parse_uri
from asynctune.storage.values import (
    Condition,
    Conflict,
    FileRange,
    IfVersion,
    OnlyCreate,
    Outcome,
    Stored,
    Upload,
    UploadedPart,
)
from asynctune.testing.storage_scenes import entries, get, pattern, version_of
from tests.storage.fault_proxy import FAULTS, GCS, S3, FaultProxy, Protocol

__all__ = ["CASES", "GCS_CASES", "SCENES", "Case", "Place", "Places", "gcs_places", "run_cases", "s3_places"]

POLICY: Final = RetryPolicy(base_s=0.001, cap_s=0.01, request_s=1.5, total_s=4.0, min_bytes_per_s=8 << 20)
HUNG_S: Final = 30.0  # several calls of a scene, each with its own deadline, on a busy machine
SECRET: Final = "secret-of-a-test"
LARGE: Final = pattern(3_000_000, 1)
OLD: Final = pattern(2000, 2)
NEW: Final = pattern(2100, 3)
PART: Final = pattern(5 << 20, 4)
LAST: Final = pattern(1000, 5)


@dataclass
class Place:
    """Where one case happens: a storage behind the proxy, and one that goes to the server directly."""

    storage: ObjectStorage
    direct: ObjectStorage
    source: str  # a file with LARGE in it
    heal: Callable[[], None]  # no fault from now on: an upload on GCS leads through the proxy whoever sends


Scene = Callable[[Place], Awaitable[None]]
Prepared = Callable[[Place], Awaitable[Scene]]
SCENES: Final[dict[str, Prepared]] = {}


def scene(name: str) -> Callable[[Prepared], Prepared]:
    """Register what prepares a scene without faults and returns what is done with them."""

    def register(function: Prepared) -> Prepared:
        SCENES[name] = function
        return function

    return register


# -- reading -----------------------------------------------------------------------------------------------------


@scene("head")
async def _head(place: Place) -> Scene:
    version = version_of(await place.direct.put("k", OLD))

    async def act(place: Place) -> None:
        info = await place.storage.head("k")
        assert info is not None, "an object that is there is missing"
        assert (info.key, info.size_bytes, info.version) == ("k", len(OLD), version)
        assert info.crc32c in (None, google_crc32c.value(OLD))

    return act


@scene("head of nothing")
async def _head_of_nothing(place: Place) -> Scene:
    async def act(place: Place) -> None:
        assert await place.storage.head("k") is None

    return act


@scene("get")
async def _get(place: Place) -> Scene:
    await place.direct.put("k", LARGE)

    async def act(place: Place) -> None:
        assert await get(place.storage, "k") == LARGE

    return act


@scene("get a range")
async def _get_a_range(place: Place) -> Scene:
    version = version_of(await place.direct.put("k", LARGE))

    async def act(place: Place) -> None:
        async with place.storage.get("k", start=1000, length=5000, version=version) as body:
            assert (body.info.size_bytes, body.info.version) == (len(LARGE), version)
            data = b"".join([chunk async for chunk in body])
        assert len(data) == 5000
        if data != LARGE[1000:6000]:
            # no server has a checksum of a range: whoever reads one has its own, and finds out
            raise StorageError("the bytes do not match the reader's checksum", operation="get", key="k")

    return act


@scene("read")
async def _read(place: Place) -> Scene:
    version = version_of(await place.direct.put("k", OLD))

    async def act(place: Place) -> None:
        content = await place.storage.read("k")
        assert (content.data, content.info.version) == (OLD, version)

    return act


@scene("list")
async def _list(place: Place) -> Scene:
    keys = [f"a/{number}" for number in range(5)]
    for key in [*keys, "b"]:
        await place.direct.put(key, key.encode())

    async def act(place: Place) -> None:
        assert await entries(place.storage, "a/") == keys
        assert await entries(place.storage, delimiter="/") == ["a/", "b"]

    return act


# -- writing -----------------------------------------------------------------------------------------------------


async def _content(place: Place, key: str = "k") -> bytes | None:
    try:
        return (await place.direct.read(key, max_bytes=64 << 20)).data
    except NotFoundError:
        return None


async def _written(
    place: Place, call: Callable[[], Awaitable[Outcome]], mine: bytes, before: bytes | None, *, settled: bool
) -> None:
    """A write whose condition holds: it happened if it says so, and whole or not at all in any case."""
    try:
        outcome = await call()
    except StorageError:
        assert await _content(place) in (mine, before), "half a write, or another one"
        raise
    there = await _content(place)
    if isinstance(outcome, Stored):
        assert there == mine, "it was said to be stored"
        info = await place.direct.head("k")
        assert info is not None
        assert info.version == outcome.version
    else:
        # of a conflict alone nothing follows: it may be that of an own copy
        assert there == before if settled else there in (mine, before)


@scene("put")
async def _put(place: Place) -> Scene:
    await place.direct.put("k", OLD)

    async def act(place: Place) -> None:
        check = google_crc32c.value(NEW)
        await _written(place, lambda: place.storage.put("k", NEW, crc32c=check), NEW, OLD, settled=True)

    return act


@scene("put a file")
async def _put_a_file(place: Place) -> Scene:
    async def act(place: Place) -> None:
        source = FileRange(place.source, 0, len(LARGE))
        await _written(place, lambda: place.storage.put("k", source), LARGE, None, settled=True)

    return act


@scene("create")
async def _create(place: Place) -> Scene:
    async def act(place: Place) -> None:
        await _written(
            place, lambda: place.storage.put("k", NEW, condition=OnlyCreate()), NEW, None, settled=False
        )

    return act


@scene("replace, settled")
async def _replace(place: Place) -> Scene:
    condition = IfVersion(version_of(await place.direct.put("k", OLD)))

    async def act(place: Place) -> None:
        await _written(
            place, lambda: put_settled(place.storage, "k", NEW, condition=condition), NEW, OLD, settled=True
        )

    return act


def _kept_out(condition: Condition) -> Scene:
    async def act(place: Place) -> None:
        try:
            outcome = await put_settled(place.storage, "k", NEW, condition=condition)
        finally:
            assert await _content(place) == OLD, "a write whose condition did not hold"
        assert isinstance(outcome, Conflict), "it was said to be stored"

    return act


@scene("create what is there")
async def _create_what_is_there(place: Place) -> Scene:
    await place.direct.put("k", OLD)
    return _kept_out(OnlyCreate())


@scene("replace another version")
async def _replace_another_version(place: Place) -> Scene:
    version = version_of(await place.direct.put("k", NEW[:100]))
    await place.direct.put("k", OLD)
    return _kept_out(IfVersion(version))


@scene("delete")
async def _delete(place: Place) -> Scene:
    for key in ("a", "b", "c", "left"):
        await place.direct.put(key, key.encode())

    async def act(place: Place) -> None:
        await place.storage.delete(["a"])
        assert "a" not in await entries(place.direct), "it was said to be deleted"
        await place.storage.delete(["b", "missing", "c"])
        assert await entries(place.direct) == ["left"]

    return act


# -- uploads in parts --------------------------------------------------------------------------------------------


async def _begin(storage: ObjectStorage, condition: Condition) -> Upload:
    size = len(PART) + len(LAST)
    upload = await storage.begin_upload("k", size_bytes=size, part_bytes=len(PART), condition=condition)
    assert isinstance(upload, Upload)
    return upload


async def _put_parts(storage: ObjectStorage, upload: Upload) -> list[UploadedPart]:
    return [
        await storage.put_part(upload, number, data, crc32c=google_crc32c.value(data))
        for number, data in ((1, PART), (2, LAST))
    ]


@scene("begin an upload")
async def _begin_an_upload(place: Place) -> Scene:
    async def act(place: Place) -> None:
        upload = await _begin(place.storage, OnlyCreate())
        place.heal()
        parts = await _put_parts(place.direct, upload)
        assert isinstance(await place.direct.complete_upload(upload, parts), Stored)
        assert await _content(place) == PART + LAST

    return act


@scene("put a part")
async def _put_a_part(place: Place) -> Scene:
    upload = await _begin(place.storage, OnlyCreate())

    async def act(place: Place) -> None:
        check = google_crc32c.value(PART)
        try:
            part = await place.storage.put_part(upload, 1, PART, crc32c=check)
        finally:
            assert await _content(place) is None
        assert (part.number, part.size_bytes, part.crc32c) == (1, len(PART), check)
        place.heal()
        parts = [part, await place.direct.put_part(upload, 2, LAST)]
        assert isinstance(await place.direct.complete_upload(upload, parts), Stored)
        assert await _content(place) == PART + LAST

    return act


@scene("list parts")
async def _list_parts(place: Place) -> Scene:
    upload = await _begin(place.storage, OnlyCreate())
    await place.storage.put_part(upload, 1, PART)

    async def act(place: Place) -> None:
        parts = await place.storage.list_parts(upload)
        assert [(part.number, part.size_bytes) for part in parts] == [(1, len(PART))]
        assert parts[0].crc32c in (None, google_crc32c.value(PART))

    return act


@scene("complete an upload")
async def _complete(place: Place) -> Scene:
    upload = await _begin(place.storage, OnlyCreate())
    parts = await _put_parts(place.storage, upload)

    async def act(place: Place) -> None:
        await _written(
            place, lambda: place.storage.complete_upload(upload, parts), PART + LAST, None, settled=False
        )

    return act


@scene("abort an upload")
async def _abort(place: Place) -> Scene:
    upload = await _begin(place.storage, OnlyCreate())
    await place.storage.put_part(upload, 1, PART)

    async def act(place: Place) -> None:
        await place.storage.abort_upload("k", upload.upload_id)
        place.heal()
        try:
            await place.direct.list_parts(upload)
        except NotFoundError:
            return
        raise AssertionError("it was said to be aborted")

    return act


@scene("list uploads")
async def _list_uploads(place: Place) -> Scene:
    await _begin(place.storage, OnlyCreate())

    async def act(place: Place) -> None:
        found = [upload.key async for upload in place.storage.list_uploads()]
        assert found == (["k"] if place.storage.upload_rules.listed else [])

    return act


# -- cases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    scene: str
    fault: str
    nth: int
    lasting: bool

    def __str__(self) -> str:
        when = "from" if self.lasting else "at"
        return f"{self.scene}: {self.fault} {when} request {self.nth}"


CASES: Final = [
    Case(name, fault, nth, lasting)
    for name, fault, (nth, lasting) in itertools.product(SCENES, FAULTS, [(1, False), (2, False), (1, True)])
]
"""Every operation, with every fault at its first request, at its second, and at all."""

_NOT_ON_GCS: Final = frozenset(
    {
        # a session may be refused early, and of such a conflict nothing follows
        ("begin an upload", "412"),
        ("begin an upload", "412 after"),
        # the checksum of the whole is in the request that begins a session: if that one is damaged (nothing but TLS
        # keeps it whole), the server compares with another
        ("begin an upload", "damaged upload"),
        ("put a part", "damaged upload"),
        ("complete an upload", "damaged upload"),
    }
)

GCS_CASES: Final = [case for case in CASES if (case.scene, case.fault) not in _NOT_ON_GCS]
"""Those that tell something on Google Cloud Storage."""


class Surely:
    """A storage whose errors are no errors of a case."""

    def __init__(self, storage: ObjectStorage) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._storage, name)
        if not inspect.iscoroutinefunction(method):
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            try:
                return await method(*arguments, **options)
            except StorageError as error:
                if isinstance(error, NotFoundError) and name in ("read", "list_parts"):
                    raise
                raise AssertionError(f"the server itself fails: {error}") from error

        return call


class Places(typing.Protocol):
    """Opens the place of a case, and a proxy that its storage goes through."""

    def __call__(self, name: str) -> AbstractAsyncContextManager[tuple[Place, FaultProxy]]: ...


def s3_places(endpoint: str, bucket: str, source: str) -> Places:
    """Places in a bucket of a server of S3, which has to be there."""

    async def opened(url: str, name: str) -> ObjectStorage:
        options = read_options({"key": "k", "secret": SECRET, "endpoint_url": url, "region": "us-east-1"})
        threads = Threads("s3", 2)
        client = await make_client(options, threads)
        return S3Storage(parse_uri(f"s3://{bucket}/{name}"), client, threads, options, policy=POLICY)

    return _places(endpoint, S3, opened, source)


def gcs_places(endpoint: str, bucket: str, source: str) -> Places:
    """Places in a bucket of a server of GCS."""

    async def opened(url: str, name: str) -> ObjectStorage:
        options = {"endpoint_url": url, "anonymous": True}
        return await open_gcs(parse_uri(f"gs://{bucket}/{name}"), options, retry=Retry(POLICY))

    return _places(endpoint, GCS, opened, source)


def _places(
    endpoint: str,
    protocol: Protocol,
    opened: Callable[[str, str], Awaitable[ObjectStorage]],
    source: str,
) -> Places:
    @asynccontextmanager
    async def place(name: str) -> AsyncGenerator[tuple[Place, FaultProxy], None]:
        async with FaultProxy(endpoint, protocol) as proxy, AsyncExitStack() as stack:
            storages = []
            for url in (proxy.url, endpoint):
                storages.append(await opened(url, name))
                stack.push_async_callback(storages[-1].aclose)
            yield Place(storages[0], cast("Any", Surely(storages[1])), source, proxy.heal), proxy

    return place


async def run_cases(places: Places, cases: Iterable[Case], at_once: int = 6) -> Counter[str]:
    """Run cases, some at a time; how often each ending came. The first case that went wrong is named by a note."""
    outcomes: Counter[str] = Counter()
    waiting = iter(cases)

    async def some() -> None:
        for case in waiting:
            try:
                outcomes[await run_case(places, case)] += 1
            except BaseException as error:
                error.add_note(f"case: {case}")
                raise

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(some())
    return outcomes


async def run_case(places: Places, case: Case) -> str:
    """Run one case: `"right"`, the name of the error, or `"not reached"`."""
    async with places(f"case-{secrets.token_hex(6)}") as (place, proxy):
        act = await SCENES[case.scene](place)
        fault = proxy.set(case.fault, nth=case.nth, lasting=case.lasting)
        try:
            async with asyncio.timeout(HUNG_S):
                await act(place)
        except StorageError as error:
            _check_error(error)
            return type(error).__name__
        except TimeoutError as error:
            raise AssertionError("it hangs beyond every deadline") from error
        return "right" if fault.hits else "not reached"


def _check_error(error: StorageError) -> None:
    told = "\n".join(traceback.format_exception(error))
    said = "\n".join([str(error), repr(error), *getattr(error, "__notes__", ())])
    assert error.operation, said
    assert not re.search(f"{SECRET}|https?://|/session/|[Uu]pload[Ii]d=", said), said
    assert SECRET not in told, told
